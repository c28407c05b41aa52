"""A small model of Kafka, as its clients see it: logs, committed offsets, transactions, groups and rebalances.

`SimConsumer`, `SimProducer` and `SimAdmin` take the place of confluent-kafka's classes, and `SimBoundedConsumer` that
of the pipeline's own reader. Nothing here waits, starts a thread or asks a clock: what a broker would do by itself
(rebalance, fail, end a transaction) the simulation orders.
An entry of a log is a record or a range that nobody can read; another kind of entry needs a case in `Log.at`.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from enum import StrEnum
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from confluent_kafka import OFFSET_END, OFFSET_INVALID, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from pipeline.kafka.cluster.call_thread import CallTimedOut
from pipeline.kafka.records.batch import Item, Partition, ReadError, UnreadableRange
from schemas.records import Headers, Record
from tests.chaos.arithmetic import murmur2

CLUSTERS: Final[dict[str, "Cluster"]] = {}
"""Clusters by the address under which clients find them."""


class Fate(StrEnum):
    """How the next transaction of a worker ends."""

    COMMIT = "commit"
    ABORT = "abort"
    UNKNOWN_COMMITTED = "unknown, and committed"
    UNKNOWN_LOST = "unknown, and aborted"
    DIE_BEFORE = "the process dies before the commit"
    DIE_AFTER = "the process dies behind the commit"


class Died(BaseException):
    """A process died in the middle of what it did."""


class Log:
    """One partition of a topic: entries by their last offset, and gaps where transactions ended."""

    def __init__(self) -> None:
        self.entries: list[Record | range] = []
        self._lasts: list[int] = []
        self.end = 0

    def append(self, entry: Record | range, last: int) -> None:
        self.entries.append(entry)
        self._lasts.append(last)
        self.end = last + 1

    def at(self, position: int) -> Record | range | None:
        """Return the first entry that reaches to ``position`` or lies behind it."""
        found = bisect_left(self._lasts, position)
        return self.entries[found] if found < len(self.entries) else None

    def records(self, offsets: range) -> list[Record]:
        """Return the records within ``offsets``."""
        return [entry for entry in self.entries if isinstance(entry, Record) and entry.offset in offsets]


class Committed(NamedTuple):
    """A transaction that was committed."""

    group: str
    offsets: dict[Partition, range]
    """From the offset that was committed before, up to the one that this transaction committed."""
    marks: dict[Partition, str]
    outputs: list[Record]


class Group:
    """A consumer group: committed offsets with their metadata, and who is to hold which partition number."""

    def __init__(self) -> None:
        self.committed: dict[Partition, tuple[int, str]] = {}
        self.members: list[SimConsumer] = []
        self.owner: dict[int, SimConsumer] = {}
        self.target: dict[int, SimConsumer] = {}

    def join(self, member: "SimConsumer", count: int) -> None:
        """A new member gets what nobody is to hold."""
        self.members.append(member)
        for number in range(count):
            self.target.setdefault(number, member)

    def leave(self, member: "SimConsumer") -> None:
        """A member is gone: it left, or its session timed out. Others get what it held."""
        self.members = [item for item in self.members if item is not member]
        self.owner = {number: item for number, item in self.owner.items() if item is not member}
        left = [number for number, item in self.target.items() if item is member]
        for number in left:
            del self.target[number]
            if self.members:
                self.target[number] = self.members[number % len(self.members)]

    def expel(self, member: "SimConsumer") -> None:
        """A member that stands still is given up, and does not know."""
        self.leave(member)
        member.lost = True


class Cluster:
    """Topics, groups and transactions; and what befalls the client that works now."""

    def __init__(self, address: str, partitions: Mapping[str, int]) -> None:
        CLUSTERS[address] = self
        self.logs = {(topic, n): Log() for topic, count in partitions.items() for n in range(count)}
        self.partitions = dict(partitions)
        self.groups: dict[str, Group] = {}
        self.transactions: list[Committed] = []
        self.now_ms = 0
        self.fate = Fate.COMMIT
        """Of the next transaction with records of an agent."""
        self.fetch, self.turn = 1 << 20, 0
        """Most records of a batch, and the partition that a member reads first."""
        self.producers: dict[str, SimProducer] = {}

    def group(self, name: str) -> Group:
        return self.groups.setdefault(name, Group())

    def write(
        self, topic: str, partition: int | None, key: bytes | None, value: bytes | None, headers: Headers = ()
    ) -> Record:
        """Append a record."""
        if partition is None:
            partition = (murmur2(key or b"") & 0x7FFFFFFF) % self.partitions[topic]
        log = self.logs[topic, partition]
        record = Record(topic, partition, log.end, self.now_ms, key, value, headers)
        log.append(record, record.offset)
        return record

    def damage(self, topic: str, partition: int, count: int) -> None:
        """Append a batch of ``count`` records that nobody can read."""
        log = self.logs[topic, partition]
        log.append(range(log.end, log.end + count), log.end + count - 1)

    def end_transaction(self, producer: "SimProducer", *, commit: bool) -> None:
        """Let what a producer wrote in its transaction count, or let only a gap remain of it."""
        outputs = []
        for topic, partition, key, value, headers, report in producer.written:
            record = self.write(topic, partition, key, value, headers)
            if not commit:
                log = self.logs[topic, record.partition]
                log.entries.pop()
                log._lasts.pop()
                continue
            outputs.append(record)
            if report is not None:
                report(None, _delivered(record))
        for partition in {(record.topic, record.partition) for record in outputs}:
            self.logs[partition].end += 1
        if commit:
            group = self.group(producer.group)
            offsets = {}
            for partition, (offset, mark) in producer.offsets.items():
                before, _ = group.committed.get(partition, (0, ""))
                offsets[partition] = range(before, offset) if offset >= before else range(offset, before, -1)
                group.committed[partition] = (offset, mark)
            marks = {partition: mark for partition, (_, mark) in producer.offsets.items()}
            self.transactions.append(Committed(producer.group, offsets, marks, outputs))
        producer.written, producer.offsets, producer.open, producer.pending = [], {}, False, None


def _error(code: int, **properties: bool) -> KafkaException:
    return KafkaException(KafkaError(code, None, **properties))


def _delivered(record: Record) -> Any:
    """Return what a producer is told of a record that was written."""
    return SimpleNamespace(topic=lambda: record.topic, partition=lambda: record.partition, offset=lambda: record.offset)


def _partitions_of(partitions: Iterable[TopicPartition]) -> list[Partition]:
    return [(partition.topic, partition.partition) for partition in partitions]


class SimConsumer:
    """A member of a group, which reads nothing itself."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._cluster = CLUSTERS[config["bootstrap.servers"]]
        self.client: str = config["client.id"]
        self._group = self._cluster.group(config["group.id"])
        self._topics: list[str] = []
        self._assigned: set[Partition] = set()
        self._paused: set[Partition] = set()
        self.lost = False
        """Set by the simulation: the group has given this member's partitions to others."""
        self.epoch = 0
        self._callbacks: tuple[Callable[..., None], ...] = ()

    def subscribe(self, topics: list[str], **callbacks: Callable[..., None]) -> None:
        self._topics = topics
        self._callbacks = tuple(callbacks[name] for name in ("on_assign", "on_revoke", "on_lost"))
        self._group.join(self, self._cluster.partitions[topics[0]])

    def _held(self, numbers: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(topic, number) for number in numbers for topic in self._topics]

    def _serve(self) -> None:
        """Hear of one change of the group, if there is any."""
        if not self._topics:
            return
        on_assign, on_revoke, on_lost = self._callbacks
        group = self._group
        if self.lost:
            self.lost = False
            on_lost(self, self._held(sorted({number for _, number in self._assigned})))
            group.join(self, self._cluster.partitions[self._topics[0]])
            return
        mine = [number for number, owner in sorted(group.owner.items()) if owner is self]
        if away := [number for number in mine if group.target.get(number) is not self]:
            on_revoke(self, self._held(away))
            self.epoch += 1
            for number in away:
                del group.owner[number]
        elif new := [n for n, item in sorted(group.target.items()) if item is self and n not in group.owner]:
            self.epoch += 1
            group.owner.update(dict.fromkeys(new, self))
            on_assign(self, self._held(new))

    def poll(self, timeout: float = -1) -> None:
        self._serve()
        assert self._assigned <= self._paused, "the client would inflate whatever comes"

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        self._assigned.clear()
        self.incremental_assign(partitions)

    def incremental_assign(self, partitions: Sequence[TopicPartition]) -> None:
        self._assigned |= set(_partitions_of(partitions))

    def incremental_unassign(self, partitions: Sequence[TopicPartition]) -> None:
        self._assigned -= set(_partitions_of(partitions))

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused |= set(_partitions_of(partitions))

    def get_watermark_offsets(self, partition: TopicPartition, **_: Any) -> tuple[int, int]:
        return 0, self._cluster.logs[partition.topic, partition.partition].end

    def list_topics(self, topic: str, **_: Any) -> Any:
        return _metadata(self._cluster, topic)

    def committed(self, partitions: Sequence[TopicPartition], timeout: float) -> list[TopicPartition]:
        found = []
        for partition in _partitions_of(partitions):
            offset, mark = self._group.committed.get(partition, (OFFSET_INVALID, ""))
            found.append(TopicPartition(*partition, offset, mark))
        return found

    def consumer_group_metadata(self) -> tuple["SimConsumer", int]:
        return self, self.epoch

    def close(self) -> None:
        if self._topics and self._assigned and not self.lost:
            self._callbacks[1](self, self._held(sorted({number for _, number in self._assigned})))
        self._group.leave(self)


class SimBoundedConsumer:
    """The reader of record batches, in the place of `pipeline.kafka.readers.bounded_consumer.BoundedConsumer`."""

    damaged: Final[Sequence[Partition]] = ()

    def __init__(self, config: Mapping[str, Any], inputs: Collection[str] = (), *, replica_wait_s: float = 0.0) -> None:
        del inputs, replica_wait_s
        self._cluster = CLUSTERS[config["bootstrap.servers"]]
        self._reports_ends = bool(config.get("enable.partition.eof"))
        self._positions: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        self._halted: set[Partition] = set()
        self._left = 0

    def seek(self, partition: Partition, offset: int) -> None:
        self._positions[partition] = offset
        self._halted.discard(partition)

    def drop(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            self._positions.pop(partition, None)
            self._paused.discard(partition)
            self._halted.discard(partition)

    def pause(self, partitions: Collection[Partition]) -> None:
        self._paused |= set(partitions)

    def resume(self, partitions: Collection[Partition]) -> None:
        self._paused -= set(partitions)

    def log_end(self, partition: Partition) -> int:
        return self._cluster.logs[partition].end

    def take(self, most: int) -> list[Item]:
        items: list[Item] = []
        most = min(most, self._left)
        ready = sorted(self._positions.keys() - self._paused - self._halted)
        turn = self._cluster.turn % len(ready) if ready else 0
        for partition in ready[turn:] + ready[:turn]:
            while len(items) < most and partition not in self._halted:
                item = self._next(partition)
                if item is None:
                    break
                items.append(item)
        self._left -= len(items)
        return items

    def _next(self, partition: Partition) -> Item | None:
        log, position = self._cluster.logs[partition], self._positions[partition]
        entry = log.at(position)
        if isinstance(entry, range):
            self._halted.add(partition)
            return UnreadableRange(partition, max(position, entry.start), entry.stop, "BatchTooLarge", "too large")
        if entry is not None:
            self._positions[partition] = entry.offset + 1
            return entry
        self._positions[partition] = max(position, log.end)
        if not self._reports_ends:
            return None
        self._halted.add(partition)
        return ReadError(partition, log.end, KafkaError(KafkaError._PARTITION_EOF))

    def prefetch(self) -> None:
        self._left = self._cluster.fetch

    def wait(self, timeout_s: float) -> None:
        """Nothing comes by itself."""
        self.prefetch()
        if self._reports_ends:
            self._halted.clear()

    def close(self) -> None:
        self._positions.clear()


def _metadata(cluster: Cluster, topic: str) -> Any:
    topics = {topic: SimpleNamespace(error=None, partitions=range(cluster.partitions[topic]))}
    return SimpleNamespace(topics=topics)


class SimProducer:
    """A transactional producer; records are written when the transaction ends."""

    may_be_late = False

    def __init__(self, config: Mapping[str, Any], waiting: Callable[[], None] | None = None) -> None:
        del waiting
        self._cluster = CLUSTERS[config["bootstrap.servers"]]
        self._id: str = config["transactional.id"]
        self.group = self._id.rpartition("-")[0].removesuffix(".2")
        """A transactional id is made of the group's name, a number behind the first id, and the worker's name."""
        self.written: list[tuple[str, int | None, bytes | None, bytes | None, Headers, Any]] = []
        self.offsets: dict[Partition, tuple[int, str]] = {}
        self.open = False
        self.pending: bool | None = None
        """How a transaction ends whose end its producer did not hear of."""

    def init_transactions(self, timeout: float) -> None:
        before = self._cluster.producers.get(self._id)
        if before is not None:
            self._cluster.end_transaction(before, commit=bool(before.pending))
        self._cluster.producers[self._id] = self

    def begin_transaction(self) -> None:
        if self._cluster.producers.get(self._id) is not self:
            raise _error(KafkaError._FENCED, fatal=True)
        assert not self.open
        self.open = True

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        partition: int,
        report: Any,
        _callback: None,
        _timestamp: int,
        headers: list[tuple[str, bytes | None]] | None,
    ) -> None:
        if f"!large-{topic}".encode() in (value or b""):
            raise _error(KafkaError.MSG_SIZE_TOO_LARGE)
        number = None if partition < 0 else partition
        self.written.append((topic, number, key, value, tuple(headers or ()), report))

    def send_offsets_to_transaction(
        self, offsets: Sequence[TopicPartition], metadata: tuple[SimConsumer, int], timeout: float
    ) -> None:
        member, epoch = metadata
        group = self._cluster.group(self.group)
        if member not in group.members or member.lost or member.epoch != epoch:
            raise _error(KafkaError.STALE_MEMBER_EPOCH, txn_requires_abort=True)
        self.offsets = {(at.topic, at.partition): (at.offset, at.metadata or "") for at in offsets}

    def commit_transaction(self, timeout: float) -> None:
        cluster, committed = self._cluster, self._cluster.group(self.group).committed
        # What befalls a worker befalls its work, and not the marks that it puts beside offsets that stay.
        works = any(committed.get(partition, (0, ""))[0] != offset for partition, (offset, _) in self.offsets.items())
        fate = cluster.fate if works else Fate.COMMIT
        if works:
            cluster.fate = Fate.COMMIT
        if fate is Fate.ABORT:
            raise _error(KafkaError.COORDINATOR_NOT_AVAILABLE, txn_requires_abort=True)
        if fate in (Fate.UNKNOWN_COMMITTED, Fate.UNKNOWN_LOST):
            self.pending = fate is Fate.UNKNOWN_COMMITTED
            raise CallTimedOut("the coordinator does not answer")
        if fate is Fate.DIE_BEFORE:
            raise Died
        cluster.end_transaction(self, commit=True)
        if fate is Fate.DIE_AFTER:
            raise Died

    def abort_transaction(self, timeout: float) -> None:
        self._cluster.end_transaction(self, commit=False)

    def poll(self, timeout: float) -> int:
        return 0

    def close(self) -> None:
        """There are no connections."""


class SimAdmin:
    """What of an admin client programs ask while they run."""

    def __init__(self, config: Mapping[str, Any], reader_config: Mapping[str, Any] | None = None) -> None:
        # None is made only to see whether its properties are known.
        if "bootstrap.servers" in config:
            self._cluster = CLUSTERS[config["bootstrap.servers"]]

    def list_topics(self, topic: str, **_: Any) -> Any:
        return _metadata(self._cluster, topic)

    def list_offsets(self, asked: Mapping[TopicPartition, OffsetSpec], **_: Any) -> dict[TopicPartition, Future[Any]]:
        found = {}
        for at, spec in asked.items():
            log = self._cluster.logs[at.topic, at.partition]
            found[at] = future = Future[Any]()
            offset = log.end if spec is OffsetSpec.latest() else 0
            if (stamp_ms := getattr(spec, "timestamp", None)) is not None:
                stamped = (entry for entry in log.entries if isinstance(entry, Record))
                offset = next((entry.offset for entry in stamped if entry.timestamp_ms >= stamp_ms), OFFSET_END)
            future.set_result(SimpleNamespace(offset=offset))
        return found
