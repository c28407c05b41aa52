"""The writing half of a session: one transaction a batch, and what to do when one does not end well."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from pipeline.engine.results import redacted
from pipeline.kafka.call_thread import CALL_TIMEOUT_AFTER_S, CallThread, CallTimedOut
from pipeline.kafka.callbacks import callback
from pipeline.kafka.clients import log_error, producer_config
from pipeline.protection.signing import SIGNED, Signer
from pipeline.settings import Settings
from schemas.records import Output
from schemas.topics import DEAD_LETTERS, PROGRESS, Topic

log = logging.getLogger(__name__)

MOST_ABORTS: Final = 10
"""Aborts in a row after which an operator is asked: what the broker refuses for good would be tried for ever."""
FENCED: Final = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.PRODUCER_FENCED,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.INVALID_PRODUCER_EPOCH,
    }
)
TOO_LARGE: Final = KafkaError.MSG_SIZE_TOO_LARGE
"""The error of this client before it sends a record, or of the broker that refuses it."""
NOT_A_MEMBER: Final = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.FENCED_MEMBER_EPOCH,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.GROUP_ID_NOT_FOUND,
    }
)
"""The group does not know this member as it was when the batch was formed."""
CALL_TIMEOUT_S: Final = 8.0
"""Longest wait for one transactional call; the broker ends a transaction after as long."""
CALL_TIMEOUT_SOON_S: Final = 4.0
"""Longest wait for a call of a transaction during which all brokers were away.

What the client knows of coordinators may be from before, and it may wait for one of them for ever.
"""
FENCED_AGAIN_S: Final = 60.0
MOST_FENCED: Final = 3
TAKEOVER_S: Final = 10.0
"""A worker that is fenced as often within `FENCED_AGAIN_S`, and for longer than this, has a rival of its own name.

Others that take its partitions over fence it too, each once, within a few seconds.
"""
RETRY_S: Final = 0.5
MOST_START_S: Final = 60.0
"""Longest wait, at a start, for the end of unfinished transactions."""

PARTITION_UA: Final = -1
"""librdkafka's number for a record that goes where its key belongs."""


class SessionError(RuntimeError):
    """The session cannot go on; the worker must end, and nothing of the current batch is committed."""


class Stopped(SessionError):
    """The worker ends, and what it waited for has not come."""


class Aborted(Exception):
    """Nothing of the batch is committed; its state was taken back, and it is read again."""


class OutputTooLarge(Exception):
    """A record to be written is larger than this client or its topic takes; nothing of the batch is committed.

    Unlike an abort, this is the fault of what was read: the same records would fail for ever.
    """


class Unknown(Exception):
    """A transaction ended without word of how; a new producer has ended it, the committed offsets show the rest."""


class _Client(NamedTuple):
    """A producer, and the thread of its transactional calls."""

    producer: Producer
    call_thread: CallThread


def _transactional_ids(settings: Settings, agent: str, count: int) -> tuple[str, ...]:
    """Return ``count`` ids of a worker's agent, none of which any other worker or agent can have."""
    groups = (settings.topic(agent), *(f"{settings.topic(agent)}.{number}" for number in range(2, count + 1)))
    return tuple(f"{group}-{settings.instance}" for group in groups)


def end_unfinished(bootstrap: str, settings: Settings, producers: Mapping[str, int]) -> None:
    """Abort the transactions that an earlier process of this worker has left open.

    Whoever reads what is committed, and whoever asks for a group's offsets, waits for their end: for the brokers'
    time limit, if nobody ends them.

    Args:
        bootstrap: Addresses of brokers.
        settings: The worker's settings.
        producers: Number of producers of each agent.

    Raises:
        SessionError: An id cannot be initialised, or not within `MOST_START_S`.
    """
    deadline_s = time.monotonic() + MOST_START_S

    def end(agent: str) -> None:
        def waiting() -> None:
            if time.monotonic() > deadline_s:
                raise SessionError(
                    f"agent {agent}: no broker has ended what an earlier process of this worker left open within "
                    f"{MOST_START_S:.0f} s: look at the brokers' transaction coordinators"
                )

        end_agent(bootstrap, settings, agent, producers[agent], threading.Event(), waiting)

    # All at once: each takes as long as a client needs to connect.
    with ThreadPoolExecutor(len(producers)) as threads:
        list(threads.map(end, producers))


def end_agent(
    bootstrap: str,
    settings: Settings,
    agent: str,
    producers: int,
    stopping: threading.Event,
    waiting: Callable[[], None],
) -> None:
    """Abort the transactions of one agent of an instance, and fence the process that began them.

    Args:
        bootstrap: Addresses of brokers.
        settings: Settings with the name of the instance.
        agent: Name of the agent.
        producers: Number of its producers.
        stopping: Set when this worker ends.
        waiting: Called while no broker answers; may raise.

    Raises:
        SessionError: An id cannot be initialised.
    """
    if settings.delivery != "exactly_once":
        return
    own = TransactionalProducers(
        bootstrap, settings, agent, stopping=stopping, waiting=waiting, renewed=lambda: None,
        marks=False, producers=producers,
    )  # fmt: skip
    try:
        own.start()
    finally:
        own.close()


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
            marks: Whether records of ``progress`` will be among the outputs, whose offsets `marked` returns.
            producers: Number of producers that take turns, each with a transactional id of its own.
        """
        self._bootstrap, self._settings, self._agent = bootstrap, settings, agent
        self._stopping, self._waiting, self._report_renewed = stopping, waiting, renewed
        self.exactly_once = settings.delivery == "exactly_once"
        self._ids = _transactional_ids(settings, agent, producers) if self.exactly_once else (None,)
        self._brokers_down = threading.Event()
        self._undelivered: KafkaError | None = None
        self._signer, self._redacts = Signer.from_settings(settings), settings.dead_letters == "redacted"
        self._marks = marks
        self._marked: dict[int, int] = {}
        self._fenced_s: list[float] = []
        self._aborts = 0
        self._began_s = 0.0
        self._in_transaction = False
        self._clients = [self._new(name) for name in self._ids]
        self._turn = 0

    @property
    def _producer(self) -> Producer:
        return self._clients[self._turn].producer

    @property
    def _call_thread(self) -> CallThread:
        return self._clients[self._turn].call_thread

    def start(self) -> None:
        """Fence earlier holders of the transactional ids; what they left unfinished is aborted."""
        self._initialise()

    @property
    def reachable(self) -> bool:
        """Return whether any broker was there when last heard of."""
        return not self._brokers_down.is_set()

    def commit(self, outputs: Sequence[Output], offsets: list[TopicPartition], metadata: Any) -> None:
        """``outputs`` and ``offsets`` in one transaction, by the producer whose turn it is.

        A transaction begins only when the one before is known to be committed. Its markers may still be on their way:
        the producer of that one would wait for them, the other one need not.

        Raises ``Aborted`` and ``OutputTooLarge`` (nothing is committed), ``Unknown`` (the transaction was ended by a
        new producer) and ``SessionError``.
        """
        self._turn = (self._turn + 1) % len(self._clients)
        self._producer.poll(0)  # hear of brokers that went away since
        if self._brokers_down.is_set():
            # What this producer knows of coordinators may be from before: librdkafka may wait for one of them for ever.
            self._renew("brokers were away")
        producing, committing, self._in_transaction = True, False, True

        def commit() -> None:
            nonlocal committing
            committing = True
            self._commit_open()

        try:
            self._call("begin_transaction", self._producer.begin_transaction)
            self._produce(outputs)
            producing = False
            sending = [partial(self._send_offsets, offsets, metadata)] if offsets else []
            self._transactional("commit_transaction", *sending, commit)
        except CallTimedOut as error:
            self._in_transaction = False
            self._renew(str(error))
            raise (Unknown if committing else Aborted)(str(error)) from error
        except KafkaException as error:
            self._in_transaction = False
            self._after_failure(error, producing=producing, committing=committing)
        finally:
            self._in_transaction = False
        self._aborts = 0

    def write(self, outputs: Sequence[Output]) -> None:
        """``outputs``, acknowledged, without a transaction; ``Aborted`` or ``OutputTooLarge`` where any was not."""
        self._undelivered = None
        try:
            self._produce(outputs)
        except KafkaException as error:
            if error.args[0].code() != TOO_LARGE:
                raise
            self._undelivered = error.args[0]
        deadline_s = time.monotonic() + 3 * CALL_TIMEOUT_S
        while (left := self._producer.flush(0.5)) and time.monotonic() < deadline_s and not self._stopping.is_set():
            self._waiting()
        if left or self._undelivered is not None:
            reason = self._undelivered.str() if self._undelivered is not None else f"{left} were not acknowledged"
            # What is still queued must not be written after its batch was read again and written anew.
            self._producer.purge()
            self._renew(f"records were not written: {reason}")
            if self._undelivered is not None and self._undelivered.code() == TOO_LARGE:
                raise OutputTooLarge(self._advice(self._undelivered))
            raise Aborted(f"records were not written: {reason}")
        self._aborts = 0

    def marked(self) -> dict[int, int]:
        """Offsets behind the records of the last commit that went to ``progress``, by partition number."""
        self._producer.poll(0)
        return dict(self._marked)

    def close(self) -> None:
        """Give the producers up; a transaction that is open is left to the broker, or to its id's next holder."""
        for client in self._clients:
            client.call_thread.end()

    def _send_offsets(self, offsets: list[TopicPartition], metadata: Any) -> None:
        self._producer.send_offsets_to_transaction(offsets, metadata, CALL_TIMEOUT_S)

    def _commit_open(self) -> None:
        self._producer.commit_transaction(CALL_TIMEOUT_S)

    def _new(self, transactional_id: str | None) -> "_Client":
        config = producer_config(
            self._bootstrap,
            transactional_id=transactional_id,
            settings=self._settings,
            # A report of each record that was written would take as long as to write it.
            overrides={"error_cb": self._on_error, "delivery.report.only.error": not self._marks},
        )
        return _Client(Producer(config), CallThread(self._agent, self._while_waiting))

    def _renew(self, reason: str) -> None:
        """Replace the producers, which ends what is unfinished of any of them."""
        log.warning("%s: a new producer takes over: %s", self._agent, reason)
        self._report_renewed()
        self.close()
        self._brokers_down.clear()
        self._clients = [self._new(name) for name in self._ids]
        self._initialise()

    def _initialise(self) -> None:
        """Initialise every transactional id: none of them may have a transaction when offsets are asked for."""
        if self.exactly_once:
            for turn in range(len(self._clients)):
                self._turn = turn
                self._initialise_one()

    def _initialise_one(self) -> None:
        while True:
            try:
                self._transactional("init_transactions", lambda: self._producer.init_transactions(CALL_TIMEOUT_S))
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

    def _call(self, what: str, call: Callable[[], Any], timeout_s: float = CALL_TIMEOUT_AFTER_S) -> None:
        self._began_s = time.monotonic()
        self._call_thread.call(what, call, timeout_s)

    def _while_waiting(self) -> None:
        self._waiting()
        self._producer.poll(0)
        if (
            self._in_transaction
            and self._brokers_down.is_set()
            and time.monotonic() - self._began_s > CALL_TIMEOUT_SOON_S
        ):
            raise CallTimedOut(f"{self._agent}: brokers went away during a transaction")

    def _transactional(self, what: str, *calls: Callable[[], Any]) -> None:
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
                self._call(what, make, CALL_TIMEOUT_AFTER_S + (len(left) - 1) * CALL_TIMEOUT_S)
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

    def _produce(self, outputs: Sequence[Output]) -> None:
        produce = self._producer.produce
        delivered = None if self.exactly_once else self._on_delivery
        topic: Topic | None = None
        self._marked.clear()
        if self._redacts:
            outputs = [redacted(output) if output.topic is DEAD_LETTERS else output for output in outputs]
        for output in outputs:
            if output.topic is not topic:
                topic = output.topic
                signed = topic in SIGNED
                name, report = self._settings.topic(topic.name), self._on_marked if topic is PROGRESS else delivered
            partition = PARTITION_UA if output.partition is None else output.partition
            headers = list(output.headers) if output.headers else None
            if signed:
                headers = list(self._signer.headers(output, name)) or None
            while True:
                try:
                    # Arguments by name would take as long again.
                    produce(name, output.value, output.key, partition, report, None, 0, headers)
                    break
                except BufferError:
                    # The client's queue is full: let it send.
                    self._producer.poll(0.1)
                    self._waiting()
                    if self._stopping.is_set() and self._brokers_down.is_set():
                        raise Stopped(f"agent {self._agent}: the broker takes no records") from None
        self._producer.poll(0)

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._brokers_down.set()
        if error.fatal() and self.exactly_once:
            # The call that is under way, or the next one, fails with it and is dealt with there.
            return
        log_error(error)

    @callback
    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        del message
        if error is not None and self._undelivered is None:
            self._undelivered = error

    @callback
    def _on_marked(self, error: KafkaError | None, message: Message) -> None:
        self._on_delivery(error, message)
        if error is None:
            self._marked[message.partition()] = message.offset() + 1

    def _after_failure(self, error: KafkaException, *, producing: bool, committing: bool) -> None:
        cause = self._cause(error.args[0])
        reason = f"{cause.str()} ({cause.name()})"
        if cause.code() in FENCED:
            now_s = time.monotonic()
            self._fenced_s = [at_s for at_s in self._fenced_s if now_s - at_s < FENCED_AGAIN_S] + [now_s]
            if len(self._fenced_s) >= MOST_FENCED and now_s - self._fenced_s[0] > TAKEOVER_S:
                raise SessionError(
                    f"agent {self._agent}: {reason}: another worker runs with --instance {self._settings.instance}; "
                    "give each worker an --instance of its own"
                ) from error
            self._renew(f"{reason}; this worker stood still for longer than its session, or has a rival")
            raise (Unknown if committing else Aborted)(reason) from error
        if cause.code() == TOO_LARGE:
            if producing and error.args[0].code() == TOO_LARGE:
                # Refused by the client itself, which has not numbered it.
                self._abort()
            else:
                # librdkafka has numbered the refused record, the broker has not: with this producer the next one to
                # the same partition could be refused for the gap, and the search for the large one would never end.
                self._renew(reason)
            raise OutputTooLarge(self._advice(cause)) from error
        if cause.code() in NOT_A_MEMBER:
            # It joins again while it polls, or hears there that it cannot.
            time.sleep(RETRY_S)
        else:
            self._aborts += 1
        if self._aborts > MOST_ABORTS:
            raise SessionError(
                f"agent {self._agent}: the same batch was aborted {self._aborts} times: {reason}; look at the "
                "brokers, and at the limits of the topics that it writes to"
            ) from error
        if cause.txn_requires_abort():
            self._abort()
            raise Aborted(reason) from error
        self._renew(reason)
        raise (Unknown if committing else Aborted)(reason) from error

    def _cause(self, error: KafkaError) -> KafkaError:
        """Why the transaction failed: a call during which it fails may say no more than that it has failed."""
        if error.code() != KafkaError._STATE:
            return error
        try:
            # Refused with the cause, and without effect, whatever has become of the transaction.
            self._call("begin_transaction", self._producer.begin_transaction)
        except KafkaException as refused:
            cause: KafkaError = refused.args[0]
            return error if cause.code() == KafkaError._STATE else cause
        except CallTimedOut as timed_out:
            log.warning("%s", timed_out)
        return error

    def _abort(self) -> None:
        try:
            self._transactional("abort_transaction", lambda: self._producer.abort_transaction(CALL_TIMEOUT_S))
        except (CallTimedOut, KafkaException) as failed:
            self._renew(f"{failed}")

    def _advice(self, cause: KafkaError) -> str:
        return (
            f"agent {self._agent}: a record that it writes is too large: {cause.str()}; raise max.message.bytes of "
            "the topic, and where that is not enough message.max.bytes of this client (FRAUD_PIPELINE_KAFKA_CONFIG)"
        )
