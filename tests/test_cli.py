"""The command line: what each command prints, its exit status, and errors in one line."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import pandalib
from pandalib import cli
from pandalib.cli import COMMANDS, main
from pandalib.experiments import run as running
from pandalib.experiments import sweep as sweeping

STAR = ["--task", "pictograms:star"]
SMALL = ["--n-train", "9", "--n-test", "2"]
GRID = """
[grid]
name = "g"
description = "One run."
tier = "embedded"
tasks = ["pictograms:star"]
methods = ["pixels"]
[settings]
n_train = 20
n_test = 4
"""


@pytest.fixture
def photos(tmp_path):
    """Two classes of 12 images each."""
    rng = np.random.default_rng(0)
    for kind, brightness in (("good", 60), ("bad", 190)):
        (tmp_path / kind).mkdir()
        for number in range(12):
            picture = rng.integers(brightness - 30, brightness + 30, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / kind / f"{number}.png")
    return tmp_path


def test_without_a_command_one_screen_says_what_to_do(capsys):
    assert main([]) == 0
    words = capsys.readouterr().out
    assert words.count("\n") < 20 and all(f"pandalib {name}" in words for name in ("fit", "doctor"))
    done = subprocess.run([sys.executable, "-m", "pandalib"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, words)


def test_an_abbreviated_option_is_no_other_option(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", *STAR, "--method", "oe", "--out", "result.json"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --out result.json" in capsys.readouterr().err


def test_version_and_help(capsys):
    for arguments, words in (
        (["--version"], [f"pandalib {pandalib.__version__}\n"]),
        (["--help"], [f"{name} " for name in COMMANDS]),
        (["run", "--help"], ["--bf16 {off,on,auto}", "--ewc-lambda X", "[not pixels"]),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        printed = capsys.readouterr().out
        assert ended.value.code == 0 and all(word in printed for word in words)


def test_run_prints_a_line_or_one_json_object(capsys, tmp_path):
    arguments = ["run", "--method", "dn2", "--normalise", *STAR, *SMALL]
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("pictograms:star  dn2  ROC-AUC 0.")
    assert main([*arguments, "--json", "-"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    path = tmp_path / "deep" / "result.json"
    assert main([*arguments, "--json", str(path)]) == 0
    written = json.loads(path.read_text())
    assert written["roc_auc"] == json.loads(printed)["roc_auc"]


@pytest.mark.parametrize(("word", "value"), [("off", False), ("on", True), ("auto", "auto")])
def test_words_become_values(word, value, monkeypatch, capsys):
    seen = {}
    record = dict(task="t", roc_auc=0.5, seconds=1.0)
    monkeypatch.setattr(running, "run", lambda **options: seen.update(options) or record)
    assert main(["run", "--method", "early", *STAR, "--bf16", word, "--lr", "0.5"]) == 0
    expected = dict(task="pictograms:star", method="early", tier="embedded", seed=0)
    assert seen == expected | dict(bf16=value, lr=0.5)


def test_run_on_a_folder(photos, capsys):
    arguments = ["run", "--task", f"folder:{photos}:good", "--method", "pixels", "--size", "32"]
    assert main([*arguments, "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["roc_auc"] == 1.0 and record["n_train"] + record["n_test"] == 24


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", *STAR, "--method", "magic"], "method 'magic' is unknown: choose one of pixels"),
        (["run", *STAR, "--method", "dn2", "--epochs", "2"], "epochs is not an option of dn2"),
        (["run", *STAR, "--method", "dn2", "--tier", "huge"], "tier 'huge' is unknown"),
        (
            ["run", *STAR, "--method", "dn2", "--weights", "no.pth"],
            "no.pth without --backbone: name",
        ),
        (
            ["run", *STAR, "--method", "dn2", "--weights", "no.pth", "--backbone", "resnet18"],
            "weights no.pth: there is no such file",
        ),
        (["run", *STAR, "--method", "pixels", "--weights", "no.pth"], "not an option of pixels"),
        (
            ["run", *STAR, "--method", "dn2", "--weights", "imagenet"],
            "glyphs_resnet4 has no ImageNet weights",
        ),
        (["run", *STAR, *SMALL, "--method", "dn2", "--k", "10"], "k"),
        (["run", *STAR, *SMALL, "--method", "svdd", "--epochs", "0"], "epochs=0"),
        (["run", *STAR, *SMALL, "--method", "early", "--lr", "1e30"], "lower lr (now 1e+30)"),
        (["run", "--task", "pictograms:sta", "--method", "dn2"], "pictograms"),
        (["run", "--task", "folder:/no/such/place", "--method", "dn2"], "/no/such/place"),
        (["fit", "/no/such/place", "--out", "{}/m"], "/no/such/place"),
        (["score", "{}", "{}"], "holds no detector"),
        (["sweep", "{}"], "is neither a file nor one of"),
        (
            ["sweep", "one_class_embedded", "--out", "{}/o", "--scheduler", "tcp://127.0.0.1:9"],
            ":9",
        ),
        (["table", "{}"], "holds no results"),
        (["data", "unicorns"], "data set 'unicorns' is unknown"),
        (["export", *STAR, "--out", "{}", "--size", "32"], "size"),
    ],
)
def test_errors_are_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeping, "CONNECTING", 0.5)
    (tmp_path / "file").write_text("in the way")
    extra = ["--max-grad-norm", "1e30"] if "1e30" in arguments else []
    assert main([one.format(tmp_path) for one in arguments] + extra) == 2
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.startswith("pandalib: ") and printed.out == ""
    assert printed.err.count("\n") == 1


def test_a_broken_torch_sends_to_the_doctor(monkeypatch, capsys):
    def broken(**_):
        raise ImportError("libtorch.so: cannot open shared object file")

    monkeypatch.setattr(running, "run", broken)
    assert main(["run", "--method", "dn2", *STAR]) == 2
    assert "pandalib doctor" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["fit", "x", "--out", "y"], ["sweep", "x"]])
def test_ctrl_c_ends_without_a_traceback(arguments, monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    add_arguments, _ = COMMANDS[arguments[0]]
    interrupted.__doc__ = "is interrupted"
    monkeypatch.setitem(cli.COMMANDS, arguments[0], (add_arguments, interrupted))
    assert main(arguments) == 130
    words = capsys.readouterr().err
    assert words.startswith("pandalib: stopped") and words.count("\n") == 1
    assert ("goes on from here" in words) == (arguments[0] == "sweep")


def test_sweep_and_table(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "g.toml"
    path.write_text(GRID)
    assert main(["sweep", str(path), "--workers", "1"]) == 0
    printed = capsys.readouterr()
    folder = str(tmp_path.relative_to(tmp_path) / "results" / "g")
    assert printed.out.startswith(f"g  1 of 1 runs  {folder}\nThe table: python -m pandalib table")
    assert main(["table", folder]) == 0
    assert capsys.readouterr().out.startswith("# g\n\nOne run.")

    path.write_text(GRID.replace("n_train = 20", "n_train = 1").replace('"g"', '"h"'))
    assert main(["sweep", str(path), "--workers", "1"]) == 1
    assert "pictograms:star pixels seed 0 FAILED: ValueError" in capsys.readouterr().out


def test_the_list_of_grids(capsys):
    assert main(["sweep", "list"]) == 0
    printed = capsys.readouterr().out
    assert "one_class_paper " in printed and "adaptation_embedded " in printed


def test_data_sets_are_listed_and_described(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PANDALIB_DATASETS", str(tmp_path))
    assert main(["data"]) == 0
    printed = capsys.readouterr().out
    assert "cifar10 " in printed and "not here" in printed and "--info NAME" in printed
    (tmp_path / "mvtec" / "bottle").mkdir(parents=True)
    assert main(["data", "mvtec", "--info"]) == 0
    assert "CC BY-NC-SA 4.0" in capsys.readouterr().out
    assert main(["data", "mvtec"]) == 0
    assert f"here, in {str(tmp_path / 'mvtec')!r}" in capsys.readouterr().out


def test_export_writes_a_task_that_can_be_read_again(tmp_path, capsys):
    target = tmp_path / "star"
    assert main(["export", *STAR, "--level", "easy", *SMALL, "--out", str(target)]) == 0
    assert "9 images to learn from, 20 to test" in capsys.readouterr().out
    task = pandalib.load_task(f"folder:{target}", size=64)
    drawn = pandalib.load_task("pictograms:star", level="easy", n_train=9, n_test=2)
    assert np.array_equal(task.train[:], drawn.train[:])


def test_fit_add_and_score(photos, tmp_path, capsys):
    model, size = str(tmp_path / "model"), ["--size", "32"]
    rest = [*size, "--layers", "layer1,layer2", "--false-alarm-rate", "0.1"]
    (photos / "good" / "broken.png").write_text("no image")
    assert main(["fit", str(photos / "good"), "--out", model, *rest]) == 2
    assert "broken.png" in capsys.readouterr().err
    fit = ["fit", str(photos / "good"), "--skip-unreadable"]
    assert main([*fit, "--out", model, *rest]) == 0
    printed = capsys.readouterr()
    assert f"{model}  12 normal images (1 unreadable)  glyphs_resnet4 up to" in printed.out
    assert "left out: " in printed.err and "--tier standard" in printed.err
    assert main([*fit, "--out", model, *rest]) == 2
    assert "--force or --add-to" in capsys.readouterr().err
    assert main([*fit, "--out", model, "--force", *rest]) == 0
    assert main([*fit, "--add-to", model, *size]) == 2
    assert "--size cannot change after fitting" in capsys.readouterr().err
    assert main([*fit, "--add-to", model]) == 0
    printed = capsys.readouterr()
    assert (
        "12 normal images (0 added, 1 unreadable)" in printed.out
        and "12 copies of others" in printed.err
    )

    files = [str(tmp_path / name) for name in ("r.html", "t.csv", "t.json")]
    score = ["score", model, str(photos / "bad"), "--top", "5"]
    assert main([*score, "--report", files[0], "--csv", files[1], "--json", files[2]]) == 0
    printed = capsys.readouterr().out
    assert "... and 7 more" in printed and "12 of 12 images" in printed
    with open(files[2]) as file:
        found = json.load(file)
    assert found["n_alarms"] == 12 and found["images"][0]["rank"] == 1
    with open(files[1]) as file:
        assert len(file.readlines()) == 13
    (photos / "bad" / "broken.png").write_text("no image")
    assert main([*score, "--json", "-", "--rate", "0.2"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["false_alarm_rate"] == 0.2 and "broken.png" in printed.err


@pytest.fixture
def model(photos, capsys):
    folder = photos / "model"
    settings = ["--size", "32", "--false-alarm-rate", "0.1"]
    assert main(["fit", str(photos / "good"), "--out", str(folder), *settings]) == 0
    said = capsys.readouterr().err
    assert "images as 32 x 32 pixels, the whole image" in said
    assert "the strangest normal images" in said and said.count("\n  ") == 5
    return str(folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--report", "."], "'.' is a folder: expected the name of a file"),
        (["--json", "{}/good/0.png/x.json"], "0.png' is a file: expected a folder"),
        (["--csv", "{}"], "is a folder: expected the name of a file"),
        (["--maps", "{}/good/0.png"], "0.png' is a file: expected a folder"),
        (["--csv", "-", "--json", "-"], "expected one of them on standard output"),
        (["--report", "-"], "expected the name of a file"),
    ],
)
def test_targets_are_tried_before_the_work(options, words, model, photos, capsys, monkeypatch):
    monkeypatch.setattr(pandalib.Inspector, "rank", None)  # never reached
    options = [one.format(photos) for one in options]
    assert main(["score", model, str(photos / "bad"), *options]) == 2
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.count("\n") == 1 and printed.out == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weights", "random"], "no command can load"),
        (["--weights", "my.pth"], "without --backbone: name the network"),
        (["--out", "{}/good/0.png/model"], "is a file: expected a folder"),
    ],
)
def test_a_fit_that_would_be_in_vain_is_refused(options, words, photos, capsys, monkeypatch):
    monkeypatch.setattr(pandalib.Inspector, "fit", None)
    options = [one.format(photos) for one in options]
    target = [] if "--out" in options else ["--out", str(photos / "new")]
    assert main(["fit", str(photos / "good"), *target, *options]) == 2
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1 and not (photos / "new").exists()


def test_results_as_files(model, photos, capsys, tmp_path):
    bad, good = photos / "bad", photos / "good"
    table = tmp_path / "list.csv"
    table.write_text("file\nbad/0.png\nbad/1.png\n")
    given = [str(table), str(bad / "1?.png"), str(good / "3.png")]
    arguments = ["score", model, *given, "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    assert main([*arguments, "--csv", "-", "--maps", str(tmp_path / "maps")]) == 0
    printed = capsys.readouterr()
    rows = list(csv.DictReader(printed.out.splitlines()))
    assert [row["file"] for row in rows[-1:]] == ["good/3.png"]
    assert {row["file"] for row in rows} == {f"bad/{n}.png" for n in (0, 1, 10, 11)} | {
        "good/3.png"
    }
    assert "1 image among the normal images" in printed.err and "good/3.png" in printed.err
    assert rows[0]["alarm"] == "True" and float(rows[0]["p_value"]) == 1 / 13
    box = [int(rows[0][name]) for name in ("left", "top", "right", "bottom")]
    assert 0 <= box[0] < box[2] <= 50 and 0 <= box[1] < box[3] <= 40  # the original's pixels

    assert main([*arguments, "--json", "-", "--fail-on-alarm"]) == cli.ALARM
    found = json.loads(capsys.readouterr().out)
    assert found["fitted"] == ["good/3.png"] and found["images"][0]["regions"][0]["area"] > 0
    detector = pandalib.Inspector.load(model)
    for row in found["images"]:
        relative = np.asarray(Image.open(tmp_path / "maps" / f"{row['file']}.tif")) / 8192
        assert relative.shape == (40, 50)
        (seen,) = detector.inspect(photos / row["file"])
        expected = detector.restored(seen) / found["threshold"]
        np.testing.assert_allclose(relative, expected.clip(0, 65535 / 8192), atol=1e-3)
        assert Image.open(tmp_path / "maps" / f"{row['file']}.png").size == (50, 40)
    assert main(["score", model, str(good / "3.png"), "--fail-on-alarm"]) == 0


def test_tiles_and_a_region(photos, capsys):
    model = str(photos / "tiled")
    fit = ["fit", str(photos / "good"), "--out", model, "--size", "32", "--tiles", "30"]
    fit += ["--false-alarm-rate", "0.1", "--region", "0,0 1,0 1,0.5 0,0.5"]
    assert main(fit) == 0
    # 40 x 50 pixels in tiles of 30 that share 7: 2 x 2 of them
    assert capsys.readouterr().err.startswith("48 tiles ahead, each looked at twice: each takes")
    assert main(["score", model, str(photos / "bad"), "--maps", str(photos / "maps")]) == 0
    printed = capsys.readouterr()
    assert "12 of 12 images raise an alarm" in printed.out and "48 tiles ahead: " in printed.err
    heat = np.asarray(Image.open(photos / "maps" / "0.png.tif"))
    assert heat.shape == (40, 50) and heat[:18].any() and not heat[20:].any()
    assert main([*fit, "--force", "--smallest-defect", "3"]) == 2
    assert "tile and smallest_defect" in capsys.readouterr().err


def test_evaluate_measures_and_compares(model, photos, capsys):
    rng = np.random.default_rng(1)
    for name, brightness in (("good", 60), ("bad", 190), ("bad", 62)):
        for number in range(20, 26):
            picture = rng.integers(brightness - 30, brightness + 30, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(picture).save(photos / name / f"{brightness}_{number}.png")
    data = photos / "data"
    data.mkdir()
    for name in ("good", "bad"):
        (photos / name).rename(data / name)
    other = str(photos / "other")
    fit = ["fit", f"{data}/bad", "--out", other, "--size", "32", "--false-alarm-rate", "0.2"]
    assert main(fit) == 0
    capsys.readouterr()
    assert main(["evaluate", model, f"{data}:good", "--json", "-"]) == 0
    printed = capsys.readouterr()
    assert "18 normal images (good), 24 anomalous" in printed.err
    assert "left out: 12 images that" in printed.err  # the detector has learned from these
    found = json.loads(printed.out)
    assert (found["n_normal"], found["n_anomalous"]) == (6, 24)
    detector = pandalib.Inspector.load(model)
    files = sorted((data / "good").glob("60_*.png")) + sorted((data / "bad").iterdir())
    scores, labels = detector.score(files), np.arange(30) >= 6
    alarms = scores > detector.threshold()
    (one,) = found["models"]
    assert one["recall"][0] == alarms[labels].mean()
    assert one["precision"][0] == (alarms & labels).sum() / alarms.sum()
    assert one["false_alarm_rate"][0] == alarms[~labels].mean()
    product = one["precision"][0] * one["recall"][0]
    assert one["f1"][0] == pytest.approx(2 * product / (one["precision"][0] + one["recall"][0]))
    assert one["roc_auc"][0] == pandalib.metrics.roc_auc(labels, scores)
    for name in ("recall", "precision", "f1", "roc_auc"):
        value, low, high = one[name]
        assert low <= value <= high
    assert main(["evaluate", model, f"{data}:good", "--against", model]) == 0
    printed = capsys.readouterr().out
    assert "difference in ROC-AUC +0.000  (+0.000 to +0.000): may be chance" in printed
    assert main(["evaluate", model, f"{data}:good", "--against", other]) == 2
    assert "what remains is all of one kind" in capsys.readouterr().err


def test_the_review_loop(model, photos, capsys):
    """Confirmed normals join, confirmed misses are kept and reported on by each later score."""
    rng = np.random.default_rng(5)
    new = photos / "new"
    new.mkdir()
    for number, brightness in enumerate((60, 95, 98, 61)):
        picture = rng.integers(brightness - 30, brightness + 30, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(picture).save(new / f"{number}.png")
    before = pandalib.Inspector.load(model)
    assert before.alarms(new).tolist() == [False, True, True, False]
    verdicts = [("1.png", "normal"), ("2.png", "normal"), ("3.png", "defect")]
    entries = [dict(file=name, verdict=verdict, alarm=True) for name, verdict in verdicts]
    review = new / "pandalib-review.json"
    review.write_text(json.dumps(review_of(entries)))
    fit = ["fit", "--add-to", model, "--reviewed", str(review)]
    assert main(fit) == 0
    printed = capsys.readouterr()
    assert "14 normal images (2 added" in printed.out
    assert "2 images confirmed normal, 1 confirmed as defects" in printed.err
    assert "check set: 0 of 1 confirmed defect found" in printed.err
    after = pandalib.Inspector.load(model)
    assert after.names_[-2:] == ["1.png", "2.png"] and after.check_names_ == ["3.png"]
    assert np.array_equal(after.check(), after.score(new / "3.png"))
    assert (after.score(new) / after.threshold())[1] < (before.score(new) / before.threshold())[1]

    assert main(["score", model, str(photos / "bad"), "--json", "-"]) == 0
    printed = capsys.readouterr()
    (checked,) = json.loads(printed.out)["check"]
    assert checked["file"] == "3.png" and checked["alarm"] is False
    assert "missed: '3.png' (not above the threshold)" in printed.err
    rate = after.rate_that_finds_all()
    if rate is not None:
        assert f"--rate {rate:.3g} would find all" in printed.err and "promises nothing" in (
            printed.err
        )
        assert (after.check() > after.threshold(rate)).all()
    assert main([*fit, str(new)]) == 0  # again: nothing is learned twice
    assert len(pandalib.Inspector.load(model).check_names_) == 1
    assert len(pandalib.Inspector.load(model).features_) == 14
    capsys.readouterr()
    for arguments in (fit[:1] + ["--out", "x"], fit + [str(new), str(new)], ["fit", "--out", "x"]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1


def review_of(entries):
    return {"format": "pandalib review", "version": 1, "reviewed": entries}
