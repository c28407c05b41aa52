"""A batch: records that are worked on and committed together, and what it takes to commit exactly them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from confluent_kafka import KafkaError

from schemas.messages import RecordPosition
from schemas.records import Record

Partition = tuple[str, int]
"""Topic on the cluster, and partition number."""


class UnreadableRange(NamedTuple):
    """Offsets of one partition that nobody can read."""

    partition: Partition
    start: int
    end: int
    """Offset behind the last one."""
    error: str
    """One word."""
    message: str
    others: tuple[int, ...] = ()
    """Ids of the other brokers in sync that hold damaged ones whole, or do not answer."""


class ReadError(NamedTuple):
    """A report about a partition in the place of a record: a broker's error, or the end of the log."""

    partition: Partition
    offset: int
    error: KafkaError


Item = Record | ReadError | UnreadableRange
"""An item that readers take from a log."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of the assigned partitions, by partition and in the order of the agent's topics."""

    records: list[Record]
    group_metadata: Any
    """Captured with the batch: metadata fetched after a rebalance could commit for another member's partition."""
    starts: dict[Partition, int] = field(default_factory=dict)
    """Offset of the first record of each partition of each topic."""
    ends: dict[Partition, int] = field(default_factory=dict)
    """Offset behind the last record."""
    quarantined: Sequence[RecordPosition] = ()
    """Records of the batch that are quarantined when it commits."""
    deaths: int = 0
    """Processes that died of the one record of the batch, each while it worked on nothing else."""
    unreadable: UnreadableRange | None = None
    """Range that this batch, then without records, quarantines."""

    @property
    def partitions(self) -> set[int]:
        """Numbers of the partitions that the records are of."""
        return {number for _, number in self.starts}

    def halves(self) -> list["Batch"]:
        """This batch as two, to be worked on one after the other."""
        middle = len(self.records) // 2
        parts = (self.records[:middle], self.records[middle:])
        return [make_batch(records, self.group_metadata) for records in parts]


def make_batch(records: list[Record], group_metadata: Any) -> Batch:
    """A batch with the ranges of offsets that its records span."""
    starts: dict[Partition, int] = {}
    ends: dict[Partition, int] = {}
    for record in records:
        partition = (record.topic, record.partition)
        starts.setdefault(partition, record.offset)
        ends[partition] = record.offset + 1
    return Batch(records, group_metadata, starts, ends)


def partitions_text(partitions: Iterable[Partition]) -> str:
    """Return partitions as people write them.

    >>> partitions_text([("labels", 1), ("labels", 0), ("rerouted", 0)])
    'labels 0, 1; rerouted 0'
    """
    numbers: dict[str, list[int]] = {}
    for topic, number in sorted(partitions):
        numbers.setdefault(topic, []).append(number)
    return "; ".join(
        f"{topic} {', '.join(map(str, partition_numbers))}" for topic, partition_numbers in numbers.items()
    )
