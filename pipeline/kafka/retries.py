"""Calls whose errors pass by themselves, repeated for as long as the worker goes on."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from confluent_kafka import KafkaError, KafkaException

from pipeline.kafka.clients import PASSING_ERRORS
from pipeline.kafka.transactions import CALL_TIMEOUT_S, Stopped

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_S: Final = 0.2
HANGING_S: Final = 3 * CALL_TIMEOUT_S
"""Longer than this no transaction is open that its coordinator still knows of."""
_PASSING: Final = PASSING_ERRORS | {KafkaError.UNSTABLE_OFFSET_COMMIT}


class Retries:
    """Retries for one agent: reports that it waits (``waiting``), and gives up once ``stopping`` is set."""

    def __init__(self, agent: str, stopping: threading.Event, waiting: Callable[[], None]) -> None:
        self._agent, self._stopping, self._waiting = agent, stopping, waiting

    def call(self, what: str, call: Callable[[], T], advice: str = "") -> T:
        """Repeat ``call`` for as long as its error may pass, and return its result; `Stopped` once the worker ends.

        ``advice`` is what to look at where that takes longer than any transaction may.
        """
        long_s = time.monotonic() + HANGING_S
        while True:
            try:
                return call()
            except KafkaException as error:
                cause: KafkaError = error.args[0]
                if cause.code() not in _PASSING and not cause.retriable():
                    raise
                if self._stopping.is_set():
                    raise Stopped(f"agent {self._agent}: {what}: {cause.str()}") from error
                hint = f" ({advice})" if advice and time.monotonic() > long_s else ""
                log.warning("%s: %s: %s; trying again%s", self._agent, what, cause.str(), hint)
                self.pause()

    def pause(self) -> None:
        """Wait a moment before something is asked again; `Stopped` once the worker ends."""
        self.wait()
        time.sleep(RETRY_S)

    def wait(self) -> None:
        """Report that the agent waits; `Stopped` once the worker ends."""
        if self._stopping.is_set():
            raise Stopped(f"agent {self._agent}: the worker ends while it waits for a broker")
        self._waiting()
