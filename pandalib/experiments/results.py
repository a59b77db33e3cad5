"""Result files: the name of a run, its record on disk, and the plan of the sweep it belongs to.

The settings of a run are keyword arguments of `pandalib.run`. Its file holds the record of the run
and its origin, with a hash (`pandalib.io.dump_json_with_hash`); a damaged file counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from pandalib.experiments.config import TIERS, options_of
from pandalib.io import dump_json_with_hash, load_json_with_hash, write_atomically

PLAN, RUNS = "plan.json", "runs"  # in the folder of a sweep
MAIN = ("task", "method", "tier", "seed")  # of the settings of a run; all others are options
DEFAULT = "default"  # in a grid: the option is left out


def options_in(settings: dict) -> dict:
    """Those settings of a run that are options of its method and not left at their default."""
    options = {key: settings[key] for key in sorted(settings) if key not in MAIN}
    return {key: value for key, value in options.items() if value not in (None, DEFAULT)}


def canonical(settings: dict) -> dict:
    """The settings without defaults, so that the same run always looks the same."""
    defaults = options_of(settings["method"])
    options = options_in(settings).items()
    kept = {key: value for key, value in options if value != defaults[key].default}
    return {key: settings[key] for key in MAIN} | kept


def identity(settings: dict) -> str:
    """Hash of a run's settings and of the contents of its tier, the same on any machine."""
    whole = [canonical(settings), asdict(TIERS[settings["tier"]])]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:12]


def file_name(settings: dict) -> str:
    """The name of a run's result file: readable, and one for each run."""
    task = re.sub(r"[^A-Za-z0-9.+]+", "_", settings["task"]).strip("_")[-60:]
    return f"{task}-{settings['method']}-{settings['seed']}-{identity(settings)}.json"


def in_brief(run: dict) -> str:
    """A run, or its result, in a few words."""
    words = f"{run['task']} {run['method']} seed {run['seed']}"
    if "error" in run:
        return f"{words} FAILED: {run['error']['type']}: {run['error']['message']}"
    return f"{words}: {run['roc_auc']:.3f}" if "roc_auc" in run else words


def write_result(result: dict, folder: Path) -> None:
    write_atomically(folder / RUNS / file_name(result["settings"]), dump_json_with_hash(result))


def read_runs(runs: list[dict], folder: Path) -> dict[str, dict]:
    """The results so far, by identity."""
    found = {}
    for settings in runs:
        with suppress(FileNotFoundError, ValueError):
            result = load_json_with_hash((folder / RUNS / file_name(settings)).read_bytes())
            found[result["id"]] = result
    return found


def read_plan(folder: str | Path) -> dict:
    """The plan of a sweep: name, description, tier, runs, left_out, classes of each data set.

    Raises
    ------
    FileNotFoundError
        If there was no sweep.
    ValueError
        For a damaged file.
    """
    path = Path(folder).expanduser() / PLAN
    try:
        return load_json_with_hash(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path.parent} holds no results: `python -m pandalib sweep GRID --out {path.parent}` "
            "makes them."
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and sweep again.") from None


def read_results(folder: str | Path) -> list[dict]:
    """The results of a sweep so far, in the order of its grid. Raises as `read_plan`."""
    return list(read_runs(read_plan(folder)["runs"], Path(folder).expanduser()).values())
