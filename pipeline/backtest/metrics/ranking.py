"""Ranking metrics as the Fraud Detection Handbook names and defines them.

Le Borgne, Siblini, Lebichot, Bontempi, "Reproducible Machine Learning for Credit Card Fraud Detection", chapter 4. What
one number over all rows tells (AUC ROC, average precision), and card precision, are in
`pipeline.training.score_metrics`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.input.spill import BLOCK_ROWS, blocks, in_blocks, summed
from pipeline.training.score_metrics import days_of
from schemas.times import US_PER_DAY


def top_of_days(score: NDArray[np.float64], event_time_us: NDArray[np.int64], top: int) -> NDArray[np.bool_]:
    """Mark the transactions that have one of the highest scores of their day (UTC).

    Of equal scores the earlier row comes first, as it reaches the analysts first.

    Args:
        score: Shape (n,).
        event_time_us: Microseconds since 1970, shape (n,); in any order.
        top: Transactions a day, or all of a day that has fewer.

    Returns:
        Shape (n,).
    """
    chosen = np.zeros(len(score), np.bool_)
    for _, rows in days_of(event_time_us):
        best = np.argsort(-score[rows], kind="stable")[:top]
        chosen[best + rows.start if isinstance(rows, slice) else rows[best]] = True
    return chosen


def daily_precision(
    fraud: NDArray[np.bool_], chosen: NDArray[np.bool_], event_time_us: NDArray[np.int64], top: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Compute the precision at k of each day (UTC), as the Handbook defines it.

    Args:
        fraud: Shape (n,).
        chosen: The best of each day, as `top_of_days` marks them; shape (n,).
        event_time_us: Microseconds since 1970, shape (n,); in any order.
        top: The k; the divisor, even on a day of fewer transactions.

    Returns:
        Days since 1970-01-01, ascending, and their precision; each of shape (days with rows,).
    """
    found = [(day, np.count_nonzero(fraud[rows] & chosen[rows]) / top) for day, rows in days_of(event_time_us)]
    days, precision = zip(*found, strict=True) if found else ((), ())
    return np.array(days, np.int64), np.array(precision, np.float64)


def known_cards(
    card: NDArray[np.int64], event_time_us: NDArray[np.int64], fraud_known_us: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Mark transactions of cards that were known to be compromised before their day (UTC) began.

    The Handbook leaves such cards out of its test sets (chapter 3, "Baseline fraud detection system").

    Args:
        card: Integers from 0 on, shape (n,).
        event_time_us: Microseconds since 1970, shape (n,); in any order.
        fraud_known_us: When each was known to be fraud, in microseconds since 1970; the largest integer where it never
            was. Shape (n,).

    Returns:
        Shape (n,).
    """
    first_known = np.full(int(card.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first_known, card, fraud_known_us)
    known = np.empty(len(card), np.bool_)
    for rows in blocks(len(card)):
        known[rows] = first_known[card[rows]] < event_time_us[rows] // US_PER_DAY * US_PER_DAY
    return known


class Curve(NamedTuple):
    """Precision and recall where the threshold is each score of a fraud, the highest first; each of shape (m,)."""

    threshold: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


class Areas(NamedTuple):
    """The ranking quality of scores."""

    auc_roc: float
    """Area under the ROC curve; NaN where one of the two classes is missing."""
    average_precision: float
    """NaN without frauds."""


class Ranking:
    """Frauds and others by score, gathered so that metrics of many weightings cost little.

    AUC ROC and average precision depend on where the frauds' scores lie among the others. So rows are counted by the
    gap between two fraud scores in which they lie, or the fraud score that they equal, and by their unit (a day, a
    card), whose weight is given later.
    """

    def __init__(
        self, fraud: NDArray[np.bool_], score: NDArray[np.float64], unit: NDArray[np.int64], units: int
    ) -> None:
        """Gather n rows in any order.

        Args:
            fraud: Shape (n,).
            score: Shape (n,).
            unit: Unit of each row, an integer from 0 on and below ``units``; shape (n,).
            units: Number of units.
        """
        self._thresholds = np.unique(score[fraud])
        self._cells = 2 * len(self._thresholds) + 1

        def pairs(rows: slice, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
            scores, its_unit = score[rows][chosen], unit[rows][chosen]
            above = np.searchsorted(self._thresholds, scores, side="left")
            ties = np.r_[self._thresholds, np.nan][above] == scores
            return np.asarray((2 * above + ties) * units + its_unit, np.int64)

        n = len(score)
        self._fraud = _gathered((pairs(rows, fraud[rows]) for rows in blocks(n)), units)
        self._other = _gathered((pairs(rows, ~fraud[rows]) for rows in blocks(n)), units)

    def areas(self, weight: NDArray[np.float64]) -> Areas:
        """Compute the areas of rows that are each weighted by their unit's ``weight``, shape (units,)."""
        fraud, other = self._sums(self._fraud, weight), self._sums(self._other, weight)
        total, pairs = fraud.sum(), fraud.sum() * other.sum()
        found, chosen = np.cumsum(fraud[::-1]), np.cumsum((fraud + other)[::-1])
        precision = found / np.maximum(chosen, np.finfo(float).tiny)
        below = np.cumsum(other) - other
        return Areas(
            float(np.sum(fraud * (below + other / 2)) / pairs) if pairs else float("nan"),
            float(np.sum(fraud[::-1] * precision) / total) if total else float("nan"),
        )

    def curve(self) -> Curve:
        """Precision and recall at each score that a fraud has, of unweighted rows."""
        fraud, other = self._sums(self._fraud, None), self._sums(self._other, None)
        # From each fraud score up to the next; rows below the lowest are left out.
        levels = fraud[1::2], (fraud + other)[1:].reshape(-1, 2).sum(axis=1)
        found, chosen = (np.cumsum(counts[::-1]) for counts in levels)
        return Curve(self._thresholds[::-1], found / chosen, found / max(found[-1:].sum(), 1.0))

    def _sums(self, part: "_Gathered", weight: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Weights of rows by cell, shape (2 m + 1,)."""

        def rows_of(positions: slice) -> NDArray[np.float64]:
            return part.rows[positions] if weight is None else part.rows[positions] * weight[part.unit[positions]]

        return summed(part.cell, self._cells, rows_of)


class _Gathered(NamedTuple):
    """Counts of rows by cell and unit; of those pairs that occur."""

    cell: NDArray[np.int64]
    unit: NDArray[np.int64]
    rows: NDArray[np.float64]


def _gathered(parts: Iterator[NDArray[np.int64]], units: int) -> _Gathered:
    """Count rows by cell and unit; ``parts`` hold cells x ``units`` + units."""
    held, rows = np.empty(0, np.int64), np.empty(0, np.int64)
    fresh: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    waiting = 0
    for part in parts:
        fresh.append(np.unique(part, return_counts=True))
        waiting += len(fresh[-1][0])
        if waiting > max(BLOCK_ROWS, len(held)):
            held, rows = _merged([(held, rows), *fresh])
            fresh, waiting = [], 0
    held, rows = _merged([(held, rows), *fresh])
    return _Gathered(
        in_blocks(len(held), np.int64, lambda positions: held[positions] // units),
        in_blocks(len(held), np.int64, lambda positions: held[positions] % units),
        in_blocks(len(rows), np.float64, lambda positions: rows[positions]),
    )


def _merged(parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each pair once, with the sum of its counts."""
    pairs, counts = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(pairs, kind="stable")
    pairs, counts = pairs[order], counts[order]
    first = np.flatnonzero(np.r_[True, pairs[1:] != pairs[:-1]][: len(pairs)])
    return pairs[first], np.add.reduceat(counts, first) if len(first) else counts
