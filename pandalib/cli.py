"""The command line: the library without a browser.

The library is imported inside the commands, so that `--help` and `doctor` answer at once, even
where torch is broken. The options of `run` come from the methods' own dataclasses.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import pandalib
from pandalib import doctor as checks
from pandalib.experiments.config import (
    METHODS,
    TIERS,
    kind_of,
    methods_with,
    options_of,
    tier_named,
)

WELCOME = """pandalib finds the odd one out: it learns from normal images what is anomalous.

  python -m pandalib doctor                              does everything work here?
  python -m pandalib run --task pictograms:star --method dn2
  python -m pandalib fit NORMAL --out MODEL              your own folder of normal images
  python -m pandalib score MODEL NEW --report report.html
  python -m pandalib sweep list                          the experiments that come with it

`python -m pandalib COMMAND --help` tells more, and `make lab` opens the course."""
WEIGHTS = ("embedded", "imagenet", "random")  # words that need no file
TASK = "pictograms:star, surfaces:weave, folder:PATH[:CLASS], or a data set as cifar10:airplane"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):  # a name that a terminal cannot show is not an error
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if not arguments:
        print(WELCOME)
        return 0
    options = build_parser().parse_args(arguments)
    command = options.command
    del options.command
    try:
        return COMMANDS[command][1](options)
    except KeyboardInterrupt:
        again = ": the same command goes on from here" if command == "sweep" else ""
        print(f"pandalib: stopped{again}", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"pandalib: {error}", file=sys.stderr)
    except (ImportError, RuntimeError) as error:  # a broken torch shows as one of these
        print(f"pandalib: {error}", file=sys.stderr)
        print("`python -m pandalib doctor` says what is missing.", file=sys.stderr)
    return 2


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pandalib", description="Anomaly detection with pretrained features."
    )
    version = f"pandalib {pandalib.__version__}"
    parser.add_argument("--version", action="version", version=version)
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (add_arguments, command) in COMMANDS.items():
        words = command.__doc__
        add_arguments(parsers.add_parser(name, help=words, description=words))
    return parser


# ---------------------------------------------------------------- doctor


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tier", choices=TIERS, help="default: PANDALIB_TIER, then embedded")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def doctor(options: argparse.Namespace) -> int:
    """say what works here, what is missing, how to get it"""
    findings = checks.check(options.tier)
    failed = any(finding.level == "FAIL" for finding in findings)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False))
    else:
        tier = options.tier or os.environ.get("PANDALIB_TIER") or "embedded"
        verdict = "cannot run here yet: see FAIL above" if failed else "can run here"
        print(*findings, f"\nThe {tier} tier {verdict}.", sep="\n")
    return int(failed)


# ---------------------------------------------------------------- run, export


def _add_options(parser: argparse.ArgumentParser, names) -> None:
    """An argument for each of these options, from the dataclasses of the methods."""
    for name in names:
        having = methods_with(name)
        one, kind = options_of(having[0])[name], kind_of(having[0], name)
        words = one.metadata["help"]
        if one.default not in (None, False):
            words += f"; default: {one.default}"
        lacking = [method for method in METHODS if method not in having]
        if lacking:
            few = len(lacking) < len(having)
            words += f" [not {' '.join(lacking)}]" if few else f" [{' '.join(having)}]"
        if one.metadata["choices"]:
            how = {"choices": list(one.metadata["choices"])}
        else:
            how = {"type": kind, "metavar": "X"}
            how = {"action": argparse.BooleanOptionalAction} if kind is bool else how
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, default=argparse.SUPPRESS, help=words, **how)


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    methods = "; ".join(f"{name}: {one.__doc__}" for name, one in METHODS.items())
    parser.add_argument("--task", required=True, help=TASK)
    parser.add_argument("--method", required=True, help=methods)
    parser.add_argument("--tier", default="embedded", help="embedded, standard or paper")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the result there; -: print it")
    names = dict.fromkeys(name for method in METHODS for name in options_of(method))
    _add_options(parser, names)


def run(options: argparse.Namespace) -> int:
    """run one method on one task"""
    from pandalib.experiments.run import run
    from pandalib.io import write_atomically

    given = vars(options)
    target, method = given.pop("json"), given["method"]
    for name in given.keys() & options_of(method).keys():
        choices = options_of(method)[name].metadata["choices"]
        given[name] = choices[given[name]] if choices else given[name]
    if "weights" in options_of(method):  # else it is refused as an option
        _check_weights(given)
    result = run(**given)
    text = json.dumps(result, allow_nan=False)
    if target == "-":
        print(text)
        return 0
    if target:
        write_atomically(Path(target).expanduser(), f"{text}\n".encode())
    print(f"{result['task']}  {method}  ROC-AUC {result['roc_auc']:.4f}  {result['seconds']:.1f} s")
    return 0


def _check_weights(given: dict) -> None:
    weights = given.get("weights")
    if weights not in (None, *WEIGHTS) and "backbone" not in given:
        raise ValueError(
            f"--weights {weights} without --backbone: name the network that this file "
            "belongs to, as --backbone resnet18."
        )


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", required=True, help=TASK)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new or an empty folder")
    _add_options(parser, ("level", "size", "n_train", "n_test"))


def export(options: argparse.Namespace) -> int:
    """write the images of a task as PNG files in MVTec's layout"""
    from pandalib.datasets.folder import write_mvtec
    from pandalib.datasets.load import load_task

    given = vars(options)
    target = given.pop("out")
    task = load_task(given.pop("task"), **given)
    folder = write_mvtec(task, target)
    print(
        f"{task.name}  {len(task.train)} images to learn from, {len(task.test)} to test  {folder}"
    )
    return 0


# ---------------------------------------------------------------- fit, score

FIXED = (
    "tier backbone truncate_after size framing region place bank_size layers n_images n_maps "
    "normalise false_alarm_rate leave_out_above seed"
).split()
IMAGES = "a folder, files, patterns as *.png, or a table FILE.csv that names files"


def _fit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.argument_default = argparse.SUPPRESS
    add = parser.add_argument
    add("images", metavar="IMAGES", nargs="+", help=f"normal images only: {IMAGES}")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", metavar="MODEL", help="a new or an empty folder for the detector")
    target.add_argument(
        "--add-to", metavar="MODEL", help="a detector to which these images are added"
    )
    add("--force", action="store_true", help="replace the detector in MODEL")
    add("--recursive", action="store_true", help="search subfolders too")
    add("--skip-unreadable", action="store_true", help="leave out files that are not images")
    add("--tier", choices=TIERS, help="of the network; default: PANDALIB_TIER, then embedded")
    add("--backbone", help="glyphs_resnet4, a network of torchvision, or timm:NAME")
    add("--weights", help="embedded, imagenet, or a file; with --add-to, where the file is now")
    add("--truncate-after", metavar="STAGE", help="cut the network after this stage, as layer3")
    add("--size", type=int, help="images become about size x size pixels; default: the network's")
    add(
        "--framing",
        choices=("stretch", "pad", "crop"),
        help="the whole image (stretch, pad) or its centre (crop)",
    )
    words = "look at this part only: a mask image, or corners as '10,20 300,20 300,180'"
    add("--region", help=words)
    add("--place", choices=("bank", "spade"), help="what makes the heat maps; default: bank")
    add("--bank-size", type=int, help="patches in the memory bank; default: 5000")
    add("--layers", help="of the heat maps, as layer1,layer2,layer3")
    add("--n-images", type=int, help="of spade: similar images to compare with; default: 50")
    add("--n-maps", type=int, help="normal images that give the threshold; default: 200")
    words = "features of length one before kNN; default: the tier's"
    add("--normalise", action=argparse.BooleanOptionalAction, help=words)
    add("--false-alarm-rate", type=float, help="of the normal images; default: 0.05")
    words = "leave out normal images that score above X times their median; default: none"
    add("--leave-out-above", type=float, metavar="X", help=words)
    add("--seed", type=int, help="draws the images of --n-maps; default: 0")
    add("--device", help="cpu, cuda, cuda:1 ...; default: a GPU if there is one")
    add("--workers", type=int, help="processes that read images; default: by their number")


def fit(options: argparse.Namespace) -> int:
    """fit a detector to normal images and save it"""
    from pandalib.datasets.layouts import images_to_fit
    from pandalib.inspection.inspector import Inspector, counted
    from pandalib.inspection.results import check_targets
    from pandalib.inspection.storage import FACTS, check_target
    from pandalib.io import printable

    given = vars(options)
    _set_workers(given.pop("workers", None))
    target = given.get("add_to") or given["out"]
    before, copies = 0, 0
    check_targets(folders=[target])
    if "add_to" in given:
        settled = [name for name in FIXED if name in given]
        if settled:
            flag = f"--{settled[0].replace('_', '-')}"
            raise ValueError(f"{flag} cannot change after fitting: fit again with --out.")
        inspector = Inspector.load(target, **_where(given))
        before, copies = len(inspector.features_), inspector.n_copies_
        learn = inspector.add
    else:
        folder = Path(target).expanduser()
        if (folder / FACTS).exists() and "force" not in given:
            raise FileExistsError(
                f"{target!r} holds a detector: choose another folder, --force or --add-to."
            )
        check_target(folder)
        inspector = _new_inspector(given)
        learn = inspector.fit
    listing = images_to_fit(given["images"], recursive="recursive" in given)
    _say(listing.note, listing.warning)
    learn(listing, skip_unreadable="skip_unreadable" in given)
    inspector.save(target)
    _say(f"images read at {inspector.geometry_}")
    for name, reason in inspector.unreadable_:
        _say(f"left out: {printable(name)} is not an image: {reason}")
    if inspector.n_copies_ > copies:
        _say(f"left out: {counted(inspector.n_copies_ - copies, 'copy', 'copies')} of others")
    for name, score in inspector.strange_:
        _say(f"left out: {printable(name)} scores {score:.1f} times the median")
    twins = inspector.near_duplicates()
    if twins:
        n, first = sum(map(len, twins)), ", ".join(map(printable, twins[0][:3]))
        _say(
            f"near-duplicates: {n} images in {counted(len(twins), 'group')}, as {first}; an image "
            "is compared with the others outside of its group"
        )
    strangest = inspector.strangest(5)
    if strangest and strangest[0][1] > 2:
        listed = ", ".join(f"{printable(name)} {score:.1f}" for name, score in strangest)
        _say(f"strangest, in medians of the normal scores: {listed}")
    network, n = inspector.backbone, len(inspector.features_)
    if network.source == "embedded":
        _say("note: for real photographs use --tier standard")
    news = f"{n - before} added, " if before else ""
    print(
        f"{target}  {n} normal images ({news}{len(inspector.unreadable_)} unreadable)  "
        f"{network.name} up to {network.truncate_after}, weights {network.weights_sha256[:12]}  "
        f"threshold {inspector.threshold():.4g} at a false-alarm rate of "
        f"{inspector.false_alarm_rate:g}"
    )
    return 0


def _say(*lines: str) -> None:
    """Print what is not empty, beside the results."""
    for line in filter(None, lines):
        print(line, file=sys.stderr)


def _set_workers(number: int | None) -> None:
    if number is not None:
        os.environ["PANDALIB_WORKERS"] = str(number)


def _where(given: dict) -> dict:
    """Where the weights are and the network is to run, for `Inspector.load`."""
    return {name: given[name] for name in ("weights", "device") if given.get(name) is not None}


def _new_inspector(given: dict):
    from pandalib.backbones import load_backbone
    from pandalib.inspection.inspector import Inspector

    tier = tier_named(given.get("tier") or os.environ.get("PANDALIB_TIER") or "embedded")
    name = given.get("backbone", tier.backbone)
    weights = given.get("weights", tier.weights if name == tier.backbone else "imagenet")
    _check_weights(given)
    if weights == "random":
        raise ValueError(
            "--weights random: a detector on them could not be loaded again, and would find next "
            "to nothing; choose embedded, imagenet or a file."
        )
    cut = given.get("truncate_after", tier.truncate_after)
    settings = {name: given[name] for name in FIXED[3:] if name in given}
    settings.setdefault("normalise", tier.pace.normalise)
    if "layers" in given:
        settings["layers"] = [layer.strip() for layer in given["layers"].split(",")]
    if tier.fit == "crop" and "size" not in given and "framing" not in given:
        settings |= {"framing": "crop", "resize": tier.resize}
    network = load_backbone(name, weights, truncate_after=cut, device=given.get("device"))
    return Inspector(network, **settings)


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="a detector, as `fit` writes")
    add("images", metavar="IMAGES", nargs="+", help=IMAGES)
    add("--report", metavar="FILE", help="write an HTML report with heat maps, one file")
    add("--csv", metavar="FILE", help="write all scores as a table; -: print it, not the list")
    add("--json", metavar="FILE", help="write all scores as JSON; -: print it, not the list")
    add("--maps", metavar="FOLDER", help="write the heat map of each image, as PNG and 16-bit TIFF")
    add("--rate", type=float, help="false-alarm rate; default: the detector's own")
    add("--top", type=int, default=50, help="how many images list and report show; default: 50")
    add("--recursive", action="store_true", help="search subfolders too")
    add("--weights", metavar="FILE", help="where the network's weights are now")
    add("--fail-on-alarm", action="store_true", help="exit with status 3 if an image alarms")
    add("--device", help="cpu, cuda, cuda:1 ...; default: a GPU if there is one")
    add("--workers", type=int, help="processes that read images; default: by their number")


def score(options: argparse.Namespace) -> int:
    """score images with a saved detector: a ranking, alarms, a report"""
    from pandalib.datasets.layouts import images_to_score
    from pandalib.inspection.inspector import Inspector, counted
    from pandalib.inspection.report import ranked_rows, write_report
    from pandalib.inspection.results import check_targets, map_writer, write_csv, write_json
    from pandalib.io import printable

    files = dict(report=options.report, csv=options.csv, json=options.json)
    check_targets(folders=[options.maps] if options.maps else [], **files)
    if options.csv == options.json == "-":
        raise ValueError("--csv - and --json -: only one of them can be printed.")
    _set_workers(options.workers)
    inspector = Inspector.load(options.model, **_where(vars(options)))
    threshold = inspector.threshold(options.rate)  # first, since it may raise
    listing = images_to_score(options.images, recursive=options.recursive)
    _say(listing.note, listing.warning)
    ranking = inspector.rank(
        listing,
        top=options.top,
        rate=options.rate,
        skip_unreadable=True,
        on_map=map_writer(options.maps, inspector, threshold) if options.maps else None,
    )
    rows = list(ranked_rows(ranking, threshold, inspector.normal_scores_))
    alarms = sum(row["alarm"] for row in rows)
    if ranking.n_known:
        _say(
            f"note: the detector was fitted to {ranking.n_known} of these images, which look more "
            "normal to it than they are"
        )
    if ranking.other_sizes:
        _say(
            f"note: images of {', '.join(ranking.other_sizes[:3])} pixels, and normal ones of "
            f"{', '.join(inspector.sizes_[:3])}: at another scale, fine texture alone can alarm"
        )
    if options.csv:
        write_csv(options.csv, rows)
    if options.json:
        content = dict(
            threshold=threshold,
            false_alarm_rate=options.rate or inspector.false_alarm_rate,
            n_images=len(rows),
            n_alarms=alarms,
            n_known=ranking.n_known,
            weights_sha256=inspector.backbone.weights_sha256,
            unreadable=[dict(file=name, reason=reason) for name, reason in ranking.unreadable],
            images=rows,
        )
        write_json(options.json, content)
    if options.report:
        name = "/".join(Path(options.images[0]).expanduser().resolve().parts[-2:])
        title = f"Anomaly report: {name}"
        write_report(options.report, inspector, ranking, rate=options.rate, title=title)
    if "-" not in (options.csv, options.json):
        print("rank  score / threshold  alarm  file")
        for row in rows[: options.top]:
            alarm = "yes" if row["alarm"] else "no "
            print(f"{row['rank']:4}  {row['relative']:17.3f}  {alarm:>5}  {printable(row['file'])}")
        if len(rows) > options.top:
            print(f"... and {len(rows) - options.top} more")
        raising = (
            f"{alarms} of {counted(len(rows), 'image')} {'raises' if alarms == 1 else 'raise'}"
        )
        print(f"{raising} an alarm (score above {threshold:.4g})")
    for name, reason in ranking.unreadable:
        _say(f"pandalib: {printable(name)} is not an image: {reason}")
    if options.fail_on_alarm and alarms:
        return 3
    return int(bool(ranking.unreadable))


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="a detector, as `fit` writes")
    words = (
        "labelled images: PATH:CLASS with a folder for each class, or a known layout, as MVTec's"
    )
    add("folder", metavar="FOLDER", help=words)
    add("--against", metavar="MODEL", help="another detector, compared on the same images")
    add("--rate", type=float, help="false-alarm rate; default: the detector's own")
    add("--weights", metavar="FILE", help="where the network's weights are now")
    add("--json", metavar="FILE", help="write the results as JSON; -: print it, not the table")
    add("--device", help="cpu, cuda, cuda:1 ...; default: a GPU if there is one")


def evaluate(options: argparse.Namespace) -> int:
    """measure a saved detector on labelled images, or compare two"""
    from pandalib.inspection.evaluation import compare, labelled, measure
    from pandalib.inspection.inspector import Inspector
    from pandalib.inspection.results import check_targets, write_json

    check_targets(json=options.json)
    listing, labels = labelled(options.folder)
    _say(listing.note, listing.warning)
    names = [options.model, *([options.against] if options.against else [])]
    detectors = [Inspector.load(name, **_where(vars(options))) for name in names]
    results = [measure(one, listing, labels, rate=options.rate) for one in detectors]
    content = dict(zip(("model", "against"), (result.facts for result in results)))
    if options.against:
        content["difference"] = compare(*results)
    if options.json:
        write_json(options.json, content)
    if options.json != "-":
        for name, result in zip(names, results):
            print(f"{name}\n{result}")
        if options.against:
            change, (low, high) = content["difference"].values()
            between = f"{change:+.3f} ({low:+.3f} to {high:+.3f})"
            print(f"ROC-AUC of the first minus the second: {between}")
    return 0


# ---------------------------------------------------------------- sweep, table


def _sweep_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("grid", help="a TOML file, or the name of a grid; `list` shows all names")
    add("--out", metavar="DIR", help="folder of the results; default: results/NAME of the grid")
    add("--workers", type=int, help="processes at once; default: one per core, or one with a GPU")
    add("--threads", type=int, help="of each process; default: the cores divided among them")
    add("--scheduler", metavar="ADDRESS", help="of a Dask cluster, as tcp://10.0.0.1:8786")
    add("--retry-failed", action="store_true", help="repeat the runs that failed before")
    add("--skip-missing", action="store_true", help="go on without missing data sets")


def sweep(options: argparse.Namespace) -> int:
    """do every run of a grid; after an interruption, those that are missing"""
    from pandalib.experiments.grids import grids, load_grid
    from pandalib.experiments.results import in_brief
    from pandalib.experiments.sweep import sweep

    given = vars(options)
    name = given.pop("grid")
    if name == "list":
        for grid in map(load_grid, grids()):
            print(f"{grid.name:28} {grid.description}")
        return 0
    grid = load_grid(name)
    folder = Path(given.pop("out") or Path("results") / grid.name)
    results = sweep(grid, folder, **given)
    failed = [result for result in results if "error" in result]
    for result in failed:
        print(in_brief(result))
    print(f"{grid.name}  {len(results) - len(failed)} of {len(results)} runs  {folder}")
    print(f"The table: python -m pandalib table {folder}")
    return int(bool(failed))


def _table_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder of a sweep's results")


def table(options: argparse.Namespace) -> int:
    """summarise a sweep in table.md, table.csv and table.png"""
    from pandalib.experiments.tables import write_table

    folder = Path(options.folder).expanduser()
    rows = write_table(folder)
    print((folder / "table.md").read_text(encoding="utf-8"))
    return int(any(row.n_runs < row.runs_wanted for row in rows))


# ---------------------------------------------------------------- data


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="sets to download; none: list all")
    parser.add_argument("--info", action="store_true", help="only print what is known of them")


def data(options: argparse.Namespace) -> int:
    """list, describe or download public data sets"""
    from pandalib.datasets import public

    names = options.names or list(public.ROWS)
    rows = {name: public.row_of(name) for name in names}  # raises for unknown names
    if options.info:
        for name, row in rows.items():
            print(f"{name}: {row['title']}")
            for key in ("page", "licence", "download", "example", "protocol"):
                print(f"  {key:9} {row[key]}")
            print(f"  get it    {public.how_to_get(name)}")
    elif options.names:
        for name, row in rows.items():
            print(f"{name}: {row['title']}, {row['page']}, licence: {row['licence']}", flush=True)
            print(f"  here, in {str(public.fetch(name))!r}")
    else:
        for name, row in rows.items():
            state = "here" if public.is_here(name) else "not here"
            print(f"{name:14} {row['download']:>7}  {state:8}  {row['example']}  {row['licence']}")
        print("`python -m pandalib data NAME` downloads one, --info NAME tells more.")
    return 0


COMMANDS = {
    "doctor": (_doctor_arguments, doctor),
    "run": (_run_arguments, run),
    "fit": (_fit_arguments, fit),
    "score": (_score_arguments, score),
    "evaluate": (_evaluate_arguments, evaluate),
    "sweep": (_sweep_arguments, sweep),
    "table": (_table_arguments, table),
    "data": (_data_arguments, data),
    "export": (_export_arguments, export),
}
