"""The metrics of backtests, beside scikit-learn and beside their definitions, ties and empty classes included."""

from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from pipeline.backtest.metrics.bootstrap import interval, resampled
from pipeline.backtest.metrics.cost_model import from_alert_on, sweep, sweep_thresholds
from pipeline.backtest.metrics.drift import ModelDrift
from pipeline.backtest.metrics.ranking import Ranking, daily_precision, known_cards, top_of_days
from pipeline.features.catalogue import FEATURES
from pipeline.scoring.distributions import BinCounter, distributions_of
from pipeline.training.score_metrics import card_precision
from tests.reference import metrics as reference

DAY_US = 86_400_000_000


class History(NamedTuple):
    fraud: NDArray[np.bool_]
    score: NDArray[np.float64]
    event_time_us: NDArray[np.int64]
    card: NDArray[np.int64]
    amount: NDArray[np.float64]


def history(seed: int, rows: int = 120, fraud_rate: float = 0.25, levels: int = 12) -> History:
    """A few days of a few cards, in order of time, with many equal scores and one day without a transaction."""
    rng = np.random.default_rng(seed)
    day = np.sort(rng.choice([0, 1, 2, 4, 5], rows))
    times = np.sort(day * DAY_US + rng.integers(0, DAY_US, rows)) + 17_000 * DAY_US
    fraud = rng.random(rows) < fraud_rate
    score = np.round((rng.random(rows) + 0.6 * fraud) / 1.6 * levels) / levels
    return History(fraud, score, times, rng.integers(0, 14, rows), rng.integers(1, 90, rows).astype(float))


SEEDS = pytest.mark.parametrize("seed", range(12))


@SEEDS
def test_ranking_is_that_of_scikit_learn_whatever_the_weights(seed: int) -> None:
    decision = history(seed, levels=(4, 12, 10_000)[seed % 3])
    weight = np.random.default_rng(seed).integers(0, 4, 14).astype(float)
    ranking = Ranking(decision.fraud, decision.score, decision.card, 14)
    rows = weight[decision.card]
    assert ranking.areas(weight).auc_roc == pytest.approx(
        roc_auc_score(decision.fraud, decision.score, sample_weight=rows)
    )
    expected = average_precision_score(decision.fraud, decision.score, sample_weight=rows)
    assert ranking.areas(weight).average_precision == pytest.approx(expected)


@SEEDS
def test_the_curve_is_that_of_scikit_learn_where_recall_grows(seed: int) -> None:
    decision = history(seed)
    precision, found, threshold = precision_recall_curve(decision.fraud, decision.score)
    expected = {
        (float(t), round(float(p), 12), round(float(r), 12))
        for t, p, r, after in zip(threshold, precision, found, [*found[1:]], strict=False)
        if r > after
    }
    curve = Ranking(decision.fraud, decision.score, decision.card, 14).curve()
    columns = zip(curve.threshold.tolist(), curve.precision.tolist(), curve.recall.tolist(), strict=True)
    assert {(t, round(p, 12), round(r, 12)) for t, p, r in columns} == expected
    assert len(expected) > 3


def test_a_ranking_of_one_class_has_no_area() -> None:
    decision = history(0)
    ones, none, every = np.ones(14), np.zeros(120, bool), np.ones(120, bool)
    for fraud in (none, every):
        assert np.isnan(Ranking(fraud, decision.score, decision.card, 14).areas(ones).auc_roc)
    assert np.isnan(Ranking(none, decision.score, decision.card, 14).areas(ones).average_precision)
    assert Ranking(every, decision.score, decision.card, 14).areas(ones).average_precision == 1.0
    assert len(Ranking(none, decision.score, decision.card, 14).curve().threshold) == 0
    # A resample without a single row of frauds.
    alone = Ranking(np.array([True, False]), np.array([0.5, 0.5]), np.array([0, 1]), 2)
    assert np.isnan(alone.areas(np.array([0.0, 2.0])).auc_roc)
    assert alone.areas(np.ones(2)).auc_roc == 0.5


@SEEDS
@pytest.mark.parametrize("top", [1, 3, 100])
def test_card_precision_is_that_of_its_definition(seed: int, top: int) -> None:
    item = history(seed)
    for remove in (False, True):
        expected = reference.card_precision(*(column.tolist() for column in item[:4]), top, remove)
        found = card_precision(*item[:4], top, remove_detected=remove)
        assert found == pytest.approx(expected)
    kept = card_precision(*item[:4], top)
    assert kept is not None
    assert found is not None
    assert kept > found or top < 100


@SEEDS
@pytest.mark.parametrize("top", [1, 3, 100])
def test_the_best_of_a_day_are_those_of_the_definition(seed: int, top: int) -> None:
    decision = history(seed)
    chosen = top_of_days(decision.score, decision.event_time_us, top)
    expected = reference.best_of_days(decision.score.tolist(), decision.event_time_us.tolist(), top)
    assert set(np.flatnonzero(chosen).tolist()) == expected
    _, precision = daily_precision(decision.fraud, chosen, decision.event_time_us, top)
    assert precision.mean() == pytest.approx(reference.precision_at(*(column.tolist() for column in decision[:3]), top))


def test_metrics_of_nothing() -> None:
    none = History(*(column[:0] for column in history(0)))
    assert not len(daily_precision(none.fraud, none.fraud, none.event_time_us, 5)[0])
    assert card_precision(*none[:4], 5, remove_detected=True) is None
    assert known_cards(none.card, none.event_time_us, none.event_time_us).shape == (0,)
    assert not len(sweep_thresholds(none.score))


def test_a_card_is_known_from_the_day_after_its_fraud_was() -> None:
    item = history(3)
    never = np.iinfo(np.int64).max
    known_us = np.where(item.fraud, item.event_time_us + DAY_US // 2, never)
    found = known_cards(item.card, item.event_time_us, known_us)
    assert found.tolist() == reference.known_before_the_day(
        *(c.tolist() for c in (item.card, item.event_time_us, known_us))
    )
    assert 0 < found.sum() < len(found)


@SEEDS
def test_what_is_caught_lies_on_or_behind_an_alert_about_fraud_of_the_card(seed: int) -> None:
    decision = history(seed)
    fraud = decision.fraud
    # At whole hours, so that frauds of a card fall into one instant, and exactly on the end of a protection.
    times = decision.event_time_us[fraud] // (6 * 3_600_000_000) * (6 * 3_600_000_000)
    alert = decision.score[fraud] > 0.6
    for protection_us in (0, DAY_US, 100 * DAY_US):
        caught = from_alert_on(alert, decision.card[fraud], times, protection_us)
        expected = reference.from_alert_on(alert.tolist(), decision.card[fraud].tolist(), times.tolist(), protection_us)
        assert caught.tolist() == expected
    assert alert.sum() < caught.sum() < len(caught)


@SEEDS
def test_a_sweep_is_what_each_threshold_would_have_done(seed: int) -> None:
    decision = history(seed)
    thresholds = sweep_thresholds(decision.score, points=8)
    rows = [decision.fraud, decision.score, decision.card, decision.event_time_us, decision.amount]
    points = sweep(*rows, thresholds, span_days=4.0, review_cost=2.0, protection_us=DAY_US)
    assert [point.threshold for point in points] == sorted(set(thresholds.tolist()), reverse=True)
    assert points[0].threshold == decision.score.max()
    assert points[-1].alerts_per_day == len(decision.score) / 4
    for point in points:
        alert = decision.score >= point.threshold
        assert point.alerts_per_day == alert.sum() / 4
        assert point.precision == decision.fraud[alert].mean()
        assert point.recall == alert[decision.fraud].mean()
        caught = from_alert_on(
            alert[decision.fraud], decision.card[decision.fraud], decision.event_time_us[decision.fraud], DAY_US
        )
        amount = decision.amount[decision.fraud]
        assert point.caught_amount == amount[caught].sum()
        assert point.review_cost == 2.0 * alert.sum()
        assert point.net_saving == point.caught_amount - point.review_cost


def test_resamples_draw_whole_units_and_repeat_by_their_seed() -> None:
    drawn = resampled(lambda weight: weight, 9, 400, seed=5)
    assert drawn.shape == (400, 9)
    assert (drawn.sum(axis=1) == 9).all()
    assert drawn.max() >= 3
    assert drawn.mean(axis=0) == pytest.approx(1.0, abs=0.2)
    assert (drawn == resampled(lambda weight: weight, 9, 400, seed=5)).all()
    assert (drawn != resampled(lambda weight: weight, 9, 400, seed=6)).any()
    with pytest.raises(ValueError, match="nothing to resample"):
        resampled(lambda weight: weight, 0, 1, seed=0)


def test_an_interval_is_as_wide_as_theory_has_it() -> None:
    values = np.random.default_rng(0).normal(10.0, 3.0, 60)
    means = resampled(lambda weight: np.array([weight @ values / 60]), 60, 2_000, seed=1)[:, 0]
    low, high = interval(means) or (np.nan, np.nan)
    standard_error = values.std() / np.sqrt(60)
    assert low == pytest.approx(values.mean() - 1.96 * standard_error, abs=0.1)
    assert high == pytest.approx(values.mean() + 1.96 * standard_error, abs=0.1)
    assert interval(np.array([np.nan, 2.0, 2.0])) == (2.0, 2.0)
    assert interval(np.array([np.nan])) is None


def test_drift_counts_what_moved_and_what_has_no_value() -> None:
    rng = np.random.default_rng(0)
    names = ("amount", "hour", "weekday")

    def rows(*columns: NDArray[np.float64]) -> NDArray[np.float64]:
        features = np.full((len(columns[0]), len(FEATURES)), np.nan)
        features[:, [FEATURES.index(name) for name in names]] = np.column_stack(columns)
        return features

    before = rows(rng.normal(size=5_000), rng.integers(0, 2, 5_000).astype(float), rng.normal(size=5_000))
    now = rows(rng.normal(size=3_000), rng.integers(0, 2, 3_000).astype(float), rng.normal(1.0, size=3_000))
    now[:600, FEATURES.index("weekday")] = np.nan
    reference = distributions_of(before, np.ones(5_000), names)
    counter = BinCounter.like(reference)
    nothing = counter.distributions()
    for part in np.array_split(now, 4):
        counter.add(part)
    drift = ModelDrift("0123456789ab", ("now",), reference, counter.distributions())
    same, flag, moved = drift.stability_index()
    assert same < 0.02
    assert flag < 0.02
    assert moved > 0.5
    missing_before, missing_now = drift.missing()
    assert missing_before.tolist() == [0.0, 0.0, 0.0]
    assert missing_now.tolist() == [0.0, 0.0, 0.2]
    # By the definition, of the two values of the flag.
    p, q = (np.array([(source == 0).mean(), (source == 1).mean()]) for source in (before[:, 1], now[:, 1]))
    assert flag == pytest.approx(((p - q) * np.log(p / q)).sum())
    # Between tenths the statistic is a little less than between all values; of a flag there is no more to look at.
    distances = drift.ks_statistic()
    exact = [
        ks_2samp(*(source[~np.isnan(source)] for source in (before[:, at], now[:, at]))).statistic for at in range(3)
    ]
    assert distances[1] == pytest.approx(exact[1])
    assert exact[2] - 0.05 < distances[2] <= exact[2] + 1e-12
    empty = ModelDrift("0123456789ab", ("now",), reference, nothing)
    assert np.isnan(empty.stability_index()).all()
    assert np.isnan(empty.ks_statistic()).all()
