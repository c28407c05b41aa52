"""Threads beside the agents: whether a broker answers, and how old the oldest undecided records are."""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Final, Self

from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.errors import FailedRequest
from pipeline.kafka.cluster.retries import retried
from pipeline.kafka.readers.undecided import KafkaLog, OldestUndecided
from pipeline.kafka.records.batch import Partition
from pipeline.observability.health import Health
from pipeline.observability.metrics import WorkerMetrics
from pipeline.settings import Settings
from schemas.topics import TRANSACTIONS

log = logging.getLogger(__name__)

INTERVAL_S: Final = 2.0
REQUEST_TIMEOUT_S: Final = 4.0
"""Time within which some broker must answer; each of them is waited for `ATTEMPT_S` at most."""
ATTEMPT_S: Final = 1.0


class WatchThread(ABC):
    """A thread that looks at brokers beside the agents, from ``start`` (or ``with``) to ``stop``."""

    def __init__(self, name: str, stops_within_s: float) -> None:
        self._stops_within_s = stops_within_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def _run(self) -> None:
        """Look again and again, until ``_stopping`` is set."""

    def start(self) -> Self:
        """Look from now on."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(self._stops_within_s)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class BrokerWatch(WatchThread):
    """Reports to a ``Health`` whether a broker answers."""

    def __init__(
        self,
        bootstrap: str,
        settings: Settings,
        health: Health,
        *,
        interval_s: float = INTERVAL_S,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        super().__init__("broker-watch", ATTEMPT_S + 1)
        # The agents' clients complain of the same broker: this one's complaints would only repeat theirs. A client asks
        # the broker that it has asked last, until it gives the connection up.
        quiet = {"log_level": 0, "error_cb": lambda _error: None, "socket.timeout.ms": round(ATTEMPT_S * 1_000)}
        self._client = admin_client(bootstrap, settings=settings, overrides=quiet)
        # One topic instead of all of a large cluster's.
        self._topic = settings.topic(TRANSACTIONS.name)
        self._health = health
        self._interval_s, self._request_timeout_s = interval_s, request_timeout_s

    def ask(self) -> bool:
        """Ask once, now; whether a broker answered."""
        try:
            attempt = partial(self._client.list_topics, self._topic, timeout=min(ATTEMPT_S, self._request_timeout_s))
            retried(attempt, within_s=self._request_timeout_s)
        except FailedRequest as error:
            self._health.broker_silent(error.args[0].str())
            return False
        self._health.broker_answered()
        return True

    def _run(self) -> None:
        answered = True
        while not self._stopping.is_set():
            before, answered = answered, self.ask()
            if before and not answered:
                log.warning("no broker answers; agents wait for one and go on where they were")
            elif answered and not before:
                log.warning("a broker answers again")
            self._stopping.wait(self._interval_s)


class UndecidedWatch(WatchThread):
    """Measures for several agents; ``stop`` waits for the measurement that is under way, but not for brokers."""

    def __init__(
        self, bootstrap: str, settings: Settings, metrics: WorkerMetrics, *, interval_s: float = INTERVAL_S
    ) -> None:
        super().__init__("undecided-watch", 1.0)
        self._metrics, self._interval_s = metrics, interval_s
        self._new_log = partial(KafkaLog, bootstrap, settings, self._stopping)
        self._untimed = settings.inputs if settings.timestamps == "producer" else frozenset()
        self._positions: dict[str, Callable[[], Mapping[Partition, int]]] = {}

    def follow(self, agent: str, positions: Callable[[], Mapping[Partition, int]]) -> None:
        """Measure for ``agent`` too; ``positions``: where its committed records end, of what it holds now."""
        self._positions[agent] = positions

    def _run(self) -> None:
        logs = self._new_log()
        agents: dict[str, OldestUndecided] = {}
        shown: dict[str, set[Partition]] = {}
        while not self._stopping.wait(self._interval_s):
            for agent, positions in list(self._positions.items()):
                oldest = agents.setdefault(agent, OldestUndecided(logs, self._untimed))
                shown[agent] = self._measure(agent, oldest, positions, shown.get(agent, set()))

    def _measure(
        self,
        agent: str,
        oldest: OldestUndecided,
        positions: Callable[[], Mapping[Partition, int]],
        shown: set[Partition],
    ) -> set[Partition]:
        """Export one agent's ages; return the partitions that have one now, of those ``shown`` before and others."""
        ages_s: Mapping[Partition, float] = {}
        try:
            ages_s = oldest.ages_s(dict(positions()), time.time())
        except Exception:
            # The next measurement may do better; a thread that ends would be seen by nobody. No value says that
            # nothing is known: the last one, mostly 0, would say that nothing waits.
            log.exception("%s: the age of the oldest undecided records cannot be measured", agent)
        for topic, number in shown - ages_s.keys():
            self._metrics.forget("oldest_undecided_seconds", agent=agent, topic=topic, partition=number)
        for (topic, number), age_s in ages_s.items():
            self._metrics.show("oldest_undecided_seconds", age_s, agent, topic, number)
        return set(ages_s)
