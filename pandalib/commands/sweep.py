"""`python -m pandalib sweep`: every run of a grid that has no result yet."""

from __future__ import annotations

import argparse

HELP = "every run of a grid; killed and called again, it does what is missing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "grid",
        help="a TOML file (pandalib/experiments/grids.py says what is in it), or the name of one in data/grids; `list` shows those",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="folder of the results; default: results/NAME of the grid"
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="processes at once; default: one a core, or one where there is a GPU",
    )
    parser.add_argument(
        "--threads",
        type=int,
        help="threads of each process; default: the cores divided among the workers",
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="of a Dask cluster that runs, as tcp://10.0.0.1:8786; its workers do the runs",
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="do those runs again that failed before (without it, their errors stand)",
    )
    parser.add_argument(
        "--skip-missing",
        action="store_true",
        help="go on without the data sets that are not on this machine",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="list the runs and how long they will take, and do nothing",
    )


def main(options: dict) -> int:
    """Sweep; 1 if a run failed, 130 after ctrl-C, else 0."""
    import sys
    from pathlib import Path

    from pandalib.experiments.sweep import sweep
    from pandalib.experiments.grids import grids, load_grid

    if options["grid"] == "list" and not Path("list").is_file():
        for name in grids():
            print(f"{name:28} {load_grid(name).description}")
        return 0
    grid = load_grid(options.pop("grid"))
    folder = Path(options.pop("out") or Path("results") / grid.name)
    if options.pop("dry_run"):
        return _dry_run(grid, folder, options)
    try:
        results = sweep(grid, folder, **options)
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        return 130
    failed = [result for result in results if "error" in result]
    for result in failed:
        print(
            f"failed: {result['task']}  {result['method']}  seed {result['seed']}  {result['error']['type']}: {result['error']['message']}"
        )
    print(
        f"{grid.name}  {len(results) - len(failed)} of {len(results)} runs  {folder}\nThe table: python -m pandalib table {folder}"
    )
    return int(bool(failed))


def _dry_run(grid, folder, options: dict) -> int:
    from pandalib.experiments.sweep import estimate, in_words, read_runs, usual_workers
    from pandalib.experiments.grids import identity

    runs = grid.runs(skip_missing=options["skip_missing"])
    results = read_runs(runs, folder)
    left = [
        run
        for run in runs
        if identity(run) not in results
        or options["retry_failed"]
        and "error" in results[identity(run)]
    ]
    for run in runs:
        result = results.get(identity(run))
        state = "" if result is None else "  failed" if "error" in result else "  done"
        print(
            "  ".join(
                f"{value}" if key in ("task", "method", "tier") else f"{key}={value}"
                for key, value in run.items()
            )
            + state
        )
    workers = options["workers"] or (usual_workers() if options["scheduler"] is None else 1)
    seconds = (
        estimate(left, [result for result in results.values() if "error" not in result], workers)
        if left
        else 0
    )
    time = (
        "a time that the first runs will tell"
        if seconds is None
        else f"about {in_words(seconds)} with {workers} worker{'s' * (workers > 1)}"
    )
    print(f"{len(runs)} runs, {len(left)} to do, {time}")
    return 0
