"""`python -m pandalib export`: the images of a task as PNG files in MVTec's layout."""

from __future__ import annotations

import argparse

HELP = "the images of a task as PNG files in MVTec's layout"
TASKS = "pictograms:star, surfaces:weave, folder:PATH (MVTec layout), folder:PATH:CLASS, or a public data set as cifar10:airplane (see `data`)"


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """What `pandalib.load_task` takes from a command line."""
    parser.add_argument("--task", required=True, help=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--level",
        help="difficulty of drawn images; pictograms: plain, easy, medium or hard; surfaces: clear, medium or faint",
    )
    parser.add_argument("--size", type=int, help="side of the images in pixels")
    parser.add_argument("--n-train", type=int, help="number of normal training images")
    parser.add_argument("--n-test", type=int, help="number of test images of each class or defect")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_task_arguments(parser)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new or an empty folder")


def main(options: dict) -> int:
    from pandalib.datasets.folder import write_mvtec
    from pandalib.datasets.load import load_task

    target = options.pop("out")
    task = load_task(options.pop("task"), **options)
    folder = write_mvtec(task, target)
    print(
        f"{task.name}  {len(task.train)} images to learn from, {len(task.test)} to test  {folder}"
    )
    return 0
