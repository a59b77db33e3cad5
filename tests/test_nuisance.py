"""The projection against its definition in loops, its guarantee, and the lesson that derives it."""

import ast
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from pictures import one_sentence
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression

from pandalib import NuisanceProjection
from pandalib.methods.nuisance import as_columns

ROOT = Path(__file__).resolve().parent.parent
LESSON = ROOT / "notebooks" / "10_what_should_not_count.ipynb"
WORDS = np.array(["mono", "poly", "thin"])


def data(n=60, d=7, m=2, seed=0):
    """Features with a common offset, and a nuisance (n, m) that moves them."""
    rng = np.random.default_rng(seed)
    nuisance = rng.normal(size=(n, m)) * [1, 100, 0.01][:m] + 3
    moved = nuisance / nuisance.std(axis=0) @ rng.normal(size=(m, d))
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + moved + 20, nuisance


def erased_by_loops(features, nuisance, new):
    """Each covariance a sum, directions made orthonormal one after the other (Gram and Schmidt)."""
    n, d = features.shape
    mean = [sum(features[i, j] for i in range(n)) / n for j in range(d)]
    basis = []
    for column in nuisance.T:
        middle = sum(column) / n
        direction = np.array(
            [
                sum((features[i, j] - mean[j]) * (column[i] - middle) for i in range(n)) / n
                for j in range(d)
            ]
        )
        length = np.linalg.norm(direction)
        for earlier in basis:
            direction = direction - (direction @ earlier) * earlier
        if np.linalg.norm(direction) > 1e-9 * length:
            basis.append(direction / np.linalg.norm(direction))
    rows = []
    for row in new:
        left = np.array(row, float)
        for direction in basis:
            left = left - ((row - mean) @ direction) * direction
        rows.append(left)
    return np.array(rows), len(basis)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_it_is_what_the_definition_says(m):
    features, nuisance = data(m=m)
    new = np.random.default_rng(1).normal(size=(9, 7)) * 5
    projection = NuisanceProjection().fit(features, nuisance)
    expected, rank = erased_by_loops(features, nuisance, new)
    np.testing.assert_allclose(projection.transform(new), expected, rtol=1e-5, atol=1e-5)
    assert projection.basis_.shape == (7, rank) and rank == m
    np.testing.assert_allclose(projection.basis_.T @ projection.basis_, np.eye(m), atol=1e-12)
    assert projection.transform(new).dtype == np.float32


def test_categories_are_columns_of_zeros_and_ones():
    features, _ = data()
    kinds = WORDS[np.arange(60) % 3]
    features[kinds == "poly"] += 2
    columns = np.array([[kind == word for word in WORDS] for kind in kinds], float)
    assert (as_columns(kinds) == columns).all()
    projection = NuisanceProjection().fit(features, kinds)
    assert projection.basis_.shape == (7, 2)  # the third kind is where the others are not
    expected, rank = erased_by_loops(features, columns, features)
    assert rank == 2
    np.testing.assert_allclose(projection.transform(features), expected, rtol=1e-5, atol=1e-4)
    means = [projection.transform(features)[kinds == word].mean(axis=0) for word in WORDS]
    np.testing.assert_allclose(means, np.tile(projection.mean_, (3, 1)), atol=1e-4)


@pytest.mark.parametrize("d", [7, 200])
def test_no_linear_predictor_of_the_nuisance_is_left(d):
    """Also with more dimensions than images, where before any nuisance can be predicted."""
    features, nuisance = data(d=d, m=2)
    clean = NuisanceProjection().fit(features, nuisance).transform(features).astype(float)
    before = LinearRegression().fit(features, nuisance).score(features, nuisance)
    centred = clean - clean.mean(axis=0)
    covariance = centred.T @ (nuisance - nuisance.mean(axis=0)) / nuisance.std(axis=0) / 60
    assert before > 0.4 and np.abs(covariance).max() < 1e-4
    rng = np.random.default_rng(2)
    for weights in rng.normal(size=(20, d)):
        for column in nuisance.T:
            assert abs(np.corrcoef(clean @ weights, column)[0, 1]) < 1e-4
    if d == 7:
        assert LinearRegression().fit(clean, nuisance).score(clean, nuisance) < 1e-4
        side = nuisance[:, 0] > np.median(nuisance[:, 0])
        clean = NuisanceProjection().fit(features, np.where(side, "a", "b")).transform(features)
        model = LogisticRegression(C=1.0, max_iter=10_000).fit(clean, side)
        assert np.abs(model.coef_).max() < 1e-3


def test_the_weights_of_a_regression_would_not_do():
    """What the module says of the other projection: the nuisance can still be predicted."""
    features, nuisance = data(m=1)
    weights = LinearRegression().fit(features, nuisance[:, 0]).coef_
    q = weights / np.linalg.norm(weights)
    rest = features - np.outer((features - features.mean(axis=0)) @ q, q)
    assert LinearRegression().fit(rest, nuisance).score(rest, nuisance) > 0.01


def test_what_does_not_vary_with_it_stays():
    rng = np.random.default_rng(0)
    lamp = np.repeat([-1.0, 1.0], 30)
    features = np.column_stack([lamp, np.tile([1.0, -1.0], 30), np.tile([0, 0, 3.0], 20)])
    clean = NuisanceProjection().fit(features, lamp).transform(features)
    assert np.allclose(clean[:, 1:], features[:, 1:], atol=1e-6) and np.allclose(clean[:, 0], 0)
    unit = features * 1000 + 5  # another unit, another origin
    again = NuisanceProjection().fit(unit, 7 * lamp - 2).transform(unit)
    assert np.allclose(again, clean * 1000 + 5, atol=1e-2)
    order = rng.permutation(60)
    same = NuisanceProjection().fit(features[order], lamp[order]).transform(features)
    assert np.allclose(same, clean, atol=1e-6)


def test_it_is_an_estimator():
    features, nuisance = data()
    projection = clone(NuisanceProjection())
    with pytest.raises(NotFittedError):
        projection.transform(features)
    fitted = projection.fit(features.tolist(), nuisance.tolist())
    assert fitted is projection
    both = projection.fit_transform(features, nuisance)
    assert (both == projection.transform(features)).all()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda x, z: NuisanceProjection().fit(x, z[:-1]), "59 rows: expected 60"),
        (lambda x, z: NuisanceProjection().fit(x, np.full(60, 0.1)), "the same for all images"),
        (lambda x, z: NuisanceProjection().fit(x, ["a"] * 60), "the same for all images"),
        (lambda x, z: NuisanceProjection().fit(x, np.full(60, np.nan)), "NaN or infinite"),
        (lambda x, z: NuisanceProjection().fit(x, z[None]), "expected numbers of shape"),
        (lambda x, z: NuisanceProjection().fit(x, [None] * 60), "expected numbers of shape"),
        (
            lambda x, z: NuisanceProjection().fit(x, z).transform(x[:, :3]),
            "3 dimensions: expected 7",
        ),
    ],
)
def test_mistakes(make, words):
    with pytest.raises(ValueError) as error:
        make(*data())
    one_sentence(error, words)


def test_lesson_10_agrees_with_the_library():
    cells = nbformat.read(LESSON, as_version=4).cells
    source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    wanted = "r_squared", "nuisance_columns", "nuisance_projector", "erase"
    nodes = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name in wanted
    ]
    space = {"np": np}
    exec(compile(ast.Module(body=nodes, type_ignores=[]), LESSON.name, "exec"), space)
    features, nuisance = data()
    new = features[:9] * 2
    for known in (nuisance[:, 0], WORDS[np.arange(60) % 3]):
        library = NuisanceProjection().fit(features, known)
        ours = space["erase"](features, known, new)
        np.testing.assert_allclose(ours, library.transform(new), rtol=1e-5, atol=1e-4)
        projector = space["nuisance_projector"](features, space["nuisance_columns"](known))
        np.testing.assert_allclose(projector, library.basis_ @ library.basis_.T, atol=1e-8)
    model = LinearRegression().fit(features, nuisance[:, 0])
    said = space["r_squared"](nuisance[:, 0], model.predict(features))
    assert said == pytest.approx(model.score(features, nuisance[:, 0]))


# ---------------------------------------------------------------- the page of results

sys.path.insert(0, str(ROOT / "bench"))


def test_the_bench_measures_what_it_says():
    import common
    import nuisance

    rng = np.random.default_rng(0)
    values, rare = nuisance.of_sides(rng, "size", 40, 0.25)
    assert rare.sum() == 10 and (values[rare] >= 0.6).all() and (values[~rare] <= 0.4).all()
    mean, half = common.mean_and_half(np.mean([[0.1, 0.3], [0.3, 0.5]], axis=0))
    assert mean == pytest.approx(0.3) and half == pytest.approx(12.7062 * 0.1414 / 2**0.5, rel=1e-3)
    gallery = rng.normal(size=(30, 4)) * [9, 1, 1, 1]
    left, _ = nuisance.without_main_direction(gallery, gallery)
    assert left.var(axis=0)[0] < 1 and np.allclose(left.var(axis=0)[1:], 1, atol=0.8)
    anomalous = np.array([False, False, False, False, True])
    found = nuisance.two_aucs(
        np.zeros((3, 1)),
        np.array([[1.0], [2.0], [3.0], [4.0], [2.5]]),
        anomalous,
        np.array([False, False, True, True, True]),
    )
    assert found == [0.5, 1.0]
