"""Surges of labels: more of a source in an hour than its past explains, which the online model must not learn at once.

Sources are an open enumeration, so that those without a rank count together: a new name is no way around the limit, and
memory is bounded by the ranked sources and the hours of four weeks.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np

from pipeline.decision.event_clock import ClockState, advanced
from pipeline.learning.labels import SOURCE_RANK
from schemas.times import US_PER_HOUR

MULTIPLE: Final = 5
"""Times the usual most of an hour beyond which labels are held."""
QUANTILE: Final = 0.99
HISTORY_HOURS: Final = 28 * 24
LEAST_HISTORY_HOURS: Final = 7 * 24
"""Hours since a source's first label before which nothing of it is held: there is no past to compare with."""
LEAST_LIMIT: Final = 20
"""Labels an hour that are never a surge: few labels vary by more than five times by chance alone."""
OTHER: Final = "other"
"""The sources without a rank, together."""


class SourceHours(msgspec.Struct, frozen=True):
    """Labels of one source by the hour in which they were known."""

    first_hour: int
    hour: int
    """The newest one; a label that is known earlier counts in it."""
    count: int = 0
    limit: int | None = None
    """Labels of the hour beyond which they are held; None without a limit."""
    past: tuple[tuple[int, int], ...] = ()
    """Earlier hours with labels, of the last `HISTORY_HOURS`, each with how many were not held."""

    @property
    def settled(self) -> int:
        """Labels of the newest hour that were not held."""
        return self.count if self.limit is None else min(self.count, self.limit)

    def moved_to(self, hour: int) -> "SourceHours":
        """Return it at a later hour."""
        past = tuple(
            counted for counted in (*self.past, (self.hour, self.settled)) if counted[0] >= hour - HISTORY_HOURS
        )
        limit = None
        if hour - self.first_hour >= LEAST_HISTORY_HOURS:
            usual = np.quantile([count for _, count in past], QUANTILE, method="inverted_cdf") if past else 0
            limit = max(int(usual) * MULTIPLE, LEAST_LIMIT)
        return SourceHours(self.first_hour, hour, 0, limit, past)


class Surges:
    """Counts the labels of each source by hour; used by one partition of the feedback kernel.

    What it says depends on the labels that came before and on nothing else. The hour is that of a clock over all
    sources, which a single label with a wrong date does not move.

    >>> surges = Surges()
    >>> hours = [surges.take("customer", hour * US_PER_HOUR) for hour in range(200) for _ in range(10)]
    >>> sum(surges.take("customer", 200 * US_PER_HOUR) for _ in range(90))
    40
    """

    def __init__(self, hours: Mapping[str, SourceHours] | None = None, clock: ClockState | None = None) -> None:
        self._hours, self._clock = dict(hours or {}), clock
        self._committed = dict(self._hours), clock

    @property
    def hours(self) -> dict[str, SourceHours]:
        """Return the counts so far, for a dump."""
        return self._hours

    @property
    def clock(self) -> ClockState | None:
        """Return the clock of the labels, for a dump; None before the first one."""
        return self._clock

    def take(self, source: str, known_at_us: int) -> bool:
        """Count a label; return whether it is to be held.

        Args:
            source: The label's source.
            known_at_us: When it was known here.
        """
        self._clock = advanced(self._clock, known_at_us)
        name, hour = source if source in SOURCE_RANK else OTHER, self._clock.newest_us // US_PER_HOUR
        held = self._hours.get(name)
        if held is None or hour < held.hour:
            # The clock was set back behind a wrong first date, of which no hour follows.
            held = SourceHours(hour, hour)
        elif hour > held.hour:
            held = held.moved_to(hour)
        held = self._hours[name] = msgspec.structs.replace(held, count=held.count + 1)
        return held.limit is not None and held.count > held.limit

    def settle(self) -> None:
        """The batch is committed."""
        self._committed = dict(self._hours), self._clock

    def undo(self) -> None:
        """The batch is not committed."""
        hours, self._clock = self._committed
        self._hours = dict(hours)
