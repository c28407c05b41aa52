"""Event times of a backtest: its range, its warm-up, and the times that a history holds."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from pipeline.backtest.input.arrival_times import ArrivalRange
from pipeline.engine.records.columns import Transactions
from schemas.times import US_PER_MS

EARLIEST_US: Final = -(2**61)
LATEST_US: Final = 2**61
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


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


def moment(time_us: int) -> str:
    """A time as a person writes it, in UTC."""
    return f"{_EPOCH + timedelta(microseconds=time_us):%Y-%m-%d %H:%M:%S}"


def time_us(at: datetime | None, otherwise: int) -> int:
    """Microseconds since 1970 of a time, which is of UTC where it has no offset."""
    if at is None:
        return otherwise
    return ((at if at.tzinfo is not None else at.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)
