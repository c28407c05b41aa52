"""The threshold that keeps alerts within a budget of cases (``docs/decisions/0009-cases.md``)."""

from typing import Any, Final

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.features.built_in import EPISODE_US

LOWEST_THRESHOLD: Final = 0.005
"""Least threshold: if traffic is below the budget, analysts still get nothing that is almost surely legitimate.

At 0.02 a budget of 100 cases stayed unused where 20 to 40 frauds a day hide among 20,000 transactions."""


def budget_threshold(
    score: NDArray[np.float64],
    weight: NDArray[np.float64],
    days: float,
    cases_per_day: float,
    *,
    exceed_for_ties: bool = False,
) -> float:
    """Return the lowest score at or above which there are at most ``cases_per_day`` x ``days`` cases.

    It is not below `LOWEST_THRESHOLD`.

    Args:
        score: Highest score of each case; shape (n,).
        weight: How many cases each stands for; shape (n,). A negative weight takes others away.
        days: Days in which the cases came.
        cases_per_day: The budget.
        exceed_for_ties: Where cases of one score that do not fit would leave over half of the budget unused, let them
            stand if that is nearer to the budget. A threshold that stays would never raise them.

    >>> budget_threshold(np.array([0.9, 0.8, 0.7, 0.6]), np.ones(4), days=1, cases_per_day=2)
    0.8
    """
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    # Rows of equal score stand or fall together: count up to the last of them.
    last_of_value = np.r_[ordered[1:] != ordered[:-1], True][: len(ordered)]
    # With negative weights a lower threshold may alert less; what was too much at a higher one stays too much.
    reached = np.maximum.accumulate(np.cumsum(weight[order])[last_of_value])
    budget = cases_per_day * days
    groups = int(np.searchsorted(reached, budget + 1e-9, side="right"))
    if exceed_for_ties and groups < len(reached):
        used = reached[groups - 1] if groups else 0.0
        groups += bool(used < budget / 2 and reached[groups] - budget < budget - used)
    if groups == 0:
        top = float(ordered[0]) if len(ordered) else LOWEST_THRESHOLD
        return max(float(np.nextafter(top, 2.0)), LOWEST_THRESHOLD)
    return max(float(ordered[last_of_value][groups - 1]), LOWEST_THRESHOLD)


def case_threshold(
    score: NDArray[np.float64],
    case: NDArray[np.int64],
    days: float,
    cases_per_day: float,
    weight: NDArray[np.float64] | None = None,
) -> float:
    """Return the lowest score at or above which transactions belong to at most ``cases_per_day`` x ``days`` cases.

    It is not below `LOWEST_THRESHOLD`. Ties may exceed the budget, as `budget_threshold` describes.

    Args:
        score: Scores; shape (n,).
        case: Any integer that names the case of each; shape (n,).
        days: Days in which the transactions came.
        cases_per_day: The budget.
        weight: How many transactions each row stands for; shape (n,). A case weighs as much as its highest score.
            None: each stands for itself.

    >>> case_threshold(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 1, 2, 3]), days=1, cases_per_day=2)
    0.7
    >>> case_threshold(np.array([0.9, 0.9, 0.9, 0.6]), np.arange(4), days=1, cases_per_day=2)
    0.9
    """
    highest = highest_of_cases(score, case)
    weights = np.ones(len(highest)) if weight is None else weight[highest]
    return budget_threshold(score[highest], weights, days, cases_per_day, exceed_for_ties=True)


def highest_of_cases(score: NDArray[np.float64], case: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the row with the highest score of each case, the first of equal ones; rows ascend."""
    return _first_rows(case, np.argsort(-score, kind="stable"))


def first_alerts(case: NDArray[np.int64], alert: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the row of the first alert of each case that has one; rows come in the order of event time and ascend.

    >>> first_alerts(np.array([1, 1, 2, 2, 3]), np.array([True, True, False, True, False]))
    array([0, 3])
    """
    return _first_rows(case, np.flatnonzero(alert))


def _first_rows(case: NDArray[np.int64], rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return of some rows the first of each case; they ascend."""
    return np.sort(rows[np.unique(case[rows], return_index=True)[1]])


def case_numbers(card: NDArray[np.int64], event_time_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the case of each transaction, where nobody has numbered them: cases begin with the rows.

    Args:
        card: Any integer that names the card of each; shape (n,).
        event_time_us: Microseconds since 1970; shape (n,). A late transaction counts at its event time.

    >>> case_numbers(np.array([7, 8, 7, 7]), np.array([0, 1, EPISODE_US - 1, EPISODE_US]))
    array([0, 2, 0, 1])
    """
    number = np.empty(len(card), np.int64)
    _number_cases(np.lexsort((event_time_us, card)), card, event_time_us, number)
    return number


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _number_cases(order: Any, card: Any, event_time_us: Any, number: Any) -> None:
    count, begin = -1, 0
    for at in range(len(order)):
        row = order[at]
        if at == 0 or card[row] != card[order[at - 1]] or event_time_us[row] >= event_time_us[begin] + EPISODE_US:
            count, begin = count + 1, row
        number[row] = count
