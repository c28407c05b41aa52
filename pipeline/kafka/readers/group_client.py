"""The client of a group's member: what it is assigned, up to where it was read, and its messages."""

import logging
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Final

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition

from pipeline.kafka.cluster.call_thread import CallThread, CallTimedOut
from pipeline.kafka.cluster.callbacks import callback
from pipeline.kafka.cluster.client_log import log_error
from pipeline.kafka.cluster.log_offsets import log_range
from pipeline.kafka.cluster.retries import Retries
from pipeline.kafka.cluster.shutdown import LAST_WAIT_S, Shutdown
from pipeline.kafka.damage.batch_records import compile_scan
from pipeline.kafka.readers.bounded_consumer import BoundedConsumer
from pipeline.kafka.records.batch import Partition, start_at
from pipeline.kafka.records.carried import AT_ONCE, carried
from pipeline.kafka.records.member import Member
from pipeline.kafka.records.message_records import Item, item_of

log = logging.getLogger(__name__)

HOLD_ASK_S: Final = 1.0
"""Longest wait for the end of a partition that is on hold."""
LISTEN_S: Final = 0.01
"""Longest wait for records of producers until the group, and records of the pipeline's own topics, are looked for."""


class GroupClient:
    """A consumer that can be replaced, and what is known of the partitions that it holds; used from one thread.

    Topics that producers write to are read by a `BoundedConsumer`: in the group's own client, which would inflate
    whatever comes, they are always paused.
    """

    def __init__(self, member: Member, config: Mapping[str, Any], shutdown: Shutdown, retries: Retries) -> None:
        """Make the client, which joins nothing yet.

        Args:
            member: Whose client it is.
            config: Configuration of the consumer, without its error callback.
            shutdown: Ends waits.
            retries: Repeats seeks that fail.
        """
        self.member = member
        self._config, self._shutdown, self._retries = config, shutdown, retries
        self.is_classic = config["group.protocol"] == "classic"
        self.consumer, self.fatal = self._new()
        """``fatal``: errors after which ``consumer`` cannot be used any more."""
        # Where each partition that is held has been read up to. A record below it, or of a partition that is not held,
        # was fetched before a rebalance or an abort that happened while its batch was being formed.
        self.positions: dict[Partition, int] = {}
        self.assigned: set[Partition] = set()
        """Partitions that the group has assigned; held once all topics of their number are."""
        self._carried = carried(member.topics.values(), member.settings.batch_max_records)
        self._inputs = member.settings.inputs & member.topics.keys()
        self._bounded = BoundedConsumer(config)
        if self._inputs:
            compile_scan()
        self._is_polled_first = True

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
        call_thread = CallThread(self.member.agent, self._shutdown.report_waiting)
        try:
            call_thread.call("leaving the group", consumer.close, LAST_WAIT_S)
        except CallTimedOut as error:
            # The group learns of it when the session times out.
            log.warning("%s", error)
        finally:
            call_thread.end()

    @property
    def is_leaving(self) -> bool:
        """True once the worker ends."""
        return self._shutdown.requested.is_set()

    def group_metadata(self) -> Any:
        """Return the group's metadata as they are now."""
        return self.consumer.consumer_group_metadata()

    def is_bounded(self, partition: Partition) -> bool:
        """Return whether a partition is of a topic that producers write to."""
        return partition[0] in self._inputs

    def fetch(self, timeout_s: float) -> None:
        """Take what has come until a batch is full. The client serves rebalances meanwhile, which drop some."""
        ends_s = time.monotonic() + timeout_s
        self._bounded.prefetch()
        # In turn: either of them could fill all batches for a while.
        self._is_polled_first = not self._is_polled_first
        while True:
            if self._inputs and not self._is_polled_first:
                self._carried.add(self._bounded.take(self._carried.wanted()))
            self._poll(0 if self._inputs or self._carried else timeout_s)
            if not self._inputs:
                return
            if self._is_polled_first:
                self._carried.add(self._bounded.take(self._carried.wanted()))
            if self._carried:
                # Answers come while the batch is worked on.
                self._bounded.prefetch()
                return
            left_s = max(ends_s - time.monotonic(), 0)
            self._bounded.wait(min(left_s, LISTEN_S))
            if not left_s:
                return

    def _poll(self, timeout_s: float) -> None:
        first = self.consumer.poll(timeout_s)
        if first is None:
            return
        self._carried.add([item_of(first)])
        while (wanted := min(self._carried.wanted(), AT_ONCE)) > 0:
            more = self.consumer.consume(wanted, 0)
            self._carried.add(list(map(item_of, more)))
            if len(more) < wanted:
                return

    def take(self) -> list[Item]:
        """Return what was fetched of the next batch."""
        return self._carried.take()

    def assign(self, came: Collection[Partition], offsets: Mapping[Partition, int]) -> None:
        """Take partitions that the group has assigned, to be read from ``offsets``; classic: in the place of all."""
        paused = [TopicPartition(*partition) for partition in came if self.is_bounded(partition)]
        # Twice: a pause from before the assignment holds where the client knows the partition already.
        self.consumer.pause(paused)
        positions = [self._start_at(partition, offsets.get(partition, 0)) for partition in came]
        if self.is_classic:
            self.consumer.assign(positions)
        else:
            self.consumer.incremental_assign(positions)
        self.consumer.pause(paused)
        for partition in came:
            if self.is_bounded(partition) and partition in offsets:
                self._bounded.seek(partition, offsets[partition])

    def _start_at(self, partition: Partition, offset: int) -> TopicPartition:
        # Where nothing is, should anything be fetched all the same.
        return TopicPartition(*partition, OFFSET_END) if self.is_bounded(partition) else start_at(partition, offset)

    def pause(self, partitions: Collection[Partition]) -> None:
        """Fetch nothing of these partitions until they are resumed."""
        self._bounded.pause([partition for partition in partitions if self.is_bounded(partition)])
        self.consumer.pause([TopicPartition(*partition) for partition in partitions])

    def halt(self, partitions: Collection[Partition]) -> None:
        """Fetch and deliver nothing of these partitions any more, though they stay assigned."""
        self.pause(partitions)
        for partition in partitions:
            self.positions.pop(partition, None)
        self._carried.drop(lambda at: at in partitions)

    def resume(self, partitions: Collection[Partition]) -> None:
        """Fetch from these partitions again; `seek` where reading goes on."""
        self._bounded.resume([partition for partition in partitions if self.is_bounded(partition)])
        self.consumer.resume([TopicPartition(*partition) for partition in partitions if not self.is_bounded(partition)])

    def seek(self, partition: Partition, offset: int) -> None:
        """Read a partition from ``offset``; what was fetched of it is dropped."""
        self.positions[partition] = offset
        self._carried.drop(lambda at: at == partition)
        if self.is_bounded(partition):
            self._bounded.seek(partition, offset)
            return
        try:
            self._retries.call("seek", lambda: self.consumer.seek(start_at(partition, offset)))
        except KafkaException as error:
            if error.args[0].code() != KafkaError._STATE:
                raise
            if partition in {(held.topic, held.partition) for held in self.consumer.assignment()}:
                self._restart(partition, offset)
                return
            # The client does not hold the partition any more, which the next poll will report.
            log.warning("%s: %s partition %d is lost: %s", self.member.agent, *partition, error.args[0].str())
            self.positions.pop(partition, None)

    def _restart(self, partition: Partition, offset: int) -> None:
        """Read a partition again that the client has stopped reading: behind a damaged batch it found nothing."""
        if self.is_classic:
            self.assign(self.assigned, self.positions | {partition: offset})
        else:
            self.consumer.incremental_unassign([TopicPartition(*partition)])
            self.consumer.incremental_assign([start_at(partition, offset)])

    def forget(self, numbers: Collection[int]) -> None:
        """Drop what is known of partitions that are not held any more."""
        self._carried.drop(lambda at: at[1] in numbers)
        self._bounded.drop(self.member.partitions(numbers))
        for partition in [partition for partition in self.positions if partition[1] in numbers]:
            del self.positions[partition]

    def close(self) -> None:
        """Leave the group, and close all connections."""
        self._bounded.close()
        self.leave(self.consumer)

    def lag(self, *, asks: bool) -> dict[Partition, int]:
        """Records between the position of each assigned partition and its end.

        Args:
            asks: Whether a broker is asked for the end. Else it is from the client's cache, and does not move while
                nothing is fetched.
        """
        lags = {}
        for (topic, partition), position in self.positions.items():
            if self.is_bounded((topic, partition)):
                high = self._bounded.log_end((topic, partition))
            else:
                _, high = self.consumer.get_watermark_offsets(TopicPartition(topic, partition), cached=True)
            if asks:
                # One that does not answer is reported by whoever watches brokers.
                with suppress(KafkaException):
                    high = log_range(self.consumer, (topic, partition), HOLD_ASK_S).stop
            if high >= 0:
                lags[topic, partition] = max(0, high - position)
        return lags
