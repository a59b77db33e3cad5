"""What can be wrong with a surface: each function draws one defect over a scene, at full strength.

All have the signature (rng, scene, scale) -> float32 (3, size, size): the image with the defect.
`scale` multiplies its lengths. The random numbers drawn do not depend on it, so a defect lies in
the same place at every level.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import permutations

import numpy as np

from pandalib.datasets.synthetic.shading import (
    CODE,
    LIGHT_FROM,
    Scene,
    axes,
    clouds,
    mix,
    oklch,
    sample,
    step,
    turned,
    uniform,
)

# A touch of another hue where a defect is dark on one side and bright on the other, so that no line
# between them is left unchanged.
COOL = np.float32([0.07, 0.03, 0.0])[:, None, None]


# ---------------------------------------------------------------- shapes


def blob(rng, size: int, at, radius: float, *, rough: float, stretch: float = 1.0) -> np.ndarray:
    """How deep each pixel lies in an irregular ellipse: `radius` in the middle, 0 at its edge."""
    x, y = axes(size)
    u, v = turned(x - np.float32(at[0]), y - np.float32(at[1]), uniform(rng, -math.pi, math.pi))
    longer = np.float32(math.sqrt(stretch))
    return radius * (1 - rough * clouds(rng, 9, 9, size)) - np.hypot(u / longer, v * longer)


def stroke(
    rng,
    size: int,
    at: tuple[float, float],
    angle: float,
    length: float,
    *,
    bend: float = 0.05,
    waves: float = 0.0,
    jag: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Along and across a line: from -1 to 1 between its ends, and the signed distance from it.

    `bend`, `waves` and `jag` are how far it leaves the straight line, in its lengths: as an arc, in
    two or three swings, and in random corners.
    """
    x, y = axes(size)
    u, v = turned(x - np.float32(at[0]), y - np.float32(at[1]), angle)
    along = u * np.float32(2 / length)
    t = np.linspace(-1.2, 1.2, 97)
    arc = uniform(rng, -1, 1) * bend * (1 - t * t)
    swings = waves * np.sin(uniform(rng, 3.5, 6.5) * t + uniform(rng, -math.pi, math.pi))
    corners = np.cumsum(rng.standard_normal(13))
    corners -= np.linspace(corners[0], corners[-1], 13)
    path = length * (arc + swings + jag * np.interp(t, np.linspace(-1, 1, 13), corners))
    path -= path[48]  # through `at`
    slant = np.hypot(1, np.gradient(path, t * length / 2))  # a steep part is as thick as a flat one
    number = (np.clip(along, -1.19, 1.19) + np.float32(1.2)) * np.float32(40)
    path, slant = (
        sample(line[None].astype(np.float32), np.zeros_like(number), number)
        for line in (path, slant)
    )
    return along, (v - path) / slant


def any_way(rng) -> float:
    return uniform(rng, -math.pi / 2, math.pi / 2)


def line(along: np.ndarray, across: np.ndarray, width: float, taper: bool = True) -> np.ndarray:
    """Opacity of a line of this width; tapered, it ends in points."""
    size = len(along)
    room = np.sqrt(np.clip(1 - along * along, 0, None)) if taper else step(1 - np.abs(along), 0.04)
    half = np.float32(width / 2) * room
    edge, ends = step(half - np.abs(across), 2 / size), step(1 - np.abs(along), 0.06)
    return edge * ends * np.minimum(1, half * size)


def ink_of(lch: tuple[float, float, float]) -> np.ndarray:
    """A colour by lightness, chroma and hue in degrees."""
    return oklch(lch[0], lch[1], math.radians(lch[2]))


# ---------------------------------------------------------------- lines


def scratch(rng, scene: Scene, scale: float, *, change: float) -> np.ndarray:
    """Scored: brighter, or darker, than around it, with a burr of the other kind on one side."""
    at, angle = scene.spot(rng), scene.angle + any_way(rng)
    length, width = scale * uniform(rng, 0.6, 1.0), 0.030 * scale
    along, across = stroke(rng, scene.size, at, angle, length, jag=0.004)
    score, burr = line(along, across, width), line(along, across - np.float32(0.8 * width), width)
    shade = change * (score - 0.5 * burr * (1 - score)) - COOL * np.maximum(score, burr)
    return scene.image + scene.cover * shade


def crack(rng, scene: Scene, scale: float, *, with_grain: bool = False, ink: tuple) -> np.ndarray:
    """A jagged gap, dark, with a branch."""
    at, length, width = scene.spot(rng), scale * uniform(rng, 0.7, 1.1), 0.032 * scale
    angle = scene.angle + (uniform(rng, -0.08, 0.08) if with_grain else any_way(rng))
    jag = 0.006 if with_grain else 0.022
    gap = line(*stroke(rng, scene.size, at, angle, length, jag=jag), width)
    off = uniform(rng, 0.5, 0.9) * (1 if rng.random() < 0.5 else -1) * (0.2 if with_grain else 1)
    side, reach = angle + off, 0.22 * length
    fork = at[0] + reach * math.cos(side), at[1] + reach * math.sin(side)
    branch = line(*stroke(rng, scene.size, fork, side, 2.1 * reach, jag=jag), 0.75 * 0.032 * scale)
    return mix(scene.image, ink_of(ink), 0.95 * np.maximum(gap, branch))


def cut(rng, scene: Scene, scale: float, *, ink: tuple, lip: tuple) -> np.ndarray:
    """A slit with lips that catch the light."""
    at, angle = scene.spot(rng), scene.angle + any_way(rng)
    length, width = scale * uniform(rng, 0.45, 0.7), 0.075 * scale
    along, across = stroke(rng, scene.size, at, angle, length, bend=0.08)
    lips = mix(scene.image, ink_of(lip), 0.65 * line(along, across, 1.7 * width))
    return mix(lips, ink_of(ink), line(along, across, width))


def fold(rng, scene: Scene, scale: float) -> np.ndarray:
    """A crease pressed into the leather: a dark valley, a bright shoulder."""
    at, angle, length = scene.spot(rng), any_way(rng), scale * uniform(rng, 0.9, 1.4)
    along, across = stroke(rng, scene.size, at, angle, length, bend=0.15)
    ends = np.clip(1.6 * (1 - np.abs(along)), 0, 1)
    wide = np.float32(0.045 * scale)
    valley = np.exp(-((across / wide) ** 2))
    shoulder = np.exp(-((across / wide - 1.7) ** 2))
    both = np.exp(-((across / wide - 0.8) ** 4) / 4)
    return scene.image * (1 - 0.92 * ends * valley) + 0.34 * ends * shoulder - COOL * (ends * both)


def fibre(rng, scene: Scene, scale: float, *, ink: tuple) -> np.ndarray:
    """A strange thread or hair lies on the surface, with its shadow."""
    at, angle = scene.spot(rng), any_way(rng)
    length, width = scale * uniform(rng, 0.6, 0.9), 0.034 * scale
    along, across = stroke(rng, scene.size, at, angle, length, bend=0.2, waves=0.09)
    shadow = line(along, across - np.float32(0.7 * width), width, taper=False)
    shaded = scene.image * (1 - 0.35 * shadow)
    round_ = 1 - 0.3 * np.clip(across / np.float32(width), -1, 1)
    thread = ink_of(ink)[:, None, None] * round_
    return mix(shaded, thread, 0.95 * line(along, across, width, taper=False))


def paint(rng, scene: Scene, scale: float, *, ink: tuple) -> np.ndarray:
    """A streak of paint that does not belong there."""
    size, at, angle = scene.size, scene.spot(rng), any_way(rng)
    length = scale * uniform(rng, 0.5, 0.8)
    along, across = stroke(rng, size, at, angle, length, bend=0.1, waves=0.02)
    wide = 0.15 * scale * (1 + 0.2 * clouds(rng, 8, 8, size))
    inside = wide / 2 * np.sqrt(np.clip(1 - along**4, 0, None)) - np.abs(across)
    alpha = step(inside, 0.03) * step(1 - np.abs(along), 0.05)
    thickness = 0.74 + 0.08 * np.clip(clouds(rng, 40, 12, size), -2, 2)
    return mix(scene.image, ink_of(ink), alpha * thickness)


# ---------------------------------------------------------------- spots


def stain(rng, scene: Scene, scale: float, *, tint: tuple) -> np.ndarray:
    """Something was spilled: darker, most of all along its edge."""
    radius, at = scale * 0.24 * uniform(rng, 0.85, 1.15), scene.spot(rng)
    inside = blob(rng, scene.size, at, radius, rough=0.13, stretch=uniform(rng, 1.0, 1.6))
    amount = step(inside, 0.035) * (0.70 + 0.30 * np.exp(-(((inside - 0.03) / 0.035) ** 2)))
    return scene.image * (1 - (1 - np.float32(tint))[:, None, None] * (scene.cover * amount))


def glue(rng, scene: Scene, scale: float) -> np.ndarray:
    """A drop of glue has dried: milky, with a bright spot towards the lamp."""
    at, radius = scene.spot(rng), scale * uniform(rng, 0.16, 0.22)
    inside = blob(rng, scene.size, at, radius, rough=0.12, stretch=uniform(rng, 1.0, 2.0))
    x, y = axes(scene.size)
    dx, dy = x - at[0] - 0.4 * radius * LIGHT_FROM[0], y - at[1] - 0.4 * radius * LIGHT_FROM[1]
    gleam = np.exp(-(dx**2 + dy**2) / (0.25 * radius) ** 2)
    return mix(scene.image, ink_of((0.90, 0.015, 95)), step(inside, 0.03) * (0.50 + 0.35 * gleam))


def hole(
    rng, scene: Scene, scale: float, *, ink: tuple, rim: tuple, radius: float = 0.12, rough: float
) -> np.ndarray:
    """Right through: dark, its far wall lit, its rim broken."""
    at, radius = scene.spot(rng), scale * radius * uniform(rng, 0.85, 1.15)
    inside = blob(rng, scene.size, at, radius, rough=rough, stretch=uniform(rng, 1.0, 1.35))
    x, y = axes(scene.size)
    facing = (x - at[0]) * np.float32(LIGHT_FROM[0]) + (y - at[1]) * np.float32(LIGHT_FROM[1])
    wall = np.clip(-facing / radius, 0, 1) ** 2
    frayed = mix(scene.image, ink_of(rim), 0.6 * step(inside + 0.035, 0.03))
    dark = ink_of(ink)[:, None, None] * (1 + 0.9 * wall)
    return mix(frayed, dark, step(inside, 3 / scene.size))


def knot(rng, scene: Scene, scale: float) -> np.ndarray:
    """Where a branch was: rings around a dark heart."""
    radius, at = scale * uniform(rng, 0.15, 0.20), scene.spot(rng)
    inside = blob(rng, scene.size, at, radius, rough=0.10, stretch=uniform(rng, 1.1, 1.7))
    depth = inside / np.float32(radius)
    rings = 0.5 + 0.5 * np.cos(np.float32(19) * depth)
    pale, dark = ink_of((0.50, 0.085, 54)), ink_of((0.24, 0.045, 45))
    heart = mix(pale, dark, np.clip(0.45 * rings + 0.8 * depth, 0, 1))
    return mix(scene.image, heart, 0.95 * step(inside, 0.03))


def chip(rng, scene: Scene, scale: float) -> np.ndarray:
    """A flake of the face has gone: the rough pale body shows, the far edge in shadow."""
    at, radius = scene.spot(rng), scale * uniform(rng, 0.12, 0.16)
    inside = blob(rng, scene.size, at, radius, rough=0.2, stretch=uniform(rng, 1.0, 1.7))
    x, y = axes(scene.size)
    facing = (x - at[0]) * np.float32(LIGHT_FROM[0]) + (y - at[1]) * np.float32(LIGHT_FROM[1])
    edge = np.clip(1 - inside / np.float32(0.06), 0, 1) * np.clip(facing / radius, 0, 1)
    rough = 1 + 0.10 * clouds(rng, 90, 90, scene.size) - 0.5 * edge
    body = ink_of((0.68, 0.035, 62))[:, None, None] * rough
    return mix(scene.image, body, step(inside, 3 / scene.size))


def rust(
    rng, scene: Scene, scale: float, *, radius: float = 0.19, strength: float = 1.0
) -> np.ndarray:
    """Rust in two browns, eaten in more or less deeply."""
    radius, at = scale * radius * uniform(rng, 0.85, 1.15), scene.spot(rng)
    inside = blob(rng, scene.size, at, radius, rough=0.22, stretch=uniform(rng, 1.0, 1.6))
    grain = 0.7 * clouds(rng, 72, 72, scene.size) + 0.8 * clouds(rng, 20, 20, scene.size)
    light, dark = ink_of((0.55, 0.125, 52)), ink_of((0.31, 0.075, 38))
    browns = mix(light, dark, np.clip(0.5 + 0.35 * grain, 0, 1))
    depth = np.clip(0.85 + 0.08 * grain, 0.6, 1)
    return mix(scene.image, browns, scene.cover * strength * step(inside, 0.05) * depth)


def dent(rng, scene: Scene, scale: float) -> np.ndarray:
    """Pushed in: the side that faces away from the lamp is dark, the other one bright."""
    at, radius = np.float32(scene.spot(rng)), np.float32(scale * uniform(rng, 0.13, 0.18))
    x, y = axes(scene.size)
    dx, dy = (x - at[0]) / radius, (y - at[1]) / radius
    bowl = np.exp(-1.1 * (dx * dx + dy * dy) ** 2)
    slope = bowl * (dx * np.float32(LIGHT_FROM[0]) + dy * np.float32(LIGHT_FROM[1]))
    dark, bright = 0.68 * np.clip(slope, 0, None), 0.41 * np.clip(-slope, 0, None)
    return scene.image - dark + bright - COOL * bowl


def fingerprint(rng, scene: Scene, scale: float) -> np.ndarray:
    """A greasy finger: ridges in a whorl."""
    at, angle = np.float32(scene.spot(rng)), any_way(rng)
    x, y = axes(scene.size)
    u, v = turned(x - at[0], y - at[1], angle)
    radius = np.hypot(u / np.float32(1.35), v) + 0.012 * clouds(rng, 7, 7, scene.size)
    shift = np.float32(uniform(rng, -0.05, 0.05))
    whorl = np.hypot(u / np.float32(1.5) + shift, v - np.float32(uniform(rng, 0.0, 0.08)))
    waves = whorl + 0.010 * clouds(rng, 6, 6, scene.size)
    ridges = 0.5 + 0.5 * np.sin(np.float32(2 * math.pi / 0.066) * waves)
    amount = step(np.float32(0.20 * scale) - radius, 0.10) * (0.085 + 0.13 * ridges)
    return scene.image * (1 - np.float32([1.0, 0.96, 0.86])[:, None, None] * amount)


# ---------------------------------------------------------------- structure


def broken_thread(rng, scene: Scene, scale: float) -> np.ndarray:
    """The weft has a gap: between the warp threads lies only shadow."""
    return scene.redraw(thread=scene.spot(rng), length=scale * uniform(rng, 0.5, 0.8))


def faulty_tile(rng, scene: Scene, scale: float, *, fault: str) -> np.ndarray:
    """One tile is missing, or a whole one lies there turned, or of the other colour."""
    at, turn = scene.spot(rng), int(rng.integers(1, 4))
    return scene.redraw(at=at, fault=fault, turn=turn)


def bent(rng, scene: Scene, scale: float) -> np.ndarray:
    """The ring is pushed in, with a kink."""
    bend = scale**2 * uniform(rng, 0.085, 0.115)
    return scene.redraw(bend=bend, at=uniform(rng, -math.pi, math.pi))


def broken(rng, scene: Scene, scale: float) -> np.ndarray:
    """A piece is gone from the outer or the inner edge."""
    at, outer = uniform(rng, -math.pi, math.pi), rng.random() < 0.6
    return scene.redraw(bite=(at, outer, scale * uniform(rng, 0.16, 0.20)))


def shifted_print(rng, scene: Scene, scale: float) -> np.ndarray:
    """The right dots, beside their track; a weak one is printed twice."""
    side = 1 if rng.random() < 0.5 else -1
    return scene.redraw(moved=uniform(rng, -0.15, 0.15), raised=side * uniform(rng, 0.07, 0.10))


def misprint(rng, scene: Scene, scale: float) -> np.ndarray:
    """The right dots on the right track, but on the wrong side of the notch."""
    return scene.redraw(moved=uniform(rng, 1.3, 2 * math.pi - 1.3))


def swapped(rng, scene: Scene, scale: float) -> np.ndarray:
    """The dots in another order."""
    orders = sorted({"".join(order) for order in permutations(CODE)} - {CODE})
    return scene.redraw(code=orders[int(rng.integers(len(orders)))])


# In each kind by name, as folders of images are read.
DEFECTS = {
    "weave": {
        "broken_thread": broken_thread,
        "cut": partial(cut, ink=(0.19, 0.02, 260), lip=(0.86, 0.02, 230)),
        "fibre": partial(fibre, ink=(0.62, 0.24, 30)),
        "hole": partial(hole, ink=(0.20, 0.02, 260), rim=(0.86, 0.02, 230), rough=0.16),
        "stain": partial(stain, tint=(0.42, 0.33, 0.26)),
    },
    "wood": {
        "crack": partial(crack, with_grain=True, ink=(0.24, 0.03, 50)),
        "hole": partial(hole, ink=(0.20, 0.03, 50), rim=(0.62, 0.08, 60), radius=0.075, rough=0.08),
        "knot": knot,
        "scratch": partial(scratch, change=0.24),
        "stain": partial(stain, tint=(0.45, 0.39, 0.35)),
    },
    "tiles": {
        "chip": chip,
        "crack": partial(crack, ink=(0.30, 0.015, 70)),
        "missing": partial(faulty_tile, fault="missing"),
        "paint": partial(paint, ink=(0.56, 0.17, 148)),
        "stain": partial(stain, tint=(0.52, 0.44, 0.28)),
    },
    "leather": {
        "cut": partial(cut, ink=(0.17, 0.02, 40), lip=(0.70, 0.06, 60)),
        "fold": fold,
        "glue": glue,
        "hole": partial(
            hole, ink=(0.16, 0.015, 40), rim=(0.66, 0.06, 58), radius=0.075, rough=0.06
        ),
        "stain": partial(stain, tint=(0.12, 0.20, 0.50)),
    },
    "metal": {
        "dent": dent,
        "fingerprint": fingerprint,
        "rust": partial(rust, strength=0.5),
        "scratch": partial(scratch, change=0.16),
    },
    "washer": {
        "bent": bent,
        "broken": broken,
        "rust": rust,
        "scratch": partial(scratch, change=-0.30),
        "shifted_print": shifted_print,
    },
}
# A change of shape is graded by its size alone: a fainter one would be a ghost.
SHAPES = {"bent", "broken"}
# Made of normal parts in the wrong place.
LOGICAL = {
    "tiles": {
        "turned": partial(faulty_tile, fault="turned"),
        "wrong_colour": partial(faulty_tile, fault="wrong_colour"),
    },
    "washer": {"misprint": misprint, "swapped": swapped},
}
