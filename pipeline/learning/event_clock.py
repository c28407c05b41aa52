"""The clock of a partition: its newest time, as far as it is to be believed."""

from collections.abc import Iterable
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.times import US_PER_HOUR

AHEAD_HOURS: Final = 24
"""Hours ahead of the clock that are believed at once."""
WITNESSES: Final = 3
"""Times in a row that must lie further ahead, to be believed."""
_AHEAD_US: Final = AHEAD_HOURS * US_PER_HOUR


class ClockState(msgspec.Struct, frozen=True):
    """The state of a clock; times in microseconds since 1970."""

    stream_time_us: int
    """Newest time that is believed."""
    witnesses: int = 1
    """Times that support it, at most `WITNESSES`."""
    ahead: tuple[int, ...] = ()
    """The last times, where they lie too far ahead."""

    @property
    def is_confirmed(self) -> bool:
        """True once no earlier time sets the clock back."""
        return self.witnesses >= WITNESSES


def advanced(clock: ClockState | None, time_us: int) -> ClockState:
    """Return a clock behind one more time.

    A time more than a day ahead is believed once three in a row lie so far ahead, as they do behind days without
    traffic: then the clock goes to the earliest of these. Until three times support a clock, one that is more than a
    day earlier sets it back, so that a wrong first date does not stay.

    Args:
        clock: The state so far; None before the first time.
        time_us: Microseconds since 1970.

    >>> clock = None
    >>> for day in (99, 1, 1, 1, 99, 1):
    ...     clock = advanced(clock, day * 24 * US_PER_HOUR)
    >>> clock.stream_time_us // (24 * US_PER_HOUR)
    1
    """
    if clock is None:
        return ClockState(time_us)
    if time_us > clock.stream_time_us + _AHEAD_US:
        ahead = (*clock.ahead, time_us)
        if len(ahead) < WITNESSES:
            return ClockState(clock.stream_time_us, clock.witnesses, ahead)
        return ClockState(min(ahead), WITNESSES)
    if time_us >= clock.stream_time_us - _AHEAD_US:
        return ClockState(max(clock.stream_time_us, time_us), min(clock.witnesses + 1, WITNESSES))
    return ClockState(clock.stream_time_us, clock.witnesses) if clock.is_confirmed else ClockState(time_us)


class EventClock:
    """Gives each decision of a partition its time: the newest event time so far, since late ones count in that.

    Where producers stamp their records, one event with a wrong date would move the clock for good: `advanced` says
    which are believed. An event that is not counts in the hour that the clock shows.

    >>> clock = EventClock()
    >>> clock.hours(np.array([5, 6, 6, 900_000, 7]) * US_PER_HOUR).tolist(), clock.hour
    ([5, 6, 6, 6, 7], 7)
    >>> clock.hours(np.array([80, 81, 80, 82]) * US_PER_HOUR).tolist()
    [7, 7, 80, 82]
    """

    def __init__(self) -> None:
        self.state: ClockState | None = None
        """None before the first decision."""

    @property
    def hour(self) -> int | None:
        """Event hour since 1970; None before the first decision."""
        return None if self.state is None else self.state.stream_time_us // US_PER_HOUR

    def hours(self, event_time_us: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the hour that each of the next n decisions counts in; shape (n,)."""
        found, begin = np.empty(len(event_time_us), np.int64), 0
        while begin < len(found) and not self._is_steady:
            found[begin] = self._advance(int(event_time_us[begin]))
            begin += 1
        if begin < len(found) and self.state is not None:
            rest, stream_time_us = event_time_us[begin:], self.state.stream_time_us
            believed = np.maximum.accumulate(np.maximum(rest, stream_time_us))
            if (np.diff(believed, prepend=stream_time_us) > _AHEAD_US).any():
                believed = np.array([self._advance(time_us) for time_us in rest.tolist()], np.int64)
            else:
                self.state = ClockState(int(believed[-1]), WITNESSES)
            found[begin:] = believed
        return np.asarray(found // US_PER_HOUR)

    @property
    def _is_steady(self) -> bool:
        return self.state is not None and self.state.is_confirmed and not self.state.ahead

    def _advance(self, time_us: int) -> int:
        self.state = advanced(self.state, time_us)
        return self.state.stream_time_us


def newest_of(clocks: Iterable[EventClock]) -> int | None:
    """Return the newest time of several partitions, in microseconds since 1970; None before the first decision.

    A clock that nothing confirms yet counts only where all are so, and then the earliest of them does.
    """
    states = [clock.state for clock in clocks if clock.state is not None]
    confirmed = [state.stream_time_us for state in states if state.is_confirmed]
    return max(confirmed) if confirmed else min((state.stream_time_us for state in states), default=None)
