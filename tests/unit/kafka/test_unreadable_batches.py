"""What a client fails at is examined; nothing is quarantined without proof, or while a replica may hold it whole."""

import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, TopicPartition

from pipeline.kafka.damage import standstill, unreadable_batches
from pipeline.kafka.damage.unreadable import DAMAGED, STALLED, Fault
from pipeline.kafka.damage.unreadable_batches import UnreadableBatches
from pipeline.kafka.records.batch import UnreadableRange
from pipeline.kafka.records.raw_fetch import FetchUnanswered

PARTITION = ("transactions", 1)
WAIT_S = 60.0
BAD = Fault(17, 29, "_BAD_COMPRESSION", "no such stream")
DISK = Fault(17, 29, DAMAGED, "a wrong checksum")


@pytest.fixture
def batches() -> Iterator[UnreadableBatches]:
    made = UnreadableBatches({}, "card", WAIT_S)
    yield made
    made.close()


def found_by(batches: UnreadableBatches) -> UnreadableRange:
    pause = threading.Event()
    for _ in range(500):
        if (found := batches.pop_found()) is not None:
            return found
        pause.wait(0.01)
    raise AssertionError("the batch was not examined")


def examined(monkeypatch: pytest.MonkeyPatch, *faults: Fault | Exception | None) -> list[Any]:
    """Let examinations find these, one after the other, the last one again and again; return what is examined."""
    left, asked = list(faults), []

    def find_fault(_config: object, *at: Any, is_silent: bool) -> Fault | None:
        asked.append((*at[:2], is_silent))
        fault = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(fault, Exception):
            raise fault
        return fault

    monkeypatch.setattr(unreadable_batches, "find_fault", find_fault)
    return asked


def test_what_a_client_fails_at_is_examined_once(batches: UnreadableBatches, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = examined(monkeypatch, BAD)
    for _ in range(3):
        batches.failed(PARTITION, 17, "no such stream")
        assert batches.pauses(PARTITION)
    assert found_by(batches) == UnreadableRange(PARTITION, 17, 29, "_BAD_COMPRESSION", "no such stream")
    assert asked == [(PARTITION, 17, False)]
    assert not batches.pauses(PARTITION)
    assert batches.pop_found() is None


@pytest.mark.parametrize("found", [None, FetchUnanswered("no broker")])
def test_without_proof_the_batch_is_read_again(
    batches: UnreadableBatches, monkeypatch: pytest.MonkeyPatch, found: Exception | None
) -> None:
    examined(monkeypatch, found)
    batches.failed(PARTITION, 17, "damaged")
    assert found_by(batches)[:3] == (PARTITION, 17, 17)


@pytest.mark.parametrize("fault", [DISK, BAD])
def test_what_no_replica_holds_whole_does_not_wait(
    batches: UnreadableBatches, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    examined(monkeypatch, fault)
    batches.failed(PARTITION, 17, "damaged")
    assert found_by(batches) == UnreadableRange(PARTITION, *fault[:4])
    assert batches.damaged == []


@pytest.mark.parametrize("last", [None, DISK._replace(others=(2,))])
def test_a_damaged_batch_waits_until_another_replica_leads_or_too_long(
    batches: UnreadableBatches, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, last: Fault | None
) -> None:
    now_s = 1_000.0
    monkeypatch.setattr(unreadable_batches.time, "monotonic", lambda: now_s)
    asked = examined(monkeypatch, *[DISK._replace(others=(2, 3))] * 3, last)
    batches.failed(PARTITION, 17, "damaged")
    for times in range(1, 4):
        while batches._searches[PARTITION].again_s <= now_s:
            assert batches.pop_found() is None
        assert (len(asked), batches.damaged) == (times, [PARTITION])
        assert batches.pauses(PARTITION)
        now_s += unreadable_batches.AGAIN_S
    assert caplog.text.count("Let a broker lead it that may hold them whole, 2 or 3") == 1
    now_s = 1_000.0 + (WAIT_S if last is not None else 30.0)
    found = found_by(batches)
    assert (found.start, found.end) == (17, 17 if last is None else 29)
    assert batches.damaged == []


def test_a_partition_that_is_given_up_is_not_examined(
    batches: UnreadableBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(unreadable_batches, "find_fault", lambda *_, **__: released.wait(10) and BAD)
    batches.failed(PARTITION, 17, "damaged")
    batches.forget({1})
    released.set()
    assert not batches.pauses(PARTITION)
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


@pytest.mark.parametrize("fault", [Fault(17, 29, STALLED, "cut"), None, FetchUnanswered("no broker")])
def test_a_partition_that_stands_still_is_examined_once_at_a_time(
    batches: UnreadableBatches, monkeypatch: pytest.MonkeyPatch, fault: Fault | Exception | None
) -> None:
    monkeypatch.setattr(standstill, "LOOK_S", 0.0)
    monkeypatch.setattr(standstill, "STALL_S", 0.0)
    asked = examined(monkeypatch, fault)
    client = cast(Consumer, StandingClient())
    for _ in range(9):
        # Of the other partition the client holds nothing.
        batches.look(client, {PARTITION: 17, ("transactions", 2): 5})
    assert not batches.pauses(PARTITION)
    if isinstance(fault, Fault):
        assert found_by(batches) == UnreadableRange(PARTITION, *fault[:4])
    else:
        # It was not paused, and nothing is to be read again.
        while PARTITION in batches._searches:
            assert batches.pop_found() is None
    assert asked == [(PARTITION, 17, True)]


def test_an_error_of_a_partition_that_stood_still_pauses_it(
    batches: UnreadableBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standstill, "LOOK_S", 0.0)
    monkeypatch.setattr(standstill, "STALL_S", 0.0)
    examined(monkeypatch, BAD)
    for _ in range(3):
        batches.look(cast(Consumer, StandingClient()), {PARTITION: 17})
    batches.failed(PARTITION, 17, "damaged")
    assert batches.pauses(PARTITION)
