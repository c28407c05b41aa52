"""What producers write, read by requests of one's own: the same records as librdkafka's, and words about the log."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Final

import pytest
from confluent_kafka import KafkaError, Producer, TopicPartition

from pipeline.kafka.cluster.admin import end_offsets, ensure_topics
from pipeline.kafka.cluster.clients import admin_client, consumer_config, producer_config
from pipeline.kafka.readers.bounded_consumer import BoundedConsumer
from pipeline.kafka.readers.undecided import FirstRecord, KafkaLog
from pipeline.kafka.records.batch import Item, ReadError, UnreadableRange
from pipeline.kafka.records.inflation import MOST_BATCH_BYTES
from pipeline.settings import Settings
from schemas.records import Record
from schemas.topics import TRANSACTIONS
from tests.helpers.batches import COMPRESSIONS, odd_batch, produce_batch, record_batch
from tests.helpers.waiting import TIMEOUT_S, eventually

pytestmark = pytest.mark.broker

WAITS: Final = 600


class Reader:
    """Reads one partition until something is said of it, or nothing comes any more."""

    def __init__(self, settings: Settings, *, reset: str = "error", number: int = 0, wait_ms: int = 100) -> None:
        assert settings.kafka_bootstrap_servers is not None
        self.at = settings.topic(TRANSACTIONS.name), number
        own = {"auto.offset.reset": reset, "enable.partition.eof": True, "fetch.wait.max.ms": wait_ms}
        self.consumer = BoundedConsumer(
            consumer_config(settings.kafka_bootstrap_servers, "nobody", settings=settings, overrides=own),
            settings.inputs,
        )

    def read(self, offset: int, most: int = 1_000) -> Iterator[Item]:
        """Yield up to the first item that is no record."""
        self.consumer.seek(self.at, offset)
        for _ in range(WAITS):
            for item in self.consumer.take(most):
                yield item
                if not isinstance(item, Record):
                    return
            self.consumer.wait(0.1)
        raise AssertionError("nothing came")

    def close(self) -> None:
        self.consumer.close()


@pytest.fixture
def settings(kafka_settings: Settings) -> Settings:
    changed = kafka_settings.model_copy(update={"card_partitions": 2})
    ensure_topics(str(changed.kafka_bootstrap_servers), changed, [TRANSACTIONS])
    return changed


def writer(settings: Settings, name: str) -> Producer:
    bootstrap, own = str(settings.kafka_bootstrap_servers), {"transaction.timeout.ms": 600_000}
    producer = Producer(producer_config(bootstrap, transactional_id=settings.topic(name), overrides=own))
    producer.init_transactions(TIMEOUT_S)
    return producer


def test_who_looks_between_batches_pays_for_what_comes_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions and control are looked at before every batch, and hardly ever change."""
    bootstrap, name = str(settings.kafka_bootstrap_servers), settings.topic(TRANSACTIONS.name)
    with closing(Reader(settings, wait_ms=1_000)) as reader:
        list(reader.read(0))
        consumer, turn, turns = reader.consumer, reader.consumer._turn, []

        def look() -> list[Item]:
            consumer.prefetch()
            consumer.wait(0)
            return consumer.take(1)

        monkeypatch.setattr(consumer, "_turn", lambda: turns.append(None) or turn())
        assert [look() for _ in range(1_000)] == [[]] * 1_000
        assert len(turns) < 1_000
        produce_batch(bootstrap, name, 0, record_batch([b"late"]))
        eventually(lambda: [item.value for item in look() if isinstance(item, Record)] == [b"late"])


def test_committed_records_are_read_from_every_offset(settings: Settings) -> None:
    bootstrap, name = str(settings.kafka_bootstrap_servers), settings.topic(TRANSACTIONS.name)
    expected: dict[int, bytes] = {}

    def write(producer: Producer, value: bytes) -> int:
        offsets: list[int] = []
        producer.produce(name, value, partition=0, on_delivery=lambda _, message: offsets.append(message.offset()))
        assert producer.flush(TIMEOUT_S) == 0
        return offsets[0]

    producers = [writer(settings, f"writer-{number}") for number in range(2)]
    for turn, compression in enumerate(COMPRESSIONS):
        base = produce_batch(bootstrap, name, 0, record_batch([b"plain %d" % turn] * 3, compression))
        expected |= dict.fromkeys(range(base, base + 3), b"plain %d" % turn)
        for producer in producers:
            producer.begin_transaction()
        offsets = [write(producer, b"written") for producer in producers]
        # Two overlap: one is committed, and the other one aborted behind it.
        expected[offsets[turn % 2]] = b"written"
        producers[turn % 2].commit_transaction(TIMEOUT_S)
        producers[1 - turn % 2].abort_transaction(TIMEOUT_S)
    producers[0].begin_transaction()
    end = write(producers[0], b"open")
    produce_batch(bootstrap, name, 0, record_batch([b"behind"]))
    eventually(lambda: end_offsets(bootstrap, [name])[name, 0] == end)
    with closing(Reader(settings)) as reader:
        for offset in range(end + 1):
            *records, last = reader.read(offset, most=4)
            found = {record.offset: record.value for record in records if isinstance(record, Record)}
            assert found == {at: value for at, value in expected.items() if at >= offset}
            assert isinstance(last, ReadError)
            assert (last.offset, last.error.code()) == (end, KafkaError._PARTITION_EOF)
        assert reader.consumer.log_end(reader.at) >= end + 2
        # It stays open for nobody's sake.
        producers[0].abort_transaction(TIMEOUT_S)
        eventually(lambda: end_offsets(bootstrap, [name])[name, 0] > end + 2)
        (record, _) = reader.read(end)
        assert isinstance(record, Record)
        assert record.value == b"behind"


def test_the_end_of_a_log_is_reported_with_the_last_records(settings: Settings) -> None:
    bootstrap, name = str(settings.kafka_bootstrap_servers), settings.topic(TRANSACTIONS.name)
    produce_batch(bootstrap, name, 0, record_batch([b"first", b"last"]))
    # A broker that has nothing would answer only then.
    with closing(Reader(settings, wait_ms=3_600_000)) as reader:
        *records, end = reader.read(0)
    assert [item.value for item in records if isinstance(item, Record)] == [b"first", b"last"]
    assert isinstance(end, ReadError)
    assert (end.offset, end.error.code()) == (2, KafkaError._PARTITION_EOF)


def test_what_a_log_does_not_hold_is_said_and_its_beginning_is_found(settings: Settings) -> None:
    bootstrap, name = str(settings.kafka_bootstrap_servers), settings.topic(TRANSACTIONS.name)
    for number in range(4):
        produce_batch(bootstrap, name, 0, record_batch([b"%d" % number] * 2))
    client = admin_client(bootstrap)
    (deleted,) = client.delete_records([TopicPartition(name, 0, 4)]).values()
    deleted.result(TIMEOUT_S)
    with closing(Reader(settings)) as reader:
        assert [item.offset for item in reader.read(0) if isinstance(item, Record)] == [4, 5, 6, 7]
        for offset in (1, 30):
            (lost,) = reader.read(offset)
            assert isinstance(lost, ReadError)
            assert (lost.offset, lost.error.code()) == (offset, KafkaError._AUTO_OFFSET_RESET)
    with closing(Reader(settings, reset="earliest")) as reader:
        assert [item.offset for item in reader.read(1) if isinstance(item, Record)] == [4, 5, 6, 7]


def test_a_batch_that_is_refused_names_its_offsets_and_is_passed_by_a_seek(settings: Settings) -> None:
    bootstrap, name = str(settings.kafka_bootstrap_servers), settings.topic(TRANSACTIONS.name)
    produce_batch(bootstrap, name, 1, record_batch([b"before"]))
    base = produce_batch(bootstrap, name, 1, odd_batch([b"odd"] * 3, [0, 1, 7]))
    produce_batch(bootstrap, name, 1, record_batch([b"behind"]))
    with closing(Reader(settings, number=1)) as reader:
        for start in range(base + 3):
            *records, refused = reader.read(start)
            assert [item.value for item in records if isinstance(item, Record)] == [b"before"] * (start == 0)
            assert isinstance(refused, UnreadableRange)
            assert refused[:4] == (reader.at, max(start, base), base + 3, "OddOffset")
            reader.consumer.wait(0.2)
            assert reader.consumer.take(10) == []
        (record, _) = reader.read(base + 3)
        assert isinstance(record, Record)
        assert record.value == b"behind"


def test_a_caller_with_an_event_loop_of_its_own_reads_too(settings: Settings) -> None:
    bootstrap, name = str(settings.kafka_bootstrap_servers), settings.topic(TRANSACTIONS.name)
    produce_batch(bootstrap, name, 0, record_batch([b"a", b"b"]))

    async def cell() -> list[bytes | None]:
        with closing(Reader(settings)) as reader:
            return [item.value for item in reader.read(0) if isinstance(item, Record)]

    assert asyncio.run(cell()) == [b"a", b"b"]


def test_whoever_looks_for_what_is_undecided_inflates_no_bomb(settings: Settings) -> None:
    bootstrap, name = str(settings.kafka_bootstrap_servers), settings.topic(TRANSACTIONS.name)
    bomb = produce_batch(bootstrap, name, 0, record_batch([b"0" * 2 * MOST_BATCH_BYTES], "gzip"))
    produce_batch(bootstrap, name, 1, record_batch([b"a"], timestamp_ms=1_000))
    log = KafkaLog(bootstrap, settings, threading.Event())
    found = log.first({(name, 0): bomb, (name, 1): 0}, committed=False)
    assert found[name, 0] == FirstRecord("unreadable", bomb)
    assert (found[name, 1].kind, found[name, 1].offset) == ("record", 0)
    assert log.first({(name, 1): 1}, committed=True)[name, 1].kind == "end"
