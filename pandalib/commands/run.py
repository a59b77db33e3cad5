"""`python -m pandalib run`: one method on one task, one JSON object."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pandalib.commands.export import add_task_arguments

HELP = "one method on one task, one JSON object"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_task_arguments(parser)
    parser.add_argument(
        "--method",
        required=True,
        help="pixels, dn2, whitened, compactness, early, ses, ewc, oe, svdd, spade or bank",
    )
    parser.add_argument(
        "--tier",
        default="embedded",
        help="embedded, standard or paper: defaults of the network and size",
    )
    parser.add_argument(
        "--backbone", help="glyphs_resnet4, or a ResNet or SqueezeNet of torchvision"
    )
    parser.add_argument(
        "--weights", help="embedded, imagenet, random, or a file (.safetensors, .pth)"
    )
    parser.add_argument("--truncate-after", help="cut the network after this stage, as layer3")
    parser.add_argument(
        "--adapt-from",
        default="layer3",
        help="first stage that is adapted: layer2, layer3 or layer4",
    )
    parser.add_argument("--k", type=int, default=2, help="neighbours of kNN")
    parser.add_argument(
        "--normalise", action="store_true", help="for dn2 and whitened: features of length one"
    )
    parser.add_argument(
        "--n-centres",
        type=int,
        help="for dn2 and whitened: so many k-means centres in place of the gallery",
    )
    parser.add_argument(
        "--missing-masks",
        default="error",
        help="anomalous images without a mask: error, drop or none (use no mask)",
    )
    parser.add_argument("--epochs", type=int, help="of adaptation; default: the tier's pace")
    parser.add_argument("--lr", type=float, help="learning rate of adaptation")
    parser.add_argument("--max-grad-norm", type=float, help="norm to which gradients are cut")
    parser.add_argument("--lambda", dest="ewc_lambda", type=float, help="strength of EWC")
    parser.add_argument(
        "--fisher", metavar="FILE", help="Fisher information for EWC, as saved by pandalib"
    )
    parser.add_argument(
        "--fisher-images",
        metavar="FOLDER",
        help="compute it from these images, one folder per class",
    )
    parser.add_argument(
        "--fisher-recipe",
        default="per-sample",
        help="per-sample, or batch-mean: squares of the mean gradient of 32 images",
    )
    parser.add_argument(
        "--outliers",
        metavar="KIND",
        help="for oe: near, middle, far or noise (drawn, for pictograms), a folder of images, or a data set as cifar100",
    )
    parser.add_argument(
        "--n-outliers",
        type=int,
        help="number of outliers; default: 2000 drawn ones, all of a folder",
    )
    parser.add_argument(
        "--n-images",
        type=int,
        default=50,
        help="for spade: number of nearest normal images to compare with",
    )
    parser.add_argument(
        "--kappa", type=int, default=1, help="for spade: number of nearest positions"
    )
    parser.add_argument(
        "--sigma",
        type=float,
        default=4.0,
        help="for spade and bank: Gaussian blur of the maps, in pixels",
    )
    parser.add_argument(
        "--balanced",
        action="store_true",
        help="for spade: bring the layers to one scale before their mean",
    )
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="adapt and score in bfloat16: faster where the processor has it",
    )
    parser.add_argument(
        "--checkpoints",
        type=int,
        default=10,
        help="about so many moments in the history, besides the first; 0: none",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the result there; - is standard output"
    )


def main(options: dict) -> int:
    from pandalib.io import write_atomically
    from pandalib.experiments.run import run

    target = options.pop("json")
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
    print(
        f"{result['task']}  {result['method']}  ROC-AUC {result['roc_auc']:.4f}  {result['seconds']:.1f} s"
    )
    return 0
