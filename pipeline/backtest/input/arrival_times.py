"""The records of a log to read for a range of event time, by their times of arrival.

A topic is looked up by time, but what is found may be a mark of a transaction, or a record that was aborted. So both
topics and exports of them are cut here, by the records that a reader sees.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

ALWAYS_MS: Final = 2**61
"""Behind every time."""


class ArrivalRange(NamedTuple):
    """Times in milliseconds since 1970-01-01T00:00:00Z, as Kafka stamps records."""

    first_ms: int = 0
    end_ms: int = ALWAYS_MS


class ArrivalFilter:
    """Cuts one partition's records: from the first on that arrived in time, to the first that arrived too late.

    Between the two all are taken, whatever their stamps: a log is no order of time.
    """

    def __init__(self, arrivals: ArrivalRange) -> None:
        self._arrivals = arrivals
        self._begun = False
        self.ended = False
        """True if nothing that follows is taken."""

    def rows(self, arrived_ms: NDArray[np.int64]) -> slice:
        """Return the slice of the next records that is taken; ``arrived_ms`` has shape (n,).

        >>> cut = ArrivalFilter(ArrivalRange(10, 20))
        >>> cut.rows(np.array([8, 11, 9])), cut.rows(np.array([12, 20, 13])), cut.ended
        (slice(1, 3, None), slice(0, 1, None), True)
        """
        n = len(arrived_ms)
        first = 0 if self._begun else _first(arrived_ms >= self._arrivals.first_ms)
        end = first + _first(arrived_ms[first:] >= self._arrivals.end_ms)
        self._begun = self._begun or first < n
        self.ended = end < n
        return slice(first, end)


def _first(mask: NDArray[np.bool_]) -> int:
    """Return the index of the first True; the length where there is none."""
    return int(mask.argmax()) if mask.any() else len(mask)
