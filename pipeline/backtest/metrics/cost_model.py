"""The value of alerts: fraud amounts from the alert on, less the cost of reviews."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.input.blocks import blocks
from pipeline.backtest.input.spill import in_blocks


class SweepPoint(NamedTuple):
    """The results of a threshold, by scores alone; amounts in the major unit of the base currency."""

    threshold: float
    alerts: int
    frauds: int
    """Alerts about frauds."""
    caught_amount: float
    """Amount of frauds from an alert on (`from_alert_on`)."""
    review_cost: float


def from_alert_on(
    alert: NDArray[np.bool_],
    card: NDArray[np.int64],
    event_time_us: NDArray[np.int64],
    protection_us: int,
) -> NDArray[np.bool_]:
    """Mark the frauds that fell on an alert that found their card's fraud, or a while after one.

    The first alert about a fraud is what has a card blocked; what came before it was lost. A false alert protects
    nothing, and a card that is used again after the protection needs another alert.

    Args:
        alert: Which of n frauds raised an alert, shape (n,).
        card: Shape (n,).
        event_time_us: Shape (n,).
        protection_us: For how long an alert keeps further fraud off its card.
    """
    # An alert at the very instant of another fraud covers it: nothing tells which of the two came first.
    order = np.lexsort((~alert, event_time_us, card))
    alert, card, time_us = alert[order], card[order], event_time_us[order]
    latest = np.maximum.accumulate(np.where(alert, np.arange(len(order)), -1))
    covered = (latest >= 0) & (card[latest] == card) & (time_us - time_us[latest] <= protection_us)
    caught = np.empty(len(order), np.bool_)
    caught[order] = covered
    return caught


def sweep(
    fraud: NDArray[np.bool_],
    score: NDArray[np.float64],
    card: NDArray[np.int64],
    event_time_us: NDArray[np.int64],
    amount: NDArray[np.float64],
    thresholds: NDArray[np.float64],
    *,
    review_cost: float,
    protection_us: int,
) -> list[SweepPoint]:
    """Compute each threshold's alerts (scores at or above it), catches and cost.

    Args:
        fraud: Shape (n,), as the four columns behind it.
        score: Scores.
        card: Cards as integers.
        event_time_us: Microseconds since 1970.
        amount: In the major unit of the base currency.
        thresholds: Shape (m,).
        review_cost: Of an alert.
        protection_us: As of `from_alert_on`.

    Returns:
        A point for each threshold, in their order.
    """
    at_or_above = np.zeros(len(thresholds), np.int64)
    for rows in blocks(len(score)):
        at_or_above += rows.stop - rows.start - np.searchsorted(np.sort(score[rows]), thresholds, side="left")
    its_score, its_card, its_time, its_amount = score[fraud], card[fraud], event_time_us[fraud], amount[fraud]
    points = []
    for threshold, alerts in zip(thresholds.tolist(), at_or_above.tolist(), strict=True):
        found = its_score >= threshold
        caught = from_alert_on(found, its_card, its_time, protection_us)
        amount_caught = float(its_amount[caught].sum())
        points.append(SweepPoint(threshold, alerts, int(found.sum()), amount_caught, review_cost * alerts))
    return points


def sweep_thresholds(score: NDArray[np.float64], points: int = 40) -> NDArray[np.float64]:
    """Scores at which the number of alerts grows from one to all by about equal factors, the highest first."""
    if len(score) == 0:
        return np.empty(0)
    positions = np.unique(np.geomspace(1, len(score), points).astype(np.int64)) - 1
    ordered = in_blocks(len(score), np.float64, lambda rows: score[rows])
    ordered.sort()
    return np.unique(ordered[::-1][positions])[::-1]
