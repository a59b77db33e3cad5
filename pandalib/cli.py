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
from pandalib.datasets.listing import counted, describe
from pandalib.experiments.config import (
    METHODS,
    TIERS,
    kind_of,
    methods_with,
    options_of,
    tier_named,
)
from pandalib.io import printable, write_atomically

WELCOME = """pandalib finds the odd one out: it learns from normal images what is anomalous.

  python -m pandalib doctor                              does everything work here?
  python -m pandalib run --task pictograms:star --method dn2
  python -m pandalib fit NORMAL --out MODEL              your own folder of normal images
  python -m pandalib score MODEL NEW --report report.html
  python -m pandalib sweep list                          the experiments that come with it

`python -m pandalib COMMAND --help` tells more, and `make lab` opens the course."""
WEIGHTS = ("embedded", "imagenet", "hub", "random")  # words that need no file
TASK = (
    "pictograms:star, surfaces:weave, elpv:poly (solar cells), folder:PATH[:CLASS], or a data set "
    "as cifar10:airplane"
)


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
        _say(f"pandalib: stopped{again}")
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        _say(f"pandalib: {error}")
    except (ImportError, RuntimeError) as error:  # a broken torch shows as one of these
        _say(f"pandalib: {error}")
        _say("`python -m pandalib doctor` says what is missing.")
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
        # With abbreviations, `run --out FILE` would mean --outlier-images FILE.
        one = parsers.add_parser(name, help=words, description=words, allow_abbrev=False)
        add_arguments(one)
    return parser


def _say(text: str) -> None:
    """Print beside the results, on standard error."""
    print(text, file=sys.stderr)


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
    from pandalib.inspection.results import check_file

    given = vars(options)
    target, method = given.pop("json"), given["method"]
    check_file(target)
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
    if task.credit:
        _say(task.credit)
    return 0


# ---------------------------------------------------------------- fit, score

FIXED = """tier backbone truncate_after size adapt tile overlap smallest_defect region framing
method layers bank_size reweight normalise whiten n_images n_maps leave_out_above
false_alarm_rate seed""".split()
IMAGES = "a folder, files, a pattern as '*.png', or a table FILE.csv of files; several of these"
ALARM = 3  # the exit status of --fail-on-alarm


def _reading_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--recursive", action="store_true", help="search subfolders too")
    add("--weights", help="embedded, imagenet, or a file; for a MODEL, where its file is now")
    add("--device", help="cpu, cuda or cuda:1; default: a GPU if there is one")
    add("--batch-size", type=int, help="images at once; default: what bounded memory holds")
    add("--workers", type=int, help="processes that decode files; default: at most 4")


def _fit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.argument_default = argparse.SUPPRESS
    add = parser.add_argument
    words = f"normal images only: {IMAGES}; in MVTec's layout, train/good"
    add("images", nargs="*", default=[], metavar="IMAGES", help=words)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", metavar="MODEL", help="a new or an empty folder for the detector")
    target.add_argument(
        "--add-to", metavar="MODEL", help="a detector to which these images are added"
    )
    words = "with --add-to: the review that a report wrote, of images below the folder IMAGES"
    add("--reviewed", metavar="FILE", help=f"{words}; default: the folder that FILE lies in")
    add("--force", action="store_true", help="replace the detector in MODEL")
    words = "with --out: write an HTML report of the strangest normal images, one file"
    add("--report", metavar="FILE", help=words)
    add("--skip-unreadable", action="store_true", help="leave out files that are not images")
    _reading_arguments(parser)
    add("--tier", choices=TIERS, help="of the network; default: PANDALIB_TIER, then embedded")
    add("--backbone", help="glyphs_resnet4, a network of torchvision, or timm:NAME")
    add("--truncate-after", metavar="STAGE", help="cut the network after this stage, as layer3")
    add("--size", type=int, help="images become about size x size pixels; default: the network's")
    words = "look at tiles of PX pixels of the file, for small defects in large images"
    add("--tiles", dest="tile", type=int, metavar="PX", help=words)
    add(
        "--overlap", type=int, metavar="PX", help="shared by neighbouring tiles; default: a quarter"
    )
    words = "in place of --tiles: the size of a defect that must be seen, in pixels"
    add("--smallest-defect", type=int, metavar="PX", help=words)
    words = "look only at this part: a mask image, or a polygon as '10,20 300,20 300,180'"
    add("--region", metavar="FILE", help=words)
    words = "the whole image, stretched or padded to one size, or its central square"
    add("--framing", choices=("stretch", "pad", "crop"), help=f"{words}; default: stretch")
    add("--method", choices=("bank", "spade"), help="of the heat maps; default: bank")
    add("--layers", help="of the heat maps, as layer1,layer2,layer3")
    add("--bank-size", type=int, help="patches in the memory bank; default: 5000")
    add("--reweight", action="store_true", help="weigh the bank's scores as PatchCore does")
    words = "adapt the network to half of the images, with EWC or stopped early; default: not"
    add("--adapt", choices=("ewc", "early"), help=words)
    words = "features of length one before kNN; default: the tier's"
    add("--normalise", action=argparse.BooleanOptionalAction, help=words)
    add("--whiten", action="store_true", help="whole images in units of their normal spread")
    add("--n-images", type=int, help="of spade: most similar normal images; default: 50")
    add("--n-maps", type=int, help="normal images that set the threshold; default: 200")
    words = "leave out normal images with more than X times the median score; default: none"
    add("--leave-out-above", type=float, metavar="X", help=words)
    add("--false-alarm-rate", type=float, help="of the normal images; default: 0.05")
    add("--seed", type=int, help="draws the images of --n-maps; default: 0")


def fit(options: argparse.Namespace) -> int:
    """fit a detector to normal images and save it"""
    from pandalib.datasets.layouts import images_to_fit
    from pandalib.inspection.report import write_report
    from pandalib.inspection.results import check_folder, check_targets
    from pandalib.inspection.storage import FACTS, check_target

    given = vars(options)
    report = given.get("report")
    if report is not None:
        if "add_to" in given:
            raise ValueError(
                "--report needs all the normal images, but --add-to reads only the new ones: fit "
                "all with --out."
            )
        _check_report(report)
    how = {name: name in given for name in ("recursive", "skip_unreadable")}
    before, copies = 0, 0
    if not options.images and "reviewed" not in given:
        raise ValueError("which images? Name a folder of normal images, or files.")
    if "reviewed" in given and ("add_to" not in given or len(options.images) > 1):
        raise ValueError("--reviewed needs --add-to MODEL and at most one folder of images.")
    if "add_to" in given:
        settled = [name for name in FIXED if name in given]
        if settled:
            flag = f"--{settled[0].replace('_', '-')}"
            raise ValueError(f"{flag} cannot change after fitting: fit again with --out.")
        target = options.add_to
        check_folder(target)
        inspector = _loaded(target, given)
        before, copies = len(inspector.features_), inspector.n_copies_
        if "reviewed" in given:
            _learn_review(inspector, given["reviewed"], options.images)
        else:
            inspector.add(options.images, **how)
    else:
        target = options.out
        folder = Path(target).expanduser()
        if (folder / FACTS).exists() and "force" not in given:
            raise FileExistsError(
                f"{target!r} holds a detector: choose another folder, --force or --add-to."
            )
        check_folder(folder)
        check_target(folder)
        inspector = _new_inspector(given)
        listing = images_to_fit(options.images, recursive=how["recursive"])
        if report is not None:
            check_targets({"--report": report}, None, listing, target)
        _say_cost(inspector, listing, looks=2 if report is None else 3)
        inspector.fit(listing, skip_unreadable=how["skip_unreadable"])
    inspector.save(target)
    _say_what_was_fitted(inspector, copies)
    if report is not None:
        ranking = inspector.rank_normal(listing)
        title = f"Normal images: {_last_parts(options.images[0])}"
        write_report(report, inspector, ranking, title=title, of_normal=True)
    network, n = inspector.backbone, len(inspector.features_)
    news = f"{n - before} added, " if before else ""
    print(
        f"{target}  {n} normal images ({news}{len(inspector.unreadable_)} unreadable)  "
        f"{network.name} up to {network.truncate_after}, weights {network.weights_sha256[:12]}  "
        f"threshold {inspector.threshold():.4g} at a false-alarm rate of "
        f"{inspector.false_alarm_rate:g}"
    )
    return 0


def _check_report(report) -> None:
    """Raise ValueError or OSError unless a report can be written there."""
    from pandalib.inspection.results import check_file

    if report == "-":
        raise ValueError("--report -: expected the name of a file.")
    check_file(report)


def _last_parts(path: str) -> str:
    """The last two parts of a path, for a title."""
    return "/".join(Path(path).expanduser().resolve().parts[-2:])


def _learn_review(inspector, reviewed, folders: list[str]) -> None:
    """Add confirmed normal images, keep confirmed defects to check."""
    from pandalib.inspection.review import read_review

    review = read_review(reviewed, *folders)
    if review.normal:
        inspector.add(review.normal)
    if review.defects:
        inspector.add_defects(review.defects, review.defect_names)
    _say(
        f"reviewed: {counted(len(review.normal), 'image')} confirmed normal, "
        f"{len(review.defects)} confirmed as defects"
    )
    _say_check(inspector)


def _say_check(inspector, rate: float | None = None) -> None:
    """Whether the confirmed defects are found, and at which rate they would be."""
    names = inspector.check_names_
    if not names:
        return
    missed = [
        (name, "not above the threshold")
        for name, score in zip(names, inspector.check())
        if score <= inspector.threshold(rate)
    ]
    found = f"check set: {len(names) - len(missed)} of {counted(len(names), 'confirmed defect')}"
    _say(f"{found} found")
    if missed:
        _say(f"  missed: {printable(describe(missed)[len('left out: ') :])}")
        proposed = inspector.rate_that_finds_all()
        if proposed is not None:
            _say(
                f"  --rate {proposed:.3g} would find all of them. This rate is chosen by these "
                f"{len(names)} defects and {len(inspector.sample_)} normal images: it promises "
                "nothing about other defects."
            )


def _say_cost(inspector, listing, looks: int = 1) -> None:
    """With tiles, how many images' worth of work lies ahead; before it begins."""
    n_tiles = inspector.n_tiles(listing)
    if n_tiles:
        often = {1: "", 2: ", each looked at twice", 3: ", each looked at up to three times"}[looks]
        _say(f"{n_tiles} tiles ahead{often}: each takes as long as an image without tiles")


def _say_what_was_fitted(inspector, copies: int) -> None:
    """What a user should know about the normal images, on standard error."""
    for note in inspector.notes_:
        _say(printable(note))
    _say(f"images as {inspector.read_as}")
    for name, reason in inspector.unreadable_:
        _say(f"left out: {printable(name)} is not an image: {reason}")
    if inspector.n_copies_ > copies:
        _say(f"left out: {counted(inspector.n_copies_ - copies, 'copy', 'copies')} of others")
    for name, times in inspector.left_out_:
        _say(f"left out: {printable(name)}, {times:.2f} times the median normal score")
    twins = inspector.near_duplicates()
    if twins:
        n, first = sum(map(len, twins)), ", ".join(map(printable, twins[0][:3]))
        _say(
            f"near-duplicates: {n} images in {counted(len(twins), 'group')}, as {first}; an image "
            "is compared with the others outside of its group"
        )
    n, of = len(inspector.sample_), len(inspector.features_) - len(inspector.adapted_)
    some = "" if n == of else f", among {n} drawn from {of} (--n-maps {of} looks at all)"
    _say(f"the strangest normal images{some}, in multiples of the median score; is one a defect?")
    for name, times in inspector.strangest():
        _say(f"  {times:6.2f}  {printable(name)}")
    if inspector.backbone.source == "embedded":
        _say("note: for real photographs use --tier standard")


def _check_reading(given: dict) -> None:
    """Raise ValueError for a device, a batch or workers that there cannot be."""
    from pandalib.validation import check_counts

    if given.get("device"):
        import torch  # heavy, and needed only here

        try:
            torch.empty(0, device=given["device"])
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"--device {given['device']} cannot be used: {reason}") from None
    if given.get("batch_size") is not None:
        check_counts(batch_size=given["batch_size"])
    if (given.get("workers") or 0) < 0:
        raise ValueError(f"--workers {given['workers']}: expected 0 or more.")


def _loaded(model, given: dict):
    """A saved detector, on the device and with the batches that were asked for."""
    from pandalib.inspection.inspector import Inspector

    _check_reading(given)
    inspector = Inspector.load(model, weights=given.get("weights"), device=given.get("device"))
    pace = {name: given[name] for name in ("batch_size", "workers") if given.get(name) is not None}
    return inspector.set_params(**pace)


def _new_inspector(given: dict):
    from pandalib.backbones import load_backbone
    from pandalib.inspection.inspector import Inspector

    tier = tier_named(given.get("tier") or os.environ.get("PANDALIB_TIER") or "embedded")
    name = given.get("backbone", tier.backbone)
    weights = given.get("weights", tier.weights if name == tier.backbone else "imagenet")
    _check_weights(given)
    _check_reading(given)
    if weights == "random":
        raise ValueError(
            "--weights random makes a detector that no command can load: choose embedded, imagenet "
            "or a file."
        )
    cut = given.get("truncate_after", tier.truncate_after)
    names = (*FIXED[FIXED.index("size") :], "batch_size", "workers")
    settings = {name: given[name] for name in names if name in given}
    if "layers" in given:
        settings["layers"] = [layer.strip() for layer in given["layers"].split(",")]
    settings.setdefault("normalise", tier.pace.normalise)
    if tier.fit == "crop" and not settings.keys() & {"tile", "smallest_defect"}:
        settings.setdefault("framing", "crop")
    if settings.get("framing") == "crop" and "size" not in given:
        settings["resize"] = tier.resize
    network = load_backbone(name, weights, truncate_after=cut, device=given.get("device"))
    return Inspector(network, **settings)


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="a detector, as `fit` writes")
    add("images", nargs="+", metavar="IMAGES", help=IMAGES)
    add("--report", metavar="FILE", help="write an HTML report with heat maps, one file")
    add("--csv", metavar="FILE", help="write all scores as a table; -: print it, not the list")
    add("--json", metavar="FILE", help="write all scores as JSON; -: print it, not the list")
    words = "write each heat map there: PNG and 16-bit TIFF, in which 8192 is the threshold"
    add("--maps", metavar="FOLDER", help=words)
    add("--rate", type=float, help="false-alarm rate; default: the detector's own")
    add("--top", type=int, default=50, help="how many images list and report show; default: 50")
    add("--fail-on-alarm", action="store_true", help=f"exit status {ALARM} if an image alarms")
    _reading_arguments(parser)


def score(options: argparse.Namespace) -> int:
    """score images with a saved detector: a ranking, alarms, a report"""
    from pandalib.datasets.layouts import images_to_score
    from pandalib.inspection.report import ranked_rows, write_report
    from pandalib.inspection.results import (
        MapFolder,
        as_csv,
        as_json,
        check_file,
        check_folder,
        check_targets,
        write_text,
    )

    printed = [name for name in ("csv", "json") if getattr(options, name) == "-"]
    if len(printed) == 2:
        raise ValueError("--csv - and --json -: expected one of them on standard output.")
    _check_report(options.report)
    for target in (options.csv, options.json):
        check_file(target)
    if options.maps:
        check_folder(options.maps)
    inspector = _loaded(options.model, vars(options))
    threshold = inspector.threshold(options.rate)  # first, since it may raise
    listing = images_to_score(options.images, recursive=options.recursive)
    targets = {f"--{name}": getattr(options, name) for name in ("report", "csv", "json")}
    check_targets(targets, options.maps, listing, options.model)
    _say_cost(inspector, listing)
    maps = MapFolder(options.maps, inspector, threshold) if options.maps else None
    ranking = inspector.rank(
        listing, top=options.top, rate=options.rate, skip_unreadable=True, on_image=maps
    )
    notes = inspector.notes_
    rows = list(ranked_rows(ranking, threshold))
    alarms = sum(row["alarm"] for row in rows)
    if options.csv:
        write_text(options.csv, as_csv(rows))
    if options.json:
        write_text(options.json, as_json(inspector, ranking, rows, options.rate, listing.top))
    if options.report:
        title = f"Anomaly report: {_last_parts(options.images[0])}"
        write_report(options.report, inspector, ranking, rate=options.rate, title=title)
    if not printed:
        print("rank  score / threshold  alarm  file")
        for row in rows[: options.top]:
            alarm = "yes" if row["alarm"] else "no "
            print(f"{row['rank']:4}  {row['relative']:17.3f}  {alarm:>5}  {printable(row['file'])}")
        if len(rows) > options.top:
            print(f"... and {len(rows) - options.top} more")
        raising = f"{counted(len(rows), 'image')} {'raises' if alarms == 1 else 'raise'} an alarm"
        print(f"{alarms} of {raising} (score above {threshold:.4g})")
    for note in (*notes, f"images as {inspector.read_as}"):
        _say(printable(note))
    _say_check(inspector, options.rate)
    if ranking.fitted:
        few = ", ".join(map(printable, ranking.fitted[:3]))
        _say(
            f"note: {counted(len(ranking.fitted), 'image')} among the normal images that the "
            f"detector was fitted with, whose scores are too low: {few}"
        )
    if ranking.other_sizes:
        _say(
            f"note: images of {', '.join(ranking.other_sizes[:3])} pixels, and normal ones of "
            f"{', '.join(inspector.sizes_[:3])}: at another scale, fine texture alone can alarm"
        )
    for name, reason in ranking.unreadable:
        _say(f"pandalib: {printable(name)} is not an image: {reason}")
    for name, reason in maps.failed if maps else ():
        _say(f"pandalib: the map {printable(name)} was not written: {reason}")
    if ranking.unreadable or (maps and maps.failed):
        return 1
    return ALARM if options.fail_on_alarm and alarms else 0


# ---------------------------------------------------------------- evaluate


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="a detector, as `fit` writes")
    words = "labelled images: MVTec's layout, BTAD, VisA, or a folder per class as PATH:CLASS"
    add("folder", metavar="FOLDER", help=f"{words}, where CLASS is normal")
    add("--against", metavar="MODEL", help="another detector, compared on the same images")
    add("--rate", type=float, help="false-alarm rate; default: each detector's own")
    add("--json", metavar="FILE", help="write the numbers as JSON; -: print it, not the table")
    add("--weights", metavar="FILE", help="where the weights of the networks are now")
    add("--device", help="cpu, cuda or cuda:1; default: a GPU if there is one")


def evaluate(options: argparse.Namespace) -> int:
    """measure a detector on labelled images: precision, recall, F1, ROC-AUC, with intervals"""
    from pandalib.inspection.evaluate import FEW, evaluate_files, labelled_images
    from pandalib.inspection.results import check_file, write_text

    check_file(options.json)
    files, labels, note = labelled_images(options.folder)
    _say(printable(note))
    models = [model for model in (options.model, options.against) if model]
    inspectors = [_loaded(model, vars(options)) for model in models]
    found = evaluate_files(inspectors, files, labels, rate=options.rate)
    for name, reason in found["unreadable"].items():
        _say(f"pandalib: {name!r} is not an image: {reason}")
    found["models"] = [{"model": model, **one} for model, one in zip(models, found["models"])]
    for one in found["models"]:
        if one["fitted"]:
            words = counted(len(one["fitted"]), "image")
            _say(f"left out: {words} that {one['model']} was fitted with")
    if options.json:
        write_text(options.json, json.dumps(found, indent=1) + "\n")
    if options.json != "-":
        print(f"{found['n_normal']} normal and {found['n_anomalous']} anomalous images")
        for one in found["models"]:
            print(f"{one['model']}  threshold {one['threshold']:.4g}")
            for name in ("roc_auc", "precision", "recall", "f1", "false_alarm_rate"):
                value, low, high = one[name]
                print(f"  {name:16} {value:.3f}  ({low:.3f} to {high:.3f})")
        if min(found["n_normal"], found["n_anomalous"]) < FEW:
            few = f"below {FEW} images of a kind the intervals of roc_auc and f1 are too short"
            _say(f"note: {few}")
        if options.against:
            value, low, high = found["roc_auc_difference"]
            verdict = "more than chance explains" if low > 0 or high < 0 else "may be chance"
            print(f"difference in ROC-AUC {value:+.3f}  ({low:+.3f} to {high:+.3f}): {verdict}")
    return int(bool(found["unreadable"]))


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
        print("Solar cells come with the installation: the tasks elpv:mono and elpv:poly.")
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
