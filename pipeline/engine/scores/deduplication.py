"""Deduplication of the rows of ``profiled``, from the log alone: by the offsets at which the card agent read them.

Under at-least-once delivery the card agent may read a batch again, after a part of its blocks was written. It reads
each input in order and commits after each batch. So a second reading begins where the latest batch began, with the same
transaction. It may be cut into other batches and blocks, each of which begins behind the one before. Any other step
back in an input is no duplicate: its topic was deleted and made anew, or its offsets were set back on purpose.
Exactly-once delivery writes no row twice, and the same rule finds no duplicate there.
"""

from collections.abc import Iterable
from itertools import pairwise

import msgspec

from pipeline.engine.encoding.blocks import TRANSACTION, Input
from pipeline.engine.encoding.row_columns import INGESTED_US, INPUT_OFFSET
from pipeline.engine.scores.profiled import ProfiledRows


class ReadInput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The extent of a card agent's reading of one input partition, as far as ``profiled`` shows it."""

    topic: str
    partition: int
    last: int
    """The highest offset."""
    batch_us: int
    """Time at which the latest batch was read, in microseconds since 1970; equal in all rows of a batch."""
    first: int
    """The offset with which that batch began."""
    identity: int
    """`transaction_hash` of the transaction at ``first``."""
    reached: int
    """End of that batch: below ``last`` where it reads rows again that are written already."""


class ReadInputs:
    """All inputs that one partition of ``profiled`` shows."""

    def __init__(self, saved: Iterable[ReadInput] = ()) -> None:
        self._inputs = {(read.topic, read.partition): read for read in saved}
        self._before: dict[tuple[str, int], ReadInput | None] = {}
        """Inputs that the open batch has changed, as they were before it."""

    def duplicates(self, rows: ProfiledRows, numbers: range) -> list[int]:
        """Return the numbers of the transactions that were written before, ascending; note how far inputs were read.

        A step back by the clock of the card agents counts as a duplicate too: it was written late by a worker that has
        lost the partition to another since. ``numbers`` are the rows of this partition.
        """
        found: list[int] = []
        if not numbers:
            return found
        follows = rows.follows[numbers.start : numbers.stop].tolist()
        starts = [row for row, follow in enumerate(follows, numbers.start) if not follow and row > numbers.start]
        for start, end in pairwise([numbers.start, *starts, numbers.stop]):
            if rows.kinds[start] != TRANSACTION:
                continue
            name = rows.input(start)
            if not self._is_duplicate(rows, start, name):
                # What follows in the same batch with higher offsets is none either.
                if end - start > 1:
                    self._is_duplicate(rows, end - 1, name)
                continue
            found.append(start)
            found += [row for row in range(start + 1, end) if self._is_duplicate(rows, row, name)]
        return found

    def unseen(self, inputs: Iterable[Input]) -> frozenset[Input]:
        """Return the inputs that lie behind the highest offset so far: exactly once, each row is written in order."""
        return frozenset(at for at in inputs if (read := self._inputs.get((at[0], at[1]))) is None or at[2] > read.last)

    def _is_duplicate(self, rows: ProfiledRows, row: int, name: tuple[str, int]) -> bool:
        """Return whether a row is a duplicate; note how far its input was read."""
        offset, batch_us = int(rows.subjects.wholes[INPUT_OFFSET, row]), int(rows.subjects.wholes[INGESTED_US, row])
        before = self._inputs.get(name)
        if before is None:
            is_duplicate, now = False, ReadInput(*name, offset, batch_us, offset, rows.identity(row), offset)
        elif batch_us <= before.batch_us:
            is_duplicate, now = offset <= before.last, _further(before, batch_us, offset)
        else:
            is_duplicate, now = _begin(before, batch_us, offset, rows.identity(row))
        if now is not before:
            self._before.setdefault(name, before)
            self._inputs[name] = now
        return is_duplicate

    def commit(self) -> None:
        """The batch is committed."""
        self._before.clear()

    def rollback(self) -> None:
        """The batch is not committed."""
        for name, before in self._before.items():
            if before is None:
                del self._inputs[name]
            else:
                self._inputs[name] = before
        self._before.clear()

    def dump(self) -> list[ReadInput]:
        """All of them, in order."""
        return [read for _, read in sorted(self._inputs.items())]


def _further(before: ReadInput, batch_us: int, offset: int) -> ReadInput:
    """Return an input behind another row of its latest batch, or behind one that a former owner wrote late."""
    last = max(before.last, offset)
    reached = max(before.reached, offset) if batch_us == before.batch_us else before.reached
    if (last, reached) == (before.last, before.reached):
        return before
    return msgspec.structs.replace(before, last=last, reached=reached)


def _begin(before: ReadInput, batch_us: int, offset: int, identity: int) -> tuple[bool, ReadInput]:
    """Begin a later batch; return whether its first row is a duplicate, and the input behind that row.

    It reads rows again if it begins where the latest batch began, or goes on behind one that read rows again.
    """
    begins_again = (offset, identity) == (before.first, before.identity)
    is_duplicate = offset <= before.last and (offset > before.reached or begins_again)
    last = before.last if is_duplicate else offset
    return is_duplicate, ReadInput(before.topic, before.partition, last, batch_us, offset, identity, offset)
