"""The parts of scores: they sum to the log-odds, whatever the models are, and none is what the others leave."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.console.shares import BASE, LIMITED, ONLINE_MODEL, ScoreParts, parts_of, share_rows
from pipeline.decision.policy import Policy
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.features.catalogue import FEATURES
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.kinds import Unpublished
from pipeline.scoring.lightgbm_model import LOGIT_BOUND, Calibration, LightGBMModel
from pipeline.scoring.river_inputs import INPUT_FEATURES, INPUTS
from pipeline.scoring.river_layer import RiverLayer
from pipeline.scoring.river_learner import LayerLearner
from tests.helpers.models import COLUMN, example, grown, matrix, small_model

ROWS = 10_000


@cache
def learned() -> RiverLayer:
    learner = LayerLearner()
    learner.learn_examples([example(number) for number in range(800)])
    return learner.snapshot(800)


@cache
def uncompiled() -> LightGBMModel:
    model = LightGBMModel(grown(leaves=100, trees=6).model_to_string(), Calibration(slope=0.9, intercept=0.4))
    assert not model.compiled
    return model


@cache
def explained_by_lightgbm() -> LightGBMModel:
    """Trees that the compiled code does not explain."""
    model = LightGBMModel.from_payload(small_model().to_payload())
    model._paths = None
    return model


def bounded(slope: float) -> Callable[[], LightGBMModel]:
    return lambda: LightGBMModel(small_model()._text, Calibration(slope=slope, intercept=-0.3))


class Flat(Unpublished):
    """A model that is not LightGBM's log-odds and more, and whose inputs nobody can tell apart."""

    def logit(self, features: NDArray[np.float64], base_logit: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(features[:, COLUMN["amount"]] >= 8.0, 2.5, -2.5)


class Opaque:
    """The same, as no other kind."""

    version = "opaque"

    def __init__(self) -> None:
        self.logit, self.evidence, self.to_payload = Flat().logit, Flat().evidence, Flat().to_payload


def total(parts: ScoreParts) -> NDArray[np.float64]:
    return parts.base + parts.features.sum(axis=1) + parts.limited + sum(parts.others.values())


@pytest.mark.parametrize("blend", [0.0, 0.37, 1.0])
@pytest.mark.parametrize(
    "model", [small_model, uncompiled, explained_by_lightgbm, bounded(40.0), bounded(1e-3)], ids=str
)
def test_parts_sum_to_the_log_odds_of_ten_thousand_scores(model: Callable[[], LightGBMModel], blend: float) -> None:
    rows = matrix(ROWS if model not in (uncompiled, explained_by_lightgbm) else 1_000, seed=5)
    for river in (RiverLayer.identity(), learned(), Opaque()):
        models = ActiveModels(model(), river, Policy(0.5, blend=blend))
        parts = parts_of(models, rows)
        np.testing.assert_allclose(total(parts), parts.logit, rtol=0, atol=1e-9)
        assert np.array_equal(sigmoid(parts.logit), parts.score)


def test_rows_sum_to_the_log_odds_and_show_the_bound() -> None:
    rows, limited = matrix(2_000, seed=6), 0
    models = ActiveModels(bounded(40.0)(), learned(), Policy(0.5, blend=0.6))
    parts = parts_of(models, rows)
    bound = np.abs(models.lightgbm.logit(rows)) == LOGIT_BOUND
    assert 0 < bound.sum() < len(rows)
    for number in range(len(rows)):
        found = share_rows(parts, number, rows[number])
        assert sum(row.share for row in found) == pytest.approx(parts.logit[number], abs=1e-9)
        assert found[0].text == BASE
        sizes = [abs(row.share) for row in found[1:]]
        assert sizes == sorted(sizes, reverse=True)
        assert (LIMITED in {row.text for row in found}) is bool(bound[number])
        limited += any(row.text == LIMITED for row in found)
    assert limited == bound.sum()


def test_the_base_is_the_expected_value_of_lightgbm_and_the_intercept_of_river() -> None:
    model = small_model()
    booster = explained_by_lightgbm()._booster
    raw = np.asarray(booster.predict(matrix(1), pred_contrib=True))[0, -1]
    expected = raw * model.calibration.slope + model.calibration.intercept
    models = ActiveModels(model, learned(), Policy(0.5, blend=0.25))
    assert learned().intercept != 0.0
    assert parts_of(models, matrix(1)).base[0] == pytest.approx(expected + 0.25 * learned().intercept, abs=1e-9)


def test_what_river_adds_stands_with_the_features_that_its_inputs_are_made_of() -> None:
    assert len(INPUT_FEATURES) == len(INPUTS)
    for name, feature in zip(INPUTS, INPUT_FEATURES, strict=True):
        assert feature in name, f"{name} is not made of {feature}"
    rows = matrix(50, seed=7)
    alone = parts_of(ActiveModels(small_model(), learned(), Policy(0.5, blend=0.0)), rows)
    both = parts_of(ActiveModels(small_model(), learned(), Policy(0.5, blend=1.0)), rows)
    added = both.features - alone.features
    assert {FEATURES[column] for column in np.flatnonzero(np.abs(added).max(axis=0) > 1e-12)} <= set(INPUT_FEATURES)
    np.testing.assert_allclose(added.sum(axis=1), learned().contributions(rows).sum(axis=1), rtol=0, atol=1e-9)


def test_a_model_whose_inputs_are_not_told_apart_is_one_row() -> None:
    rows = matrix(1, seed=8)
    parts = parts_of(ActiveModels(small_model(), Opaque(), Policy(0.5, blend=0.4)), rows)
    (row,) = [row for row in share_rows(parts, 0, rows[0]) if row.text == ONLINE_MODEL]
    assert (abs(row.share), row.feature, row.value) == (pytest.approx(1.0), "", None)


def test_a_row_shows_the_value_and_what_is_usual() -> None:
    rows = matrix(1, seed=9)
    rows[0, COLUMN["amount"]], rows[0, COLUMN["card_usual_amount"]] = 250.0, 20.0
    rows[0, COLUMN["card_amount_to_usual"]] = 12.5
    found = share_rows(parts_of(ActiveModels(small_model(), learned(), Policy(0.5, blend=1.0)), rows), 0, rows[0])
    (row,) = [row for row in found if row.text == "The card's amounts"]
    assert (row.feature, row.value, row.usual) == ("amount", 250.0, 20.0)
    assert all(row.value is None or np.isfinite(row.value) for row in found)
