"""Committed tables are those that their grids would give: same runs, same defaults."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(0, str(ROOT / "bench"))
import overview
import results as tool

from pandalib import load_grid
from pandalib.cli import build_parser
from pandalib.experiments import config
from pandalib.experiments.results import outdated, settings_of
from pandalib.experiments.sweep import attempt

RUN = {"task": "pictograms:star", "method": "dn2", "tier": "embedded", "seed": 0}


@pytest.mark.parametrize("name", tool.tables())
def test_a_committed_table_is_not_stale(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no folder of images is
    assert not tool.why_stale(name), f"make results ARGS={name}"
    page = (tool.TABLES / name / "table.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {load_grid(name).name}\n")


def test_every_page_and_picture_has_a_command():
    for script in tool.OTHERS.values():
        assert (ROOT / script).is_file()
    pages = {path.stem for path in tool.TABLES.glob("*.md")}
    benches = {f"{name}_speed" for name in overview.PAGES}
    assert pages - benches == tool.OTHERS.keys() - {"pictures"}
    drawn = (ROOT / "tools" / "picture.py").read_text(encoding="utf-8")
    for picture in (ROOT / "docs").glob("*.png"):
        assert f'"{picture.stem}' in drawn, picture.name


def test_a_table_of_other_weights_is_stale(monkeypatch, tmp_path):
    other = tmp_path / "glyphs_resnet4.safetensors"
    other.write_bytes(b"newer")
    monkeypatch.setattr(tool, "OWN", other)
    assert tool.why_stale("surfaces_embedded") == ["it was made with other weights"]
    assert tool.why_stale("cells_standard") == []  # MobileNetV2 has its hash in its name


def test_a_table_that_no_grid_makes_is_named():
    (reason,) = tool.why_stale("no_such_grid")
    assert reason == "no grid of data/grids is called no_such_grid"


def test_the_commands_that_make_a_table_can_be_given():
    parser = build_parser()
    for command in tool.commands("surfaces_embedded"):
        parser.parse_args(command[3:])


@pytest.fixture(scope="module")
def settings():
    """Of a real run, as `write_table` notes them."""
    result = attempt(RUN | {"n_train": 20, "n_test": 2})
    assert "error" not in result
    runs = [result["settings"]]
    found = settings_of("tiny", runs, [result])
    return json.loads(json.dumps(found)), runs


def test_what_has_just_been_made_is_up_to_date(settings):
    found, runs = settings
    assert outdated(found, runs) == []
    assert outdated(found, [dict(reversed(run.items())) for run in runs]) == []
    assert found["defaults"]["dn2"]["k"] == 2 and "n_train" not in found["defaults"]["dn2"]


def test_other_runs_make_a_table_stale(settings):
    found, runs = settings
    said = ["the grid tiny has other runs now"]
    assert outdated(found, [*runs, RUN]) == said
    assert outdated(found, [run | {"seed": 1} for run in runs]) == said
    assert outdated(found, [run | {"n_train": 21} for run in runs]) == said


def test_another_default_makes_a_table_stale(settings):
    found, runs = settings
    changed = found | {"defaults": {"dn2": found["defaults"]["dn2"] | {"k": 3, "gone": 1}}}
    assert outdated(changed, runs) == ["dn2: k was 3 and is 2", "dn2: gone is gone"]
    newer = found | {"defaults": {"dn2": {"k": 2}}}  # the table knew fewer options
    assert outdated(newer, runs) == []


def test_another_pace_makes_those_tables_stale_that_follow_it(settings, monkeypatch):
    tier = config.TIERS["embedded"]
    result = {"all_settings": {}, "tier_defaults": asdict(tier)}
    left_out, given = (RUN | {"method": "early"} | more for more in ({}, {"lr": 0.1}))
    found = [settings_of("g", [run], [result | {"settings": run}]) for run in (left_out, given)]
    monkeypatch.setitem(
        config.TIERS, "embedded", replace(tier, pace=replace(tier.pace, lr=0.5, ewc_lr=9.0))
    )
    reason = f"tier embedded, pace: lr was {tier.pace.lr!r} and is 0.5"
    assert outdated(found[0], [left_out]) == [reason]
    assert outdated(found[1], [given]) == []
    dn2, runs = settings
    assert outdated(dn2, runs) == []


def test_results_with_different_defaults_make_no_table(settings):
    _, runs = settings
    results = [
        {"settings": runs[0], "all_settings": runs[0] | {"k": k}, "tier_defaults": {}}
        for k in (2, 5)
    ]
    with pytest.raises(ValueError, match="dn2: results with k = 2 and with 5 by default"):
        settings_of("tiny", runs, results)


def test_check_names_each_table(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(tool, "TABLES", tmp_path)
    (tmp_path / "surfaces_embedded").mkdir()
    (tmp_path / "surfaces_embedded" / "table.md").touch()
    assert tool.main(["--check"]) == 1
    assert capsys.readouterr().out.startswith("surfaces_embedded: table.csv, table.png, settings")
    with pytest.raises(SystemExit):
        tool.main(["no_such_grid"])
    assert "'no_such_grid' is no grid: expected some of" in capsys.readouterr().err


def test_a_table_is_made_where_it_belongs(monkeypatch, tmp_path, capfd):
    """The real commands on a tiny grid."""
    grid = tmp_path / "tiny.toml"
    grid.write_text(
        '[grid]\nname = "tiny"\ntier = "embedded"\ntasks = ["pictograms:star"]\n'
        'methods = ["pixels"]\n[settings]\nn_train = 20\nn_test = 2\n'
    )
    monkeypatch.setattr(tool, "TABLES", tmp_path / "docs")
    monkeypatch.setattr(tool, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(tool, "grids", lambda: {"tiny": grid})
    monkeypatch.setattr(tool, "load_grid", lambda name: load_grid(grid))
    sweep = tool.commands("tiny")[0]
    sweep[sweep.index("tiny")] = str(grid)
    commands = [sweep, tool.commands("tiny")[1]]
    monkeypatch.setattr(tool, "commands", lambda name: commands)
    assert tool.main(["tiny"]) == 0 and not (tmp_path / "runs" / "tiny").exists()
    assert all((tmp_path / "docs" / "tiny" / file).read_bytes() for file in tool.FILES)
    assert tool.main(["--check"]) == 0
    monkeypatch.setattr(tool, "make", lambda name: pytest.fail("made again"))
    assert tool.main(["--stale"]) == 0
    monkeypatch.setattr(tool, "make", lambda name: 1)
    assert tool.main(["tiny"]) == 1
    assert capfd.readouterr().err.endswith("not made, for the reasons above: tiny\n")
