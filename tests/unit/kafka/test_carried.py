"""Batches are bounded by rows and by bytes; what exceeds them is carried over, in order and without a gap."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from pipeline.kafka.readers.bounded_consumer import BoundedConsumer
from pipeline.kafka.records.carried import Carried
from pipeline.kafka.session.session import Session
from pipeline.kafka.session.state_handler import StateHandler
from pipeline.settings import Settings
from schemas.records import Record
from schemas.topics import PROFILED, TRANSACTIONS
from tests.helpers.logs import Log, after, transaction
from tests.unit.engine.test_engine_card import NOW, partition


def record(offset: int, value: bytes = b"", partition: int = 0) -> Record:
    return Record(TRANSACTIONS.name, partition, offset, 0, None, value)


def added(carried: Carried, records: Sequence[Record]) -> Carried:
    carried.add(records)
    return carried


def offsets(records: Sequence[Any]) -> list[int]:
    return [record.offset for record in records]


def blocks(rows: Sequence[int]) -> list[bytes]:
    """Values of blocks with so many rows."""
    found = []
    for number, count in enumerate(rows):
        log = Log(TRANSACTIONS)
        for row in range(count):
            log.append(transaction(100 * number + row, after(minutes=row)), after(minutes=row))
        (output,) = partition().process(log.records, NOW).outputs
        found.append(output.value or b"")
    return found


def test_a_batch_holds_so_many_records_and_the_next_one_goes_on() -> None:
    carried = added(Carried(3), [record(number) for number in range(7)])
    assert [offsets(carried.take()) for _ in range(4)] == [[0, 1, 2], [3, 4, 5], [6], []]
    assert carried.wanted() == 3


def test_a_batch_holds_so_many_bytes_and_at_least_one_record() -> None:
    sizes = [40, 40, 40, 500, 1, 99, 1]
    carried = added(Carried(100, 100), [record(number, b"x" * size) for number, size in enumerate(sizes)])
    assert carried.wanted() == 0
    assert [offsets(carried.take()) for _ in range(4)] == [[0, 1], [2], [3], [4, 5]]
    assert offsets(carried.take()) == [6]


def test_the_rows_of_blocks_are_counted() -> None:
    values = [*blocks([3, 2, 6, 1]), b"no block"]
    carried = added(Carried(5, blocks=True), [record(number, value) for number, value in enumerate(values)])
    assert [offsets(carried.take()) for _ in range(3)] == [[0, 1], [2], [3, 4]]


def test_no_more_is_asked_for_than_a_batch_needs() -> None:
    carried = Carried(2_000)
    assert carried.wanted() == 2_000
    added(carried, [record(number) for number in range(1_990)])
    assert carried.wanted() == 10
    added(carried, [record(number) for number in range(10)])
    assert carried.wanted() == 0


def test_what_is_dropped_is_of_the_partitions_that_are_meant() -> None:
    carried = added(Carried(2), [record(number, partition=number % 2) for number in range(6)])
    assert offsets(carried.take()) == [0, 1]
    carried.drop(lambda place: place == (TRANSACTIONS.name, 1))
    assert offsets(carried.take()) == [2, 4]
    carried.drop(lambda _: True)
    assert len(carried) == 0


class Reader:
    """A log of one partition, which is read from where it is sought."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records, self.at = list(records), 0

    def take(self, most: int) -> list[Record]:
        found = self.records[self.at : self.at + most]
        self.at += len(found)
        return found

    def seek(self, at: object, offset: int) -> None:
        del at
        self.at = offset

    def prefetch(self) -> None:
        """All is there."""

    def wait(self, timeout_s: float) -> None:
        """Nothing comes by itself."""

    close = prefetch


@pytest.mark.parametrize("seed", range(5))
def test_a_session_reads_every_record_once_however_batches_are_bounded_and_rewound(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = blocks(random.integers(1, 9, 30).tolist())
    log = [Record(PROFILED.name, 0, number, 0, None, value) for number, value in enumerate(values)]
    settings = Settings(batch_max_records=12)
    session = Session("127.0.0.1:1", settings, "score", [PROFILED], cast(StateHandler, _Handler()))
    session._client._records = cast(BoundedConsumer, Reader(log))
    session._client.positions[PROFILED.name, 0] = 0
    read: list[int] = []
    while (batch := session.poll(0.0)) is not None:
        assert offsets_of(batch) == list(range(len(read), len(read) + len(batch.records)))
        if random.random() < 0.3:
            session.rewind(batch)
            continue
        read += offsets_of(batch)
    assert read == list(range(30))
    session._client.close()


def offsets_of(batch: Any) -> list[int]:
    return [record.offset for record in batch.records]


class _Handler:
    def rollback(self, partitions: object) -> None:
        del partitions
