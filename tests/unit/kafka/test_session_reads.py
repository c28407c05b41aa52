"""What a session makes of its partitions, with a client that only notes what it is told."""

import threading
from collections.abc import Iterator
from typing import cast

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from pipeline.kafka.damage import unreadable_batches
from pipeline.kafka.session.session import Session
from pipeline.kafka.session.state_handler import StateHandler
from pipeline.settings import Settings
from schemas.records import Record
from schemas.topics import REROUTED
from tests.helpers.client_messages import ClientMessage, message_of

READ, SEARCHED, STOPPED, LOST, NEW = ((REROUTED.name, number) for number in range(5))


class Client:
    """Seeks all partitions but one that it has stopped reading and one that it has lost; those must be resumed."""

    def __init__(self) -> None:
        self.seeks: list[tuple[str, int, int]] = []
        self.restarted: list[tuple[str, int, int]] = []
        self.resumed: list[tuple[str, int]] = []

    def poll(self, timeout_s: float) -> ClientMessage:
        del timeout_s
        return message_of(Record(*READ, 5, 0, None, None))

    def consume(self, most: int, timeout_s: float) -> list[ClientMessage]:
        del most, timeout_s
        return []

    def consumer_group_metadata(self) -> None:
        return None

    def seek(self, at: TopicPartition) -> None:
        # A client that holds paused partitions only does not notice a resume behind the seek for a second.
        assert (at.topic, at.partition) in self.resumed
        if (at.topic, at.partition) in (STOPPED, LOST):
            raise KafkaException(KafkaError(KafkaError._STATE))
        self.seeks.append((at.topic, at.partition, at.offset))

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition(*place) for place in (READ, SEARCHED, STOPPED, NEW)]

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        del partitions

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self.restarted += [(at.topic, at.partition, at.offset) for at in partitions]

    def resume(self, partitions: list[TopicPartition]) -> None:
        self.resumed += [(at.topic, at.partition) for at in partitions]


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session("127.0.0.1:1", Settings(), "card", [REROUTED], cast(StateHandler, object()))
    own = made._client.consumer
    yield made
    made._client.consumer = own
    made._unreadable.close()
    made._client.close()


def test_reading_goes_on_everywhere_but_where_a_search_runs(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    monkeypatch.setattr(unreadable_batches, "find_fault", lambda *_, is_silent: is_silent or ended.wait(10) or None)
    session._unreadable.failed(SEARCHED, 17, "damaged")
    client = Client()
    session._client.consumer = cast(Consumer, client)
    session._paused = True
    session._client.positions.update({READ: 5, SEARCHED: 17, STOPPED: 7, LOST: 9, NEW: 0})
    session._resume()
    ended.set()
    assert client.seeks == [(*READ, 5), (*NEW, OFFSET_BEGINNING)]
    assert client.restarted == [(*STOPPED, 7)]
    assert client.resumed == [READ, STOPPED, LOST, NEW]
    assert LOST not in session._client.positions
    assert not session._paused
