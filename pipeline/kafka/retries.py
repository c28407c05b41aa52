"""Calls whose errors pass by themselves, repeated for a time or for as long as the worker goes on."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from confluent_kafka import KafkaError, KafkaException

from pipeline.kafka.clients import CALL_TIMEOUT_S, METADATA_TIMEOUT_S
from pipeline.kafka.errors import Stopped

log = logging.getLogger(__name__)
T = TypeVar("T")

PASSING_ERRORS: Final = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,  # a broker that stood still and lets nothing be sent
        KafkaError._NOENT,  # the client knows no leader: "Failed to query partition leaders"
    }
)
"""Errors of a fresh topic, a moving leader or a restarting broker, for a while; the client does not retry these."""
RETRY_INTERVAL_S: Final = 0.1
RETRY_S: Final = 0.2
HANGING_S: Final = 3 * CALL_TIMEOUT_S
"""Longer than this no transaction is open that its coordinator still knows of."""
_PASSING: Final = PASSING_ERRORS | {KafkaError.UNSTABLE_OFFSET_COMMIT}


def retried(call: Callable[[], T]) -> T:
    """Repeat ``call`` for as long as its ``KafkaException`` may pass, up to ``METADATA_TIMEOUT_S``."""
    deadline_s = time.monotonic() + METADATA_TIMEOUT_S
    while True:
        try:
            return call()
        except KafkaException as error:
            if error.args[0].code() not in PASSING_ERRORS or time.monotonic() > deadline_s:
                raise
            time.sleep(RETRY_INTERVAL_S)


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
