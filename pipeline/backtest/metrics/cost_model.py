"""The value of alerts: fraud amounts from the alert on, less the cost of reviews."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.input.spill import blocks, in_blocks


class SweepRow(msgspec.Struct, frozen=True, kw_only=True):
    """The results of a threshold, by scores alone, without rules and audits; amounts in the base currency."""

    threshold: float
    alerts_per_day: float
    precision: float
    recall: float | None
    caught_amount: float
    """Amount of frauds from an alert on (`from_alert_on`)."""
    review_cost: float
    net_saving: float


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
        alert: True for a fraud that raised an alert; n frauds in any order, shape (n,).
        card: Card of each as any integer, shape (n,).
        event_time_us: Microseconds since 1970, shape (n,).
        protection_us: Microseconds after an alert within which its card's frauds are marked, the end included.

    Returns:
        Shape (n,).
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
    span_days: float,
    review_cost: float,
    protection_us: int,
) -> list[SweepRow]:
    """Compute each threshold's alerts, catches and cost.

    Args:
        fraud: Shape (n,); the rows may stand in any order.
        score: Shape (n,); a score at or above a threshold raises an alert.
        card: Card of each row as any integer, shape (n,).
        event_time_us: Microseconds since 1970, shape (n,).
        amount: Major unit of the base currency, shape (n,).
        thresholds: Shape (m,), each the score of a row or below one.
        span_days: Length of what was decided, in days.
        review_cost: Cost of an alert, in the major unit of the base currency.
        protection_us: Microseconds for which an alert keeps fraud off its card, as in `from_alert_on`.

    Returns:
        A row for each threshold, in their order.
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
        points.append(
            SweepRow(
                threshold=threshold,
                alerts_per_day=alerts / span_days,
                precision=int(found.sum()) / alerts,
                recall=int(found.sum()) / len(its_score) if len(its_score) else None,
                caught_amount=amount_caught,
                review_cost=review_cost * alerts,
                net_saving=amount_caught - review_cost * alerts,
            )
        )
    return points


def sweep_thresholds(score: NDArray[np.float64], points: int = 40) -> NDArray[np.float64]:
    """Scores at which the number of alerts grows from one to all by about equal factors, the highest first."""
    if len(score) == 0:
        return np.empty(0)
    positions = np.unique(np.geomspace(1, len(score), points).astype(np.int64)) - 1
    ordered = in_blocks(len(score), np.float64, lambda rows: score[rows])
    ordered.sort()
    return np.unique(ordered[::-1][positions])[::-1]
