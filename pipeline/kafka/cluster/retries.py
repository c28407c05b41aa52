"""Calls whose errors pass by themselves, repeated for a time or for as long as the worker goes on."""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from confluent_kafka import KafkaError, KafkaException

from pipeline.kafka.cluster.clients import CALL_TIMEOUT_S, METADATA_TIMEOUT_S
from pipeline.kafka.cluster.errors import Stopped

log = logging.getLogger(__name__)
T = TypeVar("T")

PASSING_ERRORS: Final = frozenset(
    {
        # A topic that is new, or whose leader moves.
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.LISTENER_NOT_FOUND,
        # Replicas, a controller or a coordinator that is away, or new.
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.NOT_CONTROLLER,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.CONCURRENT_TRANSACTIONS,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.THROTTLING_QUOTA_EXCEEDED,
        # The client's own: no connection, no answer, or no leader or coordinator that it knows of.
        KafkaError._TRANSPORT,
        KafkaError._RESOLVE,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._DESTROY_BROKER,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._MSG_TIMED_OUT,
        KafkaError._WAIT_COORD,
        KafkaError._WAIT_CACHE,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._NOENT,
    }
)
"""Errors of a fresh topic, a moving leader or a restarting broker, for a while; `KafkaError.retriable` misses them."""
RETRY_INTERVAL_S: Final = 0.1
RETRY_S: Final = 0.2
REPORT_S: Final = 10.0
"""Time after which a question that nobody answers is reported, and reported again."""
HANGING_S: Final = 3 * CALL_TIMEOUT_S
"""Longer than this no transaction is open that its coordinator still knows of."""


def may_pass(error: KafkaError) -> bool:
    """Return whether the same call may succeed a moment later."""
    return error.code() in PASSING_ERRORS or bool(error.retriable())


def retried(
    call: Callable[[], T], waiting: Callable[[], None] | None = None, *, within_s: float = METADATA_TIMEOUT_S
) -> T:
    """Repeat ``call`` for as long as its ``KafkaException`` may pass.

    Args:
        call: Asks a cluster, with a time limit of its own.
        waiting: Called before each attempt, and may raise: an agent waits for as long as its worker goes on.
        within_s: Time after which the last error is raised, where nothing is ``waiting``.

    Raises:
        KafkaException: The error does not pass, or has not.
    """
    now_s = time.monotonic()
    deadline_s, report_s = now_s + within_s if waiting is None else math.inf, now_s + REPORT_S
    while True:
        if waiting is not None:
            waiting()
        try:
            return call()
        except KafkaException as error:
            now_s = time.monotonic()
            if not may_pass(error.args[0]) or now_s > deadline_s:
                raise
            if now_s > report_s:
                report_s = now_s + REPORT_S
                log.warning("the cluster does not answer: %s; asking again", error.args[0].str())
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
                if not may_pass(cause):
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
