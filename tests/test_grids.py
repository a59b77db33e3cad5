"""Grids, the runs that they stand for, and their names."""

import pytest

from pandalib import load_grid
from pandalib.datasets.synthetic.pictograms import SYMBOLS
from pandalib.experiments.config import TIERS
from pandalib.experiments.grids import expand, grids
from pandalib.experiments.results import canonical, file_name, identity

HEAD = dict(name='"g"', tier='"embedded"', tasks='["pictograms:star"]', methods='["dn2"]')
OWN = dict(task="pictograms:star", tier="embedded", seed=0)


def grid_of(tmp_path, text: str = "", **head):
    """A grid in a file; `head` replaces lines of [grid], None takes one out."""
    lines = [f"{key} = {value}" for key, value in (HEAD | head).items() if value is not None]
    path = tmp_path / "grid.toml"
    path.write_text("[grid]\n" + "\n".join(lines) + "\n" + text)
    return path


def test_a_grid_is_the_product_of_its_axes(tmp_path):
    text = "[settings]\nn_train = 30\n[vary]\nk = [1, 5]\n"
    axes = dict(tasks='["pictograms"]', methods='["dn2", "early"]', seeds="[0, 3]")
    runs = load_grid(grid_of(tmp_path, text, **axes)).runs()
    expected = [
        dict(OWN, task=f"pictograms:{symbol}", method=method, seed=seed, k=k, n_train=30)
        for method in ("dn2", "early")
        for k in (1, 5)
        for seed in (0, 3)
        for symbol in SYMBOLS
    ]
    assert runs == expected
    assert len({file_name(settings) for settings in runs}) == 10 * 2 * 2 * 2


def test_what_a_method_does_not_have_makes_no_run_of_its_own(tmp_path):
    """pixels knows no network, dn2 no lambda."""
    text = '[vary]\newc_lambda = [1.0, "default"]\nbackbone = ["glyphs_resnet4", "resnet18"]\n'
    runs = load_grid(grid_of(tmp_path, text, methods='["pixels", "dn2", "ewc"]')).runs()
    assert [run["method"] for run in runs] == ["pixels"] + 2 * ["dn2"] + 4 * ["ewc"]
    assert [run.get("ewc_lambda") for run in runs[3:]] == [1.0, None, 1.0, None]


def test_settings_of_one_method_and_further_runs(tmp_path):
    text = (
        "[settings]\ncheckpoints = 1\n[settings.ewc]\nepochs = 3\n[vary]\newc_lambda = [5.0]\n"
        '[[also]]\nmethods = ["dn2"]\nvary = { k = [1, 2] }\n'
    )
    runs = load_grid(grid_of(tmp_path, text, methods='["early", "ewc"]')).runs()
    assert runs == [
        OWN | dict(method="early", checkpoints=1),
        OWN | dict(method="ewc", checkpoints=1, epochs=3, ewc_lambda=5.0),
        OWN | dict(method="dn2", k=1),
        OWN | dict(method="dn2"),  # 2 is the default
    ]


@pytest.mark.parametrize(
    ("text", "head", "words"),
    [
        ("", dict(tier=None), "lacks tier"),
        ("", dict(tier='"huge"'), "tier 'huge' is unknown"),
        ("", dict(name='"../x"'), "name = '../x'"),
        ("", dict(colour='"red"'), "has 'colour': accepted are name"),
        ("[extra]\n", {}, "has 'extra': accepted are grid"),
        ("", dict(methods='["dn3"]'), "method 'dn3' is unknown"),
        ("", dict(seeds="3"), "grid.toml"),
        ("[settings]\nneighbours = 3\n", {}, "neighbours is not an option of dn2"),
        ("[settings]\newc_lambda = 1\n", {}, "ewc_lambda is not an option of dn2: .* ewc"),
        ('[settings]\nk = "3"\n', {}, "k = '3': expected int"),
        ("[settings.dn2]\nlr = 1\n", {}, "lr is not an option of dn2"),
        ("[vary]\nk = [2, 0.5]\n", {}, "k = 0.5: expected int"),
        ("[vary]\nk = []\n", {}, "grid.toml"),
        ("[also]\nmethods = ['dn2']\n", {}, "grid.toml"),
        ("[settings]\nbf16 = 'auto'\n", dict(methods='["early"]'), "from one run to the next"),
        ("[[also]]\nname = 'b'\n", {}, "has 'name': accepted are tasks"),
        ("k = [\n", {}, "grid.toml"),
    ],
)
def test_a_grid_that_cannot_be(text, head, words, tmp_path):
    with pytest.raises(ValueError, match=words) as error:
        load_grid(grid_of(tmp_path, text, **head))
    assert "grid.toml: " in str(error.value) and "\n" not in str(error.value)


def test_a_grid_that_is_nowhere():
    with pytest.raises(FileNotFoundError, match="'one_clas' is neither a file nor one of adapt"):
        load_grid("one_clas")


def test_data_sets_that_are_not_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PANDALIB_DATASETS", str(tmp_path / "none"))
    tasks = '["cifar10", "pictograms:star", "folder:/no/such/place", "unicorns"]'
    grid = load_grid(grid_of(tmp_path, tasks=tasks))
    missing = grid.missing()
    assert list(missing) == ["cifar10", "folder:/no/such/place", "unicorns"]
    assert "pandalib data cifar10" in missing["cifar10"]
    with pytest.raises(ValueError, match="images are missing; skip_missing .* goes on"):
        grid.runs()
    assert grid.runs(skip_missing=True) == [OWN | dict(method="dn2")]
    assert load_grid(grid_of(tmp_path, tasks='["cifar10"]')).runs(skip_missing=True) == []


def test_data_sets_stand_for_their_classes(tmp_path):
    assert len(expand("pictograms")) == 10 and "surfaces:weave" in expand("surfaces")
    assert expand("pictograms:star+heart") == ["pictograms:star+heart"]
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "1.png").write_bytes(b"")
    both = [f"folder:{tmp_path}:cat", f"folder:{tmp_path}:dog"]
    assert expand(f"folder:{tmp_path}") == both and expand(both[1]) == both[1:]


def test_the_same_run_has_the_same_name(monkeypatch):
    plain = OWN | dict(method="ewc")
    same = dict(reversed(plain.items())) | dict(k=2, fisher_recipe="per-sample", lr=None)
    assert canonical(same) == plain and identity(plain) == identity(same)
    changes = (dict(seed=1), dict(k=3), dict(task="pictograms:heart"), dict(ewc_lambda=1.0))
    others = {identity(plain | change) for change in changes}
    assert len(others | {identity(plain)}) == 5
    assert file_name(plain) == f"pictograms_star-ewc-0-{identity(plain)}.json"
    assert "/" not in file_name(plain | dict(task="folder:/a/b c/ü:x"))
    before = identity(plain)  # another default of the tier is another run
    monkeypatch.setitem(TIERS, "embedded", TIERS["standard"])
    assert identity(plain) != before


@pytest.mark.parametrize("name", grids())
def test_committed_grids_load(name):
    grid = load_grid(name)
    assert grid.name == name and grid.name.endswith(f"_{grid.tier}") and grid.description
    if grid.tier == "paper":
        assert load_grid(name.replace("_paper", "_embedded")).description
    if grid.tier == "embedded":
        assert 6 <= len(grid.runs()) <= 360


def test_the_grid_of_the_lesson():
    assert len(load_grid("one_class_embedded").runs()) == 70


def test_what_is_planned_does_not_depend_on_what_is_here(monkeypatch, tmp_path):
    grid = load_grid("tuning_standard")
    monkeypatch.setenv("PANDALIB_DATASETS", str(tmp_path))
    planned = grid.planned()
    assert {run["task"] for run in planned} > {"cifar10:dog"}
    assert len(grid.runs(skip_missing=True)) < len(planned)
