"""Grids of runs: tasks x methods x seeds x options, written in a TOML file.

    [grid]
    name = "lambda_embedded"
    description = "What this grid shows."
    tier = "embedded"
    tasks = ["pictograms"]               # a data set means each of its classes in turn
    methods = ["early", "ewc"]
    seeds = [0, 1]                       # default [0]
    [settings]                           # options that are the same in every run
    checkpoints = 1
    [settings.ewc]                       # of one method
    epochs = 20
    [vary]                               # all combinations; "default" leaves it out
    ewc_lambda = [300.0, "default", 30000.0]
    [[also]]                             # more runs; all else as above
    methods = ["dn2"]
    vary = { k = [1, 2, 5] }

An option that a method does not have is left out of its runs, so that `dn2` runs once beside three
values of lambda.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from sklearn.model_selection import ParameterGrid

from pandalib.datasets.load import sibling_tasks
from pandalib.datasets.public import SETS, require
from pandalib.experiments.config import METHODS, make_options, methods_with, options_of, tier_named
from pandalib.experiments.results import canonical, identity, options_in
from pandalib.io import data_folder

BLOCK = ("tasks", "methods", "seeds", "settings", "vary")


@dataclass(frozen=True)
class Grid:
    """A grid that has been read and checked.

    Attributes
    ----------
    name, description, tier : str
    blocks : tuple of dict
        The main grid and each `[[also]]`: tasks, methods, seeds, settings, vary.
    """

    name: str
    description: str
    tier: str
    blocks: tuple[dict, ...]

    def missing(self) -> dict[str, str]:
        """Tasks of the grid that are not available on this machine, and why."""
        problems = {}
        for task in sorted({task for block in self.blocks for task in block["tasks"]}):
            try:
                if (source := task.partition(":")[0]) in SETS:
                    require(source)
                expand(task)
            except (ValueError, OSError) as error:
                problems[task] = str(error)
        return problems

    def runs(self, *, skip_missing: bool = False) -> list[dict]:
        """The settings of every run, as keyword arguments of `pandalib.run`, each once.

        Parameters
        ----------
        skip_missing : bool
            Leave out the tasks that are not available; otherwise they raise ValueError.
        """
        missing = self.missing()
        if missing and not skip_missing:
            reasons = "; ".join(f"{task}: {reason}" for task, reason in missing.items())
            raise ValueError(
                f"grid {self.name}: images are missing; skip_missing (--skip-missing) goes on "
                f"without them. {reasons}"
            )
        return self._runs(missing)

    def planned(self) -> list[dict]:
        """As `runs`, whether the images are here or not.

        A folder that is not here counts as one task, which it is in MVTec AD's layout.
        """

        def tasks_of(task: str) -> list[str]:
            try:
                return expand(task)
            except (ValueError, OSError):
                return [task]

        return self._runs((), tasks_of)

    def _runs(self, missing: Container[str], tasks_of=None) -> list[dict]:
        found, tasks_of = {}, tasks_of or expand
        for block in self.blocks:
            tasks = [
                one for task in block["tasks"] if task not in missing for one in tasks_of(task)
            ]
            for point in self._points(block, tasks) if tasks else ():
                settings = canonical(point | {"tier": self.tier})
                found.setdefault(identity(settings), settings)
        return list(found.values())

    def check(self) -> None:
        """Raise ValueError for a wrong method, option or value."""
        everyone = {method for block in self.blocks for method in block["methods"]}
        for block in self.blocks:
            concerned = [(set(block["methods"]), name) for name in block["vary"]]
            for key, value in block["settings"].items():
                if key in METHODS:
                    concerned += [({key}, name) for name in value]
                else:
                    concerned.append((everyone, key))
            for methods, name in concerned:
                if not methods & set(methods_with(name)):
                    make_options(min(methods), {name: 0})  # raises, since they lack this option
            for point in self._points(block, [""]):
                options = make_options(point["method"], options_in(point))
                if getattr(options, "bf16", False) == "auto":
                    raise ValueError(
                        "bf16 = 'auto' may decide differently from one run to the next."
                    )

    def _points(self, block: dict, tasks: list[str]) -> Iterator[dict]:
        """Method by method, all combinations of the options that it has."""
        for method in block["methods"]:
            general = {key: one for key, one in block["settings"].items() if key not in METHODS}
            fixed = general | block["settings"].get(method, {})
            axes = {key: [value] for key, value in fixed.items()} | block["vary"]
            axes = {key: values for key, values in axes.items() if key in options_of(method)}
            axes |= {"method": [method], "task": tasks, "seed": block["seeds"]}
            yield from ParameterGrid(axes)


def grids() -> dict[str, Path]:
    """The grids that come with the project, by name."""
    return {path.stem: path for path in sorted((data_folder() / "grids").glob("*.toml"))}


def load_grid(source: str | Path) -> Grid:
    """Read a grid from a TOML file, or one of the project's own by its name.

    Raises
    ------
    FileNotFoundError
        If there is neither.
    ValueError
        Naming the file and what is wrong with it.
    """
    path = Path(source).expanduser()
    path = path if path.is_file() else grids().get(str(source), path)
    if not path.is_file():
        raise FileNotFoundError(
            f"grid {str(source)!r} is neither a file nor one of {', '.join(grids())}."
        )
    try:
        return _grid_of(tomllib.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None


def _grid_of(found: dict) -> Grid:
    _check_keys(found, ("grid", "settings", "vary", "also"), "the file")
    head = found.get("grid", {})
    _check_keys(head, ("name", "description", "tier", "tasks", "methods", "seeds"), "[grid]")
    for key in ("name", "tier", "tasks", "methods"):
        if not head.get(key):
            raise ValueError(f"[grid] lacks {key}.")
    if not re.fullmatch(r"\w[\w .+-]*", head["name"]):  # it names a folder
        raise ValueError(f"name = {head['name']!r}: expected letters, digits and _ - . +")
    tier_named(head["tier"])
    main = {"seeds": [0], "settings": {}, "vary": {}}
    main |= {key: value for key, value in (head | found).items() if key in BLOCK}
    blocks = [main] + [main | {"vary": {}} | block for block in found.get("also", [])]
    for block in blocks:
        _check_keys(block, BLOCK, "[[also]]")
    grid = Grid(head["name"], head.get("description", ""), head["tier"], tuple(blocks))
    grid.check()
    return grid


def _check_keys(table: dict, accepted: tuple[str, ...], where: str) -> None:
    unknown = [key for key in table if key not in accepted]
    if unknown:
        raise ValueError(f"{where} has {unknown[0]!r}: accepted are {', '.join(accepted)}.")


def expand(spec: str) -> list[str]:
    """A task as it is, a data set as the list of its tasks, each class normal in turn."""
    siblings = sibling_tasks(spec)
    whole = all(task == spec or task.startswith(f"{spec}:") for task in siblings)
    return siblings if whole else [spec]
