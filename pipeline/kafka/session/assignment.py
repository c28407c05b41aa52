"""The partitions that a session's group assigns and takes away."""

import logging
from collections.abc import Callable, Collection

from confluent_kafka import Consumer, TopicPartition

from pipeline.kafka.cluster.callbacks import callback
from pipeline.kafka.readers.group_client import GroupClient
from pipeline.kafka.records.batch import Partition, partitions_text
from pipeline.kafka.session.committed_state import CommittedState
from pipeline.kafka.session.steps import CarefulReading

log = logging.getLogger(__name__)


class Assignment:
    """Takes partitions in and gives them up; librdkafka calls it during a poll, on the session's thread.

    A partition is held, and read, once the partitions of all topics that bear its number are assigned.
    """

    def __init__(
        self,
        client: GroupClient,
        state: CommittedState,
        careful: CarefulReading,
        releasing: Callable[[Collection[int]], None],
    ) -> None:
        """Hold nothing yet.

        Args:
            client: The session's client.
            state: The committed state of what is held.
            careful: Reads carefully what the last holder may have died of.
            releasing: Called with the numbers of partitions that are about to be given up in order.
        """
        self._client, self._state, self._careful = client, state, careful
        self._releasing = releasing
        self._agent, self._topics = client.member.agent, client.member.topics

    def subscribe(self) -> None:
        """Join the group, or join it anew with a new client."""
        self._client.consumer.subscribe(
            list(self._topics), on_assign=self.on_assign, on_revoke=self.on_revoke, on_lost=self.on_lost
        )

    @callback
    def on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Restore the state of partitions that are assigned whole now, and read on from there."""
        client = self._client
        if consumer is not client.consumer:
            # One that was given up and is being closed.
            self._unassign(consumer, partitions)
            return
        came = [(partition.topic, partition.partition) for partition in partitions]
        client.assigned.update(came)
        numbers = {number for _, number in came}
        # While the worker ends nothing of them would be read: no coordinator is asked, which may be away.
        held = set() if client.is_leaving else numbers
        whole = sorted(n for n in held if all((topic, n) in client.assigned for topic in self._topics))
        offsets: dict[Partition, int] = {}
        if whole:
            # Asked first: what the last holder committed with these offsets can be read once they are known.
            committed = self._state.read_offsets(consumer, whole)
            offsets = self._state.restore(whole, committed)
            self._careful.assigned(committed)
        log.info("%s: assigned %s", self._agent, partitions_text(came))
        # The other topics of a number may come later, in a further call: until then nothing of it is read.
        client.assign(came, offsets)
        self._state.offsets.update(offsets)

    @callback
    def on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Release partitions, and give them up."""
        if consumer is self._client.consumer:
            self._releasing({partition.partition for partition in partitions})
        log.info("%s: gave up %s", self._agent, partitions_text([(lost.topic, lost.partition) for lost in partitions]))
        self._take_away(consumer, partitions)

    @callback
    def on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Give partitions up that are another member's by now."""
        log.warning(
            "%s: lost %s",
            self._agent,
            partitions_text([(partition.topic, partition.partition) for partition in partitions]),
        )
        self._take_away(consumer, partitions)

    def clear(self) -> None:
        """Give up all partitions, whose client cannot be used any more."""
        self._give_up({number for _, number in self._client.assigned})
        self._client.assigned.clear()

    def _take_away(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        client = self._client
        numbers = {partition.partition for partition in partitions}
        # A client that was given up reports it while it is closed; what it held may be its successor's by then.
        if consumer is client.consumer:
            client.assigned -= {(partition.topic, partition.partition) for partition in partitions}
            self._give_up(numbers)
        self._unassign(consumer, partitions)

    def _unassign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._client.is_classic:
            consumer.unassign()
        else:
            consumer.incremental_unassign(partitions)

    def _give_up(self, numbers: Collection[int]) -> None:
        for partition in {*self._client.positions, *self._state.offsets}:
            if partition[1] in numbers:
                self._careful.plan.forget(partition)
        self._client.forget(numbers)
        self._state.forget(numbers)
