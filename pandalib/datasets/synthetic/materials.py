"""What is inspected: five textures and one object, each drawn by a function of generator and size.

A function draws all its random numbers at once and returns a `Scene`: the normal image, and the
same image with something wrong in its structure (a thread missing, a tile turned).
"""

from __future__ import annotations

import math

import numpy as np

from pandalib.datasets.synthetic.shading import (
    CODE,
    LIGHT_FROM,
    Scene,
    axes,
    clouds,
    lamp,
    mix,
    normal,
    relief,
    sample,
    step,
    tinted,
    turned,
    uniform,
)

PI = np.float32(math.pi)


def anywhere(rng: np.random.Generator) -> tuple[float, float]:
    return uniform(rng, -0.62, 0.62), uniform(rng, -0.62, 0.62)


def weave(rng: np.random.Generator, size: int) -> Scene:
    """Plain weave of two blues.

    `redraw(thread=(x, y), length=...)`: the weft thread there is missing for so long.
    """
    x, y = axes(size)
    period = 2 / uniform(rng, 13.5, 14.5)
    angle = uniform(rng, -0.05, 0.05)
    u, v = turned(x, y, angle)
    s, t = (
        (line + 0.010 * clouds(rng, 4, 4, size)) * np.float32(1 / period)
        + np.float32(uniform(rng, 0, 2))
        for line in (u, v)
    )
    i, j = np.floor(s), np.floor(t)
    across, along = np.sin(PI * (s - i)), np.sin(PI * (t - j))
    i, j = i.astype(np.int32), j.astype(np.int32)
    even = ((i + j) & 1).astype(bool)
    # Each thread has its own lightness and thickness, as spun yarn has.
    warp_light, weft_light = (1 + 0.04 * normal(rng, 64).take(number % 64) for number in (i, j))
    warp = across * (0.62 + 0.38 * along) * warp_light
    weft = along * (0.62 + 0.38 * across) * weft_light
    yarn = 1 + 0.05 * clouds(rng, 128, 128, size) + 0.03 * clouds(rng, 6, 6, size)
    dark, blue, pale = tinted(rng, (0.36, 0.055, 258), (0.63, 0.075, 252), (0.83, 0.030, 235))
    lit = lamp(rng, size)

    def redraw(thread: tuple[float, float] | None = None, length: float = 0.0) -> np.ndarray:
        height, is_blue = np.where(even, warp, weft), even
        if thread is not None:
            a, b = turned(*np.float32(thread), angle)
            row = j[np.unravel_index(np.argmin((u - a) ** 2 + (v - b) ** 2), u.shape)]
            gone = (j == row) & (np.abs(u - a) < length / 2)
            height = np.where(gone, 0.62 * across * warp_light - 0.04, height)
            is_blue = even | gone
        high = np.clip(height, 0, 1.2) ** np.float32(0.8)
        colour = np.where(is_blue, blue[:, None, None], pale[:, None, None])
        return mix(dark, colour, high) * (yarn * lit)

    return Scene(redraw(), anywhere, angle, redraw=redraw)


def wood(rng: np.random.Generator, size: int) -> Scene:
    """Oak, its grain from left to right, with rings, fibres and pores."""
    x, y = axes(size)
    angle = uniform(rng, -0.06, 0.06)
    _, v = turned(x, y, angle)
    v = v + 0.05 * clouds(rng, 4, 3, size)
    ring = v * np.float32(uniform(rng, 3.4, 4.2)) + 0.45 * clouds(rng, 5, 2, size)
    phase = 2 * PI * (ring + np.float32(uniform(rng, 0, 1)))
    # A slow rise in spring, a quick end in autumn.
    late = 0.5 + 0.5 * np.sin(phase + 0.8 * np.sin(phase))
    rows, columns = v * 64, x * 8
    fibres = sample(normal(rng, 160, 16), rows, columns)
    pores = np.clip(sample(normal(rng, 190, 64), rows * np.float32(1.3), columns * 3) - 1.0, 0, 1)
    pale, brown, pore = tinted(rng, (0.795, 0.070, 77), (0.64, 0.088, 64), (0.44, 0.065, 55))
    tone = 0.12 + 0.62 * late * late + 0.13 * fibres + 0.12 * clouds(rng, 4, 3, size)
    grain = mix(pale, brown, np.clip(tone, -0.3, 1.3))
    return Scene(mix(grain, pore, 0.75 * pores) * lamp(rng, size), anywhere, angle)


def leather(rng: np.random.Generator, size: int) -> Scene:
    """Brown leather: rounded cells between creases, lit from the side."""
    x, y = axes(size)
    cells = np.float32(uniform(rng, 9.0, 10.0))
    x, y = x + 0.035 * clouds(rng, 7, 7, size), y + 0.035 * clouds(rng, 7, 7, size)
    u, v = turned(x, y, uniform(rng, -math.pi, math.pi))
    nearest, second = cellular(rng, u * cells, v * cells)
    height = np.clip((second - nearest) * np.float32(2.0), 0, 1)
    height = height * (2 - height) + 0.09 * clouds(rng, 128, 128, size)
    shine = np.clip(0.6 * relief(height), -0.5, 0.7)
    dark, brown, pale = tinted(rng, (0.30, 0.050, 40), (0.49, 0.085, 46), (0.64, 0.080, 56))
    tone = np.clip(0.45 + 0.5 * np.minimum(height, 1) + 0.10 * clouds(rng, 5, 5, size), 0, 1.2)
    return Scene(mix(mix(dark, brown, tone), pale, shine) * lamp(rng, size), anywhere)


def cellular(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, side: int = 32):
    """Distance to the nearest and second nearest of scattered points (Worley 1996)."""
    place = (0.5 + np.clip(0.27 * normal(rng, 2, side, side), -0.45, 0.45)).reshape(2, -1)
    left, top = np.floor(u), np.floor(v)
    a, b = u - left, v - top
    left, top = left.astype(np.int32) % side, top.astype(np.int32) % side
    nearest = second = np.full_like(u, 9)
    for down in (-1, 0, 1):
        row = (top + down) % side * side
        for right in (-1, 0, 1):
            number = row + (left + right) % side
            dx, dy = place[0].take(number) + (right - a), place[1].take(number) + (down - b)
            square = dx**2 + dy**2
            second = np.minimum(second, np.maximum(nearest, square))
            nearest = np.minimum(nearest, square)
    return np.sqrt(nearest), np.sqrt(second)


def metal(rng: np.random.Generator, size: int) -> Scene:
    """Brushed steel: fine streaks from left to right under a broad highlight."""
    x, y = axes(size)
    angle = uniform(rng, -0.03, 0.03)
    u, v = turned(x, y, angle)
    streaks = 0.6 * sample(normal(rng, 192, 9), v * 80, u * 3)
    streaks = streaks + 0.55 * sample(normal(rng, 256, 24), v * 110, u * 9)
    streaks += 0.35 * sample(normal(rng, 32, 4), v * 9, u * 1)
    place, width = np.float32(uniform(rng, -0.7, 0.7)), np.float32(uniform(rng, 0.45, 0.75))
    shine = np.exp(-(((u - place) / width) ** 2))
    dark, pale = tinted(rng, (0.56, 0.012, 250), (0.86, 0.008, 240))
    tone = np.clip(0.42 + 0.13 * streaks + 0.30 * shine, 0, 1.15)
    return Scene(mix(dark, pale, tone) * lamp(rng, size, 0.05), anywhere, angle)


def tiles(rng: np.random.Generator, size: int) -> Scene:
    """Cement tiles, light and blue in turn, each with a quarter of a red disc in a corner.

    `redraw(at=(x, y), fault=...)` changes the tile there: "turned" by a quarter or a half,
    "wrong_colour", "missing".
    """
    x, y = axes(size)
    side = 2 / uniform(rng, 4.4, 4.6)
    angle = uniform(rng, -0.025, 0.025)
    u, v = turned(x, y, angle)
    s = u * np.float32(1 / side) + np.float32(8 + uniform(rng, -0.3, 0.3))
    t = v * np.float32(1 / side) + np.float32(8 + uniform(rng, -0.3, 0.3))
    left, top = np.floor(s), np.floor(t)
    columns, rows = left.astype(np.int32), top.astype(np.int32)
    off = 0.012 * normal(rng, 2, 16 * 16)  # every tile lies a little off its place
    number = rows * 16 + columns
    a, b = s - left + off[0].take(number), t - top + off[1].take(number)
    light = (1 + 0.025 * normal(rng, 256)).take(number)
    speckle = 1 + 0.022 * clouds(rng, 128, 128, size) + 0.02 * clouds(rng, 24, 24, size)
    pixel = 2 / size / side
    border = np.minimum(np.minimum(a, 1 - a), np.minimum(b, 1 - b))
    solid = step(border - 0.035, max(pixel, 0.02))
    lit_edge = np.where(border == np.minimum(a, b), np.float32(0.10), np.float32(-0.12))
    bevel = np.clip(1 - border / 0.10, 0, 1) * lit_edge
    cream, slate, red, joint, bed = tinted(
        rng,
        (0.87, 0.028, 88),
        (0.56, 0.050, 238),
        (0.56, 0.105, 36),
        (0.72, 0.012, 80),
        (0.43, 0.014, 70),
    )
    grit = clouds(rng, 128, 128, size)
    rough = 1 + 0.07 * grit + 0.06 * clouds(rng, 40, 40, size)
    lit = lamp(rng, size)

    def redraw(at: tuple[float, float] | None = None, fault: str = "", turn: int = 1) -> np.ndarray:
        corner_x, corner_y, dark, there = 1 - columns % 2, 1 - rows % 2, (columns + rows) % 2, None
        if at is not None:
            nearest = np.argmin((x - at[0]) ** 2 + (y - at[1]) ** 2)
            there = number == number[np.unravel_index(nearest, x.shape)]
        if fault == "wrong_colour":
            dark = np.where(there, 1 - dark, dark)
        if fault == "turned":
            corner_x = np.where(there & (turn != 1), 1 - corner_x, corner_x)
            corner_y = np.where(there & (turn != 3), 1 - corner_y, corner_y)
        radius = np.hypot(a - np.float32(corner_x), b - np.float32(corner_y))
        face = np.where(dark.astype(bool), slate[:, None, None], cream[:, None, None])
        face = mix(face, red, step(np.float32(0.47) - radius, pixel)) * (light * speckle + bevel)
        image = mix(joint[:, None, None] * (1 + 0.05 * grit), face, solid)
        if fault == "missing":
            hollow = 1 - 0.35 * np.clip(1 - np.minimum(a, b) / 0.16, 0, 1)  # the neighbours' shadow
            image = np.where(there, bed[:, None, None] * (rough * hollow), image)
        return image * lit

    return Scene(redraw(), anywhere, angle, redraw=redraw)


def washer(rng: np.random.Generator, size: int) -> Scene:
    """A steel washer on a rubber mat, turned at will, its printed dots across from its notch.

    `redraw` takes: `code`, the dots; `moved`, the angle by which they are off, and `raised`, by how
    much they are too far out; `bend`, how far the rim is pushed in at angle `at` (angles from the
    notch, in radians); `bite`, of a piece that is broken out the angle, whether it is on the outer
    edge or the inner one, and the radius.
    """
    x, y = axes(size)
    outer, inner, middle = 0.67, 0.29, 0.475
    pixel = 2 / size
    cx, cy = uniform(rng, -0.13, 0.13), uniform(rng, -0.13, 0.13)
    angle = uniform(rng, -math.pi, math.pi)
    dx, dy = x - np.float32(cx), y - np.float32(cy)
    radius = np.hypot(dx, dy)
    direction = np.arctan2(dy, dx)
    around = from_minus_pi(direction - np.float32(angle))
    shadow_radius = np.hypot(dx - np.float32(0.035), dy - np.float32(0.05))
    mat, steel, pale, red, blue = tinted(
        rng,
        (0.40, 0.035, 205),
        (0.73, 0.012, 240),
        (0.93, 0.006, 220),
        (0.58, 0.17, 28),
        (0.50, 0.11, 255),
    )
    rubber = 1 + 0.09 * clouds(rng, 128, 128, size) + 0.05 * clouds(rng, 48, 48, size)
    ground = mat[:, None, None] * (rubber + 0.03 * clouds(rng, 4, 4, size))
    grooves, gloss = normal(rng, 1, 64), uniform(rng, -math.pi, math.pi)
    grain, ragged = 0.035 * clouds(rng, 128, 128, size), 0.022 * clouds(rng, 14, 14, size)
    lit = lamp(rng, size)
    towards_lamp = np.cos(direction - np.float32(math.atan2(LIGHT_FROM[1], LIGHT_FROM[0])))
    shine = 0.5 + 0.5 * np.cos(2 * (direction - np.float32(gloss)))

    def shape(r: np.ndarray) -> np.ndarray:
        ring = step(outer - r, pixel) * step(r - inner, pixel)
        notch = np.hypot(r * np.cos(around) - np.float32(outer), r * np.sin(around))
        return ring * step(notch - 0.085, pixel)

    def redraw(
        code: str = CODE,
        moved: float = 0.0,
        raised: float = 0.0,
        bend: float = 0.0,
        at: float = 0.0,
        bite: tuple | None = None,
    ) -> np.ndarray:
        r, tilt = radius, 0.0
        if bend:
            away = from_minus_pi(around - np.float32(at))
            dent = np.clip(1 - (away / np.float32(0.5)) ** 2, 0, None) ** 2
            r = radius + np.float32(bend) * dent
            kink = np.exp(-((away * radius / np.float32(0.035)) ** 2))
            tilt = -9 * bend * dent * (0.75 + 0.45 * towards_lamp) - 10 * bend * kink
        lathe = 0.10 * sample(grooves, np.zeros_like(r), radius * 46)
        tone = 0.30 + 0.42 * shine**3 + lathe + grain + tilt
        rim = np.clip(1 - np.abs(r - np.float32(outer - 0.03)) / 0.035, 0, 1)
        bore = np.clip(1 - np.abs(r - np.float32(inner + 0.03)) / 0.035, 0, 1)
        tone = tone + 0.55 * (rim - bore) * towards_lamp
        face = mix(steel, pale, np.clip(tone, -1.6, 1.0))
        track = middle + raised
        for number, letter in enumerate(code):
            turn = np.float32(math.pi + moved + 0.32 * (number - (len(code) - 1) / 2))
            square = r * r + track**2 - np.float32(2 * track) * r * np.cos(around - turn)
            dot = step(0.052 - np.sqrt(np.maximum(square, 0)), pixel)
            face = mix(face, red if letter == "r" else blue, 0.9 * dot)
        ring = shape(r)
        if bite is not None:
            turn, far = bite[0] + angle, outer if bite[1] else inner
            bx, by = np.float32(far * math.cos(turn)), np.float32(far * math.sin(turn))
            ring = ring * step(np.hypot(dx - bx, dy - by) + ragged - bite[2], pixel)
        shade = step(outer - shadow_radius, 0.12) * step(shadow_radius - inner, 0.12)
        return mix(ground * (1 - 0.55 * shade), face, ring) * lit

    def spot(rng: np.random.Generator) -> tuple[float, float]:
        far, towards = uniform(rng, 0.40, 0.55), uniform(rng, -math.pi, math.pi)
        return cx + far * math.cos(towards), cy + far * math.sin(towards)

    return Scene(redraw(), spot, cover=shape(radius), redraw=redraw)


def from_minus_pi(angle: np.ndarray) -> np.ndarray:
    """The same angle between -pi and pi."""
    return np.mod(angle + PI, 2 * PI) - PI


MATERIALS = {
    "weave": weave,
    "wood": wood,
    "tiles": tiles,
    "leather": leather,
    "metal": metal,
    "washer": washer,
}
