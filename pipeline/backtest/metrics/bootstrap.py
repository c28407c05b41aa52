"""Confidence intervals by resampling whole units: days, or cards.

Transactions of one day, or of one card, are not independent of each other; so a day or a card is drawn with all that it
holds (the cluster bootstrap: Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8).
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray


class ConfidenceInterval(NamedTuple):
    """The ends of an interval."""

    low: float
    high: float


class Estimate(msgspec.Struct, frozen=True):
    """A figure with its 95 % interval, by days."""

    value: float
    low: float
    high: float


_REPLICATES: Final = 1_000


def resampled(
    statistics: Callable[[NDArray[np.float64]], NDArray[np.float64]], units: int, replicates: int, seed: int
) -> NDArray[np.float64]:
    """Compute statistics of resamples of units.

    Args:
        statistics: Given how often each unit was drawn, shape (units,), it returns an array of one shape.
        units: Number of units, each drawn with the same probability; a resample has as many draws.
        replicates: Number of resamples.
        seed: Seed of the draws; the same seed gives the same resamples.

    Returns:
        Shape (replicates, statistics).

    Raises:
        ValueError: There is no unit.
    """
    if units <= 0:
        raise ValueError("there is nothing to resample: the range has no day, or no card")
    rng = np.random.default_rng(seed)
    draws = (np.bincount(rng.integers(units, size=units), minlength=units) for _ in range(replicates))
    return np.array([statistics(drawn.astype(np.float64)) for drawn in draws])


def interval(values: NDArray[np.float64], level: float = 0.95) -> ConfidenceInterval | None:
    """The middle ``level`` of ``values``, shape (replicates,), without those that are NaN; None where all are."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return ConfidenceInterval(float(low), float(high))


def day_estimates(statistics: Callable[[NDArray[np.float64]], NDArray[np.float64]], days: int) -> list[Estimate | None]:
    """Return statistics with their intervals, each day drawn with all that it holds; None where one is NaN.

    Args:
        statistics: As of `resampled`.
        days: Number of days, at least one.
    """
    values = statistics(np.ones(days)).tolist()
    ends = [interval(column) for column in resampled(statistics, days, _REPLICATES, 0).T]
    return [
        None if end is None or np.isnan(value) else Estimate(value, *end)
        for value, end in zip(values, ends, strict=True)
    ]
