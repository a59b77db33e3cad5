"""Which tier is in force, and what a notebook prints about it."""

import pytest

from pandalib import load_task
from pandalib.experiments import config as tiers


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setattr(tiers, "_chosen", None)
    monkeypatch.delenv("PANDALIB_TIER", raising=False)
    monkeypatch.delenv("PANDALIB_TASK", raising=False)


def test_embedded_is_the_default():
    assert tiers.current_tier() == tiers.TIERS["embedded"]


def test_environment_and_use(monkeypatch):
    monkeypatch.setenv("PANDALIB_TIER", "standard")
    monkeypatch.setenv("PANDALIB_TASK", "folder:photos:good")
    assert (tiers.current_tier().name, tiers.current_tier().task) == (
        "standard",
        "folder:photos:good",
    )
    tiers.use("paper", task="folder:x", size=256)
    assert tiers.current_tier() == tiers.TIERS["paper"]._replace(task="folder:x", size=256)


def test_errors(monkeypatch):
    with pytest.raises(
        ValueError, match="tier 'big' is unknown: choose one of embedded, standard, paper"
    ):
        tiers.use("big")
    monkeypatch.setenv("PANDALIB_TIER", "big")
    with pytest.raises(ValueError, match="PANDALIB_TIER='big' is unknown"):
        tiers.current_tier()
    monkeypatch.setenv("PANDALIB_TIER", "paper")
    with pytest.raises(
        ValueError,
        match="'paper' brings no images of its own: name some, as in PANDALIB_TASK=cifar10",
    ):
        tiers.current_tier()


def test_banner_says_what_the_numbers_are_made_with(capsys):
    from pandalib import load_backbone

    network = load_backbone("glyphs_resnet4", "random")
    tiers.banner(tiers.current_tier(), load_task("pictograms:star", n_train=5, n_test=2), network)
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0].startswith("tier      embedded")
        and lines[1] == "images    pictograms:star: 5 normal to learn from, 20 to test"
    )
    assert (
        lines[2]
        == f"network   glyphs_resnet4 up to layer4, weights SHA-256 {network.weights_sha256[:12]}"
    )
    assert lines[3].startswith("versions  torch 2.")
