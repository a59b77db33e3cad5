"""`python -m pandalib fit`: a folder of normal images becomes a detector on disk."""

from __future__ import annotations

import argparse
import os
import sys

HELP = "a folder of normal images becomes a detector on disk"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        help="normal images, nothing else; of a folder in MVTec's layout, train/good is taken",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", metavar="MODEL", help="a new or an empty folder for the detector")
    target.add_argument(
        "--add-to", metavar="MODEL", help="a detector that is to learn these normal images as well"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace the detector that is in MODEL"
    )
    parser.add_argument("--recursive", action="store_true", help="search subfolders too")
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out files that are no images, and say how many",
    )
    parser.add_argument(
        "--tier",
        help="embedded, standard or paper: defaults of the network (default: PANDALIB_TIER, then embedded)",
    )
    parser.add_argument(
        "--backbone", help="glyphs_resnet4, or a ResNet or SqueezeNet of torchvision"
    )
    parser.add_argument(
        "--weights",
        help="embedded, imagenet, or a file (.safetensors, .pth); with --add-to, where the file is now",
    )
    parser.add_argument("--truncate-after", help="cut the network after this stage, as layer3")
    parser.add_argument(
        "--size",
        type=int,
        help="side in pixels to which images are brought; default: 128 for the embedded network, 224 for others",
    )
    parser.add_argument("--layers", help="of the heat maps, as layer1,layer2,layer3")
    parser.add_argument(
        "--n-images",
        type=int,
        help="of the heat maps: with how many of the most similar normal images one is compared; default: 50",
    )
    parser.add_argument(
        "--n-maps", type=int, help="normal images that serve heat maps and threshold; default: 200"
    )
    parser.add_argument(
        "--false-alarm-rate",
        type=float,
        help="share of the normal images that may raise an alarm; default: 0.05",
    )
    parser.add_argument("--seed", type=int, help="draws the images of --n-maps; default: 0")


def main(options: dict) -> int:
    """Fit or add, save, say what there is now."""
    from pathlib import Path

    from pandalib.inspection.storage import FACTS, check_target
    from pandalib.inspection.inspector import Inspector

    how = {key: options[key] for key in ("recursive", "skip_unreadable")}
    if options["add_to"] is not None:
        fixed = [
            key
            for key in (
                "tier",
                "backbone",
                "truncate_after",
                "size",
                "layers",
                "n_images",
                "n_maps",
                "false_alarm_rate",
                "seed",
            )
            if options[key] is not None
        ]
        if fixed:
            raise ValueError(
                f"--{fixed[0].replace('_', '-')} is settled when a detector is fitted: leave it out with --add-to, or fit anew with --out."
            )
        target = options["add_to"]
        inspector = Inspector.load(target, weights=options["weights"])
        before, copies = len(inspector.features_), inspector.n_copies_
        inspector.add(options["folder"], **how)
        news = f"{len(inspector.features_) - before} added, "
    else:
        target, before, copies, news = options["out"], 0, 0, ""
        folder = Path(target).expanduser()
        if (folder / FACTS).exists() and not options["force"]:
            raise FileExistsError(
                f"{target!r} holds a detector already: choose another folder, --force to replace it, or --add-to to extend it."
            )
        check_target(folder)
        inspector = _new(options).fit(options["folder"], **how)
    inspector.save(target)
    for name, reason in inspector.unreadable_:
        print(f"left out: {name!r} cannot be read as an image: {reason}", file=sys.stderr)
    if inspector.n_copies_ > copies:
        print(
            f"left out: {inspector.n_copies_ - copies} images that are copies of others",
            file=sys.stderr,
        )
    if inspector.backbone.source == "embedded":
        print(
            "note: the embedded network is a small one for teaching; for photographs that matter take --tier standard",
            file=sys.stderr,
        )
    rate, network = inspector.false_alarm_rate, inspector.backbone
    print(
        f"{target}  {len(inspector.features_)} normal images ({news}{len(inspector.unreadable_)} unreadable)  {network.name} up to {network.truncate_after}, "
        f"weights {network.weights_sha256[:12]}  threshold {inspector.threshold():.4g} at a false-alarm rate of {rate:g}"
    )
    return 0


def _new(options: dict):
    from pandalib.backbones import load_backbone
    from pandalib.inspection.inspector import Inspector
    from pandalib.experiments.config import TIERS

    name = options["tier"] or os.environ.get("PANDALIB_TIER") or "embedded"
    if name not in TIERS:
        raise ValueError(f"tier {name!r} is unknown: choose one of {', '.join(TIERS)}.")
    tier = TIERS[name]
    backbone = options["backbone"] or tier.backbone
    weights = options["weights"] or (tier.weights if backbone == tier.backbone else "imagenet")
    settings = {
        key: options[key]
        for key in ("n_images", "n_maps", "false_alarm_rate", "seed")
        if options[key] is not None
    }
    if options["layers"] is not None:
        settings["layers"] = [layer.strip() for layer in options["layers"].split(",")]
    size, resize = (options["size"], None) if options["size"] is not None else (None, tier.resize)
    return Inspector(
        load_backbone(
            backbone, weights, truncate_after=options["truncate_after"] or tier.truncate_after
        ),
        size=size,
        resize=resize,
        **settings,
    )
