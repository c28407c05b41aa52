"""The client of a group's member: what it is assigned, up to where it was read, and its messages."""

import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from pipeline.kafka.batch import Partition, start_at
from pipeline.kafka.call_thread import CallThread, CallTimedOut
from pipeline.kafka.callbacks import callback
from pipeline.kafka.carried import carried_messages
from pipeline.kafka.client_log import log_error
from pipeline.kafka.log_offsets import log_range
from pipeline.kafka.member import Member
from pipeline.kafka.retries import Retries
from pipeline.kafka.shutdown import LAST_WAIT_S, Shutdown

log = logging.getLogger(__name__)

HOLD_ASK_S: Final = 1.0
"""Longest wait for the end of a partition that is on hold."""


class GroupClient:
    """A consumer that can be replaced, and what is known of the partitions that it holds; used from one thread."""

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
        self._carried = carried_messages(member.topics.values(), member.settings.batch_max_records)

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

    def group_metadata(self) -> Any:
        """Return the group's metadata as they are now."""
        return self.consumer.consumer_group_metadata()

    def fetch(self, timeout_s: float) -> None:
        """Take messages from the client until a batch is full. It serves rebalances meanwhile, which drop some."""
        first = self.consumer.poll(0 if self._carried else timeout_s)
        if first is None:
            return
        self._carried.add([first])
        while (wanted := self._carried.wanted()) > 0:
            more = self.consumer.consume(wanted, 0)
            self._carried.add(more)
            if len(more) < wanted:
                return

    def take(self) -> list[Message]:
        """Return the fetched messages of the next batch."""
        return self._carried.take()

    def pause(self, partitions: Collection[Partition]) -> None:
        """Fetch nothing of these partitions until they are resumed."""
        self.consumer.pause([TopicPartition(*partition) for partition in partitions])

    def halt(self, partitions: Collection[Partition]) -> None:
        """Fetch and deliver nothing of these partitions any more, though they stay assigned."""
        self.pause(partitions)
        for partition in partitions:
            self.positions.pop(partition, None)
        self._carried.drop(lambda at: at in partitions)

    def resume(self, partitions: Collection[Partition]) -> None:
        """Fetch from these partitions again; `seek` where reading goes on."""
        self.consumer.resume([TopicPartition(*partition) for partition in partitions])

    def seek(self, partition: Partition, offset: int) -> None:
        """Read a partition from ``offset``; what was fetched of it is dropped."""
        self.positions[partition] = offset
        self._carried.drop(lambda at: at == partition)
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
            at = self.positions | {partition: offset}
            positions = [start_at(held, at.get(held, 0)) for held in self.assigned]
            self.consumer.assign(positions)
        else:
            self.consumer.incremental_unassign([TopicPartition(*partition)])
            self.consumer.incremental_assign([start_at(partition, offset)])

    def forget(self, numbers: Collection[int]) -> None:
        """Drop what is known of partitions that are not held any more."""
        self._carried.drop(lambda at: at[1] in numbers)
        for partition in [partition for partition in self.positions if partition[1] in numbers]:
            del self.positions[partition]

    def lag(self, *, asks: bool) -> dict[Partition, int]:
        """Records between the position of each assigned partition and its end.

        Args:
            asks: Whether a broker is asked for the end. Else it is from the client's cache, and does not move while
                nothing is fetched.
        """
        lags = {}
        for (topic, partition), position in self.positions.items():
            _, high = self.consumer.get_watermark_offsets(TopicPartition(topic, partition), cached=True)
            if asks:
                # One that does not answer is reported by whoever watches brokers.
                with suppress(KafkaException):
                    high = log_range(self.consumer, (topic, partition), HOLD_ASK_S).stop
            if high >= 0:
                lags[topic, partition] = max(0, high - position)
        return lags
