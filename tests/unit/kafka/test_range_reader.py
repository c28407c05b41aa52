"""A reader of a range, or of a topic, gives each record once and in order, whatever the client hands over at a time."""

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from confluent_kafka import KafkaError

from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.readers import log_consumer, replay_reader, topic_reader
from pipeline.kafka.readers.replay_reader import RangeReader
from pipeline.kafka.readers.topic_reader import read_batches
from pipeline.settings import Settings
from schemas.records import Record
from tests.helpers.client_messages import ClientMessage, message_of


def value(offset: int) -> bytes:
    return bytes([offset]) * 10 * offset


def message(offset: int, error: int = 0) -> ClientMessage:
    """A record, or a word about the log."""
    if error:
        return ClientMessage(("t", 1), offset, code=error)
    return message_of(Record("t", 1, offset, 1_000 + offset, None, None if offset == 7 else value(offset)))


END = message(20, KafkaError._PARTITION_EOF)


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """In place of librdkafka's: hands over a list at a time."""

    class Consumer:
        given: ClassVar[list[list[ClientMessage]]] = []

        def __init__(self, config: object) -> None:
            del config

        def list_topics(self, topic: str, timeout: float) -> None:
            pass

        def assign(self, partitions: object) -> None:
            del partitions

        def incremental_unassign(self, partitions: object) -> None:
            del partitions

        def assignment(self) -> list[object]:
            return []

        def poll(self, timeout_s: float) -> ClientMessage | None:
            del timeout_s
            return self.given[0].pop(0) if self.given and self.given[0] else None

        def consume(self, most: int, timeout_s: float) -> list[ClientMessage]:
            del most, timeout_s
            return self.given.pop(0)

        def close(self) -> None:
            pass

    monkeypatch.setattr(log_consumer, "Consumer", Consumer)
    return Consumer


def reader(consumer: Any, *parts: Sequence[ClientMessage]) -> RangeReader:
    consumer.given = [list(part) for part in parts]
    return RangeReader("nobody:1", Settings(), "t", 1, 0)


def test_records_come_once_and_in_order_up_to_each_end(consumer: Any) -> None:
    # Transactions leave marks, so that offsets are missing.
    item = reader(
        consumer,
        [message(0), message(1), message(3)],
        [message(4), message(7), message(8)],
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
        [message(0), message(1), message(2), message(3), message(9)],
        [message(11), END],
    ]
    reader = RangeReader("nobody:1", Settings(), "t", 1, 0, most_bytes=40)
    found = []
    while records := reader.read_to(11):
        found.append(([record.offset for record in records], reader.position))
    assert found == [([0, 1, 2], 3), ([3], 9), ([9], 11)]
    assert [record.offset for record in reader.read_to(20)] == [11]


def test_columns_say_what_records_say(consumer: Any) -> None:
    parts = ([message(0), message(2)], [message(5), message(7), END])
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
    retrying = reader(consumer, [message(-1, KafkaError._TRANSPORT)], [message(0)])
    assert [record.offset for record in retrying.read_to(1)] == [0]
    with pytest.raises(TopicError, match="no longer holds offset 0"):
        reader(consumer, [message(-1, KafkaError._AUTO_OFFSET_RESET)]).read_to(1)


def test_an_end_before_the_range_is_read_is_waited_behind(consumer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a new leader that does not know yet how much is committed, or behind an open transaction."""
    early = message(2, KafkaError._PARTITION_EOF)
    retrying = reader(consumer, [message(0), message(1), early], [message(3), message(5), END])
    assert [record.offset for record in retrying.read_to(6)] == [0, 1, 3, 5]
    monkeypatch.setattr(replay_reader, "EARLY_END_S", 0.0)
    with pytest.raises(TopicError, match="ends at offset 2 for its readers, and records up to 6"):
        reader(consumer, [message(0), message(1), early]).read_to(6)


def test_an_end_before_a_topic_is_read_is_waited_behind_too(consumer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_reader, "stable_ends", lambda *_: {1: 6})
    early = message(2, KafkaError._PARTITION_EOF)
    consumer.given = [[message(0), message(1), early], [message(3), message(5), END]]
    batches = read_batches("nobody:1", "t", partitions=[1])
    assert [record.offset for records in batches for record in records] == [0, 1, 3, 5]
    monkeypatch.setattr(topic_reader, "EARLY_END_S", 0.0)
    consumer.given = [[message(0), message(1), early]]
    batches = read_batches("nobody:1", "t", partitions=[1])
    assert [record.offset for record in next(batches)] == [0, 1]
    with pytest.raises(TopicError, match="ends at offset 2 for its readers, and records up to 6"):
        next(batches)
