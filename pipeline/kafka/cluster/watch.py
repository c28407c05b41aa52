"""Asks every few seconds, from a thread of its own, whether a broker answers, whatever the agents are waiting for."""

import logging
import threading
from abc import ABC, abstractmethod
from functools import partial
from types import TracebackType
from typing import Final, Self

from confluent_kafka import KafkaException

from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.retries import retried
from pipeline.observability.health import Health
from pipeline.settings import Settings
from schemas.topics import TRANSACTIONS

log = logging.getLogger(__name__)

INTERVAL_S: Final = 2.0
REQUEST_TIMEOUT_S: Final = 4.0
"""Time within which some broker must answer; each of them is waited for `ATTEMPT_S` at most."""
ATTEMPT_S: Final = 1.0


class WatchThread(ABC):
    """A thread that looks at brokers beside the agents, from ``start`` (or ``with``) to ``stop``.

    Args:
        name: Name of the thread.
        stops_within_s: Longest time that ``stop`` waits for what is under way.
    """

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
        except KafkaException as error:
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
