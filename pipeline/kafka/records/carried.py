"""What a client has handed over and no batch holds yet: a batch is bounded by rows and by bytes."""

from collections.abc import Callable, Collection
from typing import Final

from pipeline.engine.encoding.blocks import row_count
from pipeline.kafka.records.batch import Item, Partition
from schemas.records import Record

BATCH_BYTES: Final = 8 * 1024 * 1024
"""Bytes of the values of a batch; one message may be larger by itself."""
AT_ONCE: Final = 64
"""Blocks that are taken at once: each may hold many rows."""


class Carried:
    """Records, and what takes their place, in the order in which the client handed them over.

    A partition whose position is set anew has its items dropped: the client hands them over again.

    Args:
        most_rows: Records of a batch at most, or rows of blocks.
        most_bytes: Bytes of a batch at most; one record may be larger by itself.
        blocks: Whether records may be blocks of several rows.
    """

    def __init__(self, most_rows: int, most_bytes: int = BATCH_BYTES, *, blocks: bool = False) -> None:
        self._most_rows, self._most_bytes, self._blocks = most_rows, most_bytes, blocks
        self._items: list[Item] = []
        self._rows = self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def add(self, items: Collection[Item]) -> None:
        """Put items behind those that are there."""
        self._items += items
        self._rows += sum(map(_rows, items)) if self._blocks else len(items)
        self._bytes += sum(map(_size, items))

    def wanted(self) -> int:
        """Return how many further items to ask for; 0 once a batch is full."""
        rows = 0 if self._bytes >= self._most_bytes else max(self._most_rows - self._rows, 0)
        return min(rows, AT_ONCE) if self._blocks else rows

    def take(self) -> list[Item]:
        """Return the items of the next batch: at least one, if there are any."""
        items, end = self._items, self._end()
        self._items, self._rows, self._bytes = [], 0, 0
        self.add(items[end:])
        return items[:end]

    def drop(self, concerns: Callable[[Partition], bool]) -> None:
        """Drop the items of the partitions that ``concerns`` is true for."""
        items = self._items
        self._items, self._rows, self._bytes = [], 0, 0
        self.add([item for item in items if not concerns(partition_of(item))])

    def _end(self) -> int:
        if self._rows <= self._most_rows and self._bytes <= self._most_bytes:
            return len(self._items)
        rows = size = 0
        for number, item in enumerate(self._items):
            rows += _rows(item) if self._blocks else 1
            size += _size(item)
            if number and (rows > self._most_rows or size > self._most_bytes):
                return number
        return len(self._items)


def partition_of(item: Item) -> Partition:
    """Return the partition that an item is of."""
    return (item.topic, item.partition) if isinstance(item, Record) else item.partition


def _rows(item: Item) -> int:
    return row_count(item.value) if isinstance(item, Record) else 1


def _size(item: Item) -> int:
    return len(item.value or b"") + item.other_bytes if isinstance(item, Record) else 0
