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
LAST_WAIT_S: Final = 4.0
"""Longest wait for a broker once the worker ends: what was not committed is read again."""
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
    """Waits and retries of one agent, until its worker ends; `request` may be called from another thread.

    Args:
        agent: Name of the agent.
        report_waiting: Called while something waits for a broker; may raise.
        requested: Set once the worker is to end.
    """

    def __init__(
        self, agent: str, report_waiting: Callable[[], None], requested: threading.Event | None = None
    ) -> None:
        self._agent, self.report_waiting = agent, report_waiting
        self.requested = requested if requested is not None else threading.Event()
        self._requested_s = math.inf

    def request(self) -> None:
        """No longer repeat calls that fail, nor wait for long."""
        self._requested_s = min(self._requested_s, time.monotonic())
        self.requested.set()

    def call(self, what: str, call: Callable[[], T], advice: str = "") -> T:
        """Repeat a call for as long as its error may pass, and return its result.

        Args:
            what: Name of the call, for logs and the error.
            call: Asks a cluster, with a time limit of its own.
            advice: What to look at where it takes longer than any transaction may; empty: nothing is added to the log.

        Raises:
            Stopped: The worker ends.
            KafkaException: The error does not pass.
        """
        long_s = time.monotonic() + HANGING_S
        while True:
            try:
                return call()
            except KafkaException as error:
                cause: KafkaError = error.args[0]
                if not may_pass(cause):
                    raise
                if self.requested.is_set():
                    raise Stopped(f"agent {self._agent}: {what}: {cause.str()}") from error
                hint = f" ({advice})" if advice and time.monotonic() > long_s else ""
                log.warning("%s: %s: %s; trying again%s", self._agent, what, cause.str(), hint)
                self.pause()

    def pause(self) -> None:
        """Wait a moment before something is asked again; `Stopped` once the worker ends."""
        self.wait()
        time.sleep(RETRY_S)

    def wait(self) -> None:
        """Report a wait for a broker; `Stopped` once the worker ends."""
        self._raise_if(self.requested.is_set(), "it waits for a broker")
        self.report_waiting()

    def restoring(self) -> None:
        """Report a wait of a restore; `Stopped` once the worker ends."""
        self._raise_if(self.requested.is_set(), "state is being restored")
        self.report_waiting()

    def last_wait(self) -> None:
        """Report a wait for a broker; `Stopped` once the worker has been ending for `LAST_WAIT_S`."""
        self.report_waiting()
        self._raise_if(time.monotonic() - self._requested_s > LAST_WAIT_S, "it waits for a broker")

    def _raise_if(self, is_stopped: bool, what: str) -> None:
        if is_stopped:
            raise Stopped(f"agent {self._agent}: the worker ends while {what}")
