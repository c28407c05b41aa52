"""Whether a broker answers, asked every few seconds from a thread of its own, whatever the agents are waiting for."""

import logging
import threading
from types import TracebackType
from typing import Final, Self

from confluent_kafka import KafkaException

from pipeline.health import Health
from pipeline.kafka.clients import admin_client
from pipeline.settings import Settings
from schemas.topics import TRANSACTIONS

log = logging.getLogger(__name__)

INTERVAL_S: Final = 2.0
REQUEST_TIMEOUT_S: Final = 2.0


class BrokerWatch:
    """Tells a ``Health`` whether a broker answers, from ``start`` (or ``with``) to ``stop``."""

    def __init__(
        self,
        bootstrap: str,
        settings: Settings,
        health: Health,
        *,
        interval_s: float = INTERVAL_S,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        # The agents' clients complain of the same broker: this one's complaints would only repeat theirs.
        self._client = admin_client(
            bootstrap, settings=settings, overrides={"log_level": 0, "error_cb": lambda _error: None}
        )
        # One topic instead of all of a large cluster's.
        self._topic = settings.topic(TRANSACTIONS.name)
        self._health = health
        self._interval_s, self._request_timeout_s = interval_s, request_timeout_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="broker-watch", daemon=True)

    def start(self) -> Self:
        """Ask from now on."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ask no more; waits for the request that is under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(self._request_timeout_s + 1)

    def ask(self) -> bool:
        """Ask once, now; whether a broker answered."""
        try:
            self._client.list_topics(self._topic, timeout=self._request_timeout_s)
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

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
