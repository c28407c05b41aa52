"""Producers of keyed records for programs that are no agents; a record that is not written is an error."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, NamedTuple, Self

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from pipeline.kafka.cluster.client_log import librdkafka_log
from pipeline.kafka.cluster.clients import producer_config
from pipeline.kafka.cluster.errors import RIGHTS, ending_text
from pipeline.kafka.writers.transactions import FENCED
from pipeline.settings import Settings
from schemas.records import Headers

_FULL_QUEUE_POLL_S: Final = 0.05
_TRANSACTION_CALL_S: Final = 10.0
_TRANSACTION_TIMEOUT_S: Final = 60.0
_SILENT: Final = logging.Logger("librdkafka", logging.CRITICAL + 1)
"""Logger of transactional clients: what ends a transaction is in the error that the call raises."""
_CREATE: Final = "create it with `fraud-pipeline topics`; if it exists, you may not see it"
_REMEDIES: Final = {
    KafkaError.UNKNOWN_TOPIC_OR_PART: _CREATE,
    KafkaError._UNKNOWN_TOPIC: _CREATE,
    KafkaError.TOPIC_AUTHORIZATION_FAILED: f"this user may not write there: {RIGHTS}",
    KafkaError.INVALID_TIMESTAMP: (
        "the topic refuses the simulated clock: create it with `fraud-pipeline topics` under "
        "FRAUD_PIPELINE_TIMESTAMPS=producer, or raise its message.timestamp.before.max.ms and .after.max.ms"
    ),
    KafkaError._MSG_TIMED_OUT: "is the cluster reachable?",
}


class DeliveryFailed(RuntimeError):
    """A record was not written; the text names the topic, why, and what to do."""


class WriterFenced(DeliveryFailed):
    """Another producer has taken the transactional id over; nothing was written."""


class _LastWords:
    """Logger of one client, which remembers what ended the client.

    confluent-kafka raises the error that ends a client for good while librdkafka still makes callbacks. Where Python
    collects garbage in one of them the exception is dropped: ``flush`` then raises a ``SystemError`` that names none.
    """

    def __init__(self) -> None:
        self.text = ""

    def log(self, level: int, text: str, *args: object) -> None:
        """Log a line of the client: ``args`` are its facility, its name and its text."""
        librdkafka_log.log(level, text, *args)
        if level >= logging.CRITICAL:
            self.text = str(args[-1])


def _ended(reason: str) -> DeliveryFailed:
    return DeliveryFailed(f"records were not written. {ending_text(reason)}")


class RecordProducer:
    """Writes records with Java's partitioner (murmur2 of the key), idempotently, in order within a partition.

    Not transactional. Errors arrive with the delivery reports: the next call of any method raises ``DeliveryFailed``.
    """

    def __init__(self, bootstrap: str, settings: Settings) -> None:
        self._failure: str | None = None
        self._last_words = _LastWords()
        # Reports of successes would cost a Python call for each record.
        overrides = {
            "delivery.report.only.error": True,
            "on_delivery": self._on_delivery,
            "logger": self._last_words,
            # A broker that was killed takes a producer for long gone whose last record bears an old time, as those
            # of replays do, and takes any request of it for its first. Of two on their way the later one could be
            # that, and the earlier one then passes for a repeat (docs/decisions/0004-exactly-once.md).
            "max.in.flight.requests.per.connection": 1,
        }
        self._producer = Producer(producer_config(bootstrap, settings=settings, overrides=overrides))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()

    def __len__(self) -> int:
        """Records that no broker has acknowledged yet."""
        return len(self._producer)

    def produce(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        timestamp_ms: int,
        headers: list[tuple[str, bytes | None]] | None = None,
    ) -> None:
        """Queue a record; waits while the client's queue is full.

        Args:
            topic: Full name of the topic.
            key: Decides the partition; None: any.
            value: Value of the record.
            timestamp_ms: Milliseconds since 1970.
            headers: Headers of the record, in order; None: there are none.

        Raises:
            DeliveryFailed: An earlier record was not written, or the client has ended.
        """
        while True:
            try:
                self._producer.produce(topic, value, key, timestamp=timestamp_ms, headers=headers)
            except BufferError:
                self.poll(_FULL_QUEUE_POLL_S)
            except KafkaException as error:
                # The client has ended for good; why is on its way.
                self.poll()
                raise _ended(error.args[0].str()) from error
            else:
                break
        if self._failure is not None:
            raise DeliveryFailed(self._failure)

    def poll(self, timeout_s: float = 0.0) -> None:
        """Serve delivery reports."""
        self._serve(self._producer.poll, timeout_s)

    def flush(self, timeout_s: float = 60.0) -> None:
        """Wait until every queued record is written."""
        left = self._serve(self._producer.flush, timeout_s)
        if left:
            raise DeliveryFailed(
                f"{left} records were not acknowledged within {timeout_s:g} s; is the cluster reachable?"
            )

    def _serve(self, call: Callable[[float], int], timeout_s: float) -> int:
        """Serve delivery reports with a call of the client, and return what it returns."""
        try:
            served = call(timeout_s)
        except (KafkaException, SystemError) as error:
            if not self._last_words.text:
                raise
            raise _ended(self._last_words.text) from error
        if self._failure is not None:
            raise DeliveryFailed(self._failure)
        return served

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and self._failure is None:
            remedy = _REMEDIES.get(error.code())
            self._failure = f"a record for topic {message.topic()} was not written: {error.str()}" + (
                f"; {remedy}" if remedy else ""
            )


class TopicRecord(NamedTuple):
    """A record to be written."""

    topic: str
    """Its name on the cluster."""
    key: bytes | None
    value: bytes
    partition: int | None = None
    """Partition to write to; None: that of the key."""
    headers: Headers = ()
    """Besides those of all records of the transaction."""
    timestamp_ms: int = 0
    """Milliseconds since 1970, on topics that producers stamp; 0: now."""


class TransactionalProducer:
    """Writes lists of records, each list in one transaction. Who uses an id last is its only user."""

    def __init__(self, bootstrap: str, settings: Settings, transactional_id: str) -> None:
        """Fence earlier users of a transactional id, and abort what they left open.

        Args:
            transactional_id: Its full name, prefix included.

        Raises:
            DeliveryFailed: The brokers do not answer, or refuse it.
        """
        self._producer = Producer(
            producer_config(
                bootstrap, transactional_id=transactional_id, settings=settings, overrides={"logger": _SILENT}
            )
        )
        self._until_known("transactions", self._producer.init_transactions)

    def write(self, records: Sequence[TopicRecord], headers: list[tuple[str, bytes | None]]) -> None:
        """Write records in one transaction: all of them, of whatever topics, or none.

        Args:
            records: The records.
            headers: Headers of each record.

        Raises:
            DeliveryFailed: They were not written. If the commit failed, only a reader sees whether they are there.
        """
        what = " and ".join(f"topic {name}" for name in sorted({record.topic for record in records}))
        try:
            self._producer.begin_transaction()
            for record in records:
                self._produce(record, headers)
            self._until_known(what, self._producer.commit_transaction)
        except KafkaException as error:
            raise self._failed(what, error) from error

    def _produce(self, record: TopicRecord, headers: list[tuple[str, bytes | None]]) -> None:
        topic, key, value, partition, own, timestamp_ms = record
        where = {} if partition is None else {"partition": partition}
        while True:
            try:
                self._producer.produce(topic, value, key, headers=[*headers, *own], timestamp=timestamp_ms, **where)
            except BufferError:
                self._producer.poll(_FULL_QUEUE_POLL_S)
            else:
                return

    def _until_known(self, what: str, call: Callable[[float], None]) -> None:
        """Repeat a transactional call for as long as it may be repeated."""
        deadline_s = time.monotonic() + _TRANSACTION_TIMEOUT_S
        while True:
            try:
                call(_TRANSACTION_CALL_S)
                return
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > deadline_s:
                    raise self._failed(what, error) from error

    def _failed(self, what: str, error: KafkaException) -> DeliveryFailed:
        cause: KafkaError = error.args[0]
        if cause.txn_requires_abort():
            # Else its end is seen only once it has taken too long.
            with suppress(KafkaException):
                self._producer.abort_transaction(_TRANSACTION_CALL_S)
        if cause.code() in FENCED:
            return WriterFenced(
                f"somebody else wrote to {what} at the same time, and nothing of this was written: run it again"
            )
        text = f"records for {what} were not written: {cause.str()} ({cause.name()})"
        advice = "look at the brokers"
        if cause.code() == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
            advice = "grant the transactional id, as `fraud-pipeline acl` shows"
        return DeliveryFailed(f"{text}; {advice}")
