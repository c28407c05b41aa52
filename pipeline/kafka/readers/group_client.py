"""The client of a group's member: what it is assigned, up to where it was read, and its messages."""

import logging
import math
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition

from pipeline.kafka.cluster.call_thread import CallThread, CallTimedOut
from pipeline.kafka.cluster.callbacks import callback
from pipeline.kafka.cluster.client_log import log_error
from pipeline.kafka.cluster.errors import SessionError
from pipeline.kafka.cluster.log_offsets import log_range
from pipeline.kafka.cluster.retries import LAST_WAIT_S, Retries
from pipeline.kafka.readers.bounded_consumer import BoundedConsumer
from pipeline.kafka.records.batch import Batch, Item, Partition, ReadError, UnreadableRange
from pipeline.kafka.records.batch_records import compile_scan
from pipeline.kafka.records.carried import Carried
from pipeline.kafka.records.member import Member
from schemas.records import Record

log = logging.getLogger(__name__)

HOLD_ASK_S: Final = 1.0
"""Longest wait for the end of a partition that is on hold."""
LISTEN_S: Final = 0.05
"""Longest wait for records until the group is looked at."""
HEARTBEAT_S: Final = 1.0
"""Longest wait for the news of a heartbeat."""


class GroupClient:
    """A member of a group, which can be replaced, and what is read of its partitions; used from one thread.

    Records are read by a `BoundedConsumer`. In the group's own client, which would inflate whatever comes, all
    partitions are always paused.
    """

    def __init__(self, member: Member, config: Mapping[str, Any], retries: Retries) -> None:
        """Make the client, which joins nothing yet.

        Args:
            member: The member of the group.
            config: Configuration of the consumer, without its error callback.
            retries: Waits and retries of the agent.
        """
        self.member = member
        self._config, self._retries = config, retries
        self.is_classic = config["group.protocol"] == "classic"
        self.consumer, self.fatal = self._new()
        """``fatal``: errors after which ``consumer`` cannot be used any more."""
        # Where each partition that is held has been read up to. A record below it, or of a partition that is not held,
        # was fetched before a rebalance or an abort that happened while its batch was being formed.
        self.positions: dict[Partition, int] = {}
        self.assigned: set[Partition] = set()
        """Partitions that the group has assigned; held once all topics of their number are."""
        self.unreadable: dict[Partition, UnreadableRange] = {}
        """Unreadable ranges at the positions of their partitions: nothing behind them is taken."""
        blocks = any(topic.holds_blocks for topic in member.reads)
        self._carried = Carried(member.settings.batch_max_records, blocks=blocks)
        inputs = {name for name, topic in member.topics.items() if topic.is_input}
        self._records = BoundedConsumer(config, inputs, replica_wait_s=member.settings.damaged_batch_wait_s)
        compile_scan()

    def _new(self) -> tuple[Consumer, list[str]]:
        """A client, and where it puts the errors after which it cannot be used any more."""
        fatal: list[str] = []

        @callback
        def on_error(error: KafkaError) -> None:
            if error.fatal():
                fatal.append(error.str())
            else:
                log_error(error)

        return Consumer({**self._config, "error_cb": on_error}), fatal

    def replace(self) -> Consumer:
        """Put a new client in the place of this one, which is returned."""
        old, (self.consumer, self.fatal) = self.consumer, self._new()
        return old

    def leave(self, consumer: Consumer) -> None:
        """Close a client, which leaves the group."""
        call_thread = CallThread(self.member.agent, self._retries.report_waiting)
        try:
            call_thread.call("leaving the group", consumer.close, LAST_WAIT_S)
        except CallTimedOut as error:
            # The group learns of it when the session times out.
            log.warning("%s", error)
        finally:
            call_thread.end()

    def group_metadata(self) -> Any:
        """Return the group's metadata as they are now."""
        return self.consumer.consumer_group_metadata()

    def newer_metadata(self, known: Any) -> Any:
        """Return the group's metadata when they are other than ``known``; None where they stay what they are."""
        deadline_s = time.monotonic() + HEARTBEAT_S
        while time.monotonic() < deadline_s:
            if (metadata := self.group_metadata()) != known:
                return metadata
            time.sleep(LISTEN_S)
        return None

    @property
    def damaged(self) -> list[Partition]:
        """Partitions that wait for another replica to lead them, because their leader's disk has damaged a batch."""
        return self._records.damaged

    def serve(self, timeout_s: float) -> None:
        """Let the client serve rebalances, and look at its errors: it has no records."""
        message = self.consumer.poll(timeout_s)
        error = message.error() if message is not None else None
        if error is None:
            return
        # As a message's error it bears the code alone.
        if error.fatal() or error.code() == KafkaError._FATAL:
            self.fatal.append(error.str())
        log.warning("%s: %s", self.member.agent, error.str())

    def fetch(self, timeout_s: float) -> None:
        """Take what has come until a batch is full. The client serves rebalances meanwhile, which drop some."""
        ends_s = time.monotonic() + timeout_s
        self._records.prefetch()
        while True:
            self.serve(0)
            while (wanted := self._carried.wanted()) > 0 and (items := self._records.take(wanted)):
                self._carried.add(items)
            if self._carried:
                # Answers come while the batch is worked on.
                self._records.prefetch()
                return
            left_s = max(ends_s - time.monotonic(), 0)
            self._records.wait(min(left_s, LISTEN_S))
            if not left_s:
                return

    def fetched_batch(self) -> Batch | None:
        """Return the next batch of what the client has fetched; None where there is nothing to process."""
        items = self._carried.take()
        if not items:
            return None
        # Read before the records are looked at: a rebalance in between would have been served by the calls above.
        metadata = self.group_metadata()
        order = list(self.member.topics)
        by_partition = sorted(self._read(items).items(), key=lambda item: (item[0][1], order.index(item[0][0])))
        starts = {partition: records[0].offset for partition, records in by_partition}
        ends = {partition: records[-1].offset + 1 for partition, records in by_partition}
        self.positions.update(ends)
        records = [record for _, part in by_partition for record in part]
        return Batch(records, metadata, starts, ends) if records else None

    def unreadable_batch(self) -> Batch | None:
        """A batch without records that passes over a range which cannot be read; None without one."""
        if not self.unreadable:
            return None
        partition, found = self.unreadable.popitem()
        self.seek(partition, found.end)
        metadata = self.group_metadata()
        return Batch([], metadata, {partition: found.start}, {partition: found.end}, unreadable=found)

    def _read(self, items: Iterable[Item]) -> dict[Partition, list[Record]]:
        """Return the records to process, by partition; note what cannot be read, and look at errors."""
        positions = self.positions
        read: dict[Partition, list[Record]] = {}
        topic, number, expected = "", -1, math.inf
        records: list[Record] = []
        for item in items:
            if isinstance(item, UnreadableRange):
                if item.partition in positions:
                    self.unreadable.setdefault(item.partition, item)
                    topic, number = "", -1
                continue
            if isinstance(item, ReadError):
                self._look_at(item)
                continue
            # Records come in runs of one partition, which is looked up once for each run, and not for each record.
            if item.partition != number or item.topic != topic:
                partition = topic, number = item.topic, item.partition
                records = read.setdefault(partition, [])
                if partition in self.unreadable:
                    expected = math.inf
                else:
                    expected = records[-1].offset + 1 if records else positions.get(partition, math.inf)
            if item.offset >= expected:
                expected = item.offset + 1
                records.append(item)
        return {partition: records for partition, records in read.items() if records}

    def _look_at(self, failure: ReadError) -> None:
        (topic, number), _, error = failure
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            raise SessionError(
                f"agent {self.member.agent}: {topic} partition {number} no longer holds the offset to "
                "read from: its records were deleted before they were read. Check the topic's retention; what can be "
                "had back must be restored. To go on without it: start once with "
                "FRAUD_PIPELINE_ACCEPT_LOST_RECORDS=true"
            )
        log.warning("%s: %s partition %d: %s", self.member.agent, topic, number, error.str())

    def assign(self, came: Collection[Partition], offsets: Mapping[Partition, int]) -> None:
        """Take partitions that the group has assigned, to be read from ``offsets``; classic: in the place of all."""
        # Where nothing is, should anything be fetched all the same.
        positions = [TopicPartition(*partition, OFFSET_END) for partition in came]
        # Twice: a pause from before the assignment holds where the client knows the partition already.
        self.consumer.pause(positions)
        if self.is_classic:
            self.consumer.assign(positions)
        else:
            self.consumer.incremental_assign(positions)
        self.consumer.pause(positions)
        for partition, offset in offsets.items():
            self.seek(partition, offset)

    def halt(self, partitions: Collection[Partition]) -> None:
        """Fetch and deliver nothing of these partitions any more, though they stay assigned."""
        self._records.drop(partitions)
        for partition in partitions:
            self.positions.pop(partition, None)
            self.unreadable.pop(partition, None)
        self._carried.drop(lambda at: at in partitions)

    def seek(self, partition: Partition, offset: int) -> None:
        """Read a partition from ``offset``; what was fetched of it is dropped."""
        self.positions[partition] = offset
        self.unreadable.pop(partition, None)
        self._carried.drop(lambda at: at == partition)
        self._records.seek(partition, offset)

    def forget(self, numbers: Collection[int]) -> None:
        """Drop what is known of partitions that are not held any more."""
        self.halt(self.member.partitions(numbers))

    def close(self) -> None:
        """Leave the group, and close all connections."""
        self._records.close()
        self.leave(self.consumer)

    def lag(self, *, asks: bool) -> dict[Partition, int]:
        """Records between the position of each assigned partition and its end.

        A broker is asked for the end only if ``asks``: else it does not move while nothing is fetched.
        """
        lags = {}
        for (topic, partition), position in self.positions.items():
            high = self._records.log_end((topic, partition))
            if asks:
                # One that does not answer is reported by whoever watches brokers.
                with suppress(KafkaException):
                    high = log_range(self.consumer, (topic, partition), HOLD_ASK_S).stop
            if high >= 0:
                lags[topic, partition] = max(0, high - position)
        return lags
