"""The clock of a partition: its newest event hour, as far as it is to be believed."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.times import US_PER_HOUR

AHEAD_HOURS: Final = 24
"""Event hours ahead of the clock that are believed at once."""
WITNESSES: Final = 3
"""Decisions in a row that must lie further ahead, to be believed."""


class EventClock:
    """Gives each decision of a partition its hour: the newest event hour so far, since late ones count in that.

    Where producers stamp their records, one event with a wrong date would move the clock for good. An event that lies
    more than a day ahead therefore counts in the hour that the clock shows, until three in a row lie so far ahead, as
    they do behind days without traffic. Then the clock goes to the earliest of these.

    >>> clock = EventClock()
    >>> clock.hours(np.array([5, 6, 900_000, 7]) * US_PER_HOUR).tolist(), clock.hour
    ([5, 6, 6, 7], 7)
    >>> clock.hours(np.array([80, 81, 80, 82]) * US_PER_HOUR).tolist()
    [7, 7, 80, 82]
    """

    def __init__(self) -> None:
        self.hour: int | None = None
        """Event hour since 1970; None before the first decision."""
        self._ahead: list[int] = []

    def hours(self, event_time_us: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the hour that each of the next n decisions counts in; shape (n,)."""
        hours: NDArray[np.int64] = event_time_us // US_PER_HOUR
        if not len(hours):
            return hours
        first = int(hours[0]) if self.hour is None else self.hour
        found = np.maximum.accumulate(np.maximum(hours, first))
        if self._ahead or (np.diff(found, prepend=first) > AHEAD_HOURS).any():
            found = np.array([self._hour(hour) for hour in hours.tolist()], np.int64)
        self.hour = int(found[-1])
        return found

    def _hour(self, hour: int) -> int:
        """Return the hour that one decision counts in."""
        clock = hour if self.hour is None else self.hour
        if hour <= clock + AHEAD_HOURS:
            self._ahead.clear()
            self.hour = max(clock, hour)
        else:
            self._ahead.append(hour)
            self.hour = clock
            if len(self._ahead) == WITNESSES:
                self.hour = min(self._ahead)
                self._ahead.clear()
        return self.hour
