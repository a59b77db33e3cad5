"""Outlier exposure on the ten pictograms: `python tools/exposure_table.py` writes docs/results/exposure.md.

Settings are chosen with --tune: on ten of the outlier symbols, with the eleven others and the ten pictograms as outliers,
so that neither an image nor a label of the reported test is seen. Results are kept in the cache folder; a run that was
interrupted goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from adaptation_table import LONG, N_TEST, N_TRAIN, PRECISION, SEEDS, TUNING, remembered  # noqa: E402

from pandalib import EWC, OutlierExposure, knn_scores, load_backbone, load_outliers, roc_auc, upstream_fisher  # noqa: E402
from pandalib.adapt import adapt, epochs_for  # noqa: E402
from pandalib.files import write_atomically  # noqa: E402
from pandalib.sources.pictograms import DEFAULT_LEVEL, OUTLIERS, SYMBOLS, Pictograms  # noqa: E402
from pandalib.tiers import EMBEDDED  # noqa: E402

N_OUTLIERS = 2000
COUNTS = (21, 100, 400, 2000)
EPOCHS = epochs_for(EMBEDDED.exposure, N_TRAIN)
COLUMNS = ("DN2", "EWC", "near", "middle", "far", "noise", "one symbol")


def measure(symbol: str, seed: int, symbols: list[str]) -> dict:
    """ROC-AUC of each method on one symbol, and how easily DN2 tells each pile of outliers from normal images."""
    import torch

    torch.set_num_threads(1)  # two processes of one thread do more than one of two
    backbone = load_backbone()
    others = OUTLIERS if symbol in SYMBOLS else "".join(c for c in OUTLIERS if c not in TUNING) + "".join(SYMBOLS.values())
    stem = backbone.stem_features(Pictograms(symbol, N_TRAIN, split="train", seed=seed)[:])
    stem_test = backbone.stem_features(np.concatenate([Pictograms(other, N_TEST, split="test", seed=seed)[:] for other in symbols]))
    labels = np.repeat([int(other != symbol) for other in symbols], N_TEST)
    gallery, normal = backbone.head_features(stem), backbone.head_features(stem_test[labels == 0])
    scores = knn_scores(gallery, backbone.head_features(stem_test))
    found = {"DN2": roc_auc(labels, scores), "easy": {}, "count": {}}
    piles = {kind: load_outliers(kind, N_OUTLIERS, seed=seed, symbols=others) for kind in ("near", "middle", "far", "noise")}
    piles["one symbol"] = load_outliers("near", N_OUTLIERS, seed=seed, symbols=others[0])
    for kind, images in piles.items():
        outliers = backbone.stem_features(images)
        apart = knn_scores(gallery, np.concatenate([normal, backbone.head_features(outliers[:400])]))
        found["easy"][kind] = roc_auc(np.arange(len(apart)) >= len(normal), apart)
        for count in COUNTS if kind == "near" else (N_OUTLIERS,):
            pace = dict(epochs=EPOCHS, lr=EMBEDDED.exposure_lr, clip=EMBEDDED.exposure_clip)
            detector = OutlierExposure(backbone, None, seed=seed, progress=False, **pace)
            detector.fit_stems(stem, outliers[:count])
            result = roc_auc(labels, detector.score_stems(stem_test))
            if kind == "near":
                found["count"][str(count)] = result
        found[kind] = result  # with all of them
    penalty = EWC(backbone, EMBEDDED.strength, upstream_fisher(backbone, progress=False))
    pace = dict(epochs=LONG, every=LONG, lr=EMBEDDED.ewc_lr, clip=EMBEDDED.clip)
    held = adapt(backbone, stem, penalty=penalty, seed=seed, progress=False, **pace)[-1]
    pair = (held.head_features(part) for part in (stem, stem_test))
    found["EWC"] = roc_auc(labels, knn_scores(*pair))
    return found


def measured(symbol: str, seed: int, symbols: list[str]) -> dict:
    """`measure`, or what it found before with the same weights and settings."""
    weights = load_backbone().weights_sha256
    facts = [weights, EMBEDDED, N_TRAIN, N_TEST, N_OUTLIERS, COUNTS, symbol, seed, symbols, PRECISION]
    return remembered("exposure", facts, lambda: measure(symbol, seed, symbols))


def page(symbols: list[str], seeds, results: dict) -> str:
    def cell(pick) -> np.ndarray:
        return np.array([[pick(results[symbol, one]) for one in seeds] for symbol in symbols])

    table = {name: cell(lambda run, name=name: run[name]) for name in COLUMNS}
    mean = {name: values.mean() for name, values in table.items()}
    wins = int((table["near"].mean(axis=1) > table["DN2"].mean(axis=1)).sum())
    losses = int((table["far"].mean(axis=1) < table["DN2"].mean(axis=1)).sum())
    near, far = mean["near"], mean["far"] - mean["DN2"]
    return "\n".join([
        "# Outlier exposure on the ten pictograms", "",
        f"Made by `python tools/exposure_table.py{'' if symbols[0] in SYMBOLS else ' --tune'}` with the weights `{load_backbone().weights_sha256[:12]}...`.",
        "Embedded tier: these are this project's own images, not the paper's, and none of these figures may stand beside published ones.", "",
        f"ROC-AUC at the level \"{DEFAULT_LEVEL}\", {N_TRAIN} normal training images, {N_TEST} test images of each of the ten symbols, mean over {len(seeds)} seed(s), {PRECISION}.",
        f"{N_OUTLIERS} outliers of one pile: *near*, other symbols drawn as the ten are; *middle*, glyphs of the upstream task; *far*, backgrounds without a symbol;",
        f"*noise*, random pixels; *one symbol*, all outliers show the same symbol. SGD, momentum 0.9, batches of 32 + 32, learning rate {EMBEDDED.exposure_lr:g}, gradient norm",
        f"cut to {EMBEDDED.exposure_clip:g}, {EPOCHS} epochs, chosen on other symbols than the ten (`--tune`). DN2 and EWC ({LONG} epochs) see no outliers.", "",
        "| normal symbol | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS),
        *(f"| {symbol} | " + " | ".join(f"{table[name][row].mean():.3f}" for name in COLUMNS) + " |" for row, symbol in enumerate(symbols)),
        "| **mean** | " + " | ".join(f"**{value:.3f}**" for value in mean.values()) + " |",
        "| lowest and highest seed | " + " | ".join(f"{values.mean(axis=0).min():.3f} to {values.mean(axis=0).max():.3f}" for values in table.values()) + " |", "",
        "| wanted | is | |", "|---|---|---|",
        f"| near outliers at least 0.95 | {near:.3f} | {'met' if near >= 0.95 else f'**not met**, by {0.95 - near:.3f}'} |",
        f"| a case where exposure hurts | far outliers: {far:+.3f} against DN2 | {'met' if far < 0 else '**not met**'} |", "",
        f"Near outliers are better than DN2 on {wins} of {len(symbols)} symbols; far ones are worse than DN2 on {losses}.", "",
        "## How DN2 sees the piles", "", "ROC-AUC of DN2 for the outliers against normal test images, and of exposure to them for the symbols. The first does not predict the second: glyphs of the",
        "upstream task are easy for DN2, and empty backgrounds lie nearer to the normal images than other normal images do. What counts is what the task asks for.", "",
        "| pile | DN2: outliers against normal | exposure: symbols against normal |", "|---|---|---|",
        *(f"| {kind} | {cell(lambda run, kind=kind: run['easy'][kind]).mean():.3f} | {mean[kind]:.3f} |" for kind in COLUMNS[2:]), "",
        "## By number of near outliers", "",
        "| outliers | " + " | ".join(map(str, COUNTS)) + " |", "|---|" + "---|" * len(COUNTS),
        "| ROC-AUC | " + " | ".join(f"{cell(lambda run, count=count: run['count'][str(count)]).mean():.3f}" for count in COUNTS) + " |", "",
    ])  # fmt: skip


def main() -> None:
    from joblib import Parallel, delayed

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="the other symbols, one seed: prints, writes nothing")
    options = parser.parse_args()
    symbols, seeds = (list(TUNING), (0,)) if options.tune else (list(SYMBOLS), SEEDS)
    upstream_fisher(load_backbone(), progress=False)  # so that the processes find it
    jobs = [(symbol, seed) for seed in seeds for symbol in symbols]
    results = dict(zip(jobs, Parallel(n_jobs=2, verbose=5)(delayed(measured)(symbol, seed, symbols) for symbol, seed in jobs)))
    text = page(symbols, seeds, results)
    if not options.tune:
        write_atomically(ROOT / "docs" / "results" / "exposure.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
