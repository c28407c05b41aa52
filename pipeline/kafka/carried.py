"""Messages that a client has handed over and that no batch holds yet: a batch is bounded by rows and by bytes."""

from collections.abc import Callable, Collection
from typing import Final

from confluent_kafka import Message

from pipeline.engine.blocks import row_count
from pipeline.kafka.batch import Partition
from schemas.topics import Topic

BATCH_BYTES: Final = 8 * 1024 * 1024
"""Bytes of the values of a batch; one message may be larger by itself."""
AT_ONCE: Final = 64
"""Messages that the client is asked for at once: of the largest ones no more than these exceed a batch."""


class CarriedMessages:
    """Messages in the order in which the client handed them over.

    A partition whose position is set anew has its messages dropped: the client hands them over again.

    Args:
        most_rows: Rows that a batch may hold: messages, or rows of blocks.
        most_bytes: Bytes of values that a batch may hold.
        blocks: Whether messages hold blocks.
    """

    def __init__(self, most_rows: int, most_bytes: int = BATCH_BYTES, *, blocks: bool = False) -> None:
        self._most_rows, self._most_bytes, self._blocks = most_rows, most_bytes, blocks
        self._messages: list[Message] = []
        self._rows = self._bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, messages: Collection[Message]) -> None:
        """Put messages behind those that are there."""
        self._messages += messages
        self._rows += sum(map(_rows, messages)) if self._blocks else len(messages)
        self._bytes += sum(map(len, messages))

    def wanted(self) -> int:
        """Return how many further messages to ask the client for; 0 once a batch is full."""
        rows, size = self._rows, self._bytes
        if rows >= self._most_rows or size >= self._most_bytes:
            return 0
        return min(AT_ONCE, self._most_rows - rows)

    def take(self) -> list[Message]:
        """Return the messages of the next batch: at least one, if there are any."""
        messages, end = self._messages, self._end()
        self._messages, self._rows, self._bytes = [], 0, 0
        self.add(messages[end:])
        return messages[:end]

    def drop(self, concerns: Callable[[Partition], bool]) -> None:
        """Drop the messages of the partitions that ``concerns`` is true for."""
        messages = self._messages
        self._messages, self._rows, self._bytes = [], 0, 0
        self.add([message for message in messages if not concerns((message.topic() or "", message.partition() or 0))])

    def _end(self) -> int:
        if self._rows <= self._most_rows and self._bytes <= self._most_bytes:
            return len(self._messages)
        rows = size = 0
        for number, message in enumerate(self._messages):
            rows += _rows(message) if self._blocks else 1
            size += len(message)
            if number and (rows > self._most_rows or size > self._most_bytes):
                return number
        return len(self._messages)


def _rows(message: Message) -> int:
    return row_count(message.value()) if message.error() is None else 1


def carried_messages(topics: Collection[Topic], most_rows: int) -> CarriedMessages:
    """Return the carried messages of a client that reads ``topics``."""
    return CarriedMessages(most_rows, blocks=any(topic.holds_blocks for topic in topics))
