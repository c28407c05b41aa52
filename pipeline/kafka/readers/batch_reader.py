"""Batches of a session: of the records that its client has fetched, or of a range that no client can read."""

import logging
import math
from collections.abc import Iterable

from confluent_kafka import KafkaError

from pipeline.kafka.cluster.errors import SessionError
from pipeline.kafka.damage.unreadable import DAMAGED, UNREADABLE
from pipeline.kafka.damage.unreadable_batches import UnreadableBatches
from pipeline.kafka.readers.group_client import GroupClient
from pipeline.kafka.records.batch import Batch, Partition, UnreadableRange
from pipeline.kafka.records.message_records import Item, ReadError
from schemas.records import Record

log = logging.getLogger(__name__)

_Failed = dict[Partition, UnreadableRange | ReadError]
"""The first of what cannot be read, by partition."""


class BatchReader:
    """Forms the batches of one session; used from its thread.

    Args:
        client: Fetches records, and seeks where something is read again.
        unreadable: The batches that the client cannot read.
    """

    def __init__(self, client: GroupClient, unreadable: UnreadableBatches) -> None:
        self._client, self._unreadable = client, unreadable
        self._agent = client.member.agent

    def fetched_batch(self) -> Batch | None:
        """Return the next batch of what the client has fetched; None where there is nothing to process."""
        items = self._client.take()
        if not items:
            return None
        # Read before the records are looked at: a rebalance in between would have been served by the calls above.
        metadata = self._client.group_metadata()
        order = list(self._client.member.topics)
        read, failed = self._read(items)
        by_partition = sorted(read.items(), key=lambda item: (item[0][1], order.index(item[0][0])))
        starts = {partition: records[0].offset for partition, records in by_partition}
        ends = {partition: records[-1].offset + 1 for partition, records in by_partition}
        self._client.positions.update(ends)
        for failure in failed.values():
            self._retry(failure)
        records = [record for _, part in by_partition for record in part]
        return Batch(records, metadata, starts, ends) if records else None

    def unreadable_batch(self) -> Batch | None:
        """A batch without records that passes over a range which cannot be read, once its end is known."""
        positions = self._client.positions
        polled = {partition: at for partition, at in positions.items() if not self._client.is_bounded(partition)}
        self._unreadable.look(self._client.consumer, polled)
        if (found := self._unreadable.pop_found()) is None or found.partition not in positions:
            return None
        partition, position = found.partition, positions[found.partition]
        self._client.resume([partition])
        # It can be read after all; or the records before it were not committed and are read again, as it will be then.
        is_void = found.start == found.end or position != found.start
        self._client.seek(partition, position if is_void else found.end)
        if is_void:
            return None
        metadata = self._client.group_metadata()
        return Batch([], metadata, {partition: found.start}, {partition: found.end}, unreadable=found)

    def _read(self, items: Iterable[Item]) -> tuple[dict[Partition, list[Record]], _Failed]:
        """Return the records to process, by partition, and the fetches that failed; other errors are looked at."""
        positions = self._client.positions
        read: dict[Partition, list[Record]] = {}
        failed: _Failed = {}
        topic, number, expected = "", -1, math.inf
        records: list[Record] = []
        for item in items:
            if not isinstance(item, Record):
                at = item.partition
                if at in positions and (isinstance(item, UnreadableRange) or item.error.code() in UNREADABLE):
                    failed.setdefault(at, item)
                    number = -1
                elif at not in failed and isinstance(item, ReadError):
                    self._look_at(item)
                continue
            # Records come in runs of one partition, which is looked up once for each run, and not for each record.
            if item.partition != number or item.topic != topic:
                partition = topic, number = item.topic, item.partition
                records = read.setdefault(partition, [])
                expected = records[-1].offset + 1 if records else positions.get(partition, math.inf)
                # What the client makes of a damaged batch's remains is nothing to be believed.
                expected = math.inf if partition in failed else expected
            if item.offset >= expected:
                expected = item.offset + 1
                records.append(item)
        return {partition: records for partition, records in read.items() if records}, failed

    def _retry(self, failure: UnreadableRange | ReadError) -> None:
        """Leave a partition alone until what cannot be read of it is examined, and quarantined."""
        partition = failure.partition
        position = self._client.positions[partition]
        if isinstance(failure, ReadError):
            start = max(position, failure.offset)
            self._unreadable.failed(partition, start, failure.error.str())
        else:
            start = max(position, failure.start)
            if failure.error == DAMAGED:
                self._unreadable.failed(partition, start, failure.message)
            else:
                self._unreadable.found(partition, start, *failure[2:])
        self._client.pause([partition])
        self._client.seek(partition, start)

    def _look_at(self, failure: ReadError) -> None:
        partition, offset, error = failure
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            position = self._client.positions.get(partition, offset)
            if offset != position and self._unreadable.pauses(partition):
                # Behind a damaged batch the client went on anywhere, and says so once it was called back.
                self._client.seek(partition, position)
                return
            raise SessionError(
                f"agent {self._agent}: {partition[0]} partition {partition[1]} no longer holds the offset to "
                "read from: its records were deleted before they were read. Check the topic's retention; what can be "
                "had back must be restored. To go on without it: start once with "
                "FRAUD_PIPELINE_ACCEPT_LOST_RECORDS=true"
            )
        # As a message's error it bears the code alone.
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._client.fatal.append(error.str())
        log.warning("%s: %s", self._agent, error.str())
