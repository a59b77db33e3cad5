"""DN2's two halves against the usual code: `python bench/extraction.py` writes
docs/results/extraction_speed.md.

Scores: against pyod's KNN, each side in a process of its own, on the same features. Extraction:
against the loop that a reader of torchvision's documentation would write, and against the network
alone on batches that are ready, in both memory formats.
"""

from __future__ import annotations

import common
import numpy as np
import peers
import torch
import torchvision
from common import alternate, at_most, faster, finish, machine, section, versions
from torch import nn
from torchvision.transforms import v2

from pandalib import load_backbone, load_task, roc_auc
from pandalib.backbones import MEAN, PIXELS_PER_BATCH, STD, embedded_network, normalise
from pandalib.weights import read_state, verify_embedded

PAGE = """# Features and their scores

Made by `python bench/extraction.py` on {machine}; {versions}. Medians of {rounds} alternating
rounds.

{section}
## Scores: pyod's KNN

k = 2. Each side in a process of its own, both with the same features; importing does not count.
pyod's `fit` scores the training images as well, so pandalib's time has its leave-one-out scores in
it. pyod's score is the mean distance, DN2's the sum of squared distances: nearly the same order.
"Rank agreement" is the Spearman correlation of the two.

| features | side | fit with scores of the gallery, s | scores, s | memory to fit, MiB | ROC-AUC \
| rank agreement |
|---|---|---|---|---|---|---|
{scores}

## Extraction

Plain loop: batches of {batch}, `ToDtype` and `Normalize` of torchvision's transforms, the network
in evaluation mode, no gradients. "Bare": the network's own forward pass on normalised batches, of
the size that pandalib takes, that lie ready. "Difference": the largest, of the largest feature.

| network, images | plain loop, s | pandalib, s | plain / pandalib | bare, contiguous, s | bare, \
channels last, s | pandalib / best bare | difference |
|---|---|---|---|---|---|---|---|
{rows}

What limits extraction is the network's convolutions: pandalib's own share, from uint8 to normalised
floats in channels_last order, is one pass over the pixels. Folding BatchNorm into the frozen
convolutions takes passes over the activations away, which is how it can be faster than the bare
network.
"""
BATCH = 32


def torchvision_network(name: str) -> nn.Module:
    """The whole network, as torchvision builds it, up to its pooled features."""
    if name == "embedded":
        state = read_state(verify_embedded())
        network = embedded_network(len(state["fc.weight"]))
        network.load_state_dict(state)
    else:
        torch.manual_seed(0)  # as `load_backbone(name, "random")` draws its weights
        network = torchvision.models.get_model(name, weights=None)
    setattr(network, "classifier" if name == "mobilenet_v2" else "fc", nn.Identity())
    return network.eval()


@torch.no_grad()
def plain_loop(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """What a reader of torchvision's documentation writes."""
    transform = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    return np.concatenate(
        [
            network(transform(torch.from_numpy(images[i : i + BATCH]))).numpy()
            for i in range(0, len(images), BATCH)
        ]
    )


def compare_extraction(
    name: str, images: np.ndarray, rounds: int, most: float
) -> tuple[str, list[common.Line]]:
    backbone = (
        load_backbone(device="cpu")
        if name == "embedded"
        else load_backbone(name, "random", device="cpu")
    )
    network = torchvision_network(name)
    last = torchvision_network(name).to(memory_format=torch.channels_last)
    step = max(1, PIXELS_PER_BATCH // (images.shape[-1] * images.shape[-2]))
    ready = [normalise(images[i : i + step]) for i in range(0, len(images), step)]
    contiguous = [batch.contiguous() for batch in ready]

    def bare(part: nn.Module, batches: list[torch.Tensor]):
        with torch.no_grad():
            return [part(batch) for batch in batches]

    sides = {
        "plain": lambda: plain_loop(network, images),
        "pandalib": lambda: backbone.features(images),
        "contiguous": lambda: bare(network, contiguous),
        "channels_last": lambda: bare(last, ready),
    }
    median, values = alternate(sides, rounds)
    apart = float(
        np.abs(values["plain"] - values["pandalib"]).max() / np.abs(values["plain"]).max()
    )
    best = min(median["contiguous"], median["channels_last"])
    what = f"{name}, {len(images)} at {images.shape[-1]} px"
    row = (
        f"| {what} | {median['plain']:.3f} | {median['pandalib']:.3f} | "
        f"{median['plain'] / median['pandalib']:.2f} | {median['contiguous']:.3f} | "
        f"{median['channels_last']:.3f} | {median['pandalib'] / best:.2f} | {apart:.1e} |"
    )
    print(row, flush=True)
    return row, [
        faster(f"features, {what}, against the plain loop", median["plain"], median["pandalib"]),
        at_most(
            f"features, {what}, over the bare forward pass",
            median["pandalib"] / best,
            most,
            " times",
        ),
    ]


def compare_scores(
    what: str, gallery, queries, labels, rounds: int, threads: int
) -> tuple[list[str], list[common.Line]]:
    from scipy.stats import spearmanr

    arrays, k = dict(gallery=gallery, queries=queries), 2
    taken: dict[str, list[dict]] = {"pyod": [], "pandalib": []}
    for _ in range(rounds):
        theirs, facts = peers.ask("pyod_knn", arrays, threads=threads, k=k, method="mean", repeat=3)
        taken["pyod"].append(facts)
        ours, facts = peers.ask(
            "pandalib_knn", arrays, theirs=False, threads=threads, k=k, repeat=3
        )
        taken["pandalib"].append(facts)
    median = {
        side: {key: float(np.median([one[key] for one in facts])) for key in facts[0]}
        for side, facts in taken.items()
    }
    quality = {
        "pyod": roc_auc(labels, theirs["scores"]),
        "pandalib": roc_auc(labels, ours["scores"]),
    }
    agreement = spearmanr(theirs["scores"], ours["scores"])[0]
    rows = [
        f"| {what} | {side} | {one['fit']:.4f} | {one['score']:.4f} | {one['fit_mb']:.1f} | "
        f"{quality[side]:.4f} | {agreement:.4f} |"
        for side, one in median.items()
    ]
    print(*rows, sep="\n", flush=True)
    qualities = {"ROC-AUC": (quality["pyod"], quality["pandalib"])}
    return rows, [
        faster(
            f"kNN fit with scores of the gallery, {what}, against pyod",
            median["pyod"]["fit"],
            median["pandalib"]["fit"],
        ),
        faster(
            f"kNN scores, {what}, against pyod",
            median["pyod"]["score"],
            median["pandalib"]["score"],
            qualities=qualities,
        ),
    ]


def clouds(
    n_gallery: int, n_queries: int, d: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of 20 clouds, each in 30 directions of its own; the anomalous half of the queries
    has 40 % more spread.
    """
    rng = np.random.default_rng(seed)
    centres, directions = rng.standard_normal((20, d)), rng.standard_normal((20, 30, d)) / 30**0.5

    def draw(n, spread):
        which = rng.integers(20, size=n)
        rows = rng.standard_normal((n, 30))
        found = np.empty((n, d), np.float32)
        for cloud in range(20):
            mine = which == cloud
            found[mine] = centres[cloud] + spread * rows[mine] @ directions[cloud]
        return found

    labels = np.repeat([0, 1], [n_queries - n_queries // 2, n_queries // 2])
    return (
        draw(n_gallery, 1.0),
        np.concatenate([draw(int((labels == 0).sum()), 1.0), draw(int(labels.sum()), 1.4)]),
        labels,
    )


def main() -> None:
    options = common.arguments(__doc__, 5)
    threads = torch.get_num_threads()
    task = load_task("pictograms:star", **(dict(n_train=40, n_test=4) if options.tiny else {}))
    network = load_backbone(device="cpu")
    scores, lines, rows = [], [], []
    n, q, d = (300, 200, 64) if options.tiny else (5000, 10000, 2048)
    for what, (gallery, queries, labels) in (
        (
            "pictograms:star, embedded features, 512-d",
            (network.features(task.train), network.features(task.test), task.labels),
        ),
        (f"{n} and {q} drawn features, {d}-d", clouds(n, q, d)),
    ):
        found = compare_scores(what, gallery, queries, labels, options.rounds, threads)
        scores, lines = scores + found[0], lines + found[1]
    large = np.repeat(np.repeat(task.train[:64], 4, axis=2), 4, axis=3)[:, :, :224, :224]
    for name, images, most in (
        ("embedded", task.test, 1.5),
        ("mobilenet_v2", large[:, :, :160, :160], 1 / 0.9),
        ("resnet18", large, 1.5),
        ("wide_resnet50_2", large[:16], 1.5),
    ):
        if options.tiny:
            images = images[:4]
        if not (options.tiny and name == "wide_resnet50_2"):
            images = np.ascontiguousarray(images)
            row, found = compare_extraction(name, images, options.rounds, most)
            rows, lines = [*rows, row], lines + found
    page = PAGE.format(
        machine=machine(),
        versions=versions("torch", "torchvision", "numpy", "faiss-cpu")
        + f", pyod {peers.VERSIONS['pyod']}",
        rounds=options.rounds,
        section=section(lines),
        scores="\n".join(scores),
        batch=BATCH,
        rows="\n".join(rows),
    )
    finish("extraction_speed.md", page, options.tiny)


if __name__ == "__main__":
    main()
