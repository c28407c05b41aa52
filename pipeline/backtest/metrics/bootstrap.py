"""Confidence intervals by resampling whole units: days, or cards.

Transactions of one day, or of one card, are not independent of each other; so a day or a card is drawn with all that it
holds (the cluster bootstrap: Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class ConfidenceInterval(NamedTuple):
    """A percentile interval; None where no resample had the figure."""

    low: float | None
    high: float | None


def resampled(
    statistics: Callable[[NDArray[np.float64]], NDArray[np.float64]], units: int, replicates: int, seed: int
) -> NDArray[np.float64]:
    """``statistics`` of ``replicates`` resamples of ``units`` units, shape (replicates, statistics).

    It is given how often each unit was drawn, shape (units,), ``units`` times in all.
    """
    if units <= 0:
        raise ValueError("there is nothing to resample: the range has no day, or no card")
    rng = np.random.default_rng(seed)
    draws = (np.bincount(rng.integers(units, size=units), minlength=units) for _ in range(replicates))
    return np.array([statistics(drawn.astype(np.float64)) for drawn in draws])


def interval(values: NDArray[np.float64], level: float = 0.95) -> ConfidenceInterval:
    """The middle ``level`` of ``values``, shape (replicates,); those that are NaN are left out."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return ConfidenceInterval(None, None)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return ConfidenceInterval(float(low), float(high))
