"""Segmentation by correspondences against the loop by broadcasting: `python bench/segmentation.py`
writes docs/results/segmentation_speed.md.

The loop is what public code does: for every test image and layer the positions of the K nearest
normal images in one gallery, and differences by broadcasting, 100 positions at a time. Both sides
start from the same features and take turns; a figure is the median of the rounds. The floor is the
multiplications of the distances alone, at the rate at which this machine multiplies matrices in the
same run.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

import common
import faiss
import numpy as np
import torch
from common import Line, at_most, faster, finish, machine, seconds, section, versions
from pixel_metrics import drawn

from pandalib import SPADE, load_backbone, load_task, pro
from pandalib.datasets.synthetic.surfaces import Surfaces
from pandalib.experiments.run import peak_rss_mb
from pandalib.methods.distances import TILE_COLUMNS, TILE_ROWS, enlarged
from pandalib.methods.knn import squared_distances
from pandalib.methods.spade import Pyramids

K = 5
PAGE = """# Segmentation: seconds and memory

Made by `python bench/segmentation.py` on {machine}; {versions}. Medians of {rounds} alternating
rounds.

{section}
## Distances of one test image

K = {k} nearest normal images, layers 1 to 3. Timed is finding the K images and working out the
distances; the features are at hand on all sides. "Loop": differences by broadcasting, 100 positions
at a time. "faiss": `faiss.knn(..., 1)` for each layer.

| network, images | loop, s | faiss, s | pandalib, s | loop / pandalib | wanted | faiss / \
pandalib | largest difference, of the largest distance |
|---|---|---|---|---|---|---|---|
{rows}

The floor is {k} x positions^2 x channels multiplications, summed over the three layers. "Whole": at
the rate of `torch.mm` for all distances of layer 1 at once, which go to memory; "tile": at its rate
for one tile, which stays in the cache.

| network, images | multiplications | a second, whole | over this floor | wanted | a second, tile \
| over this floor | features of the image, ms | enlarging and blurring, ms |
|---|---|---|---|---|---|---|---|---|
{floors}

## Whole tasks

| what | measured | wanted |
|---|---|---|
{tasks}

Peak memory is that of a process of its own that fits on 20 images of 128 px and scores so many with
`SPADE.score`, each drawn when it is asked for; most of it are the libraries and the network's pass
of a batch. It settles after some batches (69 images each) and does not grow from there.
"""


def looped(part: Pyramids, pooled: np.ndarray, galleries: list[torch.Tensor]) -> list[torch.Tensor]:
    """The definition by broadcasting, for one test image: the smallest squared distance of each
    position, layer by layer.
    """
    nearest = (
        torch.from_numpy(np.square(pooled - part.pooled).sum(axis=1)).topk(K, largest=False).indices
    )
    found = []
    for layer, gallery in enumerate(galleries):
        queries, candidates = part.positions(0, layer), gallery[nearest].flatten(0, 1)
        found.append(
            torch.cat(
                [
                    (rows[:, None] - candidates[None]).square().sum(dim=2).amin(dim=1)
                    for rows in queries.split(100)
                ]
            )
        )
    return found


def by_faiss(part: Pyramids, pooled: np.ndarray, galleries: list[torch.Tensor]) -> list[np.ndarray]:
    """The same by faiss."""
    nearest = faiss.knn(part.pooled, pooled, K)[1][0]
    return [
        faiss.knn(part.positions(0, layer).numpy(), gallery[nearest].flatten(0, 1).numpy(), 1)[0]
        for layer, gallery in enumerate(galleries)
    ]


def ours(detector: SPADE, part: Pyramids) -> list[np.ndarray]:
    neighbours = squared_distances(detector.normal_.pooled, part.pooled, K)[1]
    return [detector._layer_map(part, neighbours, layer) for layer in range(len(detector.layers))]


def rate(rows: int, columns: int, channels: int, repeat: int = 1) -> float:
    """Multiplications a second of `torch.mm`, into memory that is there: the median of seven."""
    queries, gallery, out = (
        torch.randn(rows, channels),
        torch.randn(columns, channels),
        torch.empty(rows, columns),
    )

    def multiply():
        for _ in range(repeat):
            torch.mm(queries, gallery.T, out=out)

    multiply()
    return repeat * rows * columns * channels / seconds(multiply, times=7)[0]


def compare(name: str, network, images: np.ndarray, rounds: int) -> tuple[str, str, list[Line]]:
    detector = SPADE(network, n_images=K).fit(images[:-1])
    normal = detector.normal_
    pooled, galleries = (
        normal.pooled,
        [normal.positions(slice(None), layer) for layer in range(len(detector.layers))],
    )
    part = Pyramids.of(network, images[-1:], detector.layers, dtype=np.float32)
    taken: dict[str, list[float]] = {
        key: [] for key in ("loop", "faiss", "pandalib", "features", "blur", "whole", "tile")
    }
    positions, channels = part.shapes[0][0] * part.shapes[0][1], part.shapes[0][2]
    ours(detector, part)
    for _ in range(rounds):
        slow, expected = seconds(looped, part, pooled, galleries)
        fast, found = seconds(ours, detector, part, times=7)
        for key, value in (
            ("loop", slow),
            ("pandalib", fast),
            ("faiss", seconds(by_faiss, part, pooled, galleries, times=3)[0]),
            (
                "features",
                seconds(
                    lambda: Pyramids.of(network, images[-1:], detector.layers, dtype=np.float32),
                    times=3,
                )[0],
            ),
            (
                "blur",
                seconds(lambda: [enlarged(maps, images.shape[2:], 4.0) for maps in found], times=7)[
                    0
                ],
            ),
            ("whole", rate(positions, K * positions, channels)),
            ("tile", rate(TILE_ROWS, TILE_COLUMNS, channels, repeat=20)),
        ):
            taken[key].append(value)
    median = {key: statistics.median(values) for key, values in taken.items()}
    multiplications = sum(K * (high * wide) ** 2 * width for high, wide, width in part.shapes)
    apart = max(
        float(np.abs(one.ravel() - other.numpy()).max() / other.max())
        for one, other in zip(found, expected)
    )
    ratio = median["loop"] / median["pandalib"]
    over = [median["pandalib"] * median[key] / multiplications for key in ("whole", "tile")]
    where = f"{name}, {images.shape[-1]} px"
    row = (
        f"| {where} | {median['loop']:.2f} | {median['faiss']:.4f} | {median['pandalib']:.4f} | "
        f"{ratio:.0f} | 100, {'met' if ratio >= 100 else 'NOT met'} | "
        f"{median['faiss'] / median['pandalib']:.2f} | {apart:.1e} |"
    )
    floor = (
        f"| {where} | {multiplications:.2e} | {median['whole']:.2e} | {over[0]:.2f} | 1.5, "
        f"{'met' if over[0] <= 1.5 else 'NOT met'} | {median['tile']:.2e} | "
        f"{over[1]:.2f} | {1e3 * median['features']:.1f} | {1e3 * median['blur']:.2f} |"
    )
    print(row, floor, sep="\n", flush=True)
    return (
        row,
        floor,
        [
            faster(
                f"distances of an image, {where}, against the loop",
                median["loop"],
                median["pandalib"],
                wanted=100,
            ),
            faster(
                f"distances of an image, {where}, against faiss",
                median["faiss"],
                median["pandalib"],
            ),
            at_most(f"distances of an image, {where}, over the floor", over[0], 1.5, " times"),
        ],
    )


def peak_mb(n: int) -> float:
    """Peak memory of a process that scores so many images, each drawn when it is asked for."""
    done = subprocess.run(
        [sys.executable, __file__, "--score", str(n)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def score_lazily(n: int) -> None:
    detector = SPADE(load_backbone(device="cpu"), n_images=K).fit(Surfaces("weave", 20))
    assert len(detector.score(Surfaces("weave", n, split="test"))) == n
    print(peak_rss_mb())


def tasks(network, tiny: bool) -> tuple[list[str], list[Line]]:
    rows, lines = [], []

    def add(what: str, measured: float, wanted: float, unit: str) -> None:
        rows.append(
            f"| {what} | {measured:.3g} {unit} | at most {wanted:g}, "
            f"{'met' if measured <= wanted else 'NOT met'} |"
        )
        lines.append(
            at_most(
                what.replace(
                    "... 400 images, above that", "peak memory of 400 images above that of 50"
                ),
                measured,
                wanted,
                f" {unit}",
            )
        )
        print(rows[-1], flush=True)

    task = load_task("surfaces:weave", n_train=6 if tiny else 50)
    fit, detector = seconds(SPADE(network).fit, task.train)
    score, _ = seconds(detector.score, task.test[:50])
    add("surfaces:weave, 128 px: fit on 50 images and score 50, K = 50", fit + score, 20, "s")
    masks, distances = drawn(40, 224)
    add("PRO of 40 maps of 224 x 224", seconds(pro, masks, distances, times=5)[0], 0.5, "s")
    few, many = (peak_mb(n) for n in ((4, 8) if tiny else (50, 400)))
    rows.append(f"| peak memory, 50 images | {few:.0f} MiB | |")
    add("... 400 images, above that", many - few, 128, "MiB")
    return rows, lines


def main() -> None:
    options = common.arguments(
        __doc__, 3, ("--score", dict(type=int, help=common.argparse.SUPPRESS))
    )
    if options.score:
        return score_lazily(options.score)
    embedded = load_backbone(device="cpu")
    surfaces = Surfaces("weave", 11)[:]
    large = Surfaces("weave", 11, size=64 if options.tiny else 224)[:]
    parts = [
        compare(
            "resnet18 (random weights)",
            load_backbone("resnet18", "random", device="cpu"),
            large,
            options.rounds,
        )
    ]
    parts.append(compare("embedded", embedded, surfaces, options.rounds))
    rows, floors, lines = zip(*parts)
    task_rows, more = tasks(embedded, options.tiny)
    page = PAGE.format(
        machine=machine(),
        versions=versions("torch", "numpy", "faiss-cpu"),
        rounds=options.rounds,
        section=section(sum(lines, []) + more),
        k=K,
        rows="\n".join(rows),
        floors="\n".join(floors),
        tasks="\n".join(task_rows),
    )
    finish("segmentation_speed.md", page, options.tiny)


if __name__ == "__main__":
    main()
