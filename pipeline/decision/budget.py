"""The threshold that keeps alerts within a budget."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

LOWEST_THRESHOLD: Final = 0.02
"""Least threshold: if traffic is below the budget, analysts still get nothing that is almost surely legitimate."""


def budget_threshold(
    score: NDArray[np.float64], weight: NDArray[np.float64], days: float, alerts_per_day: float
) -> float:
    """Return the lowest score at or above which there are at most ``alerts_per_day`` x ``days`` transactions.

    It is not below `LOWEST_THRESHOLD`.

    Args:
        score: Scores; shape (n,).
        weight: How many transactions each row stands for; shape (n,). A negative weight takes others away.
        days: Days in which the transactions came.
        alerts_per_day: The budget.

    >>> budget_threshold(np.array([0.9, 0.8, 0.7, 0.6]), np.ones(4), days=1, alerts_per_day=2)
    0.8
    """
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    # Rows of equal score stand or fall together: count up to the last of them.
    last_of_value = np.r_[ordered[1:] != ordered[:-1], True][: len(ordered)]
    # With negative weights a lower threshold may alert less; what was too much at a higher one stays too much.
    reached = np.maximum.accumulate(np.cumsum(weight[order])[last_of_value])
    affordable = np.flatnonzero(reached <= alerts_per_day * days + 1e-9)
    if len(affordable) == 0:
        top = float(ordered[0]) if len(ordered) else LOWEST_THRESHOLD
        return max(float(np.nextafter(top, 2.0)), LOWEST_THRESHOLD)
    return max(float(ordered[last_of_value][affordable[-1]]), LOWEST_THRESHOLD)
