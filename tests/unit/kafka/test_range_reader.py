"""A reader of a range, or of a topic, gives each record once and in order, whatever the client hands over at a time."""

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from confluent_kafka import KafkaError

from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.readers import log_consumer, replay_reader, topic_reader
from pipeline.kafka.readers.replay_reader import RangeReader
from pipeline.kafka.readers.topic_reader import read_batches
from pipeline.kafka.records.batch import Item, ReadError
from pipeline.settings import Settings
from schemas.records import Record


def value(offset: int) -> bytes:
    return bytes([offset]) * 10 * offset


def record(offset: int) -> Record:
    return Record("t", 1, offset, 1_000 + offset, None, None if offset == 7 else value(offset))


def report(offset: int, error: int) -> ReadError:
    return ReadError(("t", 1), offset, KafkaError(error))


END = report(20, KafkaError._PARTITION_EOF)


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """In place of the reader of record batches: hands over a list at a time."""

    class Consumer:
        given: ClassVar[list[list[Item]]] = []

        def __init__(self, config: object, inputs: object) -> None:
            del config, inputs

        def seek(self, partition: object, offset: int) -> None:
            pass

        def drop(self, partitions: object) -> None:
            pass

        def prefetch(self) -> None:
            pass

        def wait(self, timeout_s: float) -> None:
            pass

        def take(self, most: int) -> list[Item]:
            del most
            return self.given.pop(0) if self.given else []

        def close(self) -> None:
            pass

    monkeypatch.setattr(log_consumer, "BoundedConsumer", Consumer)
    return Consumer


def reader(consumer: Any, *parts: Sequence[Item]) -> RangeReader:
    consumer.given = [list(part) for part in parts]
    return RangeReader("nobody:1", Settings(), "t", 1, 0)


def test_records_come_once_and_in_order_up_to_each_end(consumer: Any) -> None:
    # Transactions leave marks, so that offsets are missing.
    item = reader(
        consumer,
        [record(0), record(1), record(3)],
        [record(4), record(7), record(8)],
        [END],
    )
    assert [record.offset for record in item.read_to(3)] == [0, 1]
    assert item.position == 3
    assert [record.offset for record in item.read_to(3)] == []
    assert [record.offset for record in item.read_to(8, most=2)] == [3, 4]
    assert item.position == 5
    assert [record.offset for record in item.read_to(6)] == []
    assert item.position == 6
    assert [record.offset for record in item.read_to(20)] == [7, 8]
    assert item.position == 20


def test_a_call_returns_so_many_bytes_and_the_next_one_goes_on(consumer: Any) -> None:
    consumer.given = [
        [record(0), record(1), record(2), record(3), record(9)],
        [record(11), END],
    ]
    reader = RangeReader("nobody:1", Settings(), "t", 1, 0, most_bytes=40)
    found = []
    while records := reader.read_to(11):
        found.append(([record.offset for record in records], reader.position))
    assert found == [([0, 1, 2], 3), ([3], 9), ([9], 11)]
    assert [record.offset for record in reader.read_to(20)] == [11]


def test_columns_say_what_records_say(consumer: Any) -> None:
    parts = ([record(0), record(2)], [record(5), record(7), END])
    records = reader(consumer, *parts).read_to(7)
    read = reader(consumer, *parts).read_columns(7)
    assert read.partition == records[0].partition == 1
    assert read.offset.tolist() == [record.offset for record in records] == [0, 2, 5]
    assert read.timestamp_ms.tolist() == [record.timestamp_ms for record in records]
    assert read.values == [record.value for record in records]
    whole = reader(consumer, *parts)
    assert whole.read_columns(9).values == [value(0), value(2), value(5), None]
    assert whole.read_columns(9).values == []


def test_an_error_that_passes_is_waited_for_and_another_is_reported(consumer: Any) -> None:
    retrying = reader(consumer, [report(-1, KafkaError._TRANSPORT)], [record(0)])
    assert [record.offset for record in retrying.read_to(1)] == [0]
    with pytest.raises(TopicError, match="no longer holds offset 0"):
        reader(consumer, [report(-1, KafkaError._AUTO_OFFSET_RESET)]).read_to(1)


def test_an_end_before_the_range_is_read_is_waited_behind(consumer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a new leader that does not know yet how much is committed, or behind an open transaction."""
    early = report(2, KafkaError._PARTITION_EOF)
    retrying = reader(consumer, [record(0), record(1), early], [record(3), record(5), END])
    assert [record.offset for record in retrying.read_to(6)] == [0, 1, 3, 5]
    monkeypatch.setattr(replay_reader, "EARLY_END_S", 0.0)
    with pytest.raises(TopicError, match="ends at offset 2 for its readers, and records up to 6"):
        reader(consumer, [record(0), record(1), early]).read_to(6)


def test_an_end_before_a_topic_is_read_is_waited_behind_too(consumer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_reader, "stable_ends", lambda *_: {1: 6})
    early = report(2, KafkaError._PARTITION_EOF)
    consumer.given = [[record(0), record(1), early], [record(3), record(5), END]]
    batches = read_batches("nobody:1", "t", settings=Settings(), partitions=[1])
    assert [record.offset for records in batches for record in records] == [0, 1, 3, 5]
    monkeypatch.setattr(topic_reader, "EARLY_END_S", 0.0)
    consumer.given = [[record(0), record(1), early]]
    batches = read_batches("nobody:1", "t", settings=Settings(), partitions=[1])
    assert [record.offset for record in next(batches)] == [0, 1]
    with pytest.raises(TopicError, match="ends at offset 2 for its readers, and records up to 6"):
        next(batches)
