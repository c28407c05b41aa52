"""Hour and weekday of many moments."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.times import US_PER_DAY, US_PER_HOUR

_WEEKDAY_OF_EPOCH: Final = 3
"""Weekday of 1 January 1970: a Thursday, where Monday is 0."""


def hours(clock_us: NDArray[np.int64]) -> NDArray[np.float64]:
    """Hours since midnight, with fraction, of microseconds since 1970."""
    # One division of integers, so that not even the last bit differs.
    of_day: NDArray[np.float64] = clock_us % US_PER_DAY / US_PER_HOUR
    return of_day


def weekdays(clock_us: NDArray[np.int64]) -> NDArray[np.float64]:
    """0 (Monday) to 6 (Sunday)."""
    return ((clock_us // US_PER_DAY + _WEEKDAY_OF_EPOCH) % 7).astype(np.float64)
