"""An option stands in one place; tiers, and what a notebook prints about them."""

import inspect
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest

import pandalib
from pandalib import PixelKNN, load_backbone, load_task
from pandalib.cli import main
from pandalib.experiments import config
from pandalib.experiments.config import METHODS, ImageOptions, make_options, option, options_of
from pandalib.experiments.grids import load_grid
from pandalib.experiments.tables import labels, summarise
from pandalib.methods.panda import epochs_for


@dataclass(frozen=True, kw_only=True)
class MadeUpOptions(ImageOptions):
    """nearest pixels, blurred eyes"""

    blur: float = option(1.5, "how blurred the eyes are")
    k: int = option(2, "neighbours")

    def build(self, setup):
        return PixelKNN(self.k + int(self.blur))


def test_a_method_that_is_named_in_one_place_is_everywhere(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(METHODS, "made_up", MadeUpOptions)
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "made_up: nearest pixels, blurred eyes" in words
    assert "--blur X how blurred the eyes are; default: 1.5 [made_up]" in words

    small = ["--n-train", "9", "--n-test", "2", "--task", "pictograms:star", "--json", "-"]
    assert main(["run", "--method", "made_up", "--blur", "2.5", *small]) == 0
    assert '"method": "made_up"' in capsys.readouterr().out

    path = tmp_path / "g.toml"
    path.write_text(
        '[grid]\nname = "g"\ntier = "embedded"\ntasks = ["pictograms:star"]\n'
        'methods = ["made_up"]\n[vary]\nblur = ["default", 2.5]\n'
    )
    runs = load_grid(path).runs()
    assert [run.get("blur") for run in runs] == [None, 2.5]
    path.write_text(path.read_text().replace("2.5", '"much"'))
    with pytest.raises(ValueError, match="blur = 'much': expected float"):
        load_grid(path)

    record = dict(roc_auc=0.5, backbone=None, weights_sha256=None, history=[], seed=0)
    results = [dict(task=run["task"], settings=run, **record) for run in runs]
    assert labels(summarise(results))[0] == ["made_up, blur = 1.5", "made_up, blur = 2.5"]


def test_every_option_reaches_its_detector():
    """By the name of a parameter, or because the run itself makes use of it."""
    by_the_run = set(
        "size n_train n_test level defects missing_masks backbone weights truncate_after bias_free "
        "adapt_from checkpoints fisher_images fisher_recipe fisher_samples n_outliers fit "
        "doubtful pool".split()
    )
    for method, options in METHODS.items():
        parameters = inspect.signature(getattr(pandalib, options.detector)).parameters
        assert set(options_of(method)) - by_the_run <= set(parameters), method


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("dn3", {}, "method 'dn3' is unknown: choose one of pixels, dn2"),
        ("dn2", dict(epochs=3), "epochs is not an option of dn2: it is one of compactness, early"),
        ("dn2", dict(neighbours=3), "neighbours is not an option of dn2: it has size"),
        ("dn2", dict(k=3.5), "k = 3.5: expected int"),
        ("dn2", dict(k=True), "k = True: expected int"),
        ("dn2", dict(normalise=1), "normalise = 1: expected bool"),
        ("early", dict(lr=float("nan")), "lr = nan: expected float"),
        ("early", dict(lr=float("inf")), "lr = inf: expected float"),
        ("early", dict(bf16="yes"), "bf16 = 'yes': expected False or True or auto"),
    ],
)
def test_options_that_cannot_be(method, given, words):
    with pytest.raises(ValueError, match=words):
        make_options(method, given)


def test_what_is_none_stays_at_its_default():
    assert make_options("dn2", dict(k=None)) == make_options("dn2", {})
    assert make_options("early", dict(lr=1)).lr == 1


@pytest.mark.parametrize(
    ("method", "work", "lr", "max_grad_norm"),
    [
        ("compactness", "long", "lr", "max_grad_norm"),
        ("early", "early", "lr", "max_grad_norm"),
        ("ses", "sample_wise", "lr", "max_grad_norm"),
        ("ewc", "long", "ewc_lr", "max_grad_norm"),
        ("oe", "exposure", "exposure_lr", "exposure_max_grad_norm"),
    ],
)
def test_each_method_has_the_pace_of_its_tier(method, work, lr, max_grad_norm):
    pace = config.EMBEDDED
    for n_train in (20, 400, 5000):
        options = make_options(method, {}).at_pace(pace, n_train)
        assert options.epochs == epochs_for(getattr(pace, work), n_train)
        assert options.lr == getattr(pace, lr) == config.default_of(method, "lr", "embedded")
        assert options.max_grad_norm == getattr(pace, max_grad_norm)
    assert make_options("ewc", {}).at_pace(pace, 9).ewc_lambda == 3000.0
    given = make_options(method, dict(epochs=3, lr=0.5)).at_pace(pace, 400)
    assert (given.epochs, given.lr) == (3, 0.5)


# ---------------------------------------------------------------- tiers


@pytest.fixture
def no_tier(monkeypatch):
    monkeypatch.setattr(config, "_chosen", None)
    monkeypatch.delenv("PANDALIB_TIER", raising=False)
    monkeypatch.delenv("PANDALIB_TASK", raising=False)


def test_the_tier_in_force(no_tier, monkeypatch):
    assert config.current_tier() == config.TIERS["embedded"]
    monkeypatch.setenv("PANDALIB_TIER", "standard")
    assert config.current_tier() == config.TIERS["standard"]
    monkeypatch.setenv("PANDALIB_TIER", "paper")
    with pytest.raises(ValueError, match="'paper' has no images of its own"):
        config.current_tier()
    monkeypatch.setenv("PANDALIB_TASK", "folder:photos:good")
    tier = config.current_tier()
    assert (tier.name, tier.task) == ("paper", "folder:photos:good")
    config.use("paper", task="folder:x", size=256)
    assert config.current_tier() == replace(config.TIERS["paper"], task="folder:x", size=256)


def test_a_tier_that_is_unknown(no_tier, monkeypatch):
    with pytest.raises(ValueError, match="tier 'big' is unknown: choose one of embedded"):
        config.use("big")
    monkeypatch.setenv("PANDALIB_TIER", "big")
    with pytest.raises(ValueError, match="tier 'big' is unknown"):
        config.current_tier()


def test_the_banner_says_what_the_numbers_are_made_with(capsys):
    network = load_backbone("glyphs_resnet4", "random")
    task = load_task("pictograms:star", n_train=5, n_test=2)
    config.banner(config.TIERS["embedded"], task, network)
    lines = capsys.readouterr().out.splitlines()
    digest = network.weights_sha256[:12]
    assert lines[0].startswith("tier      embedded")
    assert lines[1] == "images    pictograms:star: 5 normal to learn from, 20 to test"
    assert lines[2] == f"backbone  glyphs_resnet4 up to layer4, weights SHA-256 {digest}"
    assert lines[3].startswith("versions  torch 2.")


def test_neither_options_nor_help_need_torch():
    code = (
        "import sys, pandalib.cli; pandalib.cli.build_parser(); "
        "print(*[m for m in ('torch', 'torchvision', 'sklearn', 'faiss') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
