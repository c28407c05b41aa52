"""A small model of Kafka's transactions behind connections: what brokers do with each request, and what may go wrong.

`ModelConnections` take the place of the pipeline's connections. The cluster keeps what a real one would: epochs,
sequence numbers, registered partitions, and what is committed. A fault befalls the next request of its kind.
"""

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from aiokafka.protocol.coordination import FindCoordinatorResponse_v1
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnResponse_v0,
    AddPartitionsToTxnResponse_v0,
    InitProducerIdResponse_v0,
)
from aiokafka.record.default_records import DefaultRecordBatch
from confluent_kafka import KafkaError

from pipeline.kafka.records.batch import Partition
from pipeline.kafka.records.raw_fetch import FetchUnanswered, Replicas
from pipeline.kafka.records.record_batches import split_batches
from pipeline.kafka.writers import transaction_brokers
from pipeline.kafka.writers.transaction_protocol import FEATURES, V1, V2, KafkaRequest

_VERSIONS: Final = dict.fromkeys(range(64), (0, 99))
_KINDS: Final = {
    kind: name
    for version in (V1, V2)
    for name, kind in zip(("Produce", "TxnOffsetCommit", "EndTxn"), version, strict=True)
} | {FEATURES: "Features"}
_KNOWN_BATCHES: Final = 5
"""Batches of a producer that a broker knows again."""


class Mishap(StrEnum):
    """A mishap of a request, besides an error that a broker answers with."""

    LOST = "it does not arrive"
    UNANSWERED = "it is done, and the answer is lost"


class Late(NamedTuple):
    """A request that is given up, and done behind as many later requests."""

    requests: int


Fault = Mishap | Late | int
"""A mishap, or Kafka's code of an answer; a request that is answered with an error is not done."""


class Batch(NamedTuple):
    """A record batch in the log of a partition."""

    producer: tuple[int, int]
    first: int
    values: tuple[bytes, ...]


class Transaction:
    """Knowledge of the coordinator about a transactional id."""

    def __init__(self, number: int) -> None:
        self.number, self.epoch = number, -1
        self.open = False
        self.partitions: set[Partition] = set()
        self.group = False
        self.offsets: dict[Partition, tuple[int, str]] = {}
        self.ended: tuple[int, bool] | None = None
        """Epoch of the last end, and whether it was a commit; None once another transaction is open."""

    def begin(self) -> None:
        """Open a transaction, if none is open."""
        self.open, self.ended = True, None


class ModelCluster:
    """Brokers, topics, one group and any number of transactional ids.

    Args:
        counts: Number of partitions of each topic.
        is_v2: Whether the cluster has agreed on version 2 of transactions.
        brokers: Number of brokers, over which partitions and coordinators are spread.
    """

    def __init__(self, counts: Mapping[str, int], *, is_v2: bool, brokers: int = 1) -> None:
        self.counts, self.is_v2 = dict(counts), is_v2
        self.addresses = {number: ("model", number) for number in range(brokers)}
        self.leaders = {(topic, number): number % brokers for topic, count in counts.items() for number in range(count)}
        self.faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        """Faults of the next requests, by the name of their kind."""
        self.asked: Counter[str] = Counter()
        self.ids: dict[str, Transaction] = {}
        self.open_logs: defaultdict[Partition, list[tuple[str, Batch]]] = defaultdict(list)
        self.committed: defaultdict[Partition, list[bytes]] = defaultdict(list)
        self.offsets: dict[Partition, tuple[int, str]] = {}
        self._numbers: dict[tuple[Partition, int], tuple[int, int, deque[Batch]]] = {}
        """Epoch, next sequence number and last batches by partition and producer."""
        self._ends: Counter[Partition] = Counter()
        self._late: list[tuple[int, Callable[[], object]]] = []
        """Requests that are done late, each behind a number of others."""
        self.is_away = False
        self.newest_versions = {0: 99, 26: 99, 28: 99}
        """Newest version of each kind of request that transactions need."""
        self.members: set[tuple[int, str]] | None = None
        """Generations and names of the group's members; None: whoever asks is one."""

    def handle(self, request: Any, broker: int) -> Any:
        """Do what a request asks, and return the answer."""
        kind = _kind(request)
        self.asked[kind] += 1
        fault = self.faults[kind].popleft() if self.faults[kind] else None
        if self.is_away or fault is Mishap.LOST:
            raise OSError("the connection was closed")
        if isinstance(fault, Late):
            self._late.append((fault.requests, lambda: self._done(kind, request)))
            raise TimeoutError
        if isinstance(fault, int) and not isinstance(fault, Mishap):
            return self._answer(kind, request, lambda *_: fault)
        answer = self._done(kind, request, broker)
        late, self._late = self._late, []
        for left, act in late:
            if left > 1:
                self._late.append((left - 1, act))
            else:
                act()
        if fault is Mishap.UNANSWERED:
            raise OSError("the connection was closed")
        return answer

    def _done(self, kind: str, request: Any, broker: int | None = None) -> Any:
        act = getattr(self, f"_do_{kind}", lambda *_: 0)
        if kind == "Produce":
            return self._answer(kind, request, lambda *at: self._do_Produce(request, broker, *at))
        code = act(request)
        return self._answer(kind, request, lambda *_: code)

    def _answer(self, kind: str, request: Any, code: Callable[..., int]) -> Any:
        """Return an answer with the error of each partition that a request names, or with its only one."""
        if kind == "FindCoordinator":
            host, port = self.addresses[len(self.addresses) - 1 if request.coordinator_type else 0]
            return FindCoordinatorResponse_v1(0, code(), None, 0, host, port)
        if kind == "Features":
            levels = b"\2\x14transaction.version" + bytes([0, 2 if self.is_v2 else 1, 0, 0, 0])
            keys = [(key, 0, highest, {}) for key, highest in self.newest_versions.items()]
            return SimpleNamespace(error=code(), versions=keys, tags={2: levels})
        if kind == "InitProducerId":
            found = self.ids.get(request.transactional_id, Transaction(-1))
            return InitProducerIdResponse_v0(0, code(), found.number, found.epoch)
        if kind == "AddOffsetsToTxn":
            return AddOffsetsToTxnResponse_v0(0, code())
        if kind == "AddPartitionsToTxn":
            lines = [(topic, [(n, code()) for n in numbers]) for topic, numbers in request.topics]
            return AddPartitionsToTxnResponse_v0(0, lines)
        if kind == "EndTxn":
            found = self.ids[request.transactional_id]
            return SimpleNamespace(error=code(), producer_id=found.number, producer_epoch=found.epoch)
        if kind == "TxnOffsetCommit":
            topics = [(topic, [(line[0], code(), {}) for line in lines], {}) for topic, lines, _ in request.topics]
            return SimpleNamespace(topics=topics)
        topics = []
        for topic, lines, _ in request.topics:
            parts = []
            for number, data, _ in lines:
                error = code((topic, number), data)
                parts.append((number, error, self._ends[topic, number] - 1, -1, 0, [], None, {}))
            topics.append((topic, parts, {}))
        return SimpleNamespace(topics=topics)

    # --- The coordinator ---------------------------------------------------------------------------------------

    def _do_InitProducerId(self, request: Any) -> int:  # noqa: N802
        found = self.ids.setdefault(request.transactional_id, Transaction(1_000 + len(self.ids)))
        if found.open:
            found.epoch += 1
            self._end(request.transactional_id, commits=False)
        found.epoch += 1
        found.ended = None
        return 0

    def _current(self, request: Any) -> int:
        found = self.ids.get(request.transactional_id)
        if found is None or found.number != request.producer_id:
            return int(KafkaError.INVALID_PRODUCER_ID_MAPPING)
        return 0 if found.epoch == request.producer_epoch else int(KafkaError.INVALID_PRODUCER_EPOCH)

    def _do_AddPartitionsToTxn(self, request: Any) -> int:  # noqa: N802
        if code := self._current(request):
            return code
        found = self.ids[request.transactional_id]
        found.begin()
        found.partitions |= {(topic, number) for topic, numbers in request.topics for number in numbers}
        return 0

    def _do_AddOffsetsToTxn(self, request: Any) -> int:  # noqa: N802
        if code := self._current(request):
            return code
        found = self.ids[request.transactional_id]
        found.begin()
        found.group = True
        return 0

    def _do_TxnOffsetCommit(self, request: Any) -> int:  # noqa: N802
        if code := self._current(request):
            return code
        if self.members is not None and (request.generation, request.member) not in self.members:
            return int(KafkaError.ILLEGAL_GENERATION)
        found = self.ids[request.transactional_id]
        if request.kind is V2.commit_offsets:
            found.begin()
            found.group = True
        elif not found.group:
            return int(KafkaError.INVALID_TXN_STATE)
        for topic, lines, _ in request.topics:
            for number, offset, _, metadata, _ in lines:
                found.offsets[topic, number] = (offset, metadata)
        return 0

    def _do_EndTxn(self, request: Any) -> int:  # noqa: N802
        found = self.ids[request.transactional_id]
        is_v2 = request.kind is V2.end
        if found.number == request.producer_id and found.ended == (request.producer_epoch, request.commits):
            # A repeated end, whose answer was lost.
            return 0
        if code := self._current(request):
            return code
        if not found.open and (request.commits or not is_v2):
            return int(KafkaError.INVALID_TXN_STATE)
        self._end(request.transactional_id, commits=request.commits)
        found.ended = request.producer_epoch, request.commits
        found.epoch += is_v2
        return 0

    def _end(self, name: str, *, commits: bool) -> None:
        found = self.ids[name]
        for partition, written in self.open_logs.items():
            if commits:
                self.committed[partition] += [value for at, batch in written if at == name for value in batch.values]
            self.open_logs[partition] = [line for line in written if line[0] != name]
        if commits:
            self.offsets |= found.offsets
        found.open, found.group, found.offsets, found.partitions = False, False, {}, set()

    # --- A leader ----------------------------------------------------------------------------------------------

    def _do_Produce(self, request: Any, broker: int | None, partition: Partition, data: bytes) -> int:  # noqa: N802
        (header,) = split_batches(data)
        assert header.is_intact
        assert header.is_transactional
        values = tuple(record.value or b"" for record in DefaultRecordBatch(data))
        if broker is not None and self.leaders[partition] != broker:
            return int(KafkaError.NOT_LEADER_FOR_PARTITION)
        if any(b"!large" in value for value in values):
            return int(KafkaError.MSG_SIZE_TOO_LARGE)
        name = request.transactional_id
        found = self.ids[name]
        if (found.number, found.epoch) != (header.producer_id, header.producer_epoch):
            return int(KafkaError.INVALID_PRODUCER_EPOCH)
        epoch, expected, known = self._numbers.get((partition, found.number), (-1, 0, deque[Batch]()))
        if epoch != header.producer_epoch:
            expected, known = 0, deque(maxlen=_KNOWN_BATCHES)
        if any(batch.first == header.base_sequence and len(batch.values) == header.record_count for batch in known):
            return 0
        if header.base_sequence != expected:
            return int(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER)
        if request.kind is V2.produce:
            found.begin()
            found.partitions.add(partition)
        elif partition not in found.partitions:
            return int(KafkaError.INVALID_TXN_STATE)
        batch = Batch((found.number, found.epoch), header.base_sequence, values)
        known.append(batch)
        self._numbers[partition, found.number] = (header.producer_epoch, expected + len(values), known)
        self.open_logs[partition].append((name, batch))
        self._ends[partition] += 1
        return 0


def _kind(request: Any) -> str:
    """Return the name of a request's kind, whatever its version."""
    return _KINDS.get(getattr(request, "kind", None)) or type(request).__name__.partition("Request")[0]


def _plain(request: Any) -> Any:
    """Return a request with its fields by name."""
    if not isinstance(request, KafkaRequest):
        return request.prepare(_VERSIONS)
    kind = request.RESPONSE_TYPE
    return SimpleNamespace(kind=kind, **dict(zip(kind.fields.names, request.values, strict=True)))


CLUSTERS: Final[dict[str, ModelCluster]] = {}
"""Clusters by the address under which clients find them."""


class ModelConnections:
    """Connections to a model, with what `pipeline.kafka.records.raw_fetch.Connections` have."""

    def __init__(self, config: Mapping[str, Any], request_ms: int = 0) -> None:
        del request_ms
        self._cluster = CLUSTERS[config["bootstrap.servers"]]
        self.addresses = self._cluster.addresses
        self.refused: dict[str, int] = {}
        self.counts: Mapping[str, int] = {}

    def known(self) -> set[tuple[str, int]]:
        return set(self.addresses.values())

    async def describe(self, topics: Sequence[str]) -> Mapping[Partition, Replicas]:
        if self._cluster.is_away:
            raise FetchUnanswered("no broker answers")
        self._cluster.asked["Metadata"] += 1
        self.counts = {topic: count for topic, count in self._cluster.counts.items() if topic in topics}
        return {at: Replicas(leader, (leader,)) for at, leader in self._cluster.leaders.items() if at[0] in topics}

    async def to(self, address: tuple[str, int]) -> "ModelConnections":
        self._broker = address[1]
        return self

    async def send(self, request: Any) -> Any:
        broker = self._broker
        await asyncio.sleep(0)
        return self._cluster.handle(_plain(request), broker)

    def failed(self, address: tuple[str, int], error: Exception) -> None:
        """Nothing is to be closed."""

    def doubt(self, address: tuple[str, int] | None = None) -> None:
        """All brokers of the model know the same."""

    def close(self) -> Iterable[Any]:
        return []


def install(monkeypatch: Any, address: str, cluster: ModelCluster) -> None:
    """Let transactional clients find a model at an address."""
    CLUSTERS[address] = cluster
    monkeypatch.setattr(transaction_brokers, "Connections", ModelConnections)
