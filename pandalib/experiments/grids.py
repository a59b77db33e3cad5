"""Grids of runs: data sets x normal classes x methods x seeds x backbones, written in a TOML file.

    [grid]
    name = "lambda_embedded"
    description = "What this grid is to show."
    tier = "embedded"                    # embedded, standard or paper
    tasks = ["pictograms"]               # a data set means each of its classes in turn; "pictograms:star" is one task,
    methods = ["early", "ewc"]           # "pictograms:star+heart" one with two normal classes
    seeds = [0, 1]                       # default [0]
    backbones = ["glyphs_resnet4"]       # default: the tier's; or tables { name = "resnet18", weights = "FILE", truncate_after = "layer3" }

    [settings]                           # options of `pandalib.run`, the same in every run
    checkpoints = 1
    [settings.ewc]                       # of one method
    epochs = 20

    [vary]                               # ablations: every value of every option; "default" leaves the option out
    strength = [300, "default", 30000]

    [[also]]                             # more runs for the same table: what it does not say is as above
    methods = ["dn2"]
    vary = { k = [1, 2, 5] }

An option that does not concern a method is left out of its runs, so that `dn2` runs once beside five values of lambda.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pandalib.experiments import config as tiers
from pandalib.io import data_folder

DEFAULT = "default"
MOST_RUNS = 100_000  # of one block: more are a mistake, and would fill the memory
_DATA = {"size", "n_train", "n_test", "missing_masks", "level"}
_NETWORK = _DATA | {"backbone", "weights", "truncate_after"}
_ADAPTED = _NETWORK | {"adapt_from", "k", "epochs", "lr", "max_grad_norm", "bf16", "checkpoints"}
CONCERNS = {  # the options of `pandalib.run` that change a run of the method
    "pixels": _DATA | {"k"},
    "dn2": _NETWORK | {"k", "normalise", "n_centres"},
    "whitened": _NETWORK | {"k", "normalise", "n_centres"},
    "compactness": _ADAPTED,
    "early": _ADAPTED,
    "ses": _ADAPTED,
    "ewc": _ADAPTED | {"ewc_lambda", "fisher", "fisher_images", "fisher_recipe"},
    "oe": _ADAPTED - {"k"} | {"outliers", "n_outliers"},
    "svdd": _DATA | {"epochs", "lr", "checkpoints"},
    "spade": _NETWORK | {"n_images", "kappa", "sigma", "balanced"},
    "bank": _NETWORK | {"sigma"},
}
_AXES = ("tasks", "methods", "seeds", "backbones")
_BLOCK = (*_AXES, "settings", "vary")
_OWN = ("task", "method", "tier", "seed", "backbone", "memory")  # of `run`, but not for [settings]


@dataclass(frozen=True)
class Grid:
    """A grid that has been read and checked; `runs` says what it stands for on this machine.

    Attributes
    ----------
    name, description, tier : of its file.
    blocks : the axes of the main grid and of each `[[also]]`: tasks, methods, seeds, backbones, settings, vary.
    source : where it was read.
    """

    name: str
    description: str
    tier: str
    blocks: tuple[dict, ...]
    source: str

    def runs(self, *, skip_missing: bool = False) -> list[dict]:
        """The settings of every run, keyword arguments of `pandalib.run`, none of them twice.

        `skip_missing` leaves out the data sets that are not on this machine (`missing` names them).

        Raises ValueError for tasks that overlap, and for a data set that is not here.
        """
        found: dict[str, dict] = {}
        missing = {} if skip_missing else self.missing()
        if missing:
            reasons = "\n".join(f"  {task}: {reason}" for task, reason in missing.items())
            raise ValueError(
                f"grid {self.name}: {len(missing)} data set(s) cannot be used, and nothing was started:\n{reasons}\nskip_missing (--skip-missing) goes on without them."
            )
        for block in self.blocks:
            tasks = [task for spec in block["tasks"] if not _problem(spec) for task in expand(spec)]
            twice = {task for task in tasks if tasks.count(task) > 1}
            if twice:
                raise ValueError(
                    f"{self.source}: task {sorted(twice)[0]!r} is in `tasks` twice, alone and as part of its data set: keep one."
                )
            varied = [
                [(option, value) for value in values] for option, values in block["vary"].items()
            ]
            n = math.prod(
                map(len, (block["methods"], tasks, block["backbones"], block["seeds"], *varied))
            )
            if n > MOST_RUNS:
                raise ValueError(
                    f"{self.source} stands for {n} runs: expected at most {MOST_RUNS}. Vary fewer options at once."
                )
            for method, task, backbone, seed, *point in itertools.product(
                block["methods"], tasks, block["backbones"], block["seeds"], *varied
            ):
                everything = {
                    **block["settings"].get("", {}),
                    **block["settings"].get(method, {}),
                    **backbone,
                    **dict(point),
                }
                options = {
                    key: value
                    for key, value in everything.items()
                    if key in CONCERNS[method] and value != DEFAULT
                }
                settings = canonical(
                    dict(task=task, method=method, tier=self.tier, seed=seed, **options)
                )
                found.setdefault(identity(settings), settings)
        return list(found.values())

    def missing(self) -> dict[str, str]:
        """Tasks of the grid that cannot be had on this machine, and why."""
        return {
            spec: reason
            for block in self.blocks
            for spec in block["tasks"]
            if (reason := _problem(spec))
        }


def canonical(settings: dict) -> dict:
    """The settings without what is the default of `pandalib.run` anyway: the same run always looks the same."""
    defaults = {name: parameter.default for name, parameter in _parameters().items()}
    if settings.get("backbone") == tiers.TIERS[settings["tier"]].backbone and settings.get(
        "weights"
    ) in (None, tiers.TIERS[settings["tier"]].weights):
        settings = {
            key: value for key, value in settings.items() if key not in ("backbone", "weights")
        }
    kept = {
        key: value
        for key, value in settings.items()
        if key in ("task", "method", "tier", "seed") or value != defaults[key]
    }
    first = [key for key in ("task", "method", "tier", "seed") if key in kept]
    return {key: kept[key] for key in [*first, *sorted(set(kept) - set(first))]}


def identity(settings: dict) -> str:
    """Hash of the canonical settings: the same run, the same name, on any machine."""
    return hashlib.sha256(json.dumps(canonical(settings), sort_keys=True).encode()).hexdigest()[:12]


def file_name(settings: dict) -> str:
    """The name of a run's result file: readable, and one for each run."""
    words = re.sub(r"[^A-Za-z0-9.+]+", "_", settings["task"]).strip("_")[-60:]
    return f"{words}-{settings['method']}-{settings['seed']}-{identity(settings)}.json"


def expand(spec: str) -> list[str]:
    """A task as it is, a data set as the list of its tasks, each class normal in turn."""
    from pandalib.datasets.load import sibling_tasks

    source, _, name = spec.partition(":")
    if source == "folder":
        from pandalib.datasets.folder import _find_layout

        whole = _find_layout(name)[1] is None
    else:
        whole = not name
    siblings = sibling_tasks(spec)
    if whole:
        return siblings
    if source in ("pictograms", "surfaces"):  # other sets know their classes by more than one name
        unknown = [part for part in name.split("+") if f"{source}:{part}" not in siblings]
        if unknown:
            raise ValueError(
                f"{source}:{unknown[0]} is unknown: choose one of {', '.join(task.split(':')[1] for task in siblings)}."
            )
    return [spec]


def _problem(spec: str) -> str:
    """Why a task cannot be had on this machine; empty when it can."""
    from pandalib.datasets.public import SETS
    from pandalib.datasets.registry import require

    try:
        if spec.partition(":")[0] in SETS:
            require(SETS[spec.partition(":")[0]])
        return "" if expand(spec) else "it has no classes"
    except (ValueError, OSError) as error:
        return str(error)


def grids() -> dict[str, Path]:
    """The grids that come with the project, by name."""
    return {path.stem: path for path in sorted((data_folder() / "grids").glob("*.toml"))}


def load_grid(source: str | Path) -> Grid:
    """Read a grid from a TOML file, or one of the project's own by its name.

    Raises
    ------
    FileNotFoundError when there is neither; ValueError naming the file, what is wrong and what is accepted.
    """
    path = Path(source).expanduser()
    if not path.is_file() and str(source) in grids():
        path = grids()[str(source)]
    if not path.is_file():
        raise FileNotFoundError(
            f"grid {str(source)!r}: there is no such file, and no grid of that name: choose a file, or one of {', '.join(grids()) or 'none'}."
        )
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no TOML: {error}.") from None
    try:
        return _checked(found, str(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _checked(found: dict, source: str) -> Grid:
    _known(found, ("grid", "settings", "vary", "also"), "the file")
    head = found.get("grid")
    if not isinstance(head, dict):
        raise ValueError("there is no [grid]: expected name, tier, tasks and methods in it.")
    _known(head, ("name", "description", "tier", *_AXES), "[grid]")
    for key in ("name", "tier", "tasks", "methods"):
        if key not in head:
            raise ValueError(f"[grid] lacks {key}.")
    for key in ("name", "description", "tier"):
        if not isinstance(head.get(key, ""), str) or key != "description" and not head[key]:
            raise ValueError(f"{key} = {head[key]!r}: expected a text.")
    if not re.fullmatch(r"\w[\w .+-]{0,99}", head["name"]):  # it names a folder
        raise ValueError(
            f"name = {head['name'][:100]!r}: expected up to 100 letters, digits, blanks and the signs _ - . +, a letter or a digit first."
        )
    if head["tier"] not in tiers.TIERS:
        raise ValueError(
            f"tier = {head['tier']!r} is unknown: choose one of {', '.join(tiers.TIERS)}."
        )
    also = found.get("also", [])
    if not isinstance(also, list) or not all(isinstance(block, dict) for block in also):
        raise ValueError("also: expected [[also]], with two brackets.")
    base = dict(seeds=[0], backbones=[{}], settings={}, vary={}) | {
        key: head[key] for key in _AXES if key in head
    }
    base |= {key: found[key] for key in ("settings", "vary") if key in found}
    for number, block in enumerate(also, 1):
        _known(block, _BLOCK, f"[[also]] {number}")
    whole = [
        (base, "the grid"),
        *(
            ({**base, "vary": {}, **block}, f"[[also]] {number}")
            for number, block in enumerate(also, 1)
        ),
    ]
    for block, where in whole:
        for axis in _AXES:
            _check_list(block[axis], f"{axis} of {where}")
    everyone = [
        method for block, _ in whole for method in block["methods"]
    ]  # an option that one of them heeds has its place
    blocks = [_block(block, where, everyone) for block, where in whole]
    return Grid(head["name"], head.get("description", ""), head["tier"], tuple(blocks), source)


def _block(block: dict, where: str, everyone: list[str]) -> dict:
    from pandalib.experiments.run import METHODS

    for name, kind in (("tasks", str), ("methods", str), ("seeds", int)):
        for value in block[name]:
            if (
                not isinstance(value, kind)
                or isinstance(value, bool)
                or (kind is int and value < 0)
            ):
                raise ValueError(
                    f"{name} of {where} hold {value!r}: expected {'texts' if kind is str else 'whole numbers of at least 0'}."
                )
    unknown = [method for method in block["methods"] if method not in METHODS]
    if unknown:
        raise ValueError(f"method {unknown[0]!r} is unknown: choose among {', '.join(METHODS)}.")
    backbones = []
    for backbone in block["backbones"]:
        backbone = dict(backbone=backbone) if isinstance(backbone, str) else backbone
        if not isinstance(backbone, dict) or not all(
            isinstance(value, str) for value in backbone.values()
        ):
            raise ValueError(
                f"backbones of {where} hold {backbone!r}: expected names, or tables of name, weights and truncate_after."
            )
        _known(backbone, ("backbone", "name", "weights", "truncate_after"), "a backbone")
        backbones.append(
            {"backbone" if key == "name" else key: value for key, value in backbone.items()}
        )
    if not isinstance(block["settings"], dict) or not isinstance(block["vary"], dict):
        raise ValueError(
            f"settings and vary of {where} are tables: expected option = value in them."
        )
    settings: dict[str, dict] = {"": {}}
    for key, value in block["settings"].items():
        if isinstance(value, dict):
            if key not in METHODS:
                raise ValueError(
                    f"[settings.{key}]: {key!r} is no method: choose among {', '.join(METHODS)}."
                )
            settings[key] = {
                option: _check_option(option, one, [key], f"[settings.{key}]")
                for option, one in value.items()
            }
        else:
            settings[""][key] = _check_option(key, value, everyone, "[settings]")
    for option, values in block["vary"].items():
        _check_list(values, f"{option} of [vary]")
        for value in values:
            _check_option(option, value, block["methods"], "[vary]")
    return dict(
        tasks=block["tasks"],
        methods=block["methods"],
        seeds=block["seeds"],
        backbones=backbones,
        settings=settings,
        vary=block["vary"],
    )


def _check_list(values, what: str) -> None:
    if not isinstance(values, list) or not values:
        raise ValueError(
            f"{what}: expected a list of at least one value, as in [1, 2]; got {values!r}."
        )
    twice = [value for number, value in enumerate(values) if value in values[:number]]
    if twice:
        raise ValueError(f"{what} hold {twice[0]!r} twice: keep one.")


def _known(table: dict, accepted, where: str) -> None:
    unknown = [key for key in table if key not in accepted]
    if unknown:
        raise ValueError(
            f"{where} has an unknown key {unknown[0]!r}: accepted are {', '.join(accepted)}."
        )


def _parameters() -> dict[str, inspect.Parameter]:
    from pandalib.experiments.run import run

    return dict(inspect.signature(run).parameters)


def _check_option(option: str, value, methods: list[str], where: str):
    """The value, if `pandalib.run` has such an option of such a type and one of the methods heeds it."""
    parameters = {name: parameter for name, parameter in _parameters().items() if name not in _OWN}
    if option not in parameters:
        raise ValueError(
            f"{where} has an unknown option {option!r}: accepted are {', '.join(parameters)}."
        )
    if not any(
        option in CONCERNS[method]
        for method in methods
        if isinstance(method, str) and method in CONCERNS
    ):
        heeding = [method for method in CONCERNS if option in CONCERNS[method]]
        raise ValueError(
            f"{where}: {option} changes nothing in {', '.join(methods)}: it concerns {', '.join(heeding)}."
        )
    if value == DEFAULT:
        return value
    wanted = str(parameters[option].annotation).split(" | ")[0]  # "int", "float", "bool" or "str"
    fits = dict(int=int, float=(int, float), bool=bool, str=str)[wanted]
    if (
        not isinstance(value, fits)
        or isinstance(value, bool) != (wanted == "bool")
        or isinstance(value, float)
        and not math.isfinite(value)
    ):
        raise ValueError(
            f"{where}: {option} = {value!r}: expected {dict(int='a whole number', float='a number', bool='true or false', str='a text')[wanted]}."
        )
    return value
