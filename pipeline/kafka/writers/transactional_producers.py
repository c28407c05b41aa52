"""The producers of a session: they take turns, and are replaced when they can no longer be used."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Producer

from pipeline.kafka.cluster.call_thread import CALL_TIMEOUT_AFTER_S, CallThread, CallTimedOut
from pipeline.kafka.cluster.client_log import log_error
from pipeline.kafka.cluster.clients import CALL_TIMEOUT_S, producer_config
from pipeline.kafka.cluster.errors import SessionError, Stopped
from pipeline.kafka.writers.transactional_client import TransactionalClient
from pipeline.settings import Settings

log = logging.getLogger(__name__)

CALL_TIMEOUT_SOON_S: Final = 4.0
"""Longest wait for a call of a transaction during which all brokers were away.

What the client knows of coordinators may be from before, and it may wait for one of them for ever.
"""


class _OwnThread:
    """The thread of whoever calls: for calls of a client that keeps time limits by itself."""

    def __init__(self, client: TransactionalClient) -> None:
        self._client = client

    def call(self, what: str, function: Callable[[], Any], timeout_s: float) -> Any:
        """Return what ``function`` returns."""
        del what, timeout_s
        return function()

    def end(self) -> None:
        """Close the client."""
        self._client.close()


class _Client(NamedTuple):
    """A producer, and the thread of its transactional calls."""

    producer: Producer | TransactionalClient
    call_thread: CallThread | _OwnThread


def _transactional_ids(settings: Settings, agent: str, count: int) -> tuple[str, ...]:
    """Return ``count`` ids of a worker's agent, none of which any other worker or agent can have."""
    groups = (settings.topic(agent), *(f"{settings.topic(agent)}.{number}" for number in range(2, count + 1)))
    return tuple(f"{group}-{settings.instance}" for group in groups)


class TransactionalProducers:
    """Producers that are replaced when they can no longer be used; used from one thread, but for ``stopping``."""

    def __init__(
        self,
        bootstrap: str,
        settings: Settings,
        agent: str,
        *,
        stopping: threading.Event,
        waiting: Callable[[], None],
        renewed: Callable[[], None],
        marks: bool,
        producers: int = 1,
    ) -> None:
        """Make the producers; `start` comes before the first commit.

        Args:
            bootstrap: Addresses of brokers.
            settings: The worker's settings.
            agent: Name of the agent.
            stopping: Set when the worker ends.
            waiting: Called while a call waits for a broker; may raise.
            renewed: Called when producers are replaced.
            marks: Whether records of ``progress`` will be among the outputs, whose delivery is reported.
            producers: Number of producers that take turns, each with a transactional id of its own.
        """
        self._bootstrap, self._settings, self._agent = bootstrap, settings, agent
        self._stopping, self._waiting, self._report_renewed = stopping, waiting, renewed
        self.exactly_once = settings.delivery == "exactly_once"
        self._ids = _transactional_ids(settings, agent, producers) if self.exactly_once else (None,)
        self._brokers_down = threading.Event()
        self._marks = marks
        self._began_s = 0.0
        self.in_transaction = False
        """True while a transaction is open: once all brokers are away, its calls are given up soon."""
        self._clients = [self._new(name) for name in self._ids]
        self._turn = 0

    @property
    def current(self) -> Any:
        """The producer whose turn it is."""
        return self._clients[self._turn].producer

    @property
    def _call_thread(self) -> CallThread | _OwnThread:
        return self._clients[self._turn].call_thread

    def start(self) -> None:
        """Fence earlier holders of the transactional ids; what they left unfinished is aborted."""
        # None of the ids may have a transaction when offsets are asked for.
        if self.exactly_once:
            for turn in range(len(self._clients)):
                self._turn = turn
                self._initialise_current()

    @property
    def reachable(self) -> bool:
        """Return whether any broker was there when last heard of."""
        return not self._brokers_down.is_set()

    def next_turn(self) -> None:
        """Let the next producer be `current`; all are replaced if brokers went away since they were used."""
        self._turn = (self._turn + 1) % len(self._clients)
        self.current.poll(0)  # hear of brokers that went away since
        if self._brokers_down.is_set():
            # What this producer knows of coordinators may be from before: librdkafka may wait for one of them for ever.
            self.renew("brokers were away")
        elif isinstance(self.current, TransactionalClient) and self.current.may_be_late:
            self.renew("a request that was given up may still be done")

    def renew(self, reason: str) -> None:
        """Replace the producers, which ends what is unfinished of any of them."""
        log.warning("%s: a new producer takes over: %s", self._agent, reason)
        self._report_renewed()
        self.close()
        self._brokers_down.clear()
        self._clients = [self._new(name) for name in self._ids]
        self.start()

    def close(self) -> None:
        """Give the producers up; a transaction that is open is left to the broker, or to its id's next holder."""
        for client in self._clients:
            client.call_thread.end()

    def call(self, what: str, call: Callable[[], Any], timeout_s: float = CALL_TIMEOUT_AFTER_S) -> None:
        """Make a call on the current producer's thread.

        Args:
            what: Name of the call, for the error.
            call: Makes the call; its result is dropped.
            timeout_s: Longest wait for its end, in seconds.

        Raises:
            CallTimedOut: The call did not come back in time.
        """
        self._began_s = time.monotonic()
        self._call_thread.call(what, call, timeout_s)

    def call_transaction(self, what: str, *calls: Callable[[], Any]) -> None:
        """Make transactional calls, one after the other; a failed one again for as long as its error allows.

        All are made on the caller's thread at once: to hand a call over and back costs as much as a small batch.

        Raises:
            CallTimedOut: The repetitions take longer than a transaction may: a coordinator that answers again and again
                that a transaction is in progress is one that this producer will not be rid of.
            KafkaException: A call must not be repeated.
            Stopped: The worker ends.
        """
        deadline_s = time.monotonic() + 2 * CALL_TIMEOUT_S
        left, given_up = list(calls), threading.Event()

        def make() -> None:
            # Whoever gave the first call up may look at the offsets meanwhile: the second one must not follow it.
            while left and not given_up.is_set():
                left[0]()
                del left[0]

        while True:
            try:
                self.call(what, make, CALL_TIMEOUT_AFTER_S + (len(left) - 1) * CALL_TIMEOUT_S)
                return
            except KafkaException as error:
                cause: KafkaError = error.args[0]
                if not cause.retriable():
                    raise
                if self._stopping.is_set():
                    raise Stopped(f"agent {self._agent}: {what}: {cause.str()}") from error
                if time.monotonic() > deadline_s:
                    raise CallTimedOut(f"{self._agent}: {what}: {cause.str()}") from error
                log.warning("%s: %s: %s; trying again", self._agent, what, cause.str())
            except BaseException:
                given_up.set()
                raise

    def _new(self, transactional_id: str | None) -> _Client:
        config = producer_config(
            self._bootstrap,
            transactional_id=transactional_id,
            settings=self._settings,
            # A report of each record that was written would take as long as to write it.
            overrides={"error_cb": self._on_error, "delivery.report.only.error": not self._marks},
        )
        if self.exactly_once and self._settings.transaction_client == "batched":
            client = TransactionalClient(config, self._while_waiting)
            return _Client(client, _OwnThread(client))
        return _Client(Producer(config), CallThread(self._agent, self._while_waiting))

    def _initialise_current(self) -> None:
        while True:
            try:
                self.call_transaction("init_transactions", lambda: self.current.init_transactions(CALL_TIMEOUT_S))
            except CallTimedOut as error:
                if self._stopping.is_set():
                    raise Stopped(f"agent {self._agent}: {error}") from error
                log.warning("%s: %s; trying again with a new producer", self._agent, error)
                self._call_thread.end()
                self._clients[self._turn] = self._new(self._ids[self._turn])
            except KafkaException as error:
                cause: KafkaError = error.args[0]
                raise SessionError(f"agent {self._agent}: {cause.str()} ({cause.name()})") from error
            else:
                return

    def _while_waiting(self) -> None:
        self._waiting()
        self.current.poll(0)
        if (
            self.in_transaction
            and self._brokers_down.is_set()
            and time.monotonic() - self._began_s > CALL_TIMEOUT_SOON_S
        ):
            raise CallTimedOut(f"{self._agent}: brokers went away during a transaction")

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._brokers_down.set()
        if error.fatal() and self.exactly_once:
            # The call that is under way, or the next one, fails with it and is dealt with there.
            return
        log_error(error)
