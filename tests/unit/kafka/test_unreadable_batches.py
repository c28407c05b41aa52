"""Only what fails again and again at one offset is searched, and a search that fails quarantines nothing."""

import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from pipeline.kafka import standstill, unreadable_batches
from pipeline.kafka.batch import UnreadableRange
from pipeline.kafka.unreadable import FETCHES, NoAnswer
from pipeline.kafka.unreadable_batches import STALLED, UnreadableBatches

ERROR = KafkaError(KafkaError._BAD_MSG, "damaged")
PARTITION = ("transactions", 1)


@pytest.fixture
def batches() -> Iterator[UnreadableBatches]:
    made = UnreadableBatches({}, "card")
    yield made
    made.close()


def found_by(batches: UnreadableBatches) -> UnreadableRange:
    pause = threading.Event()
    for _ in range(500):
        if (found := batches.pop_found()) is not None:
            return found
        pause.wait(0.01)
    raise AssertionError("the search did not end")


def ends_at(monkeypatch: pytest.MonkeyPatch, end: int | Exception) -> None:
    def find_end(*_: Any) -> int:
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(unreadable_batches, "find_end", find_end)


def test_failures_at_one_offset_start_a_search(batches: UnreadableBatches, monkeypatch: pytest.MonkeyPatch) -> None:
    ends_at(monkeypatch, 29)
    assert [batches.failed(PARTITION, 17, ERROR) for _ in range(FETCHES)] == [False] * (FETCHES - 1) + [True]
    assert found_by(batches) == UnreadableRange(PARTITION, 17, 29, "_BAD_MSG", "damaged")
    assert not batches.fails(PARTITION)
    assert batches.pop_found() is None


def test_failures_here_and_there_start_none(batches: UnreadableBatches, monkeypatch: pytest.MonkeyPatch) -> None:
    ends_at(monkeypatch, 29)
    for _ in range(FETCHES - 1):
        assert not batches.failed(PARTITION, 17, ERROR)
    for start in (18, 19, 18, 19):
        assert not batches.failed(PARTITION, start, ERROR)
    for _ in range(FETCHES - 1):
        assert not batches.failed(("transactions", 2), 17, ERROR)
    assert batches.pop_found() is None


def test_a_successful_read_clears_the_failures_before_it(
    batches: UnreadableBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends_at(monkeypatch, 29)
    for _ in range(FETCHES - 1):
        assert not batches.failed(PARTITION, 17, ERROR)
    batches.succeeded({PARTITION: 17, ("transactions", 2): 40})
    assert batches.fails(PARTITION)
    batches.succeeded({PARTITION: 18})
    assert not batches.fails(PARTITION)
    # As after an abort, which reads the same offsets again.
    assert [batches.failed(PARTITION, 17, ERROR) for _ in range(FETCHES)] == [False] * (FETCHES - 1) + [True]
    batches.succeeded({PARTITION: 18})
    assert found_by(batches) == UnreadableRange(PARTITION, 17, 29, "_BAD_MSG", "damaged")


def test_a_search_that_fails_finds_an_empty_range(batches: UnreadableBatches, monkeypatch: pytest.MonkeyPatch) -> None:
    ends_at(monkeypatch, NoAnswer("no broker"))
    assert [batches.failed(PARTITION, 17, ERROR) for _ in range(FETCHES)][-1]
    found = found_by(batches)
    assert (found.start, found.end) == (17, 17)
    assert not batches.failed(PARTITION, 17, ERROR)


def test_a_partition_that_is_given_up_has_no_search(
    batches: UnreadableBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(unreadable_batches, "find_end", lambda *_: released.wait(10) and 29)
    for _ in range(FETCHES):
        batches.failed(PARTITION, 17, ERROR)
    batches.forget({1})
    released.set()
    assert not batches.fails(PARTITION)
    assert batches.pop_found() is None


class StandingClient:
    """A client that holds one partition, of which nothing comes."""

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition(*PARTITION)]

    def position(self, asked: list[TopicPartition]) -> list[TopicPartition]:
        return [TopicPartition(at.topic, at.partition, -1001) for at in asked]

    def get_watermark_offsets(self, at: TopicPartition, *, cached: bool) -> tuple[int, int]:
        assert cached
        return 0, 40


@pytest.mark.parametrize(("end", "found_end"), [(29, 29), (17, 17), (NoAnswer("no broker"), 17)])
def test_a_partition_that_stands_still_is_searched_once_at_a_time(
    batches: UnreadableBatches, monkeypatch: pytest.MonkeyPatch, end: int | Exception, found_end: int
) -> None:
    monkeypatch.setattr(standstill, "LOOK_S", 0.0)
    monkeypatch.setattr(standstill, "STALL_S", 0.0)
    searches = []

    def find_end(_config: object, *at: Any) -> int:
        searches.append(at[:2])
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(unreadable_batches, "find_end", find_end)
    client = cast(Consumer, StandingClient())
    for _ in range(9):
        # Of the other partition the client holds nothing.
        batches.look(client, {PARTITION: 17, ("transactions", 2): 5})
    assert not batches.pauses(PARTITION)
    found = found_by(batches)
    assert (found.partition, found.start, found.end, found.error) == (PARTITION, 17, found_end, STALLED)
    assert searches == [(PARTITION, 17)]
    assert not batches.fails(PARTITION)
