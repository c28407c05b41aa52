"""Several logs as one order of time: each may be out of order by a margin, and nothing else is held in memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.records.columns import Labels, Transactions
from pipeline.history.files import CHUNK_ROWS

Rows = TypeVar("Rows", Transactions, Labels)
_BEFORE_ALL: Final = -(2**62)
_BEHIND_ALL: Final = 2**62


class LogPart(NamedTuple, Generic[Rows]):
    """Rows of one log, in its order."""

    rows: Rows
    arrived_us: NDArray[np.int64]
    """Shape (n,): when each arrived; unset for rows that were refused."""


class Numbering(NamedTuple):
    """Names a record of a topic by one number, so that rows of all partitions can stand in one column."""

    partitions: int

    def row(self, partition: int, offset: int) -> int:
        """The number of a record."""
        return offset * self.partitions + partition

    def position(self, row: int) -> tuple[int, int]:
        """(partition, offset) of a row."""
        offset, partition = divmod(row, self.partitions)
        return partition, offset

    def part(
        self, rows: Rows, partition: int, offset: NDArray[np.int64], arrived_us: NDArray[np.int64]
    ) -> LogPart[Rows]:
        """Number accepted rows by their records.

        Args:
            rows: k rows, whose ``row`` is an index of ``offset``.
            partition: Partition of the records.
            offset: Offset of each of n records that were read, shape (n,).
            arrived_us: Arrival of each, in microseconds since 1970; shape (n,).

        Returns:
            The k rows with numbers as of `row`, and their arrivals.
        """
        return LogPart(replace(rows, row=(offset * self.partitions + partition)[rows.row]), arrived_us[rows.row])


def by_time(
    logs: Sequence[Iterator[LogPart[Rows]]], margin_us: int, too_late: Callable[[Rows], None]
) -> Iterator[Rows]:
    """The rows of all logs in the order of ``key``, and of ``row`` among equal ones, in chunks.

    A row may stand behind the newest arrival of its log by ``margin_us``; what lies further behind goes to
    ``too_late`` instead. Which that is depends on the log alone, not on how it is cut into parts. ``row`` must be
    unique. Memory is that of the rows of a margin, and of a part of each log.
    """
    if not logs:
        return
    stream_time_us = [_BEFORE_ALL] * len(logs)
    held: Rows | None = None
    fresh: list[Rows] = []
    n_fresh = 0
    while min(stream_time_us) < _BEHIND_ALL:
        number = stream_time_us.index(min(stream_time_us))
        part = next(logs[number], None)
        if part is None:
            stream_time_us[number] = _BEHIND_ALL
        elif len(part.rows):
            clock_us = np.maximum.accumulate(np.append(stream_time_us[number], part.arrived_us))[1:]
            stream_time_us[number] = int(clock_us[-1])
            late = part.rows.key < clock_us - margin_us
            if late.any():
                too_late(part.rows.take(late))
            rows = part.rows.take(~late) if late.any() else part.rows
            fresh.append(rows)
            n_fresh += len(rows)
        # Sorted again once there is half as much as before: the cost of a row stays that of a few sorts.
        ends = min(stream_time_us) == _BEHIND_ALL
        if n_fresh and (ends or n_fresh >= max(CHUNK_ROWS, (0 if held is None else len(held)) // 2)):
            if held is not None:
                fresh.append(held)
            held = _sorted(fresh)
            fresh, n_fresh = [], 0
        if held is not None and not n_fresh:
            ready = int(np.searchsorted(held.key, min(stream_time_us) - (0 if ends else margin_us)))
            for first in range(0, ready, CHUNK_ROWS):
                yield held.take(slice(first, min(first + CHUNK_ROWS, ready)))
            held = held.take(slice(ready, None))


def _sorted(parts: list[Rows]) -> Rows:
    rows = type(parts[0]).concat(parts)
    return rows.take(np.lexsort((rows.row, rows.key)))
