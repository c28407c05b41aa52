"""Surges of labels: more of a source in an hour than its past explains, which the online model must not learn at once.

Sources are an open enumeration, so that those without a rank count together: a new name is no way around the limit, and
memory is bounded by the ranked sources and the hours of nine weeks.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np

from pipeline.learning.event_clock import ClockState, advanced
from pipeline.learning.labels import SOURCE_RANK
from schemas.times import US_PER_HOUR

MULTIPLE: Final = 5
"""Times the usual most of an hour beyond which labels are held."""
QUANTILE: Final = 0.99
HISTORY_HOURS: Final = 28 * 24
LATE_HOURS: Final = 35 * 24
"""Hours behind the newest one in which a label still counts in its own; an older one counts in the first of them."""
LEAST_HISTORY_HOURS: Final = 7 * 24
"""Hours since a source's first label before which nothing of it is held: there is no past to compare with."""
LEAST_LIMIT: Final = 20
"""Labels an hour that are never a surge: few labels vary by more than five times by chance alone."""
OTHER: Final = "other"
"""The sources without a rank, together."""


class SourceHours(msgspec.Struct):
    """Labels of one source by the hour in which they were known."""

    first_hour: int
    admitted: dict[int, int] = {}
    """Labels that were not held by hour, of the hours that a label can still be compared with."""

    def copy(self) -> "SourceHours":
        """Return one that does not change with this one."""
        return SourceHours(self.first_hour, dict(self.admitted))

    def limit(self, hour: int) -> int:
        """Return how many labels of an hour are not held, by the hours before it."""
        past = [count for other, count in self.admitted.items() if hour - HISTORY_HOURS <= other < hour]
        usual = np.quantile(past, QUANTILE, method="inverted_cdf") if past else 0
        return max(int(usual) * MULTIPLE, LEAST_LIMIT)


class Surges:
    """Counts the labels of each source by hour; used by one partition of the feedback kernel.

    What it says depends on the labels that came before and on nothing else. A label counts in its own hour, so that a
    backlog is no surge. The newest hour is that of a clock over all sources, which a single label with a wrong date
    does not move.

    >>> surges = Surges()
    >>> hours = [surges.take("customer", hour * US_PER_HOUR) for hour in range(200) for _ in range(10)]
    >>> sum(surges.take("customer", 200 * US_PER_HOUR) for _ in range(90))
    40
    >>> any(surges.take("customer", hour * US_PER_HOUR) for hour in range(100, 200) for _ in range(10))
    False
    """

    def __init__(self, hours: Mapping[str, SourceHours] | None = None, clock: ClockState | None = None) -> None:
        self._hours, self._clock = dict(hours or {}), clock
        self._committed_clock = clock
        self._before: dict[str, SourceHours | None] = {}
        """What the open batch has changed, as it was before."""
        self._limits: dict[str, tuple[int, int]] = {}
        """By source the hour of its last label, and that hour's limit: the hours before it have not changed."""

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
        before, self._clock = self._clock, advanced(self._clock, known_at_us)
        newest = self._clock.stream_time_us // US_PER_HOUR
        if before is not None and self._clock.stream_time_us < before.stream_time_us:
            self._drop_behind(newest)
        hour = max(min(known_at_us // US_PER_HOUR, newest), newest - LATE_HOURS)
        name = source if source in SOURCE_RANK else OTHER
        counted = self._changing(name, hour)
        counted.first_hour = min(counted.first_hour, hour)
        count = counted.admitted.get(hour)
        if count is None:
            kept = newest - LATE_HOURS - HISTORY_HOURS
            counted.admitted = {other: held for other, held in counted.admitted.items() if other >= kept}
        elif hour - counted.first_hour >= LEAST_HISTORY_HOURS and count >= self._limit(name, hour):
            return True
        if name in self._limits and self._limits[name][0] != hour:
            del self._limits[name]
        counted.admitted[hour] = (count or 0) + 1
        return False

    def commit(self) -> None:
        """The batch is committed."""
        self._committed_clock = self._clock
        self._before.clear()

    def rollback(self) -> None:
        """The batch is not committed."""
        self._clock = self._committed_clock
        for name, hours in self._before.items():
            if hours is None:
                self._hours.pop(name, None)
            else:
                self._hours[name] = hours
        self._before.clear()
        self._limits.clear()

    def _changing(self, name: str, hour: int) -> SourceHours:
        """Return the counts of a source, which the batch may change."""
        held = self._hours.get(name)
        if name not in self._before:
            self._before[name] = None if held is None else held.copy()
        if held is None:
            held = self._hours[name] = SourceHours(hour)
        return held

    def _limit(self, name: str, hour: int) -> int:
        """Return the limit of an hour; it is asked for only beyond what is never held."""
        known = self._limits.get(name)
        if known is None or known[0] != hour:
            known = self._limits[name] = hour, self._hours[name].limit(hour)
        return known[1]

    def _drop_behind(self, newest: int) -> None:
        """Drop hours behind the newest one: the clock was set back behind a wrong first date, of which none follow."""
        for name in [name for name, counted in self._hours.items() if max(counted.admitted) > newest]:
            counted = self._changing(name, newest)
            counted.admitted = {hour: count for hour, count in counted.admitted.items() if hour <= newest}
            counted.first_hour = min(counted.admitted, default=newest)
            if not counted.admitted:
                del self._hours[name]
        self._limits.clear()
