"""Record batches of one transaction: partitions chosen as Java's producer does, compressed as configured."""

import random
import struct
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, Final, NamedTuple

import cramjam
import pyarrow as pa
from aiokafka.codec import gzip_encode, snappy_encode, zstd_encode
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from pipeline.engine.records.partitioner import partitions_of
from pipeline.kafka.records.batch import Partition
from pipeline.kafka.records.record_batches import GZIP, HEADER, LZ4, NONE, SNAPPY, ZSTD

_FORMAT: Final = 2
_TRANSACTIONAL: Final = 0x10
_LENGTH_AT, _CRC_AT, _ATTRIBUTES_AT = 8, 17, 21
_UNCOUNTED: Final = 12
"""Bytes in front of those that a batch's length counts."""
_SEQUENCES: Final = 0x7FFFFFFF
UNKNOWN_OFFSET: Final = -1


def _lz4(data: memoryview) -> bytes:
    # aiokafka compresses at level 9, which takes far longer than librdkafka's.
    compressor = cramjam.lz4.Compressor(level=1, content_checksum=False, block_linked=False)
    compressor.compress(bytes(data))
    return bytes(compressor.finish())


Codec = tuple[int, Callable[[memoryview], bytes] | None]
_CODECS: Final[Mapping[str, Codec]] = {
    "none": (NONE, None),
    "gzip": (GZIP, gzip_encode),
    "snappy": (SNAPPY, snappy_encode),
    "lz4": (LZ4, _lz4),
    "zstd": (ZSTD, zstd_encode),
}


def codec_of(config: Mapping[str, Any]) -> Codec:
    """Return the codec that a producer's librdkafka properties name."""
    return _CODECS[str(config.get("compression.codec", config["compression.type"])).lower()]


class Delivered(NamedTuple):
    """Position of a record that was written, as a delivery report has it."""

    partition_number: int
    record_offset: int

    def partition(self) -> int:
        """Return the partition's number."""
        return self.partition_number

    def offset(self) -> int:
        """Return the record's offset, -1 where the broker knew the batch already and no longer says."""
        return self.record_offset


Report = Callable[[None, Any], None]


class PendingRecord(NamedTuple):
    """A record of the transaction that is open."""

    topic: str
    partition: int
    """-1: that of the key."""
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    timestamp_ms: int
    report: Report | None


class ProducerId(NamedTuple):
    """Number and epoch that a coordinator has given to a transactional id."""

    number: int
    epoch: int


class ProducerBatch:
    """A record batch of one partition, until a broker has acknowledged it."""

    def __init__(self, partition: Partition, data: bytes, count: int, reports: list[tuple[int, Report]]) -> None:
        self.partition, self.data, self.count = partition, data, count
        self._reports = reports
        self.is_sent = False
        """True once a broker may have it."""

    def acknowledge(self, base_offset: int) -> None:
        """Report where its records are."""
        for index, report in self._reports:
            offset = base_offset + index if base_offset >= 0 else UNKNOWN_OFFSET
            report(None, Delivered(self.partition[1], offset))


class BatchBuilder:
    """Makes batches, and numbers them within each partition.

    Args:
        codec: What compresses them.
        most_bytes: Bytes of a batch before compression; a larger record has a batch of its own.
    """

    def __init__(self, codec: Codec, most_bytes: int) -> None:
        self._codec, self._most_bytes = codec, most_bytes
        self._producer = ProducerId(-1, -1)
        self._next: defaultdict[Partition, int] = defaultdict(int)
        """Number of the next record of each partition; brokers know those before."""

    def number_for(self, producer: ProducerId) -> None:
        """Begin the numbers anew where a producer's id or epoch is another one."""
        if producer != self._producer:
            self._producer = producer
            self._next.clear()

    def count(self, batch: ProducerBatch) -> None:
        """Number what comes behind a batch that was acknowledged."""
        self._next[batch.partition] = (self._next[batch.partition] + batch.count) & _SEQUENCES

    def build(
        self, records: Iterable[PendingRecord], counts: Mapping[str, int], led: Set[Partition]
    ) -> dict[Partition, deque[ProducerBatch]]:
        """Return the batches of records, by partition and in order.

        Args:
            records: The records, in order.
            counts: Number of partitions of each topic.
            led: Partitions with a leader: records without a key go to these, where there are any.
        """
        by_partition: dict[Partition, list[PendingRecord]] = {}
        for record, number in zip(records, self._numbers(records, counts, led), strict=True):
            by_partition.setdefault((record.topic, number), []).append(record)
        return {partition: self._batches(partition, part) for partition, part in by_partition.items()}

    def _numbers(
        self, records: Iterable[PendingRecord], counts: Mapping[str, int], led: Set[Partition]
    ) -> Iterable[int]:
        """Yield the partition number of each record: murmur2 of its key, or one for all of a topic without keys."""
        keys: dict[str, list[bytes]] = {}
        for record in records:
            if record[1] < 0 and (key := record[2]) is not None:
                keys.setdefault(record[0], []).append(key)
        hashed = {topic: iter(keyed_partitions(found, counts[topic])) for topic, found in keys.items()}
        unkeyed: dict[str, int] = {}
        for record in records:
            topic, number = record[0], record[1]
            if number >= 0:
                yield number
            elif record[2] is not None:
                yield next(hashed[topic])
            else:
                if topic not in unkeyed:
                    numbers = range(counts[topic])
                    # Nothing secret: any partition is as good as another.
                    unkeyed[topic] = random.choice([n for n in numbers if (topic, n) in led] or numbers)  # noqa: S311
                yield unkeyed[topic]

    def _batches(self, partition: Partition, records: list[PendingRecord]) -> deque[ProducerBatch]:
        found: deque[ProducerBatch] = deque()
        sequence = self._next[partition]
        builder, count, reports = self._builder(sequence), 0, list[tuple[int, Report]]()
        for _, _, key, value, headers, timestamp_ms, report in records:
            if builder.append(count, timestamp_ms, key, value, headers) is None:
                found.append(ProducerBatch(partition, _compressed(builder.build(), self._codec), count, reports))
                sequence = (sequence + count) & _SEQUENCES
                builder, count, reports = self._builder(sequence), 0, []
                builder.append(count, timestamp_ms, key, value, headers)
            if report is not None:
                reports.append((count, report))
            count += 1
        found.append(ProducerBatch(partition, _compressed(builder.build(), self._codec), count, reports))
        return found

    def _builder(self, sequence: int) -> Any:
        number, epoch = self._producer
        return DefaultRecordBatchBuilder(_FORMAT, NONE, 1, number, epoch, sequence, self._most_bytes)


def keyed_partitions(keys: list[bytes], partitions: int) -> list[int]:
    """Return the partition of each key, of ``partitions``, as Java's default partitioner chooses it.

    >>> keyed_partitions([b"foobar", b""], 7)
    [0, 2]
    """
    numbers: list[int] = partitions_of(pa.array(keys, pa.binary()), partitions).tolist()
    return numbers


def _compressed(batch: bytearray, codec: Codec) -> bytes:
    """Return a batch of the builder with its records compressed, where that makes it smaller."""
    number, compress = codec
    if compress is None:
        return bytes(batch)
    packed = compress(memoryview(batch)[HEADER.size :])
    if HEADER.size + len(packed) >= len(batch):
        return bytes(batch)
    header = bytearray(batch[: HEADER.size])
    struct.pack_into(">i", header, _LENGTH_AT, HEADER.size + len(packed) - _UNCOUNTED)
    struct.pack_into(">h", header, _ATTRIBUTES_AT, _TRANSACTIONAL | number)
    header += packed
    struct.pack_into(">I", header, _CRC_AT, calc_crc32c(memoryview(header)[_ATTRIBUTES_AT:]))
    return bytes(header)
