"""The notebooks as files: executed in order, whole, and saying the same as the library. Headings and links: test_accessibility.py."""

import ast
import re
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

import nbformat
import numpy as np
import pytest
from scipy import ndimage

import pandalib

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOTEBOOKS = {path.name: nbformat.read(path, as_version=4) for path in PATHS}
checkpoint_every = pytest.mark.parametrize("name", NOTEBOOKS)


def code_cells(name):
    return [cell for cell in NOTEBOOKS[name].cells if cell.cell_type == "code"]


def figures(name):
    return [
        (cell, number, output)
        for cell in code_cells(name)
        for number, output in enumerate(cell.outputs)
        if "image/png" in output.get("data", {})
    ]


def test_they_are_there():
    assert [path.name[:2] for path in PATHS] == [
        f"{number:02d}" for number in range(len(PATHS))
    ] and len(PATHS) >= 2


@checkpoint_every
def test_executed_in_order_without_errors(name):
    # nbval never compares a cell without a count: an unexecuted cell would be an untested one.
    assert [cell.execution_count for cell in code_cells(name)] == list(
        range(1, len(code_cells(name)) + 1)
    )
    assert not [
        output
        for cell in code_cells(name)
        for output in cell.outputs
        if output.output_type == "error"
    ]
    assert not [
        output
        for cell in code_cells(name)
        for output in cell.outputs
        if output.get("name") == "stderr"
    ]


@checkpoint_every
def test_files_stay_small_and_clean(name):
    notebook = NOTEBOOKS[name]
    assert (ROOT / "notebooks" / name).stat().st_size < 1_000_000
    assert "widgets" not in notebook.metadata and notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata.language_info) == {"name"}  # no version of the machine that ran it
    for cell in notebook.cells:
        assert not re.fullmatch(r"[0-9a-f]{8}(-.*)?", cell.id), (
            "name the cell, a random id says nothing"
        )
        assert not cell.metadata.get("jupyter", {}).get("source_hidden"), "no hidden cells"
        assert "execution" not in cell.metadata  # times of day
    kinds = {
        kind
        for cell in code_cells(name)
        for output in cell.outputs
        for kind in output.get("data", {})
    }
    assert kinds <= {"image/png", "text/markdown", "text/plain"}


@checkpoint_every
def test_few_cells_ignore_their_output(name):
    ignored = [
        cell
        for cell in code_cells(name)
        if "nbval-ignore-output"
        in cell.metadata.get("tags", []) + [cell.source.split("\n")[0].strip("# ")]
    ]
    assert len(ignored) <= len(code_cells(name)) / 10


@checkpoint_every
def test_cells_are_short(name):
    for cell in code_cells(name):
        assert len(cell.source.splitlines()) <= 30, cell.id
        assert max(map(len, cell.source.splitlines())) <= 88, (
            f"{cell.id}: a browser cuts longer lines"
        )
    assert np.mean([len(cell.source.splitlines()) for cell in code_cells(name)]) <= 11


@checkpoint_every
def test_every_figure_has_a_sentence_and_a_caption(name):
    found = figures(name)
    assert found
    for cell, number, output in found:
        alt = output.metadata["image/png"]["alt"]
        assert len(alt.split()) >= 6 and alt.endswith(".")
        assert cell.outputs[number + 1].data["text/markdown"] == f"*Figure: {alt}*"
        assert not re.search(r"\d\.\d", alt), "another machine rounds differently"


@checkpoint_every
def test_links_lead_to_files_that_are_there(name):
    text = "\n".join(cell.source for cell in NOTEBOOKS[name].cells if cell.cell_type == "markdown")
    for target in re.findall(r"\[[^\]]+\]\(([^)\s]+)\)", text):
        if not target.startswith("https://"):
            assert (ROOT / "notebooks" / target).exists(), target


@checkpoint_every
def test_the_lesson_has_its_parts(name):
    markdown = [cell.source for cell in NOTEBOOKS[name].cells if cell.cell_type == "markdown"]
    assert re.search(r"^\*\*.*\?\*\*$", markdown[0], flags=re.M), "the question, in one sentence"
    for row in ("You will", "You need", "Time", "Tier"):
        assert f"| {row} |" in markdown[0]
    text = "\n".join(markdown)
    for heading in ("## Set-up", "## What would fool you here?", "## Summary"):
        assert heading in text
    assert "**Further reading.**" in text and "**Try it.**" in text and "**Next:**" in text
    sources = "\n".join(cell.source for cell in code_cells(name))
    assert sources.count("predict(") >= 2 and sources.count("reveal(") == sources.count("predict(")
    assert 2 <= sources.count("### BEGIN SOLUTION") <= 4
    assert code_cells(name)[0].id == "colab" and "pandalib.banner(" in code_cells(name)[1].source
    assert isinstance(NOTEBOOKS[name].metadata.pandalib.minutes, int)


@checkpoint_every
def test_exercises_carry_nbgrader_metadata(name):
    ids = []
    for cell in code_cells(name):
        grader = cell.metadata.get("nbgrader")
        assert (grader is not None) == (
            "### BEGIN SOLUTION" in cell.source or cell.source.startswith("check(")
        )
        if grader:
            ids.append(grader.grade_id)
            assert grader.schema_version == 3 and grader.task is False
            assert (grader.solution, grader.grade) == (
                ("### BEGIN SOLUTION" in cell.source),
                cell.source.startswith("check("),
            )
            assert not grader.grade or (grader.points > 0 and grader.locked)
    assert len(ids) == len(set(ids))


@checkpoint_every
def test_predictions_and_checks_exist(name):
    from pandalib.teach.checks import EXERCISES
    from pandalib.teach.strings import text

    sources = "\n".join(cell.source for cell in code_cells(name))
    for key in re.findall(r'(?:predict|reveal)\("([^"]+)"', sources):
        assert text("predict", key)
    checked = re.findall(r'^check\("([^"]+)", (\w+)\)', sources, flags=re.M)
    assert checked and all(key in EXERCISES for key, _ in checked)
    prose = "\n".join(cell.source for cell in NOTEBOOKS[name].cells if cell.cell_type == "markdown")
    assert sorted(re.findall(r'`hint\("([^"]+)"\)`', prose)) == sorted(key for key, _ in checked)


@checkpoint_every
def test_no_result_stands_in_prose(name):
    prose = "\n".join(cell.source for cell in NOTEBOOKS[name].cells if cell.cell_type == "markdown")
    assert not re.findall(r"(?<![\d.:/])0\.\d\d+", prose), (
        "prose speaks of what the cell above has printed"
    )


def functions_of(name, *wanted):
    """Functions of a lesson, taken out of its cells: what the reader built."""
    tree = ast.parse("\n".join(cell.source for cell in code_cells(name)))
    found = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted
    ]
    space = {"np": np, "ndimage": ndimage, "pandalib": pandalib}
    exec(compile(ast.Module(body=found, type_ignores=[]), name, "exec"), space)
    return [space[one] for one in wanted]


def test_lesson_00_agrees_with_the_library():
    from pandalib import PixelKNN, metrics

    by_pairs, threshold, pixel_score = functions_of(
        "00_start_here.ipynb", "roc_auc_by_pairs", "threshold_from_normals", "pixel_score"
    )
    rng = np.random.default_rng(0)
    for digits in (0, 1, 6):
        labels, scores = (
            rng.permutation(np.arange(90) % 3 == 0).astype(int),
            np.round(rng.normal(size=90), digits),
        )
        assert by_pairs(labels, scores) == pytest.approx(metrics.roc_auc(labels, scores), abs=1e-12)
    for n, rate in ((99, 0.05), (40, 0.1), (400, 0.013)):
        assert threshold(scores := rng.gamma(3, size=n), rate) == metrics.threshold_at(scores, rate)
    images = rng.integers(0, 256, size=(9, 3, 8, 8), dtype=np.uint8)
    scaled = images.astype(np.float64) / 255
    expected = PixelKNN(k=2).fit(images[:6]).score(images[6:])
    assert np.allclose(
        [pixel_score(image, scaled[:6]) for image in scaled[6:]], expected, rtol=1e-5
    )


def test_lesson_01_agrees_with_the_library():
    from pandalib.methods import knn

    loops, matrix, distances, leave_one_out = functions_of(
        "01_knn_baseline.ipynb", "knn_loops", "knn_matrix", "squared_distances", "leave_one_out"
    )
    rng = np.random.default_rng(0)
    gallery, queries = rng.normal(size=(30, 7)), rng.normal(size=(12, 7))
    for k in (1, 2, 5):
        expected = knn.knn_scores(gallery, queries, k)
        assert np.allclose(loops(gallery, queries, k), expected) and np.allclose(
            matrix(gallery, queries, k), expected
        )
        assert np.allclose(leave_one_out(gallery, k), knn.leave_one_out_scores(gallery, k))
    assert np.allclose(
        np.sort(distances(gallery, queries), axis=1)[:, :4],
        knn.squared_distances(gallery, queries, 4)[0],
    )


def test_lesson_05_agrees_with_the_library():
    import torch

    from pandalib import metrics
    from pandalib.methods import outlier_exposure as exposure

    entropy, rows, unseen = functions_of(
        "05_outlier_exposure.ipynb", "binary_cross_entropy", "outlier_rows", "auc_on_unseen"
    )
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=50) * 5, (rng.random(50) < 0.4).astype(float)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        *map(torch.from_numpy, (logits, targets))
    )
    assert entropy(logits, targets) == pytest.approx(expected.item())
    numbers = exposure.cycled(7, seed=3)
    order = [next(numbers) for _ in range(7)]  # the library's order of the first time round
    pile = np.array(order)
    assert [*pile[rows(0, 7, 4)], *pile[rows(4, 7, 3)]] == order and set(
        pile[rows(5, 7, 7)]
    ) == set(range(7))
    kinds, scores = rng.integers(0, 4, size=80), rng.normal(size=80)
    kept = kinds != 2
    assert unseen(scores, kinds, [2]) == metrics.roc_auc(kinds[kept] > 0, scores[kept])


def test_lesson_06_agrees_with_the_library():
    import torch

    from pandalib import metrics
    from pandalib.methods import distances

    nearest, by_broadcasting = functions_of(
        "06_segmentation.ipynb", "nearest_distance", "by_broadcasting"
    )
    rng = np.random.default_rng(0)
    positions, gallery = (
        rng.normal(size=(150, 9)).astype(np.float32),
        rng.normal(size=(400, 9)).astype(np.float32),
    )
    expected = distances.nearest_squared(
        torch.from_numpy(positions), torch.from_numpy(gallery)
    ).numpy()
    assert np.allclose(nearest(positions, gallery), expected, atol=1e-4) and np.allclose(
        by_broadcasting(positions, gallery), expected, atol=1e-4
    )
    *_, by_hand = functions_of(
        "06_segmentation.ipynb", "region_overlap", "area_up_to", "pro_by_hand"
    )
    for limit in (0.3, 0.05, 1.0):
        masks, maps = rng.random((4, 9, 11)) < 0.2, np.round(rng.random((4, 9, 11)), 1)
        assert by_hand(masks, maps, limit) == pytest.approx(
            metrics.pro(masks, maps, limit=limit), abs=1e-12
        )


def test_sanitiser_rules_are_all_parsed():
    from nbval.plugin import get_sanitize_patterns

    path = ROOT / "tests" / "nbval_sanitize.cfg"
    config = RawConfigParser()
    config.read(path, encoding="utf-8")
    rules = dict(get_sanitize_patterns(path.read_text(encoding="utf-8")))
    assert len(rules) == len(config.sections()) == 5 and all(rules.values())

    def sanitised(line):
        for pattern, replacement in rules.items():
            line = re.sub(pattern, replacement, line)
        return line

    assert (
        sanitised("DN2, mean ROC-AUC: 0.871   (band 0.8 to 0.92)")
        == "DN2, mean ROC-AUC: VALUE   (band 0.8 to 0.92)"
    )  # the band is still compared
    assert (
        sanitised("With 5 in 100 allowed it finds 6 in 100 of them.")
        == "With 5 in 100 allowed it finds SHARE in 100 of them."
    )


def test_students_copies_are_current():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "student.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@checkpoint_every
def test_students_copies_hide_the_solutions(name):
    copy = nbformat.read(ROOT / "notebooks" / "student" / name, as_version=4)
    text = "\n".join(cell.source for cell in copy.cells)
    assert "SOLUTION" not in text
    assert text.count("NotImplementedError") == "\n".join(
        cell.source for cell in code_cells(name)
    ).count("### BEGIN SOLUTION")
    assert not any(cell.get("outputs") for cell in copy.cells)
    solved = {cell.id: cell.source for cell in code_cells(name)}
    for cell in copy.cells:
        if "NotImplementedError" in cell.source:
            assert len(cell.source) < len(solved[cell.id]) and '"""' in cell.source
            ast.parse(cell.source)
