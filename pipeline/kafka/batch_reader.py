"""Batches of a session: of the records that its client has fetched, or of a range that no client can read."""

import logging
import math
from collections.abc import Iterable

from confluent_kafka import KafkaError, Message

from pipeline.kafka.batch import Batch, Partition
from pipeline.kafka.errors import SessionError
from pipeline.kafka.group_client import GroupClient
from pipeline.kafka.message_records import record_of
from pipeline.kafka.odd_offsets import OddOffsets
from pipeline.kafka.unreadable import UNREADABLE
from pipeline.kafka.unreadable_batches import UnreadableBatches
from schemas.records import Record

log = logging.getLogger(__name__)

_Failed = dict[Partition, tuple[int, KafkaError]]
"""Offset that the first error about a batch names, and the error, by partition."""


class BatchReader:
    """Forms the batches of one session; used from its thread.

    Args:
        client: Fetches messages, and seeks where something is read again.
        unreadable: The batches that the client cannot read.
        odd: The records that claim another offset than they have.
    """

    def __init__(self, client: GroupClient, unreadable: UnreadableBatches, odd: OddOffsets) -> None:
        self._client, self._unreadable, self._odd = client, unreadable, odd
        self._agent = client.member.agent

    def fetched_batch(self) -> Batch | None:
        """Return the next batch of what the client has fetched; None where there is nothing to process."""
        messages = self._client.take()
        if not messages:
            return None
        # Read before the records are looked at: a rebalance in between would have been served by the calls above.
        metadata = self._client.group_metadata()
        order = list(self._client.member.topics)
        read, failed = self._read(messages)
        resumed = self._believe(read)
        by_partition = sorted(read.items(), key=lambda item: (item[0][1], order.index(item[0][0])))
        starts = {partition: records[0].offset for partition, records in by_partition}
        ends = {partition: records[-1].offset + 1 for partition, records in by_partition}
        self._client.positions.update(ends)
        for partition, (offset, error) in failed.items():
            if partition not in resumed:
                self._retry(partition, offset, error)
        for partition, offset in resumed.items():
            self._client.seek(partition, offset)
        records = [record for _, part in by_partition for record in part]
        return Batch(records, metadata, starts, ends) if records else None

    def unreadable_batch(self) -> Batch | None:
        """A batch without records that passes over a range which cannot be read, once its end is known."""
        positions = self._client.positions
        self._unreadable.look(self._client.consumer, positions)
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

    def _read(self, messages: Iterable[Message]) -> tuple[dict[Partition, list[Record]], _Failed]:
        """Return the records to process, by partition, and the fetches that failed; other errors are looked at."""
        positions = self._client.positions
        read: dict[Partition, list[Record]] = {}
        failed: _Failed = {}
        topic, number, expected = "", -1, math.inf
        records: list[Record] = []
        for message in messages:
            error = message.error()
            if error is not None:
                at = (message.topic(), message.partition())
                if error.code() in UNREADABLE and at in positions:
                    failed.setdefault(at, (message.offset(), error))
                    number = -1
                elif at not in failed:
                    self._look_at(message, error)
                continue
            # Records come in runs of one partition, which is looked up once for each run, and not for each record.
            if message.partition() != number or message.topic() != topic:
                partition = topic, number = message.topic(), message.partition()
                records = read.setdefault(partition, [])
                expected = records[-1].offset + 1 if records else positions.get(partition, math.inf)
                # What the client makes of a damaged batch's remains is nothing to be believed.
                expected = math.inf if partition in failed else expected
            record = record_of(message, topic)
            if record.offset >= expected:
                expected = record.offset + 1
                records.append(record)
        return {partition: records for partition, records in read.items() if records}, failed

    def _believe(self, read: dict[Partition, list[Record]]) -> dict[Partition, int]:
        """Drop from ``read`` what may hide other records; return where to read such partitions again."""
        resumed: dict[Partition, int] = {}
        for partition in [partition for partition in read if partition[0] in self._odd.topics]:
            records = read[partition]
            first = records[0]
            content = first.timestamp_ms, first.key, first.value
            position, offsets = self._client.positions[partition], [record.offset for record in records]
            reach = self._odd.check(partition, position, offsets, content)
            if reach is None:
                continue
            read[partition] = [record for record in records if record.offset < reach.position]
            if not read[partition]:
                del read[partition]
            resumed[partition] = reach.position
            if reach.resume > reach.position:
                self._unreadable.found(partition, reach.position, reach.resume)
        return resumed

    def _retry(self, partition: Partition, offset: int, error: KafkaError) -> None:
        """Leave a partition alone while the batch is examined that could not be read."""
        start = max(self._client.positions[partition], offset)
        self._unreadable.failed(partition, start, error.str())
        self._client.pause([partition])
        self._client.seek(partition, start)

    def _look_at(self, message: Message, error: KafkaError) -> None:
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            partition = (message.topic(), message.partition())
            position = self._client.positions.get(partition, message.offset())
            if message.offset() != position and (
                self._unreadable.pauses(partition) or partition[0] in self._odd.topics
            ):
                # Behind a damaged batch the client went on anywhere, or where a record claimed to be, and says so once
                # it was called back.
                self._client.seek(partition, position)
                return
            raise SessionError(
                f"agent {self._agent}: {message.topic()} partition {message.partition()} no longer holds the offset to "
                "read from: its records were deleted before they were read. Check the topic's retention; what can be "
                "had back must be restored. To go on without it: start once with "
                "FRAUD_PIPELINE_ACCEPT_LOST_RECORDS=true"
            )
        # As a message's error it bears the code alone.
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._client.fatal.append(error.str())
        log.warning("%s: %s", self._agent, error.str())
