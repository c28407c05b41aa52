"""Which rows of ``profiled`` are repeats, told from the log alone: by their sources' offsets, batch by batch.

At-least-once delivery may write a batch of the card agent again. It reads each of its inputs in order and commits after
each batch, so that only the latest batch of an input comes again, and begins where that batch began, with the same
transaction. Any other step back in an input is no repeat: its topic was deleted and made anew, or its offsets were set
back on purpose. Exactly-once delivery writes no batch twice, and the same rule finds no repeat there.
"""

from collections.abc import Iterable
from itertools import pairwise

import msgspec

from pipeline.engine.blocks import TRANSACTION
from pipeline.engine.journal import JournaledDict
from pipeline.engine.profiled import ProfiledRows
from pipeline.engine.subjects import INGESTED_US, INPUT_OFFSET


class ReadInput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far a card agent has read one partition of an input, as far as ``profiled`` shows it."""

    topic: str
    partition: int
    last: int
    """The last offset."""
    batch_us: int
    """Time at which the latest batch was read, in microseconds since 1970; equal in all rows of a batch."""
    first: int
    """The offset with which that batch began."""
    identity: int
    """`transaction_hash` of what stood there."""


class ReadInputs:
    """All inputs that one partition of ``profiled`` shows."""

    def __init__(self, saved: Iterable[ReadInput] = ()) -> None:
        self._inputs: JournaledDict[tuple[str, int], ReadInput] = JournaledDict()
        self._inputs.update({(one.topic, one.partition): one for one in saved})

    def repeats(self, rows: ProfiledRows, of: range) -> list[int]:
        """Return which transactions among the rows ``of`` were here before; note where they were read.

        A step back by the clock of the card agents counts as a repeat too: it was written late by a worker that has
        lost the partition to another since.
        """
        found: list[int] = []
        if not of:
            return found
        follows = rows.follows[of.start : of.stop].tolist()
        starts = [row for row, one in enumerate(follows, of.start) if not one and row > of.start]
        for start, end in pairwise([of.start, *starts, of.stop]):
            if rows.kinds[start] != TRANSACTION:
                continue
            name = rows.input(start)
            if not self._is_repeat(rows, start, name):
                # What follows in the same batch with higher offsets is none either.
                if end - start > 1:
                    self._advance(rows, end - 1, name)
                continue
            found.append(start)
            found += [row for row in range(start + 1, end) if self._is_repeat(rows, row, name)]
        return found

    def _is_repeat(self, rows: ProfiledRows, row: int, name: tuple[str, int]) -> bool:
        offset, batch_us = int(rows.subjects.wholes[INPUT_OFFSET, row]), int(rows.subjects.wholes[INGESTED_US, row])
        before = self._inputs.get(name)
        if before is not None and batch_us == before.batch_us:
            if offset <= before.last:
                return True
            first, identity = before.first, before.identity
        else:
            first, identity = offset, rows.identity(row)
            if before is not None and offset <= before.last:
                if batch_us < before.batch_us:
                    return True
                if (first, identity) == (before.first, before.identity):
                    self._inputs.put(name, msgspec.structs.replace(before, batch_us=batch_us))
                    return True
        self._inputs.put(name, ReadInput(*name, offset, batch_us, first, identity))
        return False

    def _advance(self, rows: ProfiledRows, row: int, name: tuple[str, int]) -> None:
        """Note how far the latest batch of an input goes."""
        before = self._inputs.get(name)
        if before is not None:
            last = int(rows.subjects.wholes[INPUT_OFFSET, row])
            self._inputs.put(name, msgspec.structs.replace(before, last=last))

    def settle(self) -> None:
        """The batch is committed."""
        self._inputs.settle()

    def undo(self) -> None:
        """The batch is not committed."""
        self._inputs.undo()

    def dump(self) -> list[ReadInput]:
        """All of them, in order."""
        return [one for _, one in sorted(self._inputs.items())]
