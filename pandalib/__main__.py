"""`python -m pandalib doctor | run | export`: the same code without a browser."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pandalib import doctor

TASKS = "pictograms:star, surfaces:weave, folder:PATH (MVTec layout) or folder:PATH:CLASS"
LEVELS = "difficulty of drawn images; pictograms: plain, easy, medium or hard; surfaces: clear, medium or faint"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pandalib", description="Anomaly detection with pretrained features.")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor_parser = commands.add_parser("doctor", help="what works here, what is missing, how to get it")
    doctor.add_arguments(doctor_parser)
    run_parser = commands.add_parser("run", help="one method on one task, one JSON object")
    run_parser.add_argument("--task", required=True, help=TASKS)
    run_parser.add_argument("--method", required=True, help="pixels, dn2, whitened, compactness, early, ses, ewc, oe, svdd, spade or bank")
    run_parser.add_argument("--tier", default="embedded", help="embedded, standard or paper: defaults of the network and size")
    run_parser.add_argument("--seed", type=int, default=0)
    run_parser.add_argument("--backbone", help="glyphs_resnet4, or a ResNet or SqueezeNet of torchvision")
    run_parser.add_argument("--weights", help="embedded, imagenet, random, or a file (.safetensors, .pth)")
    run_parser.add_argument("--last", help="cut the network after this stage, as layer3")
    run_parser.add_argument("--size", type=int, help="side of the images in pixels")
    run_parser.add_argument("--n-train", type=int, help="number of normal training images")
    run_parser.add_argument("--n-test", type=int, help="number of test images of each class or defect")
    run_parser.add_argument("--missing-masks", default="error", help="anomalous images without a mask: error, drop or none (use no mask)")
    run_parser.add_argument("--level", help=LEVELS)
    run_parser.add_argument("--epochs", type=int, help="of adaptation; default: the tier's pace")
    run_parser.add_argument("--lr", type=float, help="learning rate of adaptation")
    run_parser.add_argument("--clip", type=float, help="norm to which gradients are cut")
    run_parser.add_argument("--lambda", dest="strength", type=float, help="strength of EWC")
    run_parser.add_argument("--fisher", metavar="FILE", help="Fisher information for EWC, as saved by pandalib")
    run_parser.add_argument("--fisher-images", metavar="FOLDER", help="compute it from these images, one folder per class")
    run_parser.add_argument("--outliers", metavar="KIND", help="for oe: near, middle, far or noise (drawn, for pictograms), or a folder of images")
    run_parser.add_argument("--n-outliers", type=int, help="number of outliers; default: 2000 drawn ones, all of a folder")
    run_parser.add_argument("--n-images", type=int, default=50, help="for spade: number of nearest normal images to compare with")
    run_parser.add_argument("--kappa", type=int, default=1, help="for spade: number of nearest positions")
    run_parser.add_argument("--sigma", type=float, default=4.0, help="for spade and bank: Gaussian blur of the maps, in pixels")
    run_parser.add_argument("--balanced", action="store_true", help="for spade: bring the layers to one scale before their mean")
    run_parser.add_argument("--bf16", action="store_true", help="adapt and score in bfloat16: faster where the processor has it")
    run_parser.add_argument("--json", metavar="FILE", help="write the result there; - is standard output")
    export_parser = commands.add_parser("export", help="the images of a task as PNG files in MVTec's layout")
    export_parser.add_argument("--task", required=True, help=TASKS)
    export_parser.add_argument("--out", required=True, metavar="FOLDER", help="a new or an empty folder")
    export_parser.add_argument("--seed", type=int, default=0)
    export_parser.add_argument("--level", help=LEVELS)
    export_parser.add_argument("--size", type=int, help="side of the images in pixels")
    export_parser.add_argument("--n-train", type=int, help="number of normal training images")
    export_parser.add_argument("--n-test", type=int, help="number of test images of each class or defect")
    options = vars(parser.parse_args(arguments))
    command = options.pop("command")
    if command == "doctor":
        return doctor.main(argparse.Namespace(**options))
    return export_command(options) if command == "export" else run_command(options)


def run_command(options: dict) -> int:
    target = options.pop("json")
    try:
        from pandalib.files import write_atomically
        from pandalib.runs import run

        result = run(**options)
        text = json.dumps(result, allow_nan=False)
        if target and target != "-":
            write_atomically(Path(target), (text + "\n").encode())
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"pandalib: {error}", file=sys.stderr)
        return 2
    except (ImportError, RuntimeError) as error:  # a broken torch or torchvision shows as one of these
        print(f"pandalib: {error}\nRun `python -m pandalib doctor`: it says what is missing.", file=sys.stderr)
        return 2
    if target == "-":
        print(text)
    else:
        print(f"{result['task']}  {result['method']}  ROC-AUC {result['roc_auc']:.4f}  {result['seconds']:.1f} s")
    return 0


def export_command(options: dict) -> int:
    target = options.pop("out")
    try:
        from pandalib.sources.folders import write_mvtec
        from pandalib.tasks import load_task

        task = load_task(options.pop("task"), **options)
        folder = write_mvtec(task, target)
    except (ValueError, OSError) as error:
        print(f"pandalib: {error}", file=sys.stderr)
        return 2
    print(f"{task.name}  {len(task.train)} images to learn from, {len(task.test)} to test  {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
