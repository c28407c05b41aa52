"""A member of a group takes nothing behind a range that cannot be read, before that has been passed over."""

from collections.abc import Iterator
from typing import Final

import pytest

from pipeline.kafka.cluster.clients import consumer_config
from pipeline.kafka.cluster.retries import Retries
from pipeline.kafka.readers.group_client import GroupClient
from pipeline.kafka.records.batch import Item, Partition, UnreadableRange
from pipeline.kafka.records.member import Member
from pipeline.settings import Settings
from schemas.records import Record
from schemas.topics import TRANSACTIONS

FIRST: Final = (TRANSACTIONS.name, 0)
SECOND: Final = (TRANSACTIONS.name, 1)


@pytest.fixture
def client() -> Iterator[GroupClient]:
    bootstrap = "127.0.0.1:1"
    member = Member(bootstrap, Settings(), "card", [TRANSACTIONS])
    made = GroupClient(member, consumer_config(bootstrap, "card"), Retries("card", lambda: None))
    for partition in (FIRST, SECOND):
        made.seek(partition, 0)
    yield made
    made.close()


def records(partition: Partition, *offsets: int) -> list[Item]:
    return [Record(*partition, offset, 0, None, b"") for offset in offsets]


def test_the_first_of_two_ranges_counts(client: GroupClient) -> None:
    odd, damaged = UnreadableRange(FIRST, 0, 10, "OddOffset", ""), UnreadableRange(FIRST, 15, 20, "Damaged", "")
    assert client._read([odd, damaged]) == {}
    assert client.unreadable == {FIRST: odd}


def test_nothing_behind_a_range_is_taken_and_other_partitions_go_on(client: GroupClient) -> None:
    odd = UnreadableRange(FIRST, 2, 10, "OddOffset", "")
    items = [*records(FIRST, 0, 1), odd, *records(FIRST, 10, 11), *records(SECOND, 0)]
    read = client._read(items)
    assert {partition: [record.offset for record in part] for partition, part in read.items()} == {
        FIRST: [0, 1],
        SECOND: [0],
    }
    # Nor in a later batch, until it has been passed over.
    assert client._read(records(FIRST, 12)) == {}
    passed_over = client.unreadable_batch()
    assert passed_over is not None
    assert (passed_over.unreadable, passed_over.ends) == (odd, {FIRST: 10})
    assert list(client._read(records(FIRST, 10))) == [FIRST]
