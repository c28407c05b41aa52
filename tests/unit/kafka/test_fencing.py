"""Who fences a worker: those that take its partitions over, a coordinator, or a rival of its own name."""

import threading
from itertools import count
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.kafka import transactions
from pipeline.kafka.errors import Aborted, SessionError
from pipeline.kafka.transactions import MOST_ABORTS, MOST_FENCED, TransactionalWriter
from pipeline.settings import Settings

FENCINGS = 3 * MOST_FENCED


class Producers:
    """Producers all of whose transactions fail with one error."""

    exactly_once = True
    current: Any = None
    in_transaction = False

    def __init__(self, error: KafkaError) -> None:
        self._error, self.renewals = error, 0
        self.current = self

    def next_turn(self) -> None:
        pass

    def begin_transaction(self) -> None:
        raise KafkaException(self._error)

    def call(self, what: str, call: Any) -> None:
        del what
        call()

    def renew(self, reason: str) -> None:
        del reason
        self.renewals += 1


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "TAKEOVER_S", -1.0)
    monkeypatch.setattr(transactions, "RETRY_S", 0.0)


def fail(error: KafkaError, commits: Any, times: int) -> int:
    """Commit so often; returns how often the producers were renewed."""
    producers: Any = Producers(error)
    stopping = threading.Event()
    writer = TransactionalWriter(Settings(), "card", producers, stopping, lambda: None, commits)
    for _ in range(times):
        with pytest.raises(Aborted):
            writer.commit([], [], None)
    return int(producers.renewals)


@pytest.mark.parametrize("left", [{}, {("transactions", 0): "worker/of-before/17"}])
def test_a_worker_without_a_rival_goes_on_however_often_it_is_fenced(left: dict[tuple[str, int], str]) -> None:
    fenced = KafkaError(KafkaError.INVALID_PRODUCER_EPOCH)
    assert fail(fenced, lambda: left, FENCINGS) == FENCINGS


def test_a_worker_ends_whose_rival_commits_between_its_fencings() -> None:
    fenced, numbers = KafkaError(KafkaError._FENCED), count()
    commits = lambda: {("transactions", 1): f"worker/rival/{next(numbers)}"}  # noqa: E731
    assert fail(fenced, commits, MOST_FENCED - 1) == MOST_FENCED - 1
    with pytest.raises(SessionError, match="give each worker an --instance of its own"):
        fail(fenced, commits, MOST_FENCED)


def test_a_batch_is_tried_for_as_long_as_replicas_are_away_and_not_for_ever_otherwise() -> None:
    away = KafkaError(KafkaError.NOT_ENOUGH_REPLICAS)
    assert fail(away, dict, 2 * MOST_ABORTS) == 2 * MOST_ABORTS
    refused = KafkaError(KafkaError.INVALID_RECORD)
    with pytest.raises(SessionError, match="was aborted 11 times"):
        fail(refused, dict, 2 * MOST_ABORTS)
