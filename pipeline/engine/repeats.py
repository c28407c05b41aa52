"""Which records of ``profiled`` are repeats, told from the log alone: by their sources' offsets, batch by batch.

At-least-once delivery may write a batch of the card agent again. It reads each of its inputs in order and commits after
each batch, so that only the latest batch of an input comes again, and begins where that batch began, with the same
transaction. Any other step back in an input is no repeat: its topic was deleted and made anew, or its offsets were set
back on purpose. Exactly-once delivery writes no batch twice, and the same rule finds no repeat there.
"""

from collections.abc import Iterable

import msgspec

from pipeline.engine.journal import JournaledDict
from pipeline.features.identity import transaction_hash
from schemas.messages import ProfiledTransaction, Timestamp


class ReadInput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far a card agent has read one partition of an input, as far as ``profiled`` shows it."""

    topic: str
    partition: int
    last: int
    """The last offset."""
    batch: Timestamp
    """When the latest batch was read: all records of a batch say the same."""
    first: int
    """The offset with which that batch began."""
    identity: int
    """`transaction_hash` of what stood there."""


class ReadInputs:
    """All inputs that one partition of ``profiled`` shows."""

    def __init__(self, saved: Iterable[ReadInput] = ()) -> None:
        self._inputs: JournaledDict[tuple[str, int], ReadInput] = JournaledDict()
        self._inputs.update({(one.topic, one.partition): one for one in saved})

    def is_repeat(self, message: ProfiledTransaction) -> bool:
        """Whether the transaction was here before; notes where it was read.

        A step back by the clock of the card agents counts as a repeat too: it was written late by a worker that has
        lost the partition to another since.
        """
        read = message.read or message.source
        topic, partition, offset, batch = read.topic, read.partition, read.offset, message.ingested_at
        before = self._inputs.get((topic, partition))
        if before is not None and batch == before.batch:
            if offset <= before.last:
                return True
            first, identity = before.first, before.identity
        else:
            first, identity = offset, transaction_hash(message.card_id, message.transaction_id)
            if before is not None and offset <= before.last:
                if batch < before.batch:
                    return True
                if (first, identity) == (before.first, before.identity):
                    self._inputs.put((topic, partition), msgspec.structs.replace(before, batch=batch))
                    return True
        self._inputs.put((topic, partition), ReadInput(topic, partition, offset, batch, first, identity))
        return False

    def settle(self) -> None:
        """The batch is committed."""
        self._inputs.settle()

    def undo(self) -> None:
        """The batch is not committed."""
        self._inputs.undo()

    def dump(self) -> list[ReadInput]:
        """All of them, in order."""
        return [one for _, one in sorted(self._inputs.items())]
