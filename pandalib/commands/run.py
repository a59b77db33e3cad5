"""`python -m pandalib run`: one method on one task, one JSON object."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pandalib.commands.export import add_task_arguments

HELP = "one method on one task, one JSON object"
BF16 = {"off": False, "on": True, "auto": "auto"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_task_arguments(parser)
    parser.add_argument("--method", required=True, help="pixels, dn2, whitened, compactness, early, ses, ewc, oe, svdd, spade or bank")
    parser.add_argument("--tier", default="embedded", help="embedded, standard or paper: defaults of the network and size")
    parser.add_argument("--backbone", help="glyphs_resnet4, or a ResNet or SqueezeNet of torchvision")
    parser.add_argument("--weights", help="embedded, imagenet, random, or a file (.safetensors, .pth)")
    parser.add_argument("--last", help="cut the network after this stage, as layer3")
    parser.add_argument("--adapt-from", default="layer3", help="first stage that is adapted: layer2, layer3 or layer4")
    parser.add_argument("--k", type=int, default=2, help="neighbours of kNN")
    parser.add_argument("--normalise", action="store_true", help="for dn2 and whitened: features of length one")
    parser.add_argument("--n-centres", type=int, help="for dn2 and whitened: so many k-means centres in place of the gallery")
    parser.add_argument("--missing-masks", default="error", help="anomalous images without a mask: error, drop or none (use no mask)")
    parser.add_argument("--epochs", type=int, help="of adaptation; default: the tier's pace")
    parser.add_argument("--lr", type=float, help="learning rate of adaptation")
    parser.add_argument("--clip", type=float, help="norm to which gradients are cut")
    parser.add_argument("--lambda", dest="strength", type=float, help="strength of EWC")
    parser.add_argument("--fisher", metavar="FILE", help="Fisher information for EWC, as saved by pandalib")
    parser.add_argument("--fisher-images", metavar="FOLDER", help="compute it from these images, one folder per class")
    parser.add_argument("--fisher-recipe", default="per-sample", help="per-sample, or batch-mean: squares of the mean gradient of 32 images")
    parser.add_argument("--outliers", metavar="KIND", help="for oe: near, middle, far or noise (drawn, for pictograms), a folder of images, or a data set as cifar100")
    parser.add_argument("--n-outliers", type=int, help="number of outliers; default: 2000 drawn ones, all of a folder")
    parser.add_argument("--n-images", type=int, default=50, help="for spade: number of nearest normal images to compare with")
    parser.add_argument("--kappa", type=int, default=1, help="for spade: number of nearest positions")
    parser.add_argument("--sigma", type=float, default=4.0, help="for spade and bank: Gaussian blur of the maps, in pixels")
    parser.add_argument("--balanced", action="store_true", help="for spade: bring the layers to one scale before their mean")
    parser.add_argument(
        "--bf16",
        nargs="?",
        choices=tuple(BF16),
        const="auto",
        default="off",
        help="adapt and score in bfloat16: off (default), on, or auto, where a trial of half a second"
        " decides; --bf16 alone is auto",
    )
    parser.add_argument("--checkpoints", type=int, default=10, help="about so many moments in the history, besides the first; 0: none")
    parser.add_argument("--json", metavar="FILE", help="write the result there; - is standard output")


def main(options: dict) -> int:
    from pandalib.files import write_atomically
    from pandalib.runs import run

    target = options.pop("json")
    options["bf16"] = BF16[options["bf16"]]
    result = run(**options)
    text = json.dumps(result, allow_nan=False)
    if target == "-":
        print(text)
        return 0
    if target:
        try:
            write_atomically(Path(target).expanduser(), (text + "\n").encode())
        except OSError:
            print(text)  # what took an hour is not lost to a full disk
            raise
    print(f"{result['task']}  {result['method']}  ROC-AUC {result['roc_auc']:.4f}  {result['seconds']:.1f} s")
    if result["bf16_ratio"] is not None or result["bf16"]:
        print(f"precision: {_precision(result)}")
    return 0


def _precision(result: dict) -> str:
    """What the run computed in, and what a trial measured."""
    name, ratio = "bfloat16" if result["bf16"] else "float32", result["bf16_ratio"]
    if ratio is None:
        return name
    if result["bf16"]:
        return f"{name} ({ratio:.2g} times as fast as float32 here)"
    return f"{name} (bfloat16 would be {ratio:.2g} times as fast here)"
