"""One agent's Kafka session: reads batches, and commits outputs together with input offsets.

Everything here runs on the agent's own thread, rebalance callbacks included (librdkafka calls them from ``poll``), so
that no partition can be taken away while a batch of it is being worked on.
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from pipeline.kafka.clients import consumer_config, producer_config, read_batches, record_of
from pipeline.settings import Settings
from schemas.records import Output, Record
from schemas.topics import Topic

log = logging.getLogger(__name__)

MOST_ABORTS = 10
"""Aborts in a row after which an operator is asked: what the broker refuses for good would be tried for ever."""
FENCED = frozenset({KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.FENCED_INSTANCE_ID})
COMMIT_TIMEOUT_S = 10.0
"""Longest wait for one transactional call, which is then repeated; the broker ends a transaction after as long."""


class SessionError(RuntimeError):
    """The session cannot go on; the worker must end, and nothing of the current batch is committed."""


class Aborted(Exception):
    """A transaction was aborted; state was rolled back and reading starts again at the committed offsets."""


class PartitionHandler(Protocol):
    """What owns the state of an agent's partitions."""

    def restore(self, partition: int, records: Sequence[Record]) -> None:
        """Fold committed records into the state of ``partition``, silently."""

    def forget(self, partition: int) -> None:
        """Drop the state of ``partition``."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of the assigned partitions, and what it takes to commit exactly them."""

    records: list[Record]
    group_metadata: Any
    """Captured with the batch: metadata fetched after a rebalance could commit for another member's partition."""


class Session:
    """Consumer and producer of one agent; delivery as `pipeline.settings.Settings.delivery` says."""

    def __init__(
        self, bootstrap: str, settings: Settings, agent: str, topics: Sequence[Topic], handler: PartitionHandler
    ) -> None:
        self._settings, self._handler, self.agent = settings, handler, agent
        self._names = {settings.topic(topic.name): topic for topic in topics}
        self._bootstrap = bootstrap
        self._exactly_once = settings.delivery == "exactly_once"
        group = settings.topic(agent)
        self._consumer = Consumer(consumer_config(bootstrap, group, settings=settings))
        transactional_id = f"{group}-{settings.instance}" if self._exactly_once else None
        self._producer = Producer(producer_config(bootstrap, transactional_id=transactional_id, settings=settings))
        # Where each partition that is held has been read up to. A record below it, or of a partition that is not held,
        # was fetched before a rebalance or an abort that happened while its batch was being formed.
        self._positions: dict[tuple[str, int], int] = {}
        self._aborts = 0
        self._stopping = threading.Event()

    def start(self) -> None:
        """Fence earlier holders of the transactional id and join the group."""
        if self._exactly_once:
            self._retrying("init_transactions", lambda: self._producer.init_transactions(COMMIT_TIMEOUT_S))
        self._consumer.subscribe(
            list(self._names), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )

    @property
    def assigned(self) -> list[tuple[str, int]]:
        """Partitions held now, as (topic on the cluster, number)."""
        return sorted(self._positions)

    def poll(self, timeout_s: float) -> Batch | None:
        """The next batch, formed now: one record awaited for up to ``timeout_s``, then whatever is there."""
        first = self._consumer.poll(timeout_s)
        if first is None:
            return None
        messages = [first]
        if self._settings.batch_max_records > 1:
            messages += self._consumer.consume(self._settings.batch_max_records - 1, 0)
        # Read before the records are looked at: a rebalance in between would have been served by the calls above.
        metadata = self._consumer.consumer_group_metadata()
        positions, records = self._positions, []
        for record in map(self._record, messages):
            if record is None:
                continue
            partition = (record.topic, record.partition)
            expected = positions.get(partition)
            if expected is not None and record.offset >= expected:
                positions[partition] = record.offset + 1
                records.append(record)
        return Batch(records, metadata) if records else None

    def empty_batch(self) -> Batch:
        """A batch of no records, for outputs that no input asks for."""
        return Batch([], self._consumer.consumer_group_metadata())

    def commit(self, batch: Batch, outputs: Sequence[Output]) -> None:
        """Write ``outputs`` and the batch's offsets: both or, under exactly-once, neither.

        Raises ``Aborted`` when the transaction was aborted (state is rolled back and the batch will be read again)
        and ``SessionError`` when this worker must end (it was fenced, for instance).
        """
        offsets: dict[tuple[str, int], int] = {}
        for record in batch.records:
            offsets[record.topic, record.partition] = record.offset + 1
        positions = [TopicPartition(topic, partition, offset) for (topic, partition), offset in offsets.items()]
        try:
            if self._exactly_once:
                self._producer.begin_transaction()
                self._produce(outputs)
                if positions:
                    self._retrying(
                        "send_offsets_to_transaction",
                        lambda: self._producer.send_offsets_to_transaction(
                            positions, batch.group_metadata, COMMIT_TIMEOUT_S
                        ),
                    )
                self._retrying("commit_transaction", lambda: self._producer.commit_transaction(COMMIT_TIMEOUT_S))
            else:
                self._produce(outputs)
                if unsent := self._producer.flush(COMMIT_TIMEOUT_S):
                    raise SessionError(f"{unsent} records of agent {self.agent} were not acknowledged in time")
                if positions:
                    self._consumer.commit(offsets=positions, asynchronous=False)
        except KafkaException as error:
            self._after_failure(error)
        self._aborts = 0

    def lag(self) -> dict[tuple[str, int], int]:
        """Records between the position of each assigned partition and its end, from the client's cache."""
        lags = {}
        for (topic, partition), position in self._positions.items():
            _, high = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), cached=True)
            if high >= 0:
                lags[topic, partition] = max(0, high - position)
        return lags

    def stop(self) -> None:
        """No longer repeat calls that fail; may be called from another thread."""
        self._stopping.set()

    def close(self) -> None:
        """Leave the group. An unfinished transaction is aborted by the broker, or by this id's next holder."""
        self._stopping.set()
        self._consumer.close()

    def _record(self, message: Message) -> Record | None:
        error = message.error()
        if error is not None:
            if error.fatal():
                raise SessionError(f"agent {self.agent}: {error.str()}")
            log.warning("%s: %s", self.agent, error.str())
            return None
        return record_of(message)

    def _produce(self, outputs: Sequence[Output]) -> None:
        produce = self._producer.produce
        names = {output.topic.name: self._settings.topic(output.topic.name) for output in outputs}
        options: dict[str, Any] = {} if self._exactly_once else {"on_delivery": self._on_delivery}
        for topic, key, value, headers in outputs:
            while True:
                try:
                    if headers:
                        produce(names[topic.name], value, key, headers=list(headers), **options)
                    else:
                        produce(names[topic.name], value, key, **options)
                    break
                except BufferError:
                    # The client's queue is full: let it send.
                    self._producer.poll(0.1)
        self._producer.poll(0)

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            raise SessionError(f"agent {self.agent}: a record for {message.topic()} was not written: {error.str()}")

    def _retrying(self, what: str, call: Any) -> None:
        """Repeat a transactional call for as long as its error says that it may be repeated, and nobody stops it."""
        while True:
            try:
                call()
                return
            except KafkaException as error:
                if not error.args[0].retriable() or self._stopping.is_set():
                    raise
                log.warning("%s: %s: %s; trying again", self.agent, what, error.args[0].str())

    def _after_failure(self, error: KafkaException) -> None:
        cause: KafkaError = error.args[0]
        if cause.code() in FENCED:
            raise SessionError(
                f"agent {self.agent}: {cause.str()} ({cause.name()}): another worker runs with --instance "
                f"{self._settings.instance}, or this one stood still for longer than a transaction may take; start it "
                "again, and give each worker its own --instance"
            ) from error
        if not (self._exactly_once and cause.txn_requires_abort()):
            raise SessionError(f"agent {self.agent}: {cause.str()} ({cause.name()})") from error
        self._aborts += 1
        if self._aborts > MOST_ABORTS:
            raise SessionError(
                f"agent {self.agent}: the same transaction was aborted {self._aborts} times: {cause.str()} "
                f"({cause.name()}); look at the brokers, and at the limits of the topics that it writes to"
            ) from error
        log.warning("%s: transaction aborted: %s", self.agent, cause.str())
        self._retrying("abort_transaction", lambda: self._producer.abort_transaction(COMMIT_TIMEOUT_S))
        held = [TopicPartition(topic, partition) for topic, partition in self._positions]
        self._forget(held)
        for position in self._restore(held):
            self._consumer.seek(position)
        raise Aborted(cause.str()) from error

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        positions = self._restore(partitions)
        consumer.incremental_assign(positions)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._forget(partitions)
        consumer.incremental_unassign(partitions)

    def _forget(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            self._positions.pop((partition.topic, partition.partition), None)
        for number in {partition.partition for partition in partitions}:
            self._handler.forget(number)

    def _restore(self, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        """Fold what is committed of ``partitions``; returns where reading goes on."""
        committed = self._consumer.committed(
            [TopicPartition(partition.topic, partition.partition) for partition in partitions], COMMIT_TIMEOUT_S
        )
        positions = []
        by_number: dict[int, list[TopicPartition]] = {}
        for partition in committed:
            if partition.error is not None:
                raise SessionError(f"agent {self.agent}: committed offsets: {partition.error.str()}")
            if partition.offset == OFFSET_INVALID:
                partition.offset = OFFSET_BEGINNING
            positions.append(TopicPartition(partition.topic, partition.partition, partition.offset))
            by_number.setdefault(partition.partition, []).append(partition)
        # In the order of the agent's topics, which is the order its state is folded in.
        order = list(self._names)
        for number, members in sorted(by_number.items()):
            self._fold(number, sorted(members, key=lambda member: order.index(member.topic)))
        for position in positions:
            self._positions[position.topic, position.partition] = max(position.offset, 0)
        return positions

    def _fold(self, number: int, members: Sequence[TopicPartition]) -> None:
        folded = 0
        for member in members:
            if member.offset <= 0:
                continue
            for records in read_batches(self._bootstrap, member.topic, settings=self._settings, partitions=[number]):
                committed = [record for record in records if record.offset < member.offset]
                self._handler.restore(number, committed)
                folded += len(committed)
                if records[-1].offset + 1 >= member.offset:
                    break
        if folded:
            log.info("%s: partition %d: state restored from %d records", self.agent, number, folded)
