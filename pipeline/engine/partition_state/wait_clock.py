"""The clock by which labels wait: the least of the partitions that a state depends on.

Partitions drift apart by days of event time, in a replay or after an outage. By the newest of them, labels of the
others would be given up before their transactions come. One that stands still holds nobody for longer than
`DROP_OUT_US`.
"""

from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.features.compiled import compiled
from schemas.times import US_PER_DAY, US_PER_HOUR

EARLY_LABEL_GRACE_US: Final = 7 * US_PER_DAY
"""Event time for which a label waits for its transaction; the card agent then refuses it, feedback drops it."""
LATE_US: Final = US_PER_HOUR
"""A transaction that comes further behind the clock is late, and finds no label that was given up before it came."""
DROP_OUT_US: Final = 35 * US_PER_DAY
"""Event time behind the newest partition from which on a partition holds the clock no longer."""
NOT_SEEN: Final = -1
"""Stands for the partitions that have not come yet."""
_PARTITION, _TIME_US = range(2)
_COUNT, _REACHED_US = range(2)
_ROOM: Final = 16


class WaitState(msgspec.Struct):
    """The clock as it is dumped."""

    partitions: list[tuple[int, int]] = []
    """Each partition with its newest time."""
    reached_us: int = 0


class WaitClock:
    """Newest time of each partition, and the least of them as far as it has come; it never goes back.

    The first record counts for a ``home`` partition too, which is expected and may be slower than others.

    >>> clock, day = WaitClock(), US_PER_DAY
    >>> partition, time_us = np.array([0, 1, 1, 0, 1]), np.array([10, 11, 30, 12, 60]) * day
    >>> (clock.advance(0, partition, time_us) // day).tolist()
    [10, 10, 10, 12, 60]
    """

    def __init__(self, state: WaitState | None = None) -> None:
        held = state or WaitState()
        self._table = np.zeros((max(2 * len(held.partitions), _ROOM), 2), np.int64)
        self._table[: len(held.partitions)] = np.array(held.partitions, np.int64).reshape(-1, 2)
        self._meta = np.array([len(held.partitions), held.reached_us], np.int64)
        self.commit()

    @property
    def state(self) -> WaitState:
        """Return a copy, for a dump."""
        held = self._table[: int(self._meta[_COUNT])].tolist()
        return WaitState([(partition, time_us) for partition, time_us in held], self.reached_us)

    @property
    def reached_us(self) -> int:
        """Return the time that the clock shows."""
        return int(self._meta[_REACHED_US])

    @property
    def misses_some(self) -> bool:
        """True while a partition has dropped out: a record of it may still be to come."""
        times_us = self._table[: int(self._meta[_COUNT]), _TIME_US]
        seen = times_us[self._table[: len(times_us), _PARTITION] != NOT_SEEN]
        return bool((seen <= times_us.max(initial=0) - DROP_OUT_US).any())

    def advance(self, home: int, partition: NDArray[np.int64], time_us: NDArray[np.int64]) -> NDArray[np.int64]:
        """Let n records move the clock.

        Args:
            home: The partition that is expected; `NOT_SEEN`: not known which.
            partition: Partition of each record, shape (n,), in the order of the log.
            time_us: Shape (n,): event times, or clocks that have come so far, in microseconds since 1970.

        Returns:
            What the clock shows with each record, shape (n,).
        """
        reached, done = np.empty(len(partition), np.int64), 0
        while done < len(partition):
            done = _advance(self._table, self._meta, home, partition, time_us, reached, done)
            if done < len(partition):
                self._table = np.concatenate([self._table, np.zeros_like(self._table)])
        return reached

    def commit(self) -> None:
        """The batch is committed."""
        self._committed = self._table.copy(), self._meta.copy()

    def rollback(self) -> None:
        """The batch is not committed."""
        table, meta = self._committed
        self._table, self._meta = table.copy(), meta.copy()


@compiled
def _advance(table: Any, meta: Any, home: int, partition: Any, time_us: Any, reached: Any, first: int) -> int:
    """Work on the records from ``first`` on; return the number of the first that found no room in ``table``."""
    n = len(partition)
    if n and meta[_COUNT] == 0:
        table[0, _PARTITION], table[0, _TIME_US] = home, time_us[0]
        meta[_COUNT] = 1
    for row in range(first, n):
        count = meta[_COUNT]
        at = 0
        while at < count and table[at, _PARTITION] != partition[row]:
            at += 1
        if at == count:
            if count == len(table):
                return row
            table[at, _PARTITION], table[at, _TIME_US] = partition[row], time_us[row]
            meta[_COUNT] = count = count + 1
        elif time_us[row] > table[at, _TIME_US]:
            table[at, _TIME_US] = time_us[row]
        elif meta[_REACHED_US] > 0:
            reached[row] = meta[_REACHED_US]
            continue
        newest = table[0, _TIME_US]
        for other in range(1, count):
            newest = max(newest, table[other, _TIME_US])
        least = newest
        for other in range(count):
            if table[other, _TIME_US] > newest - DROP_OUT_US:
                least = min(least, table[other, _TIME_US])
        meta[_REACHED_US] = max(meta[_REACHED_US], least)
        reached[row] = meta[_REACHED_US]
    return n


@compiled
def labels_from(event_us: int, wait_us: int) -> int:
    """Return since when a label must be known to find a transaction, whichever of the two is read first.

    A label that was given up before a late transaction came finds it either way round no more.

    Args:
        event_us: Event time of the transaction.
        wait_us: What the clock showed when it was accepted.
    """
    first: int = max(event_us + LATE_US, wait_us) - EARLY_LABEL_GRACE_US
    return first
