"""How cost grows: `python bench/growth.py` writes docs/results/growth_speed.md.

The gallery from a thousand to a million features: all pairs (pandalib, and faiss's flat index
alone), an inverted file (IVF) and a gallery of k-means centres, each in a process of its own. Then
images from a hundred to 20,000 through the cache of the frozen part. What one worker and two do is
in docs/results/sweep_speed.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np
from common import Line, at_most, finish, machine, section, versions

D, K = 128, 2
CENTRES, PROBES = 256, 16
GALLERIES, IMAGES = (1_000, 10_000, 100_000, 1_000_000), (100, 1_000, 5_000, 20_000)
PAGE = """# How cost grows

Made by `python bench/growth.py` on {machine}; {versions}. Medians of {rounds} rounds.

{section}
## The gallery

{n_queries} queries, {d} dimensions, k = {k}; features drawn in 200 clouds, each with 12 directions
of its own; the anomalous half of the queries has more spread. Each line is a process of its own;
"memory" is what it holds at most above the features themselves. "Recall": the share of the true {k}
nearest that are found; k-means centres are no neighbours. IVF: 4 sqrt(N) lists, {probes} of them
searched. k-means: {centres} centres, all points, the library's own.

| features | search | built, s | scores, s | ms a query | memory, MiB | recall | ROC-AUC |
|---|---|---|---|---|---|---|---|
{gallery}

pandalib asks faiss for 2 candidates more than k and works their distances out again in float64;
that, and taking the mean off the queries, is what it needs beyond faiss alone. Its second copy of
the gallery, without the mean, is its memory.

## Images through the cache of the frozen part

Embedded network, 64 px, float16 on disk. "First": computed and written; "again": read back, its
hash checked; "trainable": from the activations to features. Memory is what the process holds at
most above the images and libraries.

| images | first, s | ms an image | again, s | ms an image | trainable, s | ms an image | on \
disk, MB \
| memory, MiB |
|---|---|---|---|---|---|---|---|---|
{images}
"""


def clouds(n: int, n_queries: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gallery (n, D), queries and their labels; block by block, so that nothing but the result
    takes memory.
    """
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((200, D)).astype(np.float32)
    directions = (rng.standard_normal((200, 12, D)) / 12**0.5).astype(np.float32)

    def draw(size, spread):
        found = np.empty((size, D), np.float32)
        for start in range(0, size, 20_000):
            part = found[start : start + 20_000]
            which = np.sort(rng.integers(200, size=len(part)))
            rows = rng.standard_normal((len(part), 12), dtype=np.float32)
            for cloud in np.unique(which):
                low, high = np.searchsorted(which, [cloud, cloud + 1])
                part[low:high] = centres[cloud] + spread * rows[low:high] @ directions[cloud]
        return found + 0.1 * rng.standard_normal(found.shape, dtype=np.float32)

    half = n_queries // 2
    return (
        draw(n, 1.0),
        np.concatenate([draw(n_queries - half, 1.0), draw(half, 1.25)]),
        np.repeat([0, 1], [n_queries - half, half]),
    )


def search(way: str, gallery: np.ndarray):
    """The way, built: a function from queries to (squared distances, indices or None)."""
    import faiss

    from pandalib.methods.knn import _Gallery, kmeans_gallery

    if way == "pandalib, all pairs":
        found = _Gallery(gallery)
        return lambda queries: found.search(queries, K)
    if way == "faiss, flat":
        index = faiss.IndexFlatL2(D)
        index.add(gallery)
        return lambda queries: index.search(queries, K)
    if way == "faiss, IVF":
        lists = int(4 * len(gallery) ** 0.5)
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(D), D, lists)
        index.cp.min_points_per_centroid = 1
        index.train(gallery)
        index.add(gallery)
        index.nprobe = PROBES
        return lambda queries: index.search(queries, K)
    found = _Gallery(kmeans_gallery(gallery, CENTRES))
    return lambda queries: (found.search(queries, K)[0], None)


WAYS = ("pandalib, all pairs", "faiss, flat", "faiss, IVF", "k-means gallery")


def of_gallery(n: int, way: str, n_queries: int, rounds: int) -> dict:
    """One line, in this process."""
    import faiss

    from pandalib import roc_auc
    from pandalib.experiments.run import peak_rss_mb, reset_peak_rss

    gallery, queries, labels = clouds(n, n_queries)
    reset_peak_rss()
    before = peak_rss_mb()
    built, find = common.seconds(search, way, gallery)
    taken, (distances, indices) = common.seconds(find, queries, times=rounds)
    memory = peak_rss_mb() - before
    recall = None
    if indices is not None:
        true = faiss.knn(queries, gallery, K)[1]
        recall = float(
            np.mean([len(np.intersect1d(one, other)) / K for one, other in zip(indices, true)])
        )
    return dict(
        built=built,
        score=taken,
        memory=memory,
        recall=recall,
        auc=roc_auc(labels, distances.sum(axis=1)),
    )


def of_images(n: int, rounds: int) -> dict:
    """One line of the cache of the frozen part, in this process.

    The images repeat, shifted and shaded: what they show costs nothing.
    """
    from pandalib import FeatureCache, load_backbone, load_task
    from pandalib.experiments.run import peak_rss_mb, reset_peak_rss

    drawn = load_task("pictograms:star", n_train=100).train[:100]
    images = np.concatenate(
        [np.roll(drawn, number, axis=3) ^ np.uint8(number % 16) for number in range(-(-n // 100))]
    )[:n]
    backbone = load_backbone(device="cpu")
    backbone.features(images[:300])
    reset_peak_rss()
    before = peak_rss_mb()
    taken: dict[str, list[float]] = {"first": [], "again": [], "trainable": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            cache = FeatureCache(folder)
            for key in ("first", "again"):
                start = time.perf_counter()
                frozen = backbone.frozen_features(images, cache=cache)
                taken[key].append(time.perf_counter() - start)
            taken["trainable"].append(common.seconds(backbone.features_from, frozen)[0])
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
            del frozen
    return dict(
        **{key: float(np.median(values)) for key, values in taken.items()},
        disk=size / 1e6,
        memory=peak_rss_mb() - before,
    )


def alone(*what) -> dict:
    """One line, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(what)], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"growth: {what} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    options = common.arguments(__doc__, 3, ("--one", dict(help=common.argparse.SUPPRESS)))
    if options.one:
        what, *settings = json.loads(options.one)
        return print(json.dumps({"gallery": of_gallery, "images": of_images}[what](*settings)))
    sizes, amounts, n_queries = (
        ((1_000, 4_000), (100, 200), 100) if options.tiny else (GALLERIES, IMAGES, 1_000)
    )
    rows, lines, found = [], [], {}
    for n in sizes:
        for way in WAYS:
            found[n, way] = one = alone("gallery", n, way, n_queries, options.rounds)
            recall = "" if one["recall"] is None else f"{one['recall']:.4f}"
            rows.append(
                f"| {n:,} | {way} | {one['built']:.3g} | {one['score']:.3g} | "
                f"{1e3 * one['score'] / n_queries:.3f} | {one['memory']:.0f} | {recall} | "
                f"{one['auc']:.4f} |"
            )
            print(rows[-1], flush=True)
        flat, ours = found[n, "faiss, flat"], found[n, "pandalib, all pairs"]
        lines.append(
            Line(
                f"{n:,} features: pandalib's exact distances over faiss's flat index alone",
                "",
                f"{ours['score'] / flat['score']:.2f} times",
                None,
            )
        )
    for way in WAYS[2:]:
        one, exact = found[sizes[-1], way], found[sizes[-1], WAYS[0]]
        recall = "" if one["recall"] is None else f", recall {one['recall']:.3f}"
        times = exact["score"] / one["score"]
        measured = f"{times:.1f} times as fast, built in {one['built']:.3g} s{recall}, "
        measured += f"ROC-AUC {one['auc']:.3f} against {exact['auc']:.3f}"
        lines.append(Line(f"{sizes[-1]:,} features: {way}, against all pairs", "", measured, None))
    image_rows, each = [], {}
    for n in amounts:
        each[n] = one = alone("images", n, options.rounds)
        parts = " | ".join(
            f"{one[key]:.3f} | {1e3 * one[key] / n:.3f}" for key in ("first", "again", "trainable")
        )
        image_rows.append(f"| {n:,} | {parts} | {one['disk']:.1f} | {one['memory']:.0f} |")
        print(image_rows[-1], flush=True)
    middle, pass_of_one = (
        sizes[-2],
        each[amounts[-1]]["first"] / amounts[-1] + each[amounts[-1]]["trainable"] / amounts[-1],
    )
    lines.append(
        at_most(
            f"{middle:,} features: all pairs for one query, over the network's pass of one image",
            found[middle, WAYS[0]]["score"] / n_queries / pass_of_one,
            1,
            " times",
        )
    )
    few, many = sorted(amounts)[-3:][0], amounts[-1]
    lines.append(
        at_most(
            f"cache of the frozen part, first time: an image of {many:,} over one of {few:,}",
            each[many]["first"] / many / (each[few]["first"] / few),
            1.2,
            " times",
        )
    )
    lines.append(
        at_most(
            f"cache of the frozen part, again: an image of {many:,} over one of {few:,}",
            each[many]["again"] / many / (each[few]["again"] / few),
            1.2,
            " times",
        )
    )
    page = PAGE.format(
        machine=machine(),
        versions=versions("torch", "numpy", "faiss-cpu"),
        rounds=options.rounds,
        section=section(lines),
        n_queries=f"{n_queries:,}",
        d=D,
        k=K,
        probes=PROBES,
        centres=CENTRES,
        gallery="\n".join(rows),
        images="\n".join(image_rows),
    )
    finish("growth_speed.md", page, options.tiny)


if __name__ == "__main__":
    main()
