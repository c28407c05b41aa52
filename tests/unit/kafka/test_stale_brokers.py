"""A broker that is cut off from the controllers answers, and what it says of others is of before."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError

from pipeline.kafka.records import raw_fetch
from pipeline.kafka.records.raw_fetch import Connections
from pipeline.kafka.writers.transaction_brokers import Coordinator, TransactionBrokers

STALE, CURRENT = ("a", 1), ("b", 1)
CONFIG = {
    "client.id": "test",
    "bootstrap.servers": "a:1,b:1,c:1",
    "security.protocol": "plaintext",
    "error_cb": lambda _error: None,
}


class Connection:
    """To a broker; the stale one names itself where the others name the one that leads and coordinates now."""

    def __init__(self, host: str) -> None:
        self._names = STALE if (host, 1) == STALE else CURRENT

    def connected(self) -> bool:
        return True

    async def send(self, request: Any) -> Any:
        if type(request).__name__.startswith("Metadata"):
            brokers = [(number, host, 1, None) for number, host in enumerate("abc")]
            leader = "abc".index(self._names[0])
            return SimpleNamespace(brokers=brokers, topics=[(0, "t", False, [(0, 0, leader, [0, 1, 2], [0, 1, 2])])])
        if self._names == STALE and self.knows_none:
            return SimpleNamespace(error_code=int(KafkaError.COORDINATOR_NOT_AVAILABLE), host="", port=-1)
        return SimpleNamespace(error_code=0, host=self._names[0], port=1)

    knows_none = False


@pytest.fixture
def brokers(monkeypatch: pytest.MonkeyPatch) -> TransactionBrokers:
    async def connect(host: str, _port: int, **_: object) -> Connection:
        return Connection(host)

    monkeypatch.setattr(raw_fetch, "create_conn", connect)
    made = TransactionBrokers(CONFIG)
    # Else any of them may be asked first.
    for current in (("c", 1), CURRENT):
        made._connections.doubt(current)
    return made


def test_another_broker_is_asked_for_a_leader_that_says_it_is_none(brokers: TransactionBrokers) -> None:
    async def leader() -> object:
        return (await brokers.find_leaders({("t", 0)}))["t", 0]

    assert asyncio.run(leader()) == STALE
    brokers.leader_answered(("t", 0), KafkaError.NOT_LEADER_FOR_PARTITION)
    assert asyncio.run(leader()) == CURRENT


@pytest.mark.parametrize("knows_none", [False, True])
def test_another_broker_is_asked_for_a_coordinator(
    brokers: TransactionBrokers, monkeypatch: pytest.MonkeyPatch, *, knows_none: bool
) -> None:
    monkeypatch.setattr(Connection, "knows_none", knows_none)

    async def coordinator() -> object:
        return await brokers.coordinator(Coordinator.TRANSACTION, "card")

    assert asyncio.run(coordinator()) == (None if knows_none else STALE)
    brokers.coordinator_answered(Coordinator.TRANSACTION, "card", KafkaError.NOT_COORDINATOR)
    assert asyncio.run(coordinator()) == CURRENT


def test_a_broker_that_failed_is_asked_last_whatever_is_doubted_of_the_others() -> None:
    connections = Connections(CONFIG)
    connections.failed(STALE, OSError("closed"))
    for doubted in (CURRENT, ("c", 1)):
        connections.doubt(doubted)
    assert connections.known() == [CURRENT, ("c", 1), STALE]
