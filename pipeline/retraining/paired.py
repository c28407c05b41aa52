"""Paired daily differences of two scorings of the same rows, and what can be concluded from them.

The gate looks once: `mean_difference` has a bootstrap interval. The guard looks every day and stops when it has seen
enough: `confidence_sequence` holds for all looks together.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from pipeline.backtest.metrics.bootstrap import resampled
from pipeline.learning.regimes import NEVER_US
from pipeline.training.score_metrics import daily_top_cards
from schemas.times import US_PER_DAY

REPLICATES: Final = 2_000
SEED: Final = 45
PRIOR_PRECISION: Final = 0.1
"""c, the inverse variance of the prior on the mean difference in units of a day's standard deviation.

Small values suit large differences.
"""


class Scorings(NamedTuple):
    """Two scorings of n rows; every array has shape (n,)."""

    candidate: NDArray[np.float64]
    reference: NDArray[np.float64]
    event_time_us: NDArray[np.int64]
    card: NDArray[np.int64]
    """Cards as integers from 0 on."""
    reported_us: NDArray[np.int64]
    """Time of a fraud's report; `NEVER_US` for what is no known fraud."""


class PairedDays(NamedTuple):
    """Frauds that the candidate has among a day's alerts, less those that the reference has; shape (days,)."""

    day: NDArray[np.int64]
    """Days since 1970-01-01 in UTC, ascending."""
    difference: NDArray[np.float64]


class Mean(NamedTuple):
    """Mean of paired daily differences, with one-sided bounds."""

    mean: float
    low: float
    """The mean is below it with the probability 1 - level at most."""
    high: float


def paired_days(rows: Scorings, top: int, *, by_report: bool) -> PairedDays:
    """Return the differences by the day of the transactions, or by the day on which frauds were reported.

    A card with fraud counts once a day, if it is among the ``top`` cards with the day's highest scores. By reports each
    day is final once it is over, however late labels come. Days without a report are left out then: whether a day has
    reports says nothing about the sign of its difference, so that this does not bias it.

    Args:
        rows: Rows of whole days.
        top: Cards a day that analysts look at.
        by_report: Whether reports give the day. Else all labels must have come.
    """
    event_day, count, report_day = _frauds_found(rows, top)
    day = report_day if by_report else event_day
    days = np.unique(report_day if by_report else rows.event_time_us // US_PER_DAY)
    return PairedDays(days, np.bincount(np.searchsorted(days, day), count, len(days)).astype(np.float64))


def top_agreement(rows: Scorings, top: int) -> tuple[float, float | None]:
    """Return how far two scorings of whole days agree on the ``top`` cards of a day.

    Returns:
        The share of the reference's cards that the candidate has too, and Spearman's rank correlation over the cards of
        a day that either has; None where it is not defined.
    """
    at_top = [daily_top_cards(score, rows.event_time_us, rows.card, top) for score in rows[:2]]
    either = np.flatnonzero(at_top[0] | at_top[1])
    key = rows.event_time_us[either] // US_PER_DAY * (int(rows.card.max(initial=0)) + 1) + rows.card[either]
    names, number = np.unique(key, return_inverse=True)
    best = np.full((2, len(names)), -np.inf)
    held = np.zeros((2, len(names)), np.bool_)
    for which, score in enumerate(rows[:2]):
        np.maximum.at(best[which], number, score[either])
        held[which][number[at_top[which][either]]] = True
    overlap = float((held[0] & held[1]).sum() / max(int(held[1].sum()), 1))
    if len(names) < 2 or np.ptp(best, axis=1).min() == 0:
        return overlap, None
    return overlap, float(np.corrcoef(rankdata(best[0]), rankdata(best[1]))[0, 1])


def _frauds_found(rows: Scorings, top: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Return event day, difference (-1, 0 or 1) and day of report of each day and card with fraud."""
    fraud = np.flatnonzero(rows.reported_us < NEVER_US)
    day, card, reported_us = (
        column[fraud] for column in (rows.event_time_us // US_PER_DAY, rows.card, rows.reported_us)
    )
    order = np.lexsort((reported_us, card, day))
    fraud, day, card, reported_us = fraud[order], day[order], card[order], reported_us[order]
    first = np.ones(len(fraud), np.bool_)
    first[1:] = (day[1:] != day[:-1]) | (card[1:] != card[:-1])
    found = [
        daily_top_cards(score, rows.event_time_us, rows.card, top)[fraud[first]].astype(np.float64)
        for score in (rows.candidate, rows.reference)
    ]
    day = day[first]
    return day, found[0] - found[1], np.maximum(reported_us[first] // US_PER_DAY, day)


def mean_difference(
    difference: NDArray[np.float64], level: float = 0.95, replicates: int = REPLICATES, seed: int = SEED
) -> Mean:
    """Return the mean of daily differences with bounds from a bootstrap over days, for one look.

    Args:
        difference: Shape (days,), at least one.
        level: Confidence of each bound by itself.
        replicates: Number of resamples.
        seed: Of the resampling.

    Raises:
        ValueError: There is no day.

    >>> mean_difference(np.array([1.0, 1.0, 1.0]))
    Mean(mean=1.0, low=1.0, high=1.0)
    """
    n = len(difference)
    means = resampled(lambda drawn: np.array([drawn @ difference / n]), n, replicates, seed)[:, 0]
    low, high = np.quantile(means, [1 - level, level])
    return Mean(float(difference.mean()), float(low), float(high))


def confidence_sequence(
    difference: NDArray[np.float64], level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return bounds of the mean difference after each day, which hold for all days together.

    The bounds invert a t-test martingale that is mixed over effect sizes (Lai, "On confidence sequences", Annals of
    Statistics 4, 1976; with a normal mixture, as here, Wang and Ramdas, "Anytime-valid t-tests and confidence sequences
    for Gaussian means with unknown variance", 2023). For the true mean, with S the sum and V the sum of squares of n
    deviations from it, ``sqrt(c / (n + c)) (V / (V - S² / (n + c)))^(n / 2)`` has expectation 1 at most whenever one
    stops, so that it ever reaches 1 / (1 - level) with the probability 1 - level at most. It is exact for normal
    differences of unknown variance.

    Args:
        difference: Shape (days,).
        level: Confidence that all intervals together hold the mean.

    Returns:
        Lower and upper bounds, each of shape (days,); infinite while nothing can be said.
    """
    n = np.arange(1, len(difference) + 1, dtype=np.float64)
    mean = np.cumsum(difference) / n
    squares = np.maximum(np.cumsum(difference**2) - n * mean**2, 0.0)
    c = PRIOR_PRECISION
    shrink = -np.expm1(-2.0 / n * (0.5 * np.log((n + c) / c) - np.log1p(-level)))
    room = n * n / (n + c) - n * shrink
    with np.errstate(divide="ignore", invalid="ignore"):
        half = np.where(room > 0, np.sqrt(shrink * squares / room), np.inf)
    return mean - half, mean + half
