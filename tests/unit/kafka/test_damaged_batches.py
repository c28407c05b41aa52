"""A damaged batch is blamed for its bytes alone, its range ends exactly with it, and a whole replica is waited for."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

import pytest
from confluent_kafka import KafkaError
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.kafka.cluster.clients import consumer_config
from pipeline.kafka.readers import bounded_consumer
from pipeline.kafka.readers.bounded_consumer import BoundedConsumer
from pipeline.kafka.records import raw_fetch
from pipeline.kafka.records.batch import Partition, ReadError, UnreadableRange
from pipeline.kafka.records.batch_records import MOST_HEADERS
from pipeline.kafka.records.damaged_batch import DAMAGED, FETCHES, EndUnknown, examine
from pipeline.kafka.records.raw_fetch import Connections, Fetched, Replicas, Wanted
from pipeline.kafka.records.record_batches import split_batches
from pipeline.settings import Settings
from schemas.records import Record
from tests.helpers.batches import odd_batch, record_batch

PARTITION: Final = ("profiled", 0)
OTHER: Final = ("profiled", 1)
"""A partition with the same batches, all of them whole."""
LEADER: Final = 1
MESSAGE: Final = "its checksum is not that of its bytes"


def at_offset(batch: bytes, base_offset: int) -> bytes:
    return base_offset.to_bytes(8, "big") + batch[8:]


@dataclass
class Log:
    """A partition as its brokers answer for it: segments of batches; some replicas hold other bytes.

    In the place of `pipeline.kafka.records.raw_fetch.Connections`.
    """

    segments: list[list[bytes]]
    end: int = 9
    """As a broker knows it, whatever a damaged header says."""
    replicas: dict[int, list[list[bytes]]] = field(default_factory=dict)
    away: frozenset[int] = frozenset()
    leader: int = LEADER
    errors: list[Exception] = field(default_factory=list)
    """What the next examinations meet."""
    fetches: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.addresses = {broker: ("broker", broker) for broker in (LEADER, *self.replicas)}

    async def describe(self, topics: Sequence[str]) -> Mapping[Partition, Replicas]:
        assert PARTITION[0] in topics
        replicas = Replicas(self.leader, (LEADER, *self.replicas, *self.away))
        return {} if self.refused else {PARTITION: replicas, OTHER: replicas}

    async def to(self, address: tuple[str, int]) -> int:
        return address[1]

    async def fetch_from(self, broker: int, wanted: Wanted, isolation: int = 1) -> Fetched:
        del isolation
        self.fetches += 1
        if self.errors:
            raise self.errors.pop(0)
        if broker in self.away:
            raise TimeoutError
        for segment in self.segments if broker == LEADER else self.replicas[broker]:
            for number, batch in enumerate(segment):
                # As a broker does, by offsets that a disk may have damaged.
                if next(split_batches(batch)).end > wanted.offset:
                    data = b"".join(segment[number:])[: max(len(batch), wanted.max_bytes)]
                    return Fetched(0, 0, self.end, self.end, (), data)
        return Fetched(0, 0, self.end, self.end, (), b"")

    def close(self) -> list[Any]:
        return []


def log_of(counts: list[int], breaks: set[int], damaged: int, flipped: int) -> Log:
    """A log with a batch of each of ``counts`` records; the one numbered ``damaged`` has a flipped byte."""
    segments: list[list[bytes]] = [[]]
    offset = 0
    for number, count in enumerate(counts):
        batch = at_offset(record_batch([b"v"] * count, "lz4"), offset)
        if number == damaged:
            at = 16 + flipped % (len(batch) - 16)
            batch = batch[:at] + bytes([batch[at] ^ 0xFF]) + batch[at + 1 :]
        if number in breaks and segments[-1]:
            segments.append([])
        segments[-1].append(batch)
        offset += count
    return Log(segments, offset)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8), st.sets(st.integers(0, 7)), st.data(), st.integers(0, 10_000)
)
def test_a_damaged_range_ends_with_its_batch_whatever_byte_is_damaged(
    counts: list[int], breaks: set[int], data: st.DataObject, flipped: int
) -> None:
    damaged = data.draw(st.integers(0, len(counts) - 1))
    log = log_of(counts, breaks, damaged, flipped)
    base, end = sum(counts[:damaged]), sum(counts[: damaged + 1])
    start = data.draw(st.integers(base, end - 1))
    seen = asyncio.run(log.fetch_from(LEADER, Wanted(PARTITION, start)))
    # A broker that itself takes the offset for another batch's shows this one to nobody.
    assume(next(split_batches(seen.data), None) == next(split_batches(log_batch(log, damaged))))
    if ends_unknown(log, damaged):
        with pytest.raises(EndUnknown, match="nothing tells"):
            asyncio.run(examine(log, PARTITION, start))
        return
    fault = asyncio.run(examine(log, PARTITION, start))
    assert fault == UnreadableRange(PARTITION, start, end, DAMAGED, MESSAGE)


def ends_unknown(log: Log, number: int) -> bool:
    """Whether a batch's header contradicts itself, and none follows in its segment of the log."""
    batch = log_batch(log, number)
    header = next(split_batches(batch))
    return header.record_count != header.last_offset_delta + 1 and any(batch == part[-1] for part in log.segments)


def log_batch(log: Log, number: int) -> bytes:
    return [batch for segment in log.segments for batch in segment][number]


def test_a_batch_that_is_whole_once_was_damaged_on_its_way() -> None:
    damaged = log_of([3, 3], set(), 1, 50)

    class Mended(Log):
        async def fetch_from(self, broker: int, wanted: Wanted, isolation: int = 1) -> Fetched:
            if self.fetches < FETCHES - 1:
                self.fetches += 1
                return await damaged.fetch_from(broker, wanted, isolation)
            return await super().fetch_from(broker, wanted, isolation)

    assert asyncio.run(examine(Mended(log_of([3, 3], set(), -1, 0).segments), PARTITION, 4)) is None


def test_the_brokers_that_may_hold_a_damaged_batch_whole_are_named() -> None:
    damaged, whole = log_of([3, 3], set(), 1, 50), log_of([3, 3], set(), -1, 0)
    damaged.replicas = {2: whole.segments, 3: damaged.segments}
    damaged.away = frozenset({4})
    fault = asyncio.run(examine(damaged, PARTITION, 3))
    assert fault is not None
    assert (fault.end, fault.others) == (6, (2, 4))


WAIT_S: Final = 60.0


class Clock:
    """The time of a reader."""

    now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(bounded_consumer, "time", made)
    monkeypatch.setattr(bounded_consumer, "AGAIN_S", 0.0)
    return made


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch, log: Log) -> Iterator[BoundedConsumer]:
    async def fetch(broker: int, wanted: Sequence[Wanted], **_: Any) -> dict[Partition, Fetched]:
        del broker
        return {
            each.partition: await (Log(WHOLE) if each.partition == OTHER else log).fetch_from(LEADER, each)
            for each in wanted
        }

    monkeypatch.setattr(bounded_consumer, "Connections", lambda _: log)
    monkeypatch.setattr(bounded_consumer, "fetch", fetch)
    made = BoundedConsumer(consumer_config("broker:1", "nobody"), replica_wait_s=WAIT_S)
    yield made
    made.close()


@pytest.fixture
def log() -> Log:
    """Three batches of three records, of which the second one is damaged."""
    return log_of([3, 3, 3], set(), 1, 50)


WHOLE: Final = log_of([3, 3, 3], set(), -1, 0).segments


def taken(reader: BoundedConsumer, turns: int = 40) -> list[int | UnreadableRange]:
    """Return the offsets of records that come within some turns, and what cannot be read."""
    found: list[int | UnreadableRange] = []
    for _ in range(turns):
        reader.prefetch()
        reader.wait(0.0)
        for item in reader.take(100):
            assert not isinstance(item, ReadError)
            found.append(item.offset if isinstance(item, Record) else item)
    return found


def reported(reader: BoundedConsumer) -> list[tuple[Partition, int, int]]:
    """Return the reports that come next."""
    for _ in range(1_000):
        reader.wait(0.0)
        if items := reader.take(100):
            return [(item.partition, item.offset, item.error.code()) for item in items if isinstance(item, ReadError)]
    return []


def test_what_no_replica_holds_whole_does_not_wait(clock: Clock, reader: BoundedConsumer) -> None:
    reader.seek(PARTITION, 0)
    damaged = UnreadableRange(PARTITION, 3, 6, DAMAGED, MESSAGE)
    assert taken(reader) == [0, 1, 2, damaged]
    assert reader.damaged == []
    # It stands still until it is told where to go on; within the batch, the range begins there.
    assert taken(reader) == []
    reader.seek(PARTITION, 4)
    assert taken(reader) == [damaged._replace(start=4)]
    reader.seek(PARTITION, 6)
    assert taken(reader) == [6, 7, 8]


@pytest.mark.parametrize("ends", ["another leads", "the time is over"])
def test_a_damaged_batch_waits_until_another_replica_leads_or_too_long(
    clock: Clock, log: Log, reader: BoundedConsumer, caplog: pytest.LogCaptureFixture, ends: str
) -> None:
    log.replicas = {2: WHOLE}
    log.away = frozenset({3})
    log.__post_init__()
    reader.seek(PARTITION, 0)
    assert taken(reader) == [0, 1, 2]
    clock.now_s += WAIT_S - 1
    assert taken(reader) == []
    assert reader.damaged == [PARTITION]
    assert caplog.text.count("Let a broker lead it that may hold them whole, 2 or 3") == 1
    if ends == "another leads":
        log.leader, log.segments = 2, WHOLE
        clock.now_s += 0.5
        assert taken(reader) == [3, 4, 5, 6, 7, 8]
    else:
        clock.now_s += 1
        assert taken(reader) == [UnreadableRange(PARTITION, 3, 6, DAMAGED, MESSAGE, (2, 3))]
    assert reader.damaged == []


def test_others_go_on_meanwhile_and_what_is_given_up_is_not_examined(
    clock: Clock, log: Log, reader: BoundedConsumer
) -> None:
    log.replicas = {2: WHOLE}
    reader.seek(PARTITION, 3)
    assert taken(reader) == []
    assert reader.damaged == [PARTITION]
    reader.seek(OTHER, 0)
    assert taken(reader) == [*range(9)]
    assert reader.damaged == [PARTITION]
    reader.drop([OTHER])
    reader.seek(PARTITION, 6)
    assert taken(reader) == [6, 7, 8]
    reader.seek(PARTITION, 3)
    assert taken(reader) == []
    reader.drop([PARTITION])
    fetches = log.fetches
    assert taken(reader) == []
    assert (reader.damaged, log.fetches) == ([], fetches)


@pytest.mark.parametrize("is_examined", [True, False])
def test_what_stands_behind_an_odd_batch_is_not_reported_with_it(
    clock: Clock, log: Log, reader: BoundedConsumer, is_examined: bool
) -> None:
    log.segments[0][0] = odd_batch([b"v"] * 3, [0, 2, 1])
    reader.seek(PARTITION, 0)
    while PARTITION not in reader._tasks and not reader._readings[PARTITION].reports:
        reader.wait(0.0)
    while is_examined and not reader._readings[PARTITION].reports:
        reader.wait(0.0)
    (odd,) = taken(reader)
    assert isinstance(odd, UnreadableRange)
    assert odd[:4] == (PARTITION, 0, 3, "OddOffset")
    assert (reader.damaged, reader._tasks) == ([], {})
    reader.seek(PARTITION, 3)
    assert taken(reader) == [UnreadableRange(PARTITION, 3, 6, DAMAGED, MESSAGE)]


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionError("no broker"), EndUnknown("nothing tells")])
def test_without_proof_a_batch_is_read_again(
    clock: Clock, log: Log, reader: BoundedConsumer, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    reader.seek(PARTITION, 3)
    reader.wait(0.0)
    while not reader._tasks.get(PARTITION):
        reader.wait(0.0)
    log.errors = [error]
    assert taken(reader) == [UnreadableRange(PARTITION, 3, 6, DAMAGED, MESSAGE)]
    assert caplog.text.count("cannot be examined yet") == 1


def test_what_comes_damaged_but_is_whole_is_read_again_after_a_pause_and_reported(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, log: Log, reader: BoundedConsumer, caplog: pytest.LogCaptureFixture
) -> None:
    async def whole(*_: object) -> None:
        """The network damages it for readers alone."""

    monkeypatch.setattr(bounded_consumer, "examine", whole)
    reader.seek(PARTITION, 0)
    assert taken(reader) == [0, 1, 2]
    for times in range(1, FETCHES):
        assert caplog.text.count("the batch at offset 3 came damaged, but is whole at its leader") == times
        clock.now_s += 1.0
        found = taken(reader) if times < FETCHES - 1 else reported(reader)
        assert found == ([] if times < FETCHES - 1 else [(PARTITION, 3, KafkaError._BAD_MSG)])
    # A group's member goes on.
    log.segments = WHOLE
    clock.now_s += 1.0
    assert taken(reader) == [3, 4, 5, 6, 7, 8]


def test_a_topic_without_the_right_to_read_it_is_reported(clock: Clock, log: Log, reader: BoundedConsumer) -> None:
    log.refused = {PARTITION[0]: KafkaError.TOPIC_AUTHORIZATION_FAILED}
    reader.seek(PARTITION, 5)
    assert reported(reader) == [(PARTITION, 5, KafkaError.TOPIC_AUTHORIZATION_FAILED)]
    log.refused = {PARTITION[0]: KafkaError.UNKNOWN_TOPIC_OR_PART}
    clock.now_s += 1.0
    assert taken(reader) == []


def test_what_a_broker_refuses_to_describe_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broker:
        async def send(self, _: object) -> Any:
            failed = KafkaError.TOPIC_AUTHORIZATION_FAILED
            topics = [(failed, "labels", False, []), (0, "profiled", False, [(0, 0, LEADER, [1], [1])])]
            return SimpleNamespace(brokers=[(LEADER, "broker", 1, None)], topics=topics)

    async def to(*_: object) -> Broker:
        return Broker()

    async def described() -> tuple[Mapping[Partition, Replicas], Mapping[str, int]]:
        brokers = Connections(consumer_config("broker:1", "nobody"))
        return await brokers.describe(["labels", "profiled"]), brokers.refused

    monkeypatch.setattr(Connections, "to", to)
    known = {PARTITION: Replicas(LEADER, (LEADER,))}
    assert asyncio.run(described()) == (known, {"labels": KafkaError.TOPIC_AUTHORIZATION_FAILED})


def test_brokers_hear_the_name_that_an_operator_gives_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []

    async def create_conn(*_: object, client_id: str, **__: object) -> None:
        named.append(client_id)

    monkeypatch.setattr(raw_fetch, "create_conn", create_conn)
    own = Settings(kafka_config={"client.id": "fraud at night"})
    for settings in (own, Settings()):
        asyncio.run(Connections(consumer_config("broker:1", "nobody", settings=settings)).to(("broker", 1)))
    assert named == ["fraud at night", "fraud-pipeline"]


@pytest.mark.parametrize(("inputs", "count"), [((), MOST_HEADERS + 5), ((PARTITION[0],), 0)])
def test_what_an_agent_forwards_keeps_the_headers_of_both(
    log: Log, reader: BoundedConsumer, inputs: tuple[str, ...], count: int
) -> None:
    log.segments = [[record_batch([b"v"], headers=[("h", b"")] * (MOST_HEADERS + 5))]]
    reader._inputs = inputs
    reader.seek(PARTITION, 0)
    found: list[Any] = []
    while not found:
        reader.wait(0.0)
        found = reader.take(1)
    assert len(found[0].headers) == count
