"""A ranking as one HTML file: gallery with heat maps, histogram, table, and buttons to review it.

The page is `report.html.j2`; its rows and pictures are made here one at a time, so that memory does
not grow with the number of images. All heat maps share one scale: the colours (magma, which darkens
evenly, for colour-blind readers and grey print) go from zero to twice the threshold, and a line
follows the threshold itself. The only script, `review.js`, stands in the page under its hash, so
that a browser runs no other: it writes the reader's verdicts into a file
(`pandalib.inspection.review`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from scipy.ndimage import binary_dilation

from pandalib.experiments.config import versions
from pandalib.io import atomic_file, printable, real_path
from pandalib.methods.distances import enlargement
from pandalib.plots import MAP_COLOURS, data_address

TEMPLATE, SCRIPT = "report.html.j2", "review.js"
SIDE = 320  # the least length in pixels of the longer side of an overlay
AT_FULL_SIZE = 60  # cards; of more, the pictures shrink, so that all together stay below 10 MB
PAGE = 60  # cards; those that follow are folded, and a browser lays them out when they are opened
REACH = 2.0  # the darkest colour, in thresholds
# The map ends short of black, which looks like a hole.
COLOURS = matplotlib.colormaps[MAP_COLOURS](np.linspace(0.1, 0.9, 256))[:, :3].astype(np.float32)
SOURCES = {
    "embedded": "embedded (this project's own)",
    "imagenet": "ImageNet",
    None: "given by hand",
}
PLACES = ("upper left", "top", "upper right")
PLACES += ("left", "centre", "right")
PLACES += ("lower left", "bottom", "lower right")


def write_report(
    path,
    inspector,
    ranking,
    *,
    rate: float | None = None,
    title: str = "Anomaly report",
    of_normal: bool = False,
    when: datetime | None = None,
) -> None:
    """Write the report of a ranking.

    Parameters
    ----------
    path : path
        The HTML file, which is replaced as a whole; OSError where it cannot be written.
    inspector : Inspector
    ranking : Ranking
        What `inspector.rank` or `rank_normal` gave; its `top` is the gallery.
    rate : float, optional
        False-alarm rate of the threshold, as for `Inspector.threshold`.
    title : str
    of_normal : bool
        The ranking is of the normal images (`rank_normal`): is a defect among them?
    when : datetime, optional
        Default: now.
    """
    rate = inspector.false_alarm_rate if rate is None else rate
    threshold = inspector.threshold(rate)
    relative = ranking.scores / threshold
    network = inspector.backbone
    found = versions() | {"Python": platform.python_version()}
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    pages.filters["printable"] = printable
    pages.filters["as_json"] = json.dumps  # ASCII: bytes that are no text survive in it
    script = (Path(__file__).parent / SCRIPT).read_text(encoding="utf-8")
    script_sha256 = hashlib.sha256(script.encode()).digest()
    page = pages.get_template(TEMPLATE).generate(
        script=Markup(script),
        script_sha256=base64.b64encode(script_sha256).decode(),
        check=[
            {"file": name, "alarm": score > threshold}
            for name, score in zip(inspector.check_names_, inspector.check())
        ],
        title=title,
        of_normal=of_normal,
        n=len(relative),
        n_alarms=int((relative > 1).sum()),
        n_shown=len(ranking.top),
        page=PAGE,
        threshold=threshold,
        one_in=_one_in(rate),
        histogram=_histogram(inspector.normal_scores_ / threshold, relative),
        scale_bar=data_address(scale_bar()),
        reach=f"{REACH:g}",
        cards=_cards(inspector, ranking, threshold),
        rows=ranked_rows(ranking, threshold),
        unreadable=ranking.unreadable,
        inspector=inspector,
        heat_maps=_heat_maps(inspector),
        whole_images=_whole_images(inspector),
        rate=rate,
        when=when or datetime.now(),
        source=SOURCES.get(network.source, Path(network.source or "").name),
        versions=[f"{name} {version}" for name, version in found.items()],
    )
    with atomic_file(real_path(path)) as file:
        for piece in page:
            file.write(piece.encode("utf-8", "backslashreplace"))


def ranked_rows(ranking, threshold: float) -> Iterator[dict]:
    """Yield the facts about each image, the most anomalous first."""
    scores = ranking.scores
    for rank, number in enumerate(ranking.order.tolist(), start=1):
        yield {
            "rank": rank,
            "file": ranking.names[number],
            "score": float(scores[number]),
            "relative": float(scores[number] / threshold),
            "alarm": bool(scores[number] > threshold),
            "image": float(ranking.parts["image"][number]),
            "place": float(ranking.parts["place"][number]),
            "hottest": in_words(ranking.peaks[number]),
            "p_value": float(ranking.p_values[number]),
            "n_regions": ranking.n_regions[number],
            "regions": [region._asdict() for region in ranking.regions[number]],
        }


def in_words(peak) -> str:
    """A place, row and column from 0 to 1, as one of nine names."""
    row, column = (min(2, int(3 * part)) for part in peak)
    return PLACES[3 * row + column]


def _cards(inspector, ranking, threshold: float) -> Iterator[dict]:
    """The rows of the gallery, with pictures."""
    shrink = min(1, (AT_FULL_SIZE / max(1, len(ranking.top))) ** 0.5)
    for finding, row in zip(ranking.top, ranked_rows(ranking, threshold)):
        image, heat = _at_its_proportions(inspector.geometry_, finding)
        share = (heat > threshold).mean()
        height, width = heat.shape
        yield row | {
            "times": _times(row["relative"]),
            "peak": _times(heat.max() / threshold),
            "share": f"{_percent(share)} of the image lies above the threshold"
            if share
            else "no place lies above the threshold",
            "picture": data_address(image.transpose(1, 2, 0), shrink),
            "overlay": data_address(overlay(image, heat, threshold), shrink),
            "height": height,
            "width": width,
        }


def _at_its_proportions(geometry, finding) -> tuple[np.ndarray, np.ndarray]:
    """What the detector saw, and its map, at the proportions of the original; a crop as it is."""
    factor = max(finding.map.shape) / max(finding.size)
    height, width = (max(1, round(side * factor)) for side in finding.size)
    if geometry.fit == "crop" or (height, width) == finding.map.shape:
        return finding.image, finding.map
    image = np.stack([geometry.restore(channel, height, width) for channel in finding.image])
    return np.rint(image).astype(np.uint8), geometry.restore(finding.map, height, width)


def _heat_maps(inspector) -> str:
    """How the maps were made, in a line."""
    how = f"SPADE, {inspector.n_images} nearest images"
    if inspector.method == "bank":
        how = f"memory bank of at most {inspector.bank_size} patches"
    if inspector.tile_ is not None:
        how += f"; tiles of {inspector.tile_} pixels, {inspector.overlap_} of them shared"
    return f"{', '.join(inspector.layers_)}; {how}; blur of {inspector.sigma:g} pixels"


def _whole_images(inspector) -> str:
    """How whole images are compared, in a line."""
    how = [f"{inspector.k} nearest normal images"]
    how += ["features normalised"] if inspector.normalise else []
    how += ["features whitened"] if inspector.whiten else []
    if inspector.adapt is not None:
        kind = {"ewc": "with EWC", "early": "stopped early"}[inspector.adapt]
        how.append(f"network adapted to {len(inspector.adapted_)} of the normal images, {kind}")
    return "; ".join(how)


def _histogram(normal: np.ndarray, found: np.ndarray, n_bins: int = 28) -> dict:
    """The distribution of both kinds of scores, on a logarithmic axis, in units of an SVG."""
    width, height, left, right, top, bottom = 480, 250, 46, 466, 28, 202
    positive = np.concatenate([normal, found])
    least = max(1e-3, positive[positive > 0].min(initial=1.0))
    low, high = np.log2([least / 1.05, max(2.0, 1.05 * positive.max())])
    edges = np.linspace(low, high, n_bins + 1)
    shares = [
        np.histogram(np.log2(np.maximum(scores, least)), edges)[0] / len(scores)
        for scores in (normal, found)
    ]
    highest = max(share.max() for share in shares)

    def x(power):
        return f"{left + (power - low) / (high - low) * (right - left):.1f}"

    def outline(share):
        """One path for each run of bins that hold something."""
        path = ""
        for number in np.flatnonzero(share):
            y = f"{bottom - share[number] / highest * (bottom - top):.1f}"
            if number == 0 or share[number - 1] == 0:
                path += f"M{x(edges[number])},{bottom}"
            path += f"V{y}H{x(edges[number + 1])}"
            if number == n_bins - 1 or share[number + 1] == 0:
                path += f"V{bottom}Z"
        return path

    kinds = {
        kind: {
            "outline": outline(share),
            "median": f"{np.median(scores):.2f}",
            "highest": f"{scores.max():.2f}",
        }
        for kind, share, scores in zip(("normal", "found"), shares, (normal, found))
    }
    powers = range(int(np.ceil(low)), int(np.floor(high)) + 1)
    step = max(1, int(np.ceil((high - low) / 6)))
    return kinds | {
        "width": width,
        "height": height,
        "left": left,
        "right": right,
        "top": top,
        "bottom": bottom,
        "ticks": [(x(power), f"{2.0**power:g}") for power in powers if power % step == 0],
        "highest_share": _percent(highest),
        "threshold": x(0),
    }


def _one_in(rate: float) -> str:
    if abs(round(1 / rate) * rate - 1) < 0.02:
        return f"1 in {round(1 / rate)}"
    return f"{100 * rate:.3g} in 100"


def _times(value: float) -> str:
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f} times"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0095 or share == 0 else "less than 1 %"


# ---------------------------------------------------------------- pictures


def overlay(image: np.ndarray, heat: np.ndarray, threshold: float) -> np.ndarray:
    """An image in grey under its map, enlarged if it is small.

    Parameters
    ----------
    image : ndarray, shape (3, H, W), uint8
    heat : ndarray, shape (H, W)
    threshold : float

    Returns
    -------
    pixels : ndarray, shape (H', W', 3), uint8
    """
    factor = max(1, round(SIDE / max(heat.shape)))
    down, across = (enlargement(side, side * factor) for side in heat.shape)
    grey = np.tensordot(np.float32([0.299, 0.587, 0.114]) / 255, image.astype(np.float32), axes=1)
    relative = down @ (heat / np.float32(threshold)) @ across.T
    mixed = _laid_over(down @ grey @ across.T, relative)
    hot = relative > 1
    # White over black is visible on light and on dark images.
    edge = binary_dilation(hot, iterations=2) & ~hot
    mixed[binary_dilation(edge, iterations=2)] = 0
    mixed[edge] = 1
    return np.rint(np.clip(mixed, 0, 1) * 255).astype(np.uint8)


def heat_colours(relative: np.ndarray) -> np.ndarray:
    """A map (H, W) in multiples of the threshold in the report's colours: uint8 (H, W, 3)."""
    colours = COLOURS[np.clip(relative / REACH * 255, 0, 255).astype(np.uint8)]
    return np.rint(colours * 255).astype(np.uint8)


def scale_bar(width: int = 256, height: int = 20) -> np.ndarray:
    """The colours over middle grey, with the line at the threshold: uint8 (height, width, 3)."""
    relative = np.broadcast_to(np.linspace(0, REACH, width, dtype=np.float32), (height, width))
    mixed = _laid_over(np.full((height, width), 0.5, np.float32), relative)
    middle = round(width / REACH)
    mixed[:, middle - 2 : middle + 3] = 0
    mixed[:, middle - 1 : middle + 2] = 1
    return np.rint(mixed * 255).astype(np.uint8)


def _laid_over(grey: np.ndarray, relative: np.ndarray) -> np.ndarray:
    """Colours over a faded image, (h, w, 3), 0 to 1. What is cool stays clear."""
    colours = COLOURS[np.clip(relative / REACH * 255, 0, 255).astype(int)]
    opacity = 0.68 * np.clip((relative - 0.45) / 0.75, 0, 1)[..., None]
    faded = (0.3 + 0.7 * grey)[..., None]
    return faded * (1 - opacity) + colours * opacity
