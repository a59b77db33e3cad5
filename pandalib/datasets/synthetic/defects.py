"""What can be wrong with a surface: each function draws one defect over a `Scene`, at full strength.

All have the signature (rng, scene, scale) -> float32 (3, size, size): the image with the defect in it. `scale`
multiplies its lengths. The random numbers drawn do not depend on it, so a defect lies in the same place at every level.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import permutations

import numpy as np

from pandalib.datasets.synthetic.drawing import oklch, uniform
from pandalib.datasets.synthetic.materials import CODE, Scene
from pandalib.datasets.synthetic.shading import LIGHT_FROM, axes, clouds, mix, sample, step, turned

# A touch of another hue where a defect is dark on one side and bright on the other, so that no line between them is left unchanged.
COOL = np.float32([0.07, 0.03, 0.0])[:, None, None]

# ---------------------------------------------------------------- shapes


def blob(
    rng: np.random.Generator,
    size: int,
    at: tuple[float, float],
    radius: float,
    *,
    rough: float = 0.15,
    stretch: float = 1.0,
) -> np.ndarray:
    """How deep each pixel lies inside an irregular ellipse: `radius` in the middle, 0 at its edge, negative outside."""
    x, y = axes(size)
    u, v = turned(x - np.float32(at[0]), y - np.float32(at[1]), uniform(rng, -math.pi, math.pi))
    longer = np.float32(math.sqrt(stretch))
    return radius * (1 - rough * clouds(rng, 9, 9, size)) - np.hypot(u / longer, v * longer)


def stroke(
    rng: np.random.Generator,
    size: int,
    at: tuple[float, float],
    angle: float,
    length: float,
    *,
    bend: float = 0.05,
    waves: float = 0.0,
    jag: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Along and across a line: from -1 to 1 between its ends, and the signed distance from it, (size, size) each.

    `bend`, `waves` and `jag` are how far it leaves the straight line, in its lengths: as an arc, in two or three
    swings, and in random corners.
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
    slant = np.hypot(
        1, np.gradient(path, t * length / 2)
    )  # a steep part is no thicker than a flat one
    number = (np.clip(along, -1.19, 1.19) + np.float32(1.2)) * np.float32(40)
    across = (v - sample(path[None].astype(np.float32), np.zeros_like(number), number)) / sample(
        slant[None].astype(np.float32), np.zeros_like(number), number
    )
    return along, across


def any_way(rng: np.random.Generator) -> float:
    return uniform(rng, -math.pi / 2, math.pi / 2)


def line(along: np.ndarray, across: np.ndarray, width: float, taper: bool = True) -> np.ndarray:
    """Opacity of a line of this width; tapered, it ends in points."""
    size = len(along)
    room = np.sqrt(np.clip(1 - along * along, 0, None)) if taper else step(1 - np.abs(along), 0.04)
    half = np.float32(width / 2) * room
    return (
        step(half - np.abs(across), 2 / size)
        * step(1 - np.abs(along), 0.06)
        * np.minimum(1, half * size)
    )


# ---------------------------------------------------------------- lines


def scratch(rng, scene: Scene, scale: float, *, change: float, width: float = 0.030) -> np.ndarray:
    """The surface is scored: brighter, or darker, than around it, with a burr of the other kind on one side."""
    size = scene.image.shape[-1]
    along, across = stroke(
        rng,
        size,
        scene.spot(rng),
        scene.angle + any_way(rng),
        scale * uniform(rng, 0.6, 1.0),
        jag=0.004,
    )
    width = width * scale
    score, burr = line(along, across, width), line(along, across - np.float32(0.8 * width), width)
    return scene.image + scene.cover * (
        change * (score - 0.5 * burr * (1 - score)) - COOL * np.maximum(score, burr)
    )


def crack(
    rng,
    scene: Scene,
    scale: float,
    *,
    with_grain: bool = False,
    ink: tuple = (0.25, 0.02, 60),
    width: float = 0.032,
) -> np.ndarray:
    """A jagged gap, dark, with a branch."""
    size = scene.image.shape[-1]
    at, length = scene.spot(rng), scale * uniform(rng, 0.7, 1.1)
    angle = scene.angle + (uniform(rng, -0.08, 0.08) if with_grain else any_way(rng))
    jag = 0.006 if with_grain else 0.022
    gap = line(*stroke(rng, size, at, angle, length, jag=jag), width * scale)
    side = angle + uniform(rng, 0.5, 0.9) * (1 if rng.random() < 0.5 else -1) * (
        0.2 if with_grain else 1
    )
    reach = 0.22 * length
    branch = line(
        *stroke(
            rng,
            size,
            (at[0] + reach * math.cos(side), at[1] + reach * math.sin(side)),
            side,
            2.1 * reach,
            jag=jag,
        ),
        0.75 * width * scale,
    )
    return mix(scene.image, colour(ink), 0.95 * np.maximum(gap, branch))


def cut(
    rng,
    scene: Scene,
    scale: float,
    *,
    ink: tuple = (0.20, 0.02, 40),
    lip: tuple = (0.72, 0.05, 60),
    width: float = 0.075,
) -> np.ndarray:
    """A slit with lips that catch the light."""
    size = scene.image.shape[-1]
    along, across = stroke(
        rng,
        size,
        scene.spot(rng),
        scene.angle + any_way(rng),
        scale * uniform(rng, 0.45, 0.7),
        bend=0.08,
    )
    width = width * scale
    lips = mix(scene.image, colour(lip), 0.65 * line(along, across, 1.7 * width))
    return mix(lips, colour(ink), line(along, across, width))


def fold(rng, scene: Scene, scale: float) -> np.ndarray:
    """A crease pressed into the leather: a dark valley, a bright shoulder."""
    size = scene.image.shape[-1]
    along, across = stroke(
        rng, size, scene.spot(rng), any_way(rng), scale * uniform(rng, 0.9, 1.4), bend=0.15
    )
    ends = np.clip(1.6 * (1 - np.abs(along)), 0, 1)
    wide = np.float32(0.045 * scale)
    valley, shoulder, both = (
        np.exp(-((across / wide) ** 2)),
        np.exp(-((across / wide - 1.7) ** 2)),
        np.exp(-((across / wide - 0.8) ** 4) / 4),
    )
    return scene.image * (1 - 0.92 * ends * valley) + 0.34 * ends * shoulder - COOL * (ends * both)


def fibre(rng, scene: Scene, scale: float, *, ink: tuple, width: float = 0.034) -> np.ndarray:
    """A strange thread or hair lies on the surface, with its shadow."""
    size = scene.image.shape[-1]
    along, across = stroke(
        rng,
        size,
        scene.spot(rng),
        any_way(rng),
        scale * uniform(rng, 0.6, 0.9),
        bend=0.2,
        waves=0.09,
    )
    width = width * scale
    shaded = scene.image * (
        1 - 0.35 * line(along, across - np.float32(0.7 * width), width, taper=False)
    )
    round_ = 1 - 0.3 * np.clip(across / np.float32(width), -1, 1)
    return mix(
        shaded, colour(ink)[:, None, None] * round_, 0.95 * line(along, across, width, taper=False)
    )


def paint(rng, scene: Scene, scale: float, *, ink: tuple) -> np.ndarray:
    """A streak of paint that does not belong there."""
    size = scene.image.shape[-1]
    along, across = stroke(
        rng,
        size,
        scene.spot(rng),
        any_way(rng),
        scale * uniform(rng, 0.5, 0.8),
        bend=0.1,
        waves=0.02,
    )
    wide = 0.15 * scale * (1 + 0.2 * clouds(rng, 8, 8, size))
    alpha = step(wide / 2 * np.sqrt(np.clip(1 - along**4, 0, None)) - np.abs(across), 0.03) * step(
        1 - np.abs(along), 0.05
    )
    return mix(
        scene.image, colour(ink), alpha * (0.74 + 0.08 * np.clip(clouds(rng, 40, 12, size), -2, 2))
    )


# ---------------------------------------------------------------- spots


def stain(
    rng, scene: Scene, scale: float, *, tint: tuple = (0.55, 0.50, 0.42), radius: float = 0.24
) -> np.ndarray:
    """Something was spilled: darker, most of all along its edge."""
    size = scene.image.shape[-1]
    radius = scale * radius * uniform(rng, 0.85, 1.15)
    inside = blob(rng, size, scene.spot(rng), radius, rough=0.13, stretch=uniform(rng, 1.0, 1.6))
    amount = step(inside, 0.035) * (0.70 + 0.30 * np.exp(-(((inside - 0.03) / 0.035) ** 2)))
    return scene.image * (1 - (1 - np.float32(tint))[:, None, None] * (scene.cover * amount))


def glue(rng, scene: Scene, scale: float) -> np.ndarray:
    """A drop of glue has dried: milky, with a bright spot towards the lamp."""
    size = scene.image.shape[-1]
    at, radius = scene.spot(rng), scale * uniform(rng, 0.16, 0.22)
    inside = blob(rng, size, at, radius, rough=0.12, stretch=uniform(rng, 1.0, 2.0))
    x, y = axes(size)
    gleam = np.exp(
        -(
            (x - at[0] - 0.4 * radius * LIGHT_FROM[0]) ** 2
            + (y - at[1] - 0.4 * radius * LIGHT_FROM[1]) ** 2
        )
        / (0.25 * radius) ** 2
    )
    return mix(scene.image, colour((0.90, 0.015, 95)), step(inside, 0.03) * (0.50 + 0.35 * gleam))


def hole(
    rng,
    scene: Scene,
    scale: float,
    *,
    ink: tuple = (0.19, 0.015, 60),
    rim: tuple = (0.70, 0.04, 60),
    radius: float = 0.12,
    rough: float = 0.12,
) -> np.ndarray:
    """Right through: dark, its far wall lit, its rim broken."""
    size = scene.image.shape[-1]
    at, radius = scene.spot(rng), scale * radius * uniform(rng, 0.85, 1.15)
    inside = blob(rng, size, at, radius, rough=rough, stretch=uniform(rng, 1.0, 1.35))
    x, y = axes(size)
    wall = (
        np.clip(
            -((x - at[0]) * np.float32(LIGHT_FROM[0]) + (y - at[1]) * np.float32(LIGHT_FROM[1]))
            / radius,
            0,
            1,
        )
        ** 2
    )
    frayed = mix(scene.image, colour(rim), 0.6 * step(inside + 0.035, 0.03))
    return mix(frayed, colour(ink)[:, None, None] * (1 + 0.9 * wall), step(inside, 3 / size))


def knot(rng, scene: Scene, scale: float) -> np.ndarray:
    """Where a branch was: rings around a dark heart."""
    size = scene.image.shape[-1]
    radius = scale * uniform(rng, 0.15, 0.20)
    inside = blob(rng, size, scene.spot(rng), radius, rough=0.10, stretch=uniform(rng, 1.1, 1.7))
    depth = inside / np.float32(radius)
    rings = 0.5 + 0.5 * np.cos(np.float32(19) * depth)
    heart = mix(
        colour((0.50, 0.085, 54)),
        colour((0.24, 0.045, 45)),
        np.clip(0.45 * rings + 0.8 * depth, 0, 1),
    )
    return mix(scene.image, heart, 0.95 * step(inside, 0.03))


def chip(rng, scene: Scene, scale: float) -> np.ndarray:
    """A flake of the face has gone: the rough pale body shows, the far edge in shadow."""
    size = scene.image.shape[-1]
    at, radius = scene.spot(rng), scale * uniform(rng, 0.12, 0.16)
    inside = blob(rng, size, at, radius, rough=0.2, stretch=uniform(rng, 1.0, 1.7))
    x, y = axes(size)
    facing = (
        (x - at[0]) * np.float32(LIGHT_FROM[0]) + (y - at[1]) * np.float32(LIGHT_FROM[1])
    ) / radius
    edge = np.clip(1 - inside / np.float32(0.06), 0, 1) * np.clip(facing, 0, 1)
    body = colour((0.68, 0.035, 62))[:, None, None] * (
        1 + 0.10 * clouds(rng, 90, 90, size) - 0.5 * edge
    )
    return mix(scene.image, body, step(inside, 3 / size))


def rust(
    rng, scene: Scene, scale: float, *, radius: float = 0.19, strength: float = 1.0
) -> np.ndarray:
    """Rust in two browns, eaten in more or less deeply."""
    size = scene.image.shape[-1]
    radius = scale * radius * uniform(rng, 0.85, 1.15)
    inside = blob(rng, size, scene.spot(rng), radius, rough=0.22, stretch=uniform(rng, 1.0, 1.6))
    grain = 0.7 * clouds(rng, 72, 72, size) + 0.8 * clouds(rng, 20, 20, size)
    browns = mix(
        colour((0.55, 0.125, 52)), colour((0.31, 0.075, 38)), np.clip(0.5 + 0.35 * grain, 0, 1)
    )
    return mix(
        scene.image,
        browns,
        scene.cover * strength * step(inside, 0.05) * np.clip(0.85 + 0.08 * grain, 0.6, 1),
    )


def dent(rng, scene: Scene, scale: float) -> np.ndarray:
    """Pushed in: the side that faces away from the lamp is dark, the other one bright."""
    size = scene.image.shape[-1]
    at, radius = scene.spot(rng), scale * uniform(rng, 0.13, 0.18)
    x, y = axes(size)
    dx, dy = (
        (x - np.float32(at[0])) / np.float32(radius),
        (y - np.float32(at[1])) / np.float32(radius),
    )
    bowl = np.exp(-1.1 * (dx * dx + dy * dy) ** 2)
    slope = bowl * (dx * np.float32(LIGHT_FROM[0]) + dy * np.float32(LIGHT_FROM[1]))
    return (
        scene.image - 0.68 * np.clip(slope, 0, None) + 0.41 * np.clip(-slope, 0, None) - COOL * bowl
    )


def fingerprint(rng, scene: Scene, scale: float) -> np.ndarray:
    """A greasy finger: ridges in a whorl."""
    size = scene.image.shape[-1]
    at, angle = scene.spot(rng), any_way(rng)
    x, y = axes(size)
    u, v = turned(x - np.float32(at[0]), y - np.float32(at[1]), angle)
    radius = np.hypot(u / np.float32(1.35), v) + 0.012 * clouds(rng, 7, 7, size)
    whorl = np.hypot(
        u / np.float32(1.5) + np.float32(uniform(rng, -0.05, 0.05)),
        v - np.float32(uniform(rng, 0.0, 0.08)),
    )
    ridges = 0.5 + 0.5 * np.sin(
        np.float32(2 * math.pi / 0.066) * (whorl + 0.010 * clouds(rng, 6, 6, size))
    )
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
    return scene.redraw(
        bend=scale**2 * uniform(rng, 0.085, 0.115), at=uniform(rng, -math.pi, math.pi)
    )


def broken(rng, scene: Scene, scale: float) -> np.ndarray:
    """A piece is gone from the outer or the inner edge."""
    return scene.redraw(
        bite=(uniform(rng, -math.pi, math.pi), rng.random() < 0.6, scale * uniform(rng, 0.16, 0.20))
    )


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


def colour(lch: tuple[float, float, float]) -> np.ndarray:
    return oklch(lch[0], lch[1], math.radians(lch[2]))


WEAVE = {
    "broken_thread": broken_thread,
    "cut": partial(cut, ink=(0.19, 0.02, 260), lip=(0.86, 0.02, 230)),
    "fibre": partial(fibre, ink=(0.62, 0.24, 30)),
    "hole": partial(hole, ink=(0.20, 0.02, 260), rim=(0.86, 0.02, 230), rough=0.16),
    "stain": partial(stain, tint=(0.42, 0.33, 0.26)),
}
WOOD = {
    "crack": partial(crack, with_grain=True, ink=(0.24, 0.03, 50)),
    "hole": partial(hole, ink=(0.20, 0.03, 50), rim=(0.62, 0.08, 60), radius=0.075, rough=0.08),
    "knot": knot,
    "scratch": partial(scratch, change=0.24),
    "stain": partial(stain, tint=(0.45, 0.39, 0.35)),
}
TILES = {
    "chip": chip,
    "crack": partial(crack, ink=(0.30, 0.015, 70)),
    "missing": partial(faulty_tile, fault="missing"),
    "paint": partial(paint, ink=(0.56, 0.17, 148)),
    "stain": partial(stain, tint=(0.52, 0.44, 0.28)),
}
LEATHER = {
    "cut": partial(cut, ink=(0.17, 0.02, 40), lip=(0.70, 0.06, 60)),
    "fold": fold,
    "glue": glue,
    "hole": partial(hole, ink=(0.16, 0.015, 40), rim=(0.66, 0.06, 58), radius=0.075, rough=0.06),
    "stain": partial(stain, tint=(0.12, 0.20, 0.50)),
}
METAL = {
    "dent": dent,
    "fingerprint": fingerprint,
    "rust": partial(rust, strength=0.5),
    "scratch": partial(scratch, change=0.16),
}
WASHER = {
    "bent": bent,
    "broken": broken,
    "rust": rust,
    "scratch": partial(scratch, change=-0.30),
    "shifted_print": shifted_print,
}
# In each kind by name, as folders of images are read.
DEFECTS = {
    "weave": WEAVE,
    "wood": WOOD,
    "tiles": TILES,
    "leather": LEATHER,
    "metal": METAL,
    "washer": WASHER,
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
