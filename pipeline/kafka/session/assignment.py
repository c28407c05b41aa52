"""The partitions that a session's group assigns and takes away, and their committed state."""

import logging
from collections.abc import Callable, Collection

from confluent_kafka import Consumer, TopicPartition

from pipeline.kafka.cluster.callbacks import callback
from pipeline.kafka.cluster.retries import Retries
from pipeline.kafka.readers.group_client import GroupClient
from pipeline.kafka.records.batch import Partition, partitions_text
from pipeline.kafka.session.offsets import CommittedOffsets
from pipeline.kafka.session.restore import restore_partitions
from pipeline.kafka.session.state_handler import StateHandler
from pipeline.kafka.session.steps import CarefulReading
from pipeline.kafka.writers.unfinished_transactions import end_left_open

log = logging.getLogger(__name__)


class Assignment:
    """Takes partitions in and gives them up; librdkafka calls it during a poll, on the session's thread.

    A partition is held, and read, once the partitions of all topics that bear its number are assigned.
    """

    def __init__(
        self,
        client: GroupClient,
        handler: StateHandler,
        group_offsets: CommittedOffsets,
        careful: CarefulReading,
        retries: Retries,
        releasing: Callable[[Collection[int]], None],
    ) -> None:
        """Hold nothing yet; ``releasing`` gets the numbers of partitions before they are given up in order."""
        self._client, self._handler, self._group_offsets = client, handler, group_offsets
        self._careful, self._retries, self._releasing = careful, retries, releasing
        self._member = client.member
        self.offsets: dict[Partition, int] = {}
        """Next offset of each partition's committed state; the client's position may be ahead by a batch."""
        self.progress: dict[int, int] = {}
        """Offset in ``progress`` behind the marker of the last committed batch, by partition number."""

    def subscribe(self) -> None:
        """Join the group, or join it anew with a new client."""
        self._client.consumer.subscribe(
            list(self._member.topics), on_assign=self.on_assign, on_revoke=self.on_revoke, on_lost=self.on_lost
        )

    @callback
    def on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Restore the state of partitions that are assigned whole now, and read on from there."""
        client, topics = self._client, self._member.topics
        if consumer is not client.consumer:
            # One that was given up and is being closed.
            self._unassign(consumer, partitions)
            return
        came = [(partition.topic, partition.partition) for partition in partitions]
        client.assigned.update(came)
        numbers = {number for _, number in came}
        # While the worker ends nothing of them would be read: no coordinator is asked, which may be away.
        held = set() if self._retries.requested.is_set() else numbers
        whole = sorted(n for n in held if all((topic, n) in client.assigned for topic in topics))
        offsets = self._restore(consumer, whole) if whole else {}
        log.info("%s: assigned %s", self._member.agent, partitions_text(came))
        # The other topics of a number may come later, in a further call: until then nothing of it is read.
        client.assign(came, offsets)
        self.offsets.update(offsets)

    def _restore(self, consumer: Consumer, numbers: Collection[int]) -> dict[Partition, int]:
        """Bring the state of partitions up to what is committed; return where reading goes on.

        Transactions of dead holders are ended first: until then offsets are not known, and readers of the outputs get
        no further. Brokers would wait for ``transaction.timeout.ms``. A holder that lives has lost these partitions,
        and makes a new producer.
        """
        member, restoring = self._member, self._retries.restoring
        partitions = member.partitions(numbers)
        if member.settings.delivery == "exactly_once":
            end_left_open(member, self._group_offsets.dead_holders(partitions), self._retries)
        # First: what the last holder committed with these offsets can be read once they are known.
        committed = self._group_offsets.read(consumer, partitions)
        offsets: dict[Partition, int] = {}
        self._handler.assigning(restoring)
        ends = {at: committed[at].offset for at in partitions}
        for number, done in restore_partitions(member, ends, self._handler, restoring):
            self.progress[number] = done.progress
            marks = [committed[at].mark for at in partitions if at[1] == number]
            self._handler.load_beside(number, next((mark.state for mark in marks if mark is not None), None))
            self._handler.restored(number, done.records)
            offsets |= done.positions
        self._careful.assigned(committed)
        # librdkafka says nothing of an assignment that the group takes back before it is acknowledged. The partitions
        # may be another member's meanwhile, and come back behind its commits.
        now = self._group_offsets.from_coordinator(consumer, partitions)
        if moved := [at for at in partitions if now[at] != committed[at]]:
            self._client.fatal.append(f"{partitions_text(moved)}: another member had them while they were restored")
            self._give_up(numbers)
            return {}
        return offsets

    @callback
    def on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Release partitions, and give them up."""
        if consumer is self._client.consumer:
            self._releasing({partition.partition for partition in partitions})
        self._take_away(consumer, partitions, logging.INFO, "gave up")

    @callback
    def on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Give partitions up that are another member's by now."""
        self._take_away(consumer, partitions, logging.WARNING, "lost")

    def clear(self) -> None:
        """Give up all partitions, whose client cannot be used any more."""
        self._give_up({number for _, number in self._client.assigned})
        self._client.assigned.clear()

    def _take_away(self, consumer: Consumer, partitions: list[TopicPartition], level: int, what: str) -> None:
        gone = [(partition.topic, partition.partition) for partition in partitions]
        log.log(level, "%s: %s %s", self._member.agent, what, partitions_text(gone))
        # A client that was given up reports it while it is closed; what it held may be its successor's by then.
        if consumer is self._client.consumer:
            self._client.assigned.difference_update(gone)
            self._give_up({number for _, number in gone})
        self._unassign(consumer, partitions)

    def _unassign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._client.is_classic:
            consumer.unassign()
        else:
            consumer.incremental_unassign(partitions)

    def _give_up(self, numbers: Collection[int]) -> None:
        for partition in self._member.partitions(numbers):
            self._careful.plan.forget(partition)
            self.offsets.pop(partition, None)
        self._client.forget(numbers)
        for number in numbers:
            self.progress.pop(number, None)
            self._handler.forget(number)
