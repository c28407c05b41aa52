"""Who fences a worker: those that take its partitions over, a coordinator, or a rival of its own name."""

import threading
from itertools import count
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.kafka.cluster.errors import Aborted, SessionError, Unknown
from pipeline.kafka.writers import transactions
from pipeline.kafka.writers.transactions import MOST_ABORTS, MOST_FENCED, TransactionalWriter
from pipeline.settings import Settings

FENCINGS = 3 * MOST_FENCED
FENCED = KafkaError(KafkaError.INVALID_PRODUCER_EPOCH)


class Producers:
    """Producers whose transactions fail with one error, but for every ``succeeds``-th."""

    exactly_once = True
    current: Any = None
    in_transaction = False

    def __init__(self, error: KafkaError, succeeds: int) -> None:
        self._error, self._succeeds, self._began, self.renewals = error, succeeds, 0, 0
        self.current = self

    def next_turn(self) -> None:
        pass

    def begin_transaction(self) -> None:
        self._began += 1
        if self._began % self._succeeds:
            raise KafkaException(self._error)

    def call_transaction(self, what: str, *calls: Any) -> None:
        pass

    def poll(self, timeout_s: float) -> None:
        pass

    def produce(self) -> None:
        pass

    def call(self, what: str, call: Any) -> None:
        del what
        call()

    def renew(self, reason: str) -> None:
        del reason
        self.renewals += 1


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "TAKEOVER_S", -1.0)
    monkeypatch.setattr(transactions, "BATCH_RETRY_S", 0.0)


def fail(error: KafkaError, times: int, commits: Any = dict, succeeds: int = 1_000) -> int:
    """Fail to commit so often; returns how often the producers were renewed."""
    producers: Any = Producers(error, succeeds)
    stopping = threading.Event()
    writer = TransactionalWriter(Settings(), "card", producers, stopping, lambda: None, commits)
    failed = 0
    while failed < times:
        try:
            writer.commit([], [], None)
        except Aborted:
            failed += 1
    return int(producers.renewals)


@pytest.mark.parametrize("left", [{}, {("transactions", 0): "worker/of-before/17"}])
def test_a_worker_that_commits_between_its_fencings_goes_on(left: dict[tuple[str, int], str]) -> None:
    assert fail(FENCED, FENCINGS, lambda: left, succeeds=2) == FENCINGS


def test_a_fence_behind_a_transactions_time_limit_is_the_coordinators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "TRANSACTION_TIMEOUT_MS", 0)
    assert fail(FENCED, FENCINGS) == FENCINGS


@pytest.mark.parametrize("succeeds", [1_000, 2])
def test_a_worker_with_a_rival_ends_whether_or_not_it_comes_to_commit(succeeds: int) -> None:
    numbers = count()

    def commits() -> dict[tuple[str, int], str]:
        return {("transactions", 1): f"worker/rival/{next(numbers) if succeeds == 2 else 0}"}

    assert fail(FENCED, MOST_FENCED - 1, commits, succeeds) == MOST_FENCED - 1
    with pytest.raises(SessionError, match="give each worker an --instance of its own"):
        fail(FENCED, MOST_FENCED, commits, succeeds)


def test_a_batch_is_tried_for_as_long_as_replicas_are_away_and_not_for_ever_otherwise() -> None:
    away = KafkaError(KafkaError.NOT_ENOUGH_REPLICAS)
    assert fail(away, 2 * MOST_ABORTS) == 2 * MOST_ABORTS
    refused = KafkaError(KafkaError.INVALID_RECORD)
    with pytest.raises(SessionError, match="was aborted 11 times"):
        fail(refused, 2 * MOST_ABORTS)


def test_a_fence_at_the_commit_leaves_open_how_the_transaction_ended() -> None:
    """It may have been committed: the offsets say, and whoever took it for aborted would do its batch again."""

    class AtCommit(Producers):
        def call_transaction(self, what: str, *calls: Any) -> None:
            calls[-1]()

        def commit_transaction(self, timeout_s: float) -> None:
            raise KafkaException(FENCED)

    producers: Any = AtCommit(FENCED, succeeds=1)
    writer = TransactionalWriter(Settings(), "card", producers, threading.Event(), lambda: None, dict)
    with pytest.raises(Unknown):
        writer.commit([], [], None)
