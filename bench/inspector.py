"""The inspector on photographs, beside anomalib's PatchCore, and on many images: `python
bench/inspector.py [FOLDER]`.

Writes docs/results/inspector_speed.md. FOLDER holds magnetic_tile, in MVTec AD's layout, and
weights; the default is `../shared/real`, and without it those lines are left out, which the page
says. Both sides have the same arrays, weights and number of threads, and a process of their own.
What grows is measured on images that are drawn as PNG files into a temporary folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import common
import numpy as np
import peers
import torch
from common import EQUAL, Line, at_most, finish, machine, section, versions
from segmentation_peers import METRICS, figures

from pandalib import load_task

MANY = {  # images by name: number, network, size, and what is wanted: minutes, MiB
    "2,000 photographs' worth": (2_000, "mobilenet_v2", 224, 10, 2048),
    "20,000 drawn images": (20_000, "glyphs_resnet4", 64, None, 4096),
}
PAGE = """# The inspector

Made by `python bench/inspector.py{argument}` on {machine}; {versions}, anomalib {anomalib}.

{section}
## Beside anomalib's PatchCore

{tiles} Whole images of {size}, the same arrays on both sides; {weights}, layers 2 and 3. anomalib:
10 % of the patches, 9 neighbours for the image score, its defaults. The inspector: its defaults, a
bank of at most 5,000 patches and DN2 beside it; its fit includes the threshold, for which each
normal image is compared with the others.

| method | fit, s | score, s an image | memory to fit, MiB | {metrics} |
|---|---|---|---|---|---|---|
{rows}

## Many images

Drawn PNG files, read from disk. "Memory": the most that the process held above what it began with.
The report lists all images and shows the first 50.

| images | network | fit, s | memory, MiB | score, s an image | report, MB |
|---|---|---|---|---|---|
{many}
"""


def beside_anomalib(task, weights: str) -> tuple[list[str], list[Line]]:
    """Rows of the page and its lines."""
    arrays = {f"tiles/{part}": np.ascontiguousarray(getattr(task, part)[:]) for part in PARTS}
    how = dict(layers=("layer2", "layer3"), threads=torch.get_num_threads())
    how["weights"] = {"tiles": weights}
    found, rows = {}, []
    sides = {
        "the inspector": dict(side="inspector", method="inspector", coreset_ratio=None),
        "anomalib's PatchCore": dict(side="anomalib", method="patchcore", coreset_ratio=0.1),
    }
    for name, settings in sides.items():
        theirs = settings["side"] == "anomalib"
        given, facts = peers.ask("maps", arrays, theirs=theirs, **how, **settings)
        quality = figures(task, given["tiles/maps"], given["tiles/scores"])
        found[name] = (facts["tiles"], quality)
        rows.append(
            f"| {name} | {facts['tiles']['fit']:.1f} | {facts['tiles']['score']:.3f} | "
            f"{facts['tiles']['fit_mb']:.0f} | "
            + " | ".join(f"{value:.3f}" for value in quality)
            + " |"
        )
        print(rows[-1], flush=True)
    (ours, mine), (theirs, their) = found.values()
    words = ", ".join(f"{m} {a:.3f} against {b:.3f}" for m, a, b in zip(METRICS, mine, their))
    n = len(task.train)
    lines = [
        at_most(f"magnetic tile: fit on {n} whole images", ours["fit"], 30, " s"),
        at_most("magnetic tile: score", ours["score"], 0.08, " s an image"),
        Line(
            "magnetic tile: the inspector against anomalib's PatchCore",
            "no figure lower",
            f"{words}; fit {theirs['fit'] / ours['fit']:.3g}, score "
            f"{theirs['score'] / ours['score']:.3g} times as fast",
            all(a > b - EQUAL for a, b in zip(mine, their)),
        ),
    ]
    return rows, lines


PARTS = ("train", "test")


def draw(folder: Path, n: int, size: int) -> None:
    """PNG files of drawn surfaces: each of a few is rolled and shaded, so that no two are alike."""
    from PIL import Image

    drawn = load_task("surfaces:weave", n_train=50, n_test=1, size=size).train[:]
    rng = np.random.default_rng(0)
    for number in range(n):
        image = drawn[number % len(drawn)].transpose(1, 2, 0).astype(np.int16)
        image = np.roll(image, tuple(rng.integers(size, size=2)), axis=(0, 1))
        image = image + rng.integers(-20, 21) + rng.integers(-3, 4, image.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05}.png")


def of_many(n: int, network: str, size: int) -> dict:
    """One row, in this process."""
    from jobs import measured

    from pandalib import Inspector, load_backbone
    from pandalib.inspection.report import write_report

    weights = "embedded" if network == "glyphs_resnet4" else "imagenet"
    inspector = Inspector(load_backbone(network, weights, device="cpu"), size=size, progress=False)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        folder.mkdir()
        draw(folder, n, size)
        inspector.backbone.features(np.zeros((2, 3, size, size), np.uint8))
        fit, memory, _ = measured(inspector.fit, folder)
        score, _, ranking = measured(inspector.rank, folder)
        report = Path(temporary) / "report.html"
        write_report(report, inspector, ranking)
        return dict(fit=fit, memory=memory, score=score / n, report=report.stat().st_size / 1e6)


def many(tiny: bool) -> tuple[list[str], list[Line]]:
    """Rows of the page and its lines, each in a process of its own."""
    rows, lines = [], []
    for name, (n, network, size, minutes, mebibytes) in MANY.items():
        n, size = (40, 64) if tiny else (n, size)
        done = subprocess.run(
            [sys.executable, __file__, "--one", json.dumps([n, network, size])],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"inspector: {name} failed:\n{done.stderr[-2000:]}")
        one = json.loads(done.stdout.splitlines()[-1])
        rows.append(
            f"| {n} of {size} px | {network} | {one['fit']:.0f} | {one['memory']:.0f} | "
            f"{one['score']:.3f} | {one['report']:.1f} |"
        )
        print(rows[-1], flush=True)
        if minutes:
            lines.append(at_most(f"{name}, {size} px: fit", one["fit"] / 60, minutes, " min"))
            lines.append(at_most(f"{name}: a report of all", one["report"], 10, " MB"))
        lines.append(at_most(f"{name}, {size} px: memory", one["memory"], mebibytes, " MiB"))
    return rows, lines


def main() -> None:
    default = common.ROOT.parent / "shared" / "real"
    options = common.arguments(
        __doc__,
        1,
        ("folder", dict(nargs="?", type=Path, default=default)),
        ("--one", dict(help=common.argparse.SUPPRESS)),
    )
    if options.one:
        return print(json.dumps(of_many(*json.loads(options.one))))
    rows, lines, tiles, size = [], [], "Magnetic tiles were not at hand.", "about 224 x 224 pixels"
    if (options.folder / "magnetic_tile").is_dir() and not options.tiny:
        task = load_task(
            f"folder:{options.folder / 'magnetic_tile'}", size=224, missing_masks="drop"
        )
        weights = str(options.folder / "weights" / "resnet18_tv_layers123_bnfolded.pth")
        rows, lines = beside_anomalib(task, weights)
        tiles = f"Magnetic tiles, {len(task.train)} normal and {len(task.test)} test images."
        size = "{1} x {0} pixels".format(*task.train[:1].shape[2:])
    more_rows, more_lines = many(options.tiny)
    page = PAGE.format(
        argument=" FOLDER" if rows else "",
        machine=machine(),
        versions=versions("torch", "torchvision", "numpy"),
        anomalib=peers.VERSIONS["anomalib"],
        section=section([*lines, *more_lines]),
        tiles=tiles,
        size=size,
        weights="ResNet-18 with ImageNet weights up to layer3",
        metrics=" | ".join(METRICS),
        rows="\n".join(rows),
        many="\n".join(more_rows),
    )
    finish("inspector_speed.md", page, options.tiny)


if __name__ == "__main__":
    main()
