"""Result files: the name of a run, its record on disk, and the plan of the sweep it belongs to.

The settings of a run are keyword arguments of `pandalib.run`. Its file holds the record of the run
and its origin, with a hash (`pandalib.io.dump_json_with_hash`); a damaged file counts as absent.
Anyone can compute a hash, so what a file says is looked at as well.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from pandalib.experiments.config import TIERS, make_options, options_of
from pandalib.io import dump_json_with_hash, load_json_with_hash, write_atomically

PLAN, RUNS = "plan.json", "runs"  # in the folder of a sweep
SETTINGS = "settings.json"  # beside a table: what it was made with
MAIN = ("task", "method", "tier", "seed")  # of the settings of a run; all others are options
METRICS = ("roc_auc", "pixel_roc_auc", "pro")  # of a record
WEIGHTS = "weights_sha256"
CURVES = ("roc_auc", "feature_variance")  # of each entry of its history
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


def settings_of(name: str, runs: list[dict], results: list[dict]) -> dict:
    """What a table was made with: the grid, a hash of its runs, and the defaults that they had.

    Parameters
    ----------
    name : str
        Of the grid.
    runs, results : lists of dict
        As planned, and as far as they are done.

    Raises
    ------
    ValueError
        If results of one method had different defaults.
    """
    defaults: dict[str, dict] = {}
    for result in results:
        if "all_settings" not in result:
            continue
        given = result["settings"]
        known = defaults.setdefault(given["method"], {})
        for key, value in result["all_settings"].items():
            if key not in given and known.setdefault(key, value) != value:
                raise ValueError(
                    f"{given['method']}: results with {key} = {known[key]!r} and with {value!r} by "
                    "default cannot stand in one table: delete the older ones and sweep again."
                )
    tiers = [result["tier_defaults"] for result in results if "tier_defaults" in result]
    tier = tiers[-1] if tiers else {}
    if "pace" in tier:  # what it decides: the options that some run leaves out
        used = {
            option.metadata["pace"]
            for run in runs
            for name, option in options_of(run["method"]).items()
            if name not in run
        }
        pace = {key: tier["pace"][key] for key in sorted(used & tier["pace"].keys())}
        tier = tier | {"pace": pace}
    return {
        "grid": name,
        "runs": _hash_of_runs(runs),
        "defaults": {method: defaults[method] for method in sorted(defaults)},
        "tier": tier,
    }


def outdated(found: dict, runs: list[dict]) -> list[str]:
    """Why a table has to be made again, by its `settings_of` and the runs of its grid today.

    An option that is newer than the table is no reason: its default leaves things as they were.
    """
    reasons = []
    if found["runs"] != _hash_of_runs(runs):
        reasons.append(f"the grid {found['grid']} has other runs now")
    today = {run["method"]: asdict(make_options(run["method"], {})) for run in runs}
    for method, defaults in found["defaults"].items():
        reasons += _changes(method, defaults, today.get(method, {}))
    tiers = {run["tier"] for run in runs}
    for tier in tiers:
        reasons += _changes(f"tier {tier}", found["tier"], asdict(TIERS[tier]))
    return reasons


def _hash_of_runs(runs: list[dict]) -> str:
    lines = sorted(json.dumps(canonical(run), sort_keys=True) for run in runs)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _changes(of: str, before: dict, now: dict) -> list[str]:
    """What was there before and is gone, or is another value now."""
    changes = []
    for key, value in before.items():
        if isinstance(value, dict) and isinstance(now.get(key), dict):
            changes += _changes(f"{of}, {key}", value, now[key])
        elif key not in now:
            changes.append(f"{of}: {key} is gone")
        elif now[key] != value:
            changes.append(f"{of}: {key} was {value!r} and is {now[key]!r}")
    return changes


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
            if _is_result_of(settings, result):
                found[identity(settings)] = result
    return found


def _is_result_of(settings: dict, result: dict) -> bool:
    """Whether a file holds what a run with these settings writes, or how it failed."""
    same = result.get("settings") == settings and result.get("id") == identity(settings)
    if not same or any(result.get(key) != settings[key] for key in MAIN):
        return False
    if "error" in result:
        error = result["error"]
        return isinstance(error, dict) and {"type", "message"} <= error.keys()
    history, scores = result.get("history"), result.get("scores", [])
    labels = result.get("labels", "")
    if "scores" in result and (not isinstance(labels, str) or set(labels) != {"0", "1"}):
        return False
    return (
        all(result.get(key) is None or _is_number(result[key]) for key in METRICS)
        and isinstance(result.get("versions"), dict)
        and all(isinstance(result.get(key, 0), str | None) for key in ("backbone", WEIGHTS))
        and isinstance(history, list)
        and all(
            isinstance(one, dict) and all(map(_is_number, map(one.get, CURVES))) for one in history
        )
        and isinstance(scores, list)
        and all(map(_is_number, scores))
        and len(scores) == len(labels)
    )


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
        plan = load_json_with_hash(path.read_bytes())
        _check_plan(plan)
        return plan
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path.parent} holds no results: `python -m pandalib sweep GRID --out {path.parent}` "
            "makes them."
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and sweep again.") from None


def _check_plan(plan: dict) -> None:
    """Raise ValueError unless a plan is made of what `pandalib.sweep` writes."""
    kinds = dict(name=str, description=str, tier=str, runs=list, left_out=dict, classes=dict)
    for key, kind in kinds.items():
        if not isinstance(plan.get(key), kind):
            raise ValueError(f"{key} is no {kind.__name__}")
    if not all(isinstance(n, int) for n in plan["classes"].values()):
        raise ValueError("classes are no numbers")
    if not all(isinstance(reason, str) for reason in plan["left_out"].values()):
        raise ValueError("left_out has no reasons")
    for settings in plan["runs"]:
        _check_settings(settings, plan["tier"])


def _check_settings(settings, tier: str) -> None:
    kinds = dict(task=str, method=str, tier=str, seed=int)
    if not isinstance(settings, dict) or not all(
        isinstance(settings.get(key), kind) for key, kind in kinds.items()
    ):
        raise ValueError("a run lacks its task, method, tier or seed")
    if settings["tier"] != tier or tier not in TIERS:
        raise ValueError(f"a run is of the tier {settings['tier']!r}")
    make_options(settings["method"], options_in(settings))  # raises for what the method has not


def read_results(folder: str | Path) -> list[dict]:
    """The results of a sweep so far, in the order of its grid. Raises as `read_plan`."""
    return list(read_runs(read_plan(folder)["runs"], Path(folder).expanduser()).values())
