"""A ranking as one HTML file: gallery with heat maps, histogram, table; nothing is fetched from elsewhere, nothing runs.

For eyes, ears and paper: every picture has a sentence in its place, no message hangs on colour alone, and the page follows the reader's
choice of light or dark. It is written piece by piece, so that memory does not grow with the number of images.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from html import escape
from pathlib import Path

import numpy as np

from pandalib.io import atomic_file
from pandalib.inspection.overlays import REACH, in_words, jpeg, overlay, scale_bar
from pandalib.inspection.report_style import STYLE


def write_report(
    path,
    inspector,
    ranking,
    *,
    rate: float | None = None,
    title: str = "Anomaly report",
    when: datetime | None = None,
) -> None:
    """Write the report of a ranking.

    Parameters
    ----------
    path : of the HTML file, which is replaced as a whole.
    inspector : the fitted `pandalib.Inspector` that made the ranking.
    ranking : of `Inspector.rank`; its `top` is the gallery.
    rate : the false-alarm rate of the threshold; None: the detector's own.
    title : heading of the page.
    when : date in its head; None: now.

    Raises ValueError for a rate that the detector's normal images cannot tell, OSError where the file cannot be written.
    """
    rate = inspector.false_alarm_rate if rate is None else rate
    pieces = _pieces(
        inspector, ranking, rate, inspector.threshold(rate), title, when or datetime.now()
    )
    with atomic_file(Path(path).expanduser()) as file:
        for piece in pieces:
            file.write(piece.encode("utf-8", "backslashreplace"))


def _pieces(
    inspector, ranking, rate: float, threshold: float, title: str, when: datetime
) -> Iterator[str]:
    relative = ranking.scores / threshold
    n, n_alarms = len(relative), int((relative > 1).sum())
    yield f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f'<meta name="color-scheme" content="light dark">\n<title>{_text(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n'
    yield f"<h1>{_text(title)}</h1>\n"
    yield f'<p class="lead"><strong>{_count(n_alarms, n)}</strong> {"raises" if n_alarms == 1 else "raise"} an alarm.</p>\n'
    if ranking.unreadable:
        yield f'<p class="note"><a href="#unreadable">{_files(len(ranking.unreadable))} could not be read</a> and {"is" if len(ranking.unreadable) == 1 else "are"} not among them.</p>\n'
    if inspector.backbone.source == "embedded":
        yield (
            '<p class="warning"><strong>Made with the embedded network,</strong> a small one for teaching that has seen drawn symbols only. For '
            "photographs that matter, fit the detector again with <code>--tier standard</code>.</p>\n"
        )
    yield f'</header>\n<main>\n<div class="beside">\n{_guide(rate, len(inspector.kept_))}'
    yield f'<section aria-labelledby="distribution">\n<h2 id="distribution">Scores of all images</h2>\n{_histogram(inspector.normal_scores_ / threshold, relative)}</section>\n</div>\n'
    yield f'<section aria-labelledby="gallery">\n<h2 id="gallery">{_gallery_title(len(ranking.top), n)}</h2>\n{_legend()}<ol class="gallery">\n'
    for place, finding in enumerate(ranking.top, 1):
        yield _card(place, finding, ranking, relative, threshold)
    yield "</ol>\n</section>\n"
    yield from _table(ranking, relative)
    if ranking.unreadable:
        yield from _unreadable(ranking.unreadable)
    yield f"{_facts(inspector, rate, threshold, when)}</main>\n</body>\n</html>\n"


def _guide(rate: float, n_kept: int) -> str:
    return (
        '<section aria-labelledby="guide">\n<h2 id="guide">How to read this</h2>\n<ul>\n'
        f"<li>Scores are given in multiples of the threshold. <strong>Above 1, an image raises an alarm.</strong> About {_one_in(rate)} new normal images would do so as well: "
        f"that rate was chosen, and the threshold set from {n_kept} normal images, each compared with the others. No anomalous image took part.</li>\n"
        "<li>A score has two parts, and the larger one counts: is the image <em>as a whole</em> unlike the normal ones, or is there <em>one place</em> that no normal image has?</li>\n"
        "<li>The ranking says how unusual an image is, not how bad that is. Dust on the lens is unusual too.</li>\n</ul>\n</section>\n"
    )


def _one_in(rate: float) -> str:
    return (
        f"1 in {round(1 / rate)}"
        if abs(round(1 / rate) * rate - 1) < 0.02
        else f"{100 * rate:.3g} in 100"
    )


def _gallery_title(n_shown: int, n: int) -> str:
    return (
        f"All {n} images, the most unusual first"
        if n_shown == n > 1
        else "The image"
        if n == 1
        else f"The {n_shown} most unusual of {n} images"
    )


def _legend() -> str:
    alt = f"Scale of the heat maps: clear where an image is usual, orange to purple towards the threshold, which is marked by a line, black at {REACH:g} times the threshold and beyond."
    return (
        f'<figure class="legend">\n<img src="{_picture(scale_bar(), 95)}" alt="{_text(alt)}" width="256" height="20">\n'
        f'<div class="ticks" aria-hidden="true"><span>0</span><span>threshold</span><span>{REACH:g} ×</span></div>\n'
        "<figcaption>One scale for all heat maps. The white line runs along the threshold.</figcaption>\n</figure>\n"
    )


def _card(place: int, finding, ranking, relative: np.ndarray, threshold: float) -> str:
    name, score, hot = (
        ranking.names[finding.number],
        relative[finding.number],
        finding.map > threshold,
    )
    where = in_words(ranking.spots[finding.number])
    share = (
        f"{_percent(hot.mean())} of the image lies above the threshold"
        if hot.any()
        else "no place lies above the threshold"
    )
    image_alt = f"{name}, rank {place} of {len(relative)}, {_times(score)} the threshold."
    heat_alt = f"Heat map of {name}: hottest at the {where}, where it reaches {_times(finding.map.max() / threshold)} the threshold; {share}."
    parts = {part: values[finding.number] / threshold for part, values in ranking.parts.items()}
    pictures = (
        (_picture(finding.image.transpose(1, 2, 0), 92), image_alt),
        (_picture(overlay(finding.image, finding.map, threshold)), heat_alt),
    )
    height, width = finding.map.shape
    shown = "".join(
        f'<img src="{source}" alt="{_text(alt)}" width="{width}" height="{height}">\n'
        for source, alt in pictures
    )
    return (
        f'<li class="card{" alarm" if score > 1 else ""}">\n<h3><span class="rank">{place}</span> <bdi>{_text(name)}</bdi></h3>\n'
        f'<p class="score">{_mark(score)} <span>{_times(score)} the threshold</span></p>\n<div class="pair">\n{shown}</div>\n'
        f'<p class="detail">Hottest at the {where}; {share}. As a whole {parts["image"]:.2f}, worst place {parts["place"]:.2f}.</p>\n</li>\n'
    )


def _table(ranking, relative: np.ndarray) -> Iterator[str]:
    n = len(relative)
    yield (
        f'<section aria-labelledby="table">\n<h2 id="table">All scores</h2>\n<details{" open" if n <= 100 else ""}>\n<summary>Table of {_files(n, "image")}</summary>\n'
        '<div class="wide" tabindex="0" role="region" aria-label="Table of all scores">\n<table>\n<caption>Scores in multiples of the threshold; above 1 is an alarm.</caption>\n'
        '<thead><tr><th scope="col">Rank</th><th scope="col">File</th><th scope="col">Score</th><th scope="col">Alarm</th><th scope="col">As a whole</th>'
        '<th scope="col">Worst place</th><th scope="col">Hottest at</th></tr></thead>\n<tbody>\n'
    )
    for place, row in enumerate(ranking.order, 1):
        image, spot = (
            ranking.parts[part][row] * relative[row] / ranking.scores[row]
            if ranking.scores[row]
            else 0.0
            for part in ("image", "place")
        )
        yield (
            f'<tr><td>{place}</td><th scope="row"><bdi>{_text(ranking.names[row])}</bdi></th><td>{relative[row]:.3f}</td><td>{_mark(relative[row])}</td>'
            f"<td>{image:.3f}</td><td>{spot:.3f}</td><td>{in_words(ranking.spots[row])}</td></tr>\n"
        )
    yield "</tbody>\n</table>\n</div>\n</details>\n</section>\n"


def _unreadable(failures: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield f'<section aria-labelledby="unreadable">\n<h2 id="unreadable">{_files(len(failures))} that could not be read</h2>\n<ul>\n'
    for name, reason in failures:
        yield f"<li><bdi>{_text(name)}</bdi>: {_text(reason)}</li>\n"
    yield "</ul>\n</section>\n"


def _facts(inspector, rate: float, threshold: float, when: datetime) -> str:
    from pandalib import __version__
    from pandalib.doctor import version_of

    network, (height, width) = inspector.backbone, inspector.image_size_
    source = {
        "embedded": "embedded (this project's own)",
        "imagenet": "ImageNet",
        "random": "untrained",
        None: "given by hand",
    }.get(network.source, Path(network.source or "").name)
    versions = ", ".join(
        f"{name} {version}"
        for name, version in [
            ("pandalib", __version__),
            *((name, version_of(name)) for name in ("torch", "torchvision", "numpy")),
        ]
    )
    facts = {
        "Written": when.strftime("%Y-%m-%d %H:%M"),
        "Normal images": f"{len(inspector.features_)}, of which {len(inspector.kept_)} serve the heat maps and the threshold",
        "False-alarm rate": f"{100 * rate:.3g} %, about {_one_in(rate)} normal images",
        "Threshold": f"{threshold:.4g}, where 1 is what one normal image in ten exceeds in either part",
        "Network": f"{network.name} up to {network.truncate_after}, weights: {source}",
        "SHA-256 of the weights": network.weights_sha256,
        "Images read at": f"{width} × {height} pixels",
        "Heat maps": f"{', '.join(inspector.layers)}; {inspector.n_images} nearest images; blur of {inspector.sigma:g} pixels",
        "Versions": f"{versions}, Python {sys.version.split()[0]}",
    }
    rows = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>\n"
        for name, value in facts.items()
    )
    return f'<section aria-labelledby="facts">\n<h2 id="facts">What this was made with</h2>\n<dl>\n{rows}</dl>\n</section>\n'


def _histogram(normal: np.ndarray, found: np.ndarray, bins: int = 28) -> str:
    """Shares of both kinds over scores in multiples of the threshold, on a logarithmic axis, as SVG."""
    least = max(1e-3, min(values[values > 0].min(initial=1.0) for values in (normal, found)))
    low, high = np.log2([least / 1.05, max(2.0, 1.05 * normal.max(), 1.05 * found.max())])
    left, right, top, bottom, width, height = 46, 14, 28, 48, 480, 250
    edges = np.linspace(low, high, bins + 1)
    shares = [
        np.histogram(np.log2(np.maximum(values, least)), edges)[0] / len(values)
        for values in (normal, found)
    ]
    highest = max(share.max() for share in shares)

    def x(value):
        return left + (np.log2(value) - low) / (high - low) * (width - left - right)

    def y(share):
        return height - bottom - share / highest * (height - top - bottom)

    parts = []
    for share, kind in zip(shares, ("normal", "found")):
        filled = np.concatenate([[0], share > 0, [0]]).astype(int)
        for start, stop in zip(
            np.flatnonzero(np.diff(filled) == 1), np.flatnonzero(np.diff(filled) == -1)
        ):  # an outline for each run of bins
            steps = "".join(
                f"V{y(share[bin]):.1f}H{x(2.0 ** edges[bin + 1]):.1f}" for bin in range(start, stop)
            )
            parts.append(
                f'<path class="{kind}" d="M{x(2.0 ** edges[start]):.1f},{y(0):.1f}{steps}V{y(0):.1f}Z"/>'
            )
    step = max(1, int(np.ceil((high - low) / 6)))
    ticks = "".join(
        f'<line class="axis" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{y(0)}" y2="{y(0) + 5}"/><text x="{x(value):.1f}" y="{y(0) + 20}" text-anchor="middle">{value:g}</text>'
        for value in (2.0**power for power in range(int(np.ceil(low)), int(np.floor(high)) + 1))
        if np.log2(value) % step == 0
    )
    share_ticks = "".join(
        f'<text x="{left - 7}" y="{y(share) + 4:.1f}" text-anchor="end">{_percent(share)}</text>'
        for share in (0, highest)
    )
    n_above = int((found > 1).sum())
    alt = (
        f"Two histograms of scores. Normal images, each compared with the others: half of them below {np.median(normal):.2f} of the threshold, the highest at {normal.max():.2f}. "
        f"The images of this report: half of them below {np.median(found):.2f}, the highest at {found.max():.2f}, {n_above} of {len(found)} above the threshold."
    )
    at = x(1.0)
    return (
        f'<figure class="wide" tabindex="0" role="group" aria-label="Histogram of scores">\n<svg class="histogram" viewBox="0 0 {width} {height}" role="img" aria-label="{_text(alt)}">\n'
        '<defs><pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><line class="hatch" x1="0" y1="0" x2="0" y2="7"/></pattern></defs>\n'
        + "\n".join(parts)
        + f'\n<line class="axis" x1="{left}" x2="{width - right}" y1="{y(0)}" y2="{y(0)}"/>{ticks}{share_ticks}\n'
        f'<line class="threshold" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 8}" y2="{y(0)}"/><text x="{at:.1f}" y="{top - 13}" text-anchor="middle">threshold</text>\n'
        f'<text x="{(left + width - right) / 2}" y="{height - 5}" text-anchor="middle">score, in multiples of the threshold</text>\n</svg>\n'
        f'<figcaption><span class="key"><svg width="30" height="14" aria-hidden="true"><rect class="normal" x="1" y="1" width="28" height="12"/></svg> {len(normal)} normal images</span> '
        f'<span class="key"><svg width="30" height="14" aria-hidden="true"><rect class="found" x="1" y="1" width="28" height="12"/></svg> {_files(len(found), "image")} of this report</span>'
        "<br>Share of each kind; the axis doubles from mark to mark.</figcaption>\n</figure>\n"
    )


def _picture(pixels: np.ndarray, quality: int = 88) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(pixels, quality)).decode()}"


def _mark(score: float) -> str:
    return '<span class="yes">▲ alarm</span>' if score > 1 else '<span class="no">no alarm</span>'


def _times(value: float) -> str:
    return (
        f"{value:.2f} times"
        if value < 9.995
        else f"{value:,.0f} times"
        if value >= 99.95
        else f"{value:.1f} times"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0095 or share == 0 else "less than 1 %"


def _count(few: int, many: int) -> str:
    return f"{'None' if few == 0 else few} of {many} images"


def _files(n: int, what: str = "file") -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _text(value: str) -> str:
    return escape(value, quote=True)
