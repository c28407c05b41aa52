"""Event times of a backtest: its range, its warm-up, and the times that a history holds.

The records of a log to read for a range are found by their times of arrival. A topic is looked up by time, but what is
found may be a mark of a transaction, or a record that was aborted. So both topics and exports of them are cut here, by
the records that a reader sees.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.records.columns import Transactions
from schemas.codec import timestamp_us
from schemas.times import US_PER_MS

EARLIEST_US: Final = -(2**61)
LATEST_US: Final = 2**61


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


class RangeError(ValueError):
    """There is no transaction to decide in the range that was asked for; the text says what there is."""


class Span(NamedTuple):
    """Event times, in microseconds since 1970-01-01T00:00:00Z."""

    warm_up_from_us: int
    from_us: int
    to_us: int

    def arrivals(self, tolerance_us: int, lateness_us: int | None) -> ArrivalRange:
        """When the records arrived that may hold something of it.

        It may be ahead of its record by ``tolerance_us``, and behind it by ``lateness_us``; None: by any time.
        """
        found = ArrivalRange()
        if self.warm_up_from_us > EARLIEST_US:
            found = found._replace(first_ms=max(self.warm_up_from_us - tolerance_us, 0) // US_PER_MS)
        if self.to_us < LATEST_US and lateness_us is not None:
            found = found._replace(end_ms=max(self.to_us + lateness_us, 0) // US_PER_MS + 1)
        return found


@dataclass(slots=True)
class SeenTimes:
    """Event times of the transactions that a source held, as far as it was read."""

    first_us: int = LATEST_US
    last_us: int = EARLIEST_US

    def within(self, span: Span, rows: Transactions) -> Transactions:
        """Those of the warm-up and of the range, after all were noted."""
        if len(rows):
            self.first_us = min(self.first_us, int(rows.event_time_us.min()))
            self.last_us = max(self.last_us, int(rows.event_time_us.max()))
        inside = (rows.event_time_us >= span.warm_up_from_us) & (rows.event_time_us < span.to_us)
        return rows if inside.all() else rows.take(inside)


def time_us(at: datetime | None, otherwise: int) -> int:
    """Microseconds since 1970 of a time, which is of UTC where it has no offset."""
    if at is None:
        return otherwise
    return timestamp_us(at if at.tzinfo is not None else at.replace(tzinfo=UTC))
