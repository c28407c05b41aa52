"""The writing half of a session: one transaction a batch, and what to do when one does not end well."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from pipeline.engine.records.results import redacted
from pipeline.kafka.cluster.call_thread import CallTimedOut
from pipeline.kafka.cluster.callbacks import callback
from pipeline.kafka.cluster.clients import CALL_TIMEOUT_S, TRANSACTION_TIMEOUT_MS
from pipeline.kafka.cluster.errors import Aborted, OutputTooLarge, SessionError, Stopped, Unknown
from pipeline.kafka.cluster.retries import may_pass
from pipeline.kafka.records.batch import Partition
from pipeline.kafka.writers.transactional_producers import TransactionalProducers
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
FENCED_AGAIN_S: Final = 60.0
MOST_FENCED: Final = 3
TAKEOVER_S: Final = 10.0
"""A worker that is fenced as often within `FENCED_AGAIN_S`, and for longer than this, has a rival of its own name.

Only a fencing counts before which this worker has committed nothing since the last one, or a process of its name has.
Others fence a healthy worker too: who takes its partitions over, for which it must have committed something, and a
coordinator that has ended a transaction that was open for too long.
"""
BATCH_RETRY_S: Final = 0.5

PARTITION_UA: Final = -1
"""librdkafka's number for a record that goes where its key belongs."""


class TransactionalWriter:
    """Writes the outputs of batches, in transactions under exactly-once; used from one thread, but for ``stopping``."""

    def __init__(
        self,
        settings: Settings,
        agent: str,
        producers: TransactionalProducers,
        stopping: threading.Event,
        waiting: Callable[[], None],
        commits_of_others: Callable[[], Mapping[Partition, str]],
    ) -> None:
        """Begin with producers that have not written.

        Args:
            settings: The worker's settings.
            agent: Name of the agent.
            producers: The producers; started before the first commit.
            stopping: Set when the worker ends.
            waiting: Called while a call waits for a broker; may raise.
            commits_of_others: Returns the newest transaction of each partition that another process of this worker's
                name has committed.
        """
        self._settings, self._agent, self._producers = settings, agent, producers
        self._stopping, self._waiting = stopping, waiting
        self.exactly_once = producers.exactly_once
        self._undelivered: KafkaError | None = None
        self._signer, self._redacts = Signer.from_settings(settings), settings.dead_letters == "redacted"
        self._marked: dict[int, int] = {}
        self._commits_of_others, self._seen_of_others = commits_of_others, dict[Partition, str]()
        self._fenced_s: list[float] = []
        self._began_s, self._committed = 0.0, False
        """When the last transaction began, and whether any was committed since the last fencing."""
        self._aborts = 0

    def commit(self, outputs: Sequence[Output], offsets: list[TopicPartition], metadata: Any) -> None:
        """Write outputs and offsets in one transaction, by the producer whose turn it is.

        A transaction begins only when the one before is known to be committed. Its markers may still be on their way:
        the producer of that one would wait for them, the other one need not.

        Args:
            outputs: Records to write, in order.
            offsets: Next offset of each partition of the batch, with its mark; empty: no offsets are committed.
            metadata: The consumer's group metadata, as librdkafka has it.

        Raises:
            Aborted: Nothing is committed.
            OutputTooLarge: An output is larger than brokers take; nothing is committed.
            Unknown: Whether it was committed is not known; the transaction was ended by a new producer.
            SessionError: The session cannot go on.
        """
        self._producers.next_turn()
        producing, committing, self._producers.in_transaction = True, False, True
        self._began_s = time.monotonic()

        def commit() -> None:
            nonlocal committing
            committing = True
            self._commit_open()

        try:
            self._producers.call("begin_transaction", self._producers.current.begin_transaction)
            self._produce(outputs)
            producing = False
            sending = [partial(self._send_offsets, offsets, metadata)] if offsets else []
            self._producers.call_transaction("commit_transaction", *sending, commit)
        except CallTimedOut as error:
            self._producers.in_transaction = False
            self._producers.renew(str(error))
            raise (Unknown if committing else Aborted)(str(error)) from error
        except KafkaException as error:
            self._producers.in_transaction = False
            self._after_failure(error, producing=producing, committing=committing)
        finally:
            self._producers.in_transaction = False
        self._aborts, self._committed = 0, True

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
        while (
            (left := self._producers.current.flush(0.5))
            and time.monotonic() < deadline_s
            and not self._stopping.is_set()
        ):
            self._waiting()
        if left or self._undelivered is not None:
            reason = self._undelivered.str() if self._undelivered is not None else f"{left} were not acknowledged"
            # What is still queued must not be written after its batch was read again and written anew.
            self._producers.current.purge()
            self._producers.renew(f"records were not written: {reason}")
            if self._undelivered is not None and self._undelivered.code() == TOO_LARGE:
                raise OutputTooLarge(self._advice(self._undelivered))
            raise Aborted(f"records were not written: {reason}")
        self._aborts = 0

    def marked(self) -> dict[int, int]:
        """Offsets behind the records of the last commit that went to ``progress``, by partition number."""
        self._producers.current.poll(0)
        return dict(self._marked)

    def _send_offsets(self, offsets: list[TopicPartition], metadata: Any) -> None:
        self._producers.current.send_offsets_to_transaction(offsets, metadata, CALL_TIMEOUT_S)

    def _commit_open(self) -> None:
        self._producers.current.commit_transaction(CALL_TIMEOUT_S)

    def _produce(self, outputs: Sequence[Output]) -> None:
        produce = self._producers.current.produce
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
                    self._producers.current.poll(0.1)
                    self._waiting()
                    if self._stopping.is_set() and not self._producers.reachable:
                        raise Stopped(f"agent {self._agent}: the broker takes no records") from None
        self._producers.current.poll(0)

    @callback
    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        del message
        if error is not None and self._undelivered is None:
            self._undelivered = error

    @callback
    def _on_marked(self, error: KafkaError | None, message: Message) -> None:
        self._on_delivery(error, message)
        # Of a repetition that the broker knew already, the client may not learn the offset: what is known stays.
        if error is None and message.offset() >= 0:
            self._marked[message.partition()] = message.offset() + 1

    def _after_failure(self, error: KafkaException, *, producing: bool, committing: bool) -> None:
        cause = self._cause(error.args[0])
        reason = f"{cause.str()} ({cause.name()})"
        if cause.code() in FENCED:
            if self._has_rival():
                raise SessionError(
                    f"agent {self._agent}: {reason}: another worker runs with --instance {self._settings.instance}; "
                    "give each worker an --instance of its own"
                ) from error
            self._producers.renew(f"{reason}; this worker stood still for longer than its session, or has a rival")
            raise (Unknown if committing else Aborted)(reason) from error
        if cause.code() == TOO_LARGE:
            if producing and error.args[0].code() == TOO_LARGE:
                # Refused by the client itself, which has not numbered it.
                self._abort()
            else:
                # librdkafka has numbered the refused record, the broker has not: with this producer the next one to
                # the same partition could be refused for the gap, and the search for the large one would never end.
                self._producers.renew(reason)
            raise OutputTooLarge(self._advice(cause)) from error
        if cause.code() in NOT_A_MEMBER:
            # It joins again while it polls, or hears there that it cannot.
            time.sleep(BATCH_RETRY_S)
        elif may_pass(cause):
            # Replicas or coordinators are away: the batch is tried for as long as that.
            time.sleep(BATCH_RETRY_S)
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
        self._producers.renew(reason)
        raise (Unknown if committing else Aborted)(reason) from error

    def _has_rival(self) -> bool:
        """Return whether the last fencings were a rival's; see `TAKEOVER_S`."""
        now_s = time.monotonic()
        if now_s - self._began_s >= TRANSACTION_TIMEOUT_MS / 1_000:
            return False
        seen, self._seen_of_others = self._seen_of_others, dict(self._commits_of_others())
        counted, self._committed = not self._committed or self._seen_of_others != seen, False
        before = self._fenced_s if counted else []
        self._fenced_s = [at_s for at_s in before if now_s - at_s < FENCED_AGAIN_S] + [now_s]
        return len(self._fenced_s) >= MOST_FENCED and now_s - self._fenced_s[0] > TAKEOVER_S

    def _cause(self, error: KafkaError) -> KafkaError:
        """Why the transaction failed: a call during which it fails may say no more than that it has failed."""
        if error.code() != KafkaError._STATE:
            return error
        try:
            # Refused with the cause, and without effect, whatever has become of the transaction.
            self._producers.call("begin_transaction", self._producers.current.begin_transaction)
        except KafkaException as refused:
            cause: KafkaError = refused.args[0]
            return error if cause.code() == KafkaError._STATE else cause
        except CallTimedOut as timed_out:
            log.warning("%s", timed_out)
        return error

    def _abort(self) -> None:
        try:
            self._producers.call_transaction(
                "abort_transaction", lambda: self._producers.current.abort_transaction(CALL_TIMEOUT_S)
            )
        except (CallTimedOut, KafkaException) as failed:
            self._producers.renew(f"{failed}")

    def _advice(self, cause: KafkaError) -> str:
        return (
            f"agent {self._agent}: a record that it writes is too large: {cause.str()}; raise max.message.bytes of "
            "the topic, and where that is not enough message.max.bytes of this client (FRAUD_PIPELINE_KAFKA_CONFIG)"
        )
