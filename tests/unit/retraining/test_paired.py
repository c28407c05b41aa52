"""Paired daily differences against a slow count, and the coverage of what is concluded from them."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from pipeline.learning.regimes import NEVER_US
from pipeline.retraining.paired import (
    Scorings,
    confidence_sequence,
    mean_difference,
    paired_days,
    top_agreement,
)
from pipeline.training.score_metrics import daily_card_precision
from schemas.times import US_PER_DAY

TOP = 5


def scorings(seed: int = 1, rows: int = 3_000, days: int = 12) -> Scorings:
    random = np.random.default_rng(seed)
    event_time_us = np.sort(random.integers(0, days * US_PER_DAY, rows))
    fraud = random.random(rows) < 0.03
    signal = fraud * 1.5
    return Scorings(
        random.normal(signal, 1.0),
        random.normal(signal, 1.0),
        event_time_us,
        random.integers(0, 60, rows),
        np.where(fraud, event_time_us + random.integers(0, 9 * US_PER_DAY, rows), NEVER_US),
    )


def slow_differences(rows: Scorings, by_report: bool) -> dict[int, int]:
    """Count row by row, in dictionaries."""
    found: dict[int, int] = {}
    days = rows.event_time_us // US_PER_DAY
    for day in sorted({*days.tolist()}):
        here = np.flatnonzero(days == day).tolist()
        tops = []
        for score in (rows.candidate, rows.reference):
            best: dict[int, float] = {}
            for row in here:
                card = int(rows.card[row])
                best[card] = max(best.get(card, -np.inf), float(score[row]))
            tops.append(set(sorted(best, key=lambda card: -best[card])[:TOP]))
        if not by_report:
            found.setdefault(day, 0)
        for card in {int(rows.card[row]) for row in here}:
            reports = [
                int(rows.reported_us[row]) // US_PER_DAY
                for row in here
                if rows.card[row] == card and rows.reported_us[row] < NEVER_US
            ]
            if reports:
                at = min(reports) if by_report else day
                found[at] = found.get(at, 0) + (card in tops[0]) - (card in tops[1])
    return found


@pytest.mark.parametrize("by_report", [False, True])
def test_differences_are_those_of_a_slow_count(by_report: bool) -> None:
    rows = scorings()
    days = paired_days(rows, TOP, by_report=by_report)
    assert dict(zip(days.day.tolist(), days.difference.tolist(), strict=True)) == slow_differences(rows, by_report)
    assert {-1.0, 1.0} & {*days.difference.tolist()}


def test_the_difference_is_that_of_the_card_precisions() -> None:
    rows = scorings(2)
    fraud = rows.reported_us < NEVER_US
    precision = [
        daily_card_precision(fraud, score, rows.event_time_us, rows.card, TOP)[1]
        for score in (rows.candidate, rows.reference)
    ]
    np.testing.assert_allclose(paired_days(rows, TOP, by_report=False).difference, TOP * (precision[0] - precision[1]))


def test_without_frauds_there_is_nothing_to_see() -> None:
    rows = scorings()._replace(reported_us=np.full(3_000, NEVER_US))
    assert not paired_days(rows, TOP, by_report=False).difference.any()
    assert len(paired_days(rows, TOP, by_report=True).day) == 0


SERIES: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "normal": lambda random, n: random.normal(0, 3, n),
    # Frauds that one of two scorings finds alone, a few a day, and then in runs.
    "counts": lambda random, n: (random.poisson(2, n) - random.poisson(2, n)).astype(float),
    "runs": lambda random, n: random.choice([1.0, 4.0], n) * (random.poisson(0.5, n) - random.poisson(0.5, n)),
}


@pytest.mark.parametrize("name", sorted(SERIES))
def test_all_bounds_of_a_sequence_together_hold_the_mean(name: str) -> None:
    random, level, runs = np.random.default_rng(7), 0.9, 2_000
    missed = 0
    for _ in range(runs):
        low, high = confidence_sequence(SERIES[name](random, 120), level)
        missed += bool((low > 0).any() or (high < 0).any())
    # 3 standard deviations of the simulation above the error that is allowed.
    assert missed / runs <= 1 - level + 3 * np.sqrt(level * (1 - level) / runs)
    # It is no empty promise either: a fixed interval that is looked at daily would fail much more often, and this one
    # some of the time.
    assert missed / runs > 0.01


def test_a_sequence_finds_harm_within_days_and_none_where_there_is_none() -> None:
    random = np.random.default_rng(3)
    _, high = confidence_sequence(random.normal(-40, 6, 30), 0.975)
    assert 3 <= int(np.argmax(high < 0)) <= 6
    _, high = confidence_sequence(random.normal(-2, 2, 60), 0.975)
    assert (high < 0).any()
    low, high = confidence_sequence(np.zeros(20), 0.975)
    assert not (high < 0).any()
    assert not (low > 0).any()
    assert np.isinf(high[:2]).all()


def test_a_single_look_holds_the_mean_at_its_level_and_repeats_itself() -> None:
    random, runs = np.random.default_rng(5), 400
    below = 0
    for seed in range(runs):
        found = mean_difference(random.normal(0, 3, 14), replicates=400, seed=seed)
        below += found.low > 0
    # Percentiles of a bootstrap over 14 days are a little narrow.
    assert 0.02 <= below / runs <= 0.1
    difference = random.normal(1, 3, 14)
    assert mean_difference(difference) == mean_difference(difference)
    assert mean_difference(difference).low < difference.mean() < mean_difference(difference).high
    with pytest.raises(ValueError, match="nothing to resample"):
        mean_difference(np.empty(0))


def test_agreement_on_the_best_cards_is_that_of_a_slow_count() -> None:
    rows = scorings()
    days = rows.event_time_us // US_PER_DAY
    tops: list[set[tuple[int, int]]] = []
    bests: list[dict[tuple[int, int], float]] = []
    for score in (rows.candidate, rows.reference):
        best: dict[tuple[int, int], float] = {}
        for day, card, value in zip(days.tolist(), rows.card.tolist(), score.tolist(), strict=True):
            best[day, card] = max(best.get((day, card), -np.inf), value)
        bests.append(best)
        of_day = [sorted((key for key in best if key[0] == day), key=lambda key: -best[key])[:TOP] for day in {*days}]
        tops.append({key for keys in of_day for key in keys})
    overlap, correlation = top_agreement(rows, TOP)
    assert overlap == pytest.approx(len(tops[0] & tops[1]) / len(tops[1]))
    either = sorted(tops[0] | tops[1])
    expected = spearmanr(*([best[key] for key in either] for best in bests)).statistic
    assert correlation == pytest.approx(expected)
    assert top_agreement(rows._replace(candidate=rows.reference), TOP) == pytest.approx((1.0, 1.0))
