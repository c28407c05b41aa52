"""Record batches as brokers store them: Kafka's message format v2, a header of 61 bytes and then the records.

Pure, over bytes. Brokers give every batch its offsets, and check its header, its checksum and, where it is compressed,
its records. They do not check which offsets the records of an uncompressed batch claim.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from aiokafka.record.util import calc_crc32c

HEADER: Final = struct.Struct(">qiibIhiqqqhii")
NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
"""Codecs."""
_FRONT: Final = struct.Struct(">qi")
"""Base offset, and length of what follows."""
_MAGIC: Final = 2
_CHECKED_AT: Final = 21
"""Where the bytes begin that the checksum is of."""
_CODEC: Final = 0x07
_APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x08, 0x10, 0x20


class RecordBatch(NamedTuple):
    """A record batch. Where it is not intact, any field may be wrong."""

    data: memoryview
    """All of it, the header included."""
    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    first_timestamp_ms: int
    max_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @property
    def end(self) -> int:
        """Offset behind its last one."""
        return self.base_offset + self.last_offset_delta + 1

    @property
    def codec(self) -> int:
        """Compression of its records."""
        return self.attributes & _CODEC

    @property
    def is_control(self) -> bool:
        """True if it is the mark of a transaction's end."""
        return bool(self.attributes & _CONTROL)

    @property
    def is_transactional(self) -> bool:
        """True if a transaction wrote it."""
        return bool(self.attributes & _TRANSACTIONAL)

    @property
    def is_append_time(self) -> bool:
        """True if the broker stamped it, so that each record has the greatest timestamp."""
        return bool(self.attributes & _APPEND_TIME)

    @property
    def is_intact(self) -> bool:
        """True if its format is known, and its checksum is that of its bytes; computed at each call."""
        return self.magic == _MAGIC and self.crc == calc_crc32c(self.data[_CHECKED_AT:])

    @property
    def size(self) -> int:
        """Bytes that it takes, as its length says."""
        return _FRONT.size + self.length

    @property
    def payload(self) -> memoryview:
        """Its records, as they are stored."""
        return self.data[HEADER.size :]


def split_batches(data: bytes | memoryview) -> Iterator[RecordBatch]:
    """Yield the batches in a broker's answer; one that is cut off at its end is left out.

    The last one yielded may be damaged so that nothing can be told of what follows.
    """
    view = memoryview(data)
    at = 0
    while len(view) - at >= HEADER.size:
        fields = HEADER.unpack_from(view, at)
        size = _FRONT.size + fields[1]
        if size > len(view) - at:
            return
        yield RecordBatch(view[at : at + max(size, HEADER.size)], *fields)
        if size < HEADER.size:
            return
        at += size


def visible_batches(batches: Iterable[RecordBatch], aborted: Sequence[tuple[int, int]]) -> Iterator[RecordBatch]:
    """Yield those of some batches that follow each other whose records a reader of committed records gets.

    ``aborted`` has the producer's id and the first offset of each aborted transaction that overlaps with them.
    """
    ahead = sorted(aborted, key=lambda transaction: transaction[1], reverse=True)
    producers: set[int] = set()
    for batch in batches:
        while ahead and ahead[-1][1] < batch.end:
            producers.add(ahead.pop()[0])
        if batch.is_control:
            producers.discard(batch.producer_id)
        elif not (batch.is_transactional and batch.producer_id in producers):
            yield batch
