"""Cases of transactions, and the threshold that keeps a budget of them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.decision.budget import (
    LOWEST_THRESHOLD,
    budget_threshold,
    case_numbers,
    case_threshold,
    first_alerts,
    highest_of_cases,
)
from pipeline.features.built_in import EPISODE_US
from schemas.times import US_PER_DAY, US_PER_HOUR


def looped(card: NDArray[np.int64], event_time_us: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Card and begin of each transaction's case; rows in the order of event time."""
    begun: dict[int, int] = {}
    found = []
    for name, time_us in zip(card.tolist(), event_time_us.tolist(), strict=True):
        if name not in begun or time_us >= begun[name] + EPISODE_US:
            begun[name] = time_us
        found.append((name, begun[name]))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_cases_are_numbered_as_a_loop_numbers_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    card = random.integers(-3, 4, 400)
    time_us = np.sort(random.integers(0, 12, 400) * 6 * US_PER_HOUR)
    names = looped(card, time_us)
    number = case_numbers(card, time_us)
    assert len(set(zip(names, number.tolist(), strict=True))) == len(set(names)) == number.max() + 1
    # The order of the rows says nothing.
    order = random.permutation(400)
    again = case_numbers(card[order], time_us[order])
    np.testing.assert_array_equal(again, number[order])


def test_no_transaction_has_no_case() -> None:
    none = np.empty(0, np.int64)
    assert len(case_numbers(none, none)) == 0
    assert case_threshold(np.empty(0), none, 7.0, 100.0) > LOWEST_THRESHOLD


def test_many_high_scores_of_a_card_are_one_case() -> None:
    score = np.concatenate([np.linspace(0.9, 0.95, 50), [0.8, 0.7, 0.6]])
    card = np.concatenate([np.zeros(50, np.int64), [1, 2, 3]])
    case = case_numbers(card, np.arange(53) * 60_000_000)
    assert case_threshold(score, case, 1.0, 3.0) == 0.7
    assert budget_threshold(score, np.ones(53), 1.0, 3.0) > 0.9


def test_a_card_that_goes_on_is_a_case_a_day() -> None:
    time_us = np.arange(4) * US_PER_DAY
    case = case_numbers(np.zeros(4, np.int64), time_us)
    assert case_threshold(np.array([0.5, 0.9, 0.8, 0.7]), case, 1.0, 2.0) == 0.8


def test_a_case_weighs_as_much_as_its_highest_score() -> None:
    score, case = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 1, 2, 3])
    weight = np.array([6.0, 50.0, 5.0, 1.0])
    np.testing.assert_array_equal(highest_of_cases(score, case), [0, 2, 3])
    assert case_threshold(score, case, 1.0, 10.9, weight) == 0.9
    assert case_threshold(score, case, 1.0, 11.0, weight) == 0.7


@pytest.mark.parametrize(
    ("tied", "budget", "raised"),
    [(20, 12.6, 20), (25, 12.6, 25), (26, 12.6, 0), (8, 12.6, 12)],
)
def test_many_cases_of_the_highest_score_are_not_left_alone(tied: int, budget: float, raised: int) -> None:
    # So a small population's trees score: all certain frauds alike.
    score = np.r_[np.full(tied, 0.94), np.linspace(0.9, 0.1, 30)]
    case = np.arange(len(score))
    threshold = case_threshold(score, case, 7.0, budget / 7)
    assert np.count_nonzero(score >= threshold) == raised
    # A budget that is followed hour by hour makes up for them later.
    assert np.count_nonzero(score >= budget_threshold(score, np.ones(len(score)), 7.0, budget / 7)) <= budget


def test_ties_beyond_a_half_used_budget_stay_out() -> None:
    score = np.r_[[0.99] * 7, [0.9] * 6]
    assert case_threshold(score, np.arange(13), 1.0, 12.6) == 0.99


def test_of_a_case_s_alerts_the_first_counts() -> None:
    case = np.array([2, 1, 2, 1, 3, 2])
    alert = np.array([False, True, True, True, False, True])
    np.testing.assert_array_equal(first_alerts(case, alert), [1, 2])
