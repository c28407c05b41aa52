"""The committed state of the partitions that a session holds: restored when they come, forgotten when they go."""

import logging
from collections.abc import Collection, Mapping

from confluent_kafka import Consumer

from pipeline.kafka.cluster.shutdown import Shutdown
from pipeline.kafka.records.batch import Partition
from pipeline.kafka.records.internal import OnRefused
from pipeline.kafka.records.member import Member
from pipeline.kafka.session.attempts import Committed
from pipeline.kafka.session.offsets import CommittedOffsets
from pipeline.kafka.session.restore import restore_partition
from pipeline.kafka.session.state_handler import StateHandler
from pipeline.kafka.writers.unfinished_transactions import end_left_open

log = logging.getLogger(__name__)


class CommittedState:
    """The state of one session's partitions as it is committed; used from the session's thread.

    Args:
        member: Whose state it is.
        handler: Holds the state.
        group_offsets: The committed offsets of the group.
        shutdown: Ends waits.
        on_refused: Counts records that cannot be read.
    """

    def __init__(
        self,
        member: Member,
        handler: StateHandler,
        group_offsets: CommittedOffsets,
        shutdown: Shutdown,
        on_refused: OnRefused,
    ) -> None:
        self._member, self._handler, self._group_offsets = member, handler, group_offsets
        self._shutdown, self._on_refused = shutdown, on_refused
        self.offsets: dict[Partition, int] = {}
        """Next offset of each partition's committed state; the client's position may be ahead by a batch."""
        self.progress: dict[int, int] = {}
        """Offset in ``progress`` behind the marker of the last committed batch, by partition number."""

    def read_offsets(self, consumer: Consumer, numbers: Collection[int]) -> dict[Partition, Committed]:
        """Return the group's committed offsets of partitions that come; transactions of dead holders are ended first.

        Until they end, offsets are not known, and readers of the outputs get no further. Brokers would wait for
        ``transaction.timeout.ms``. A holder that lives has lost these partitions, and makes a new producer.
        """
        partitions = self._member.partitions(numbers)
        if self._member.settings.delivery == "exactly_once":
            end_left_open(self._member, self._group_offsets.dead_holders(partitions), self._shutdown)
        return self._group_offsets.read(consumer, partitions)

    def restore(self, numbers: Collection[int], committed: Mapping[Partition, Committed]) -> dict[Partition, int]:
        """Bring the state of partitions up to what is committed; returns where reading goes on."""
        offsets: dict[Partition, int] = {}
        self._handler.assigning(self._shutdown.restoring)
        for number in numbers:
            offsets |= self._restore(number, {at: committed[at] for at in self._member.partitions([number])})
        return offsets

    def forget(self, numbers: Collection[int]) -> None:
        """Drop the state of partitions that are not held any more."""
        for partition in [partition for partition in self.offsets if partition[1] in numbers]:
            del self.offsets[partition]
        for number in numbers:
            self.progress.pop(number, None)
            self._handler.forget(number)

    def _restore(self, number: int, marked: Mapping[Partition, Committed]) -> dict[Partition, int]:
        member = self._member
        committed = {partition: at.offset for partition, at in marked.items()}
        try:
            done = restore_partition(
                member.bootstrap,
                member.settings,
                member.agent,
                number,
                committed,
                self._handler,
                self._shutdown.restoring,
                self._on_refused,
            )
        except BaseException:
            self._handler.forget(number)
            raise
        self.progress[number] = done.progress
        self._handler.restored(number, done.records)
        positions = {}
        for (topic, _), offset in committed.items():
            first = done.first[topic]
            if offset < first:
                log.warning(
                    "%s: %s partition %d: offsets %d to %d were deleted before they were read and are passed over, as "
                    "FRAUD_PIPELINE_ACCEPT_LOST_RECORDS says; unset it for the next start",
                    member.agent, topic, number, offset, first - 1,
                )  # fmt: skip
            positions[topic, number] = max(offset, first)
        return positions
