from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import lightgbm
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.features.catalogue import FEATURES
from pipeline.scoring import compiled_contributions
from pipeline.scoring.compiled_contributions import path_contributions
from pipeline.scoring.lightgbm_model import Calibration, LightGBMModel
from pipeline.scoring.tree_layout import POINTS, Paths, lay_out_trees
from pipeline.scoring.trees import read_trees
from tests.helpers.models import edited_text, grown, hard_rows, matrix, tolerance
from tests.reference import shapley

WIDTH = len(FEATURES)


def paths_of(booster: lightgbm.Booster) -> Paths:
    _, paths = lay_out_trees(read_trees(booster.model_to_string(), FEATURES))
    assert paths is not None
    return paths


def exact(booster: lightgbm.Booster, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([[float(part) for part in shapley.contributions(booster, row)] for row in rows])


def on_features(columns: NDArray[np.float64], target: NDArray[np.float64], **parameters: object) -> lightgbm.Booster:
    """One tree on the first features; the others are constant."""
    features = np.zeros((len(columns), WIDTH))
    features[:, : columns.shape[1]] = columns
    return lightgbm.train(
        {
            "objective": "regression",
            "verbosity": -1,
            "num_threads": 1,
            "learning_rate": 1.0,
            "min_data_in_leaf": 1,
            "min_sum_hessian_in_leaf": 0.0,
            **parameters,
        },
        lightgbm.Dataset(features, target, feature_name=list(FEATURES), params={"verbosity": -1, "min_data_in_bin": 1}),
        num_boost_round=1,
    )


def narrow(depth: int) -> lightgbm.Booster:
    """A tree like a chain: each of ``depth`` features is looked at where all before it are 1."""
    random = np.random.default_rng(2)
    columns = (random.random((30_000, depth)) < 0.92).astype(float)
    leading = np.cumprod(columns, axis=1).sum(axis=1)
    return on_features(columns, leading, num_leaves=depth + 1)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"leaves": 2},
        {"trees": 1, "leaves": 3},
        {"gaps": False},
        {"use_missing": False},
        {"leaves": 100, "trees": 5},
        {"leaves": 200, "trees": 20, "min_data_in_leaf": 1},
        {"min_data_in_leaf": 10_000, "trees": 3},
    ],
    ids=["usual", "stumps", "one tree", "no gaps", "missing is zero", "100 leaves", "200 leaves", "no splits"],
)
def test_contributions_are_lightgbm_s(parameters: dict[str, Any]) -> None:
    booster = grown(**parameters)
    rows = matrix(60) if booster.trees_to_dataframe()["threshold"].isna().all() else hard_rows(booster, 60)
    expected = booster.predict(rows, pred_contrib=True)
    found = path_contributions(paths_of(booster), rows)
    np.testing.assert_array_equal(found[:, -1], expected[:, -1])
    # In a few rows of many leaves LightGBM's own sums are the less exact ones: fractions decide.
    apart = np.abs(found - expected).max(axis=1) > tolerance(booster)
    assert np.count_nonzero(apart) <= 3
    for row in np.flatnonzero(apart):
        expected[row] = exact(booster, rows[row : row + 1])[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance(booster))


def test_one_feature_tested_again_and_again() -> None:
    """All of a path's tests are one feature's, so that all of the difference to the base value is."""
    column = np.random.default_rng(3).random((2_000, 1))
    booster = on_features(column, np.sin(20 * column[:, 0]), num_leaves=40)
    paths, rows = paths_of(booster), np.zeros((200, WIDTH))
    rows[:, 0] = np.linspace(-0.2, 1.2, 200)
    assert (paths.node_previous > 0).sum() == 38
    found, score = path_contributions(paths, rows), booster.predict(rows, raw_score=True)
    np.testing.assert_allclose(found[:, 0], score - found[:, -1], rtol=0, atol=tolerance(booster))


@pytest.mark.parametrize(("depth", "passes"), [(2 * POINTS, 1), (2 * POINTS + 1, 2), (36, 3), (60, 4)])
def test_a_path_of_many_features_gets_as_many_points_as_make_it_exact(depth: int, passes: int) -> None:
    booster = narrow(depth)
    paths = paths_of(booster)
    assert paths.tree_passes.tolist() == [passes]
    rows = np.ones((4, WIDTH))
    rows[1, depth // 2] = rows[2, depth - 1] = rows[3, 0] = 0.0
    np.testing.assert_allclose(path_contributions(paths, rows), exact(booster, rows), rtol=0, atol=tolerance(booster))


def test_trees_of_one_forest_have_rules_of_their_own() -> None:
    boosters = [narrow(depth) for depth in (40, 5, 20, 33)]
    trees = [tree for booster in boosters for tree in read_trees(booster.model_to_string(), FEATURES)]
    (_, paths), rows = lay_out_trees(trees), np.ones((2, WIDTH))
    assert paths is not None
    assert paths.tree_passes.tolist() == [3, 1, 2, 3]
    rows[1, 4] = 0.0
    np.testing.assert_allclose(
        path_contributions(paths, rows),
        sum(exact(booster, rows) for booster in boosters),
        rtol=0,
        atol=sum(tolerance(booster) for booster in boosters),
    )


@pytest.mark.parametrize("rows", [0, 1, 2, 65])
def test_any_number_of_rows_each_by_itself(rows: int) -> None:
    booster = grown()
    paths, features = paths_of(booster), matrix(65, seed=4)
    together = path_contributions(paths, np.asfortranarray(features[:rows]))
    assert together.shape == (rows, WIDTH + 1)
    np.testing.assert_array_equal(together, path_contributions(paths, features)[:rows])


def test_threads_share_a_model() -> None:
    booster = grown(leaves=60, trees=60)
    paths = paths_of(booster)
    parts = [hard_rows(booster, 200)[i::4] for i in range(4)]
    expected = [path_contributions(paths, part) for part in parts]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(5):
            for found, alone in zip(threads.map(path_contributions, [paths] * 4, parts), expected, strict=True):
                np.testing.assert_array_equal(found, alone)


class _Silent:
    def predict(self, *_: Any, **__: Any) -> NoReturn:
        raise AssertionError("LightGBM was asked")


def test_a_model_explains_by_them() -> None:
    booster = grown(leaves=100)
    model, rows = LightGBMModel(booster.model_to_string(), Calibration(slope=0.8)), matrix(50)
    assert not model.compiled
    model._booster = _Silent()
    expected = 0.8 * booster.predict(rows, pred_contrib=True)[:, :-1]
    np.testing.assert_allclose(model.contributions(rows), expected, rtol=0, atol=tolerance(booster))


def test_what_explains_is_compiled_when_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    explained = []

    def explain(paths: Paths, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        explained.append(len(rows))
        return path_contributions(paths, rows)

    monkeypatch.setattr("pipeline.scoring.lightgbm_model.path_contributions", explain)
    model = LightGBMModel(grown().model_to_string())
    assert explained == [1]
    # Whatever arrays it was given in this process.
    model.contributions(np.asfortranarray(matrix(8))[::2])
    assert len(compiled_contributions._contributions.signatures) == 1


@pytest.mark.parametrize(
    ("parameters", "edit"),
    [
        ({"zero_as_missing": True}, None),
        ({}, ("^leaf_count=.*\n", "")),
        ({}, ("^internal_count=.*\n", "")),
        ({}, (r"^leaf_count=\d+", "leaf_count=0")),
        ({}, (r"^leaf_count=\d+", "leaf_count=999999")),
    ],
    ids=["zero is missing", "no counts of leaves", "no counts of nodes", "a leaf without rows", "a leaf with too many"],
)
def test_what_has_no_paths_is_left_to_lightgbm(parameters: dict[str, Any], edit: tuple[str, str] | None) -> None:
    text = grown(**parameters).model_to_string()
    if edit is not None:
        text = edited_text(text, *edit)
    assert lay_out_trees(read_trees(text, FEATURES))[1] is None
    rows = matrix(30)
    expected = lightgbm.Booster(model_str=text).predict(rows, pred_contrib=True)[:, :-1]
    np.testing.assert_array_equal(LightGBMModel(text).contributions(rows), expected)
