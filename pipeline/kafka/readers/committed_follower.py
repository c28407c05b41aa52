"""Following topics from where a group has got to, by one program that commits what it has done."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final

from confluent_kafka import TopicPartition

from pipeline.kafka.cluster.admin import committed_by_group, group_consumer
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.log_offsets import first_offsets, last_offsets, partition_numbers
from pipeline.kafka.cluster.retries import retried
from pipeline.kafka.readers.topics_follower import TopicsFollower
from pipeline.kafka.records.batch import Partition
from pipeline.settings import Settings
from schemas.records import Record
from schemas.topics import Topic

log = logging.getLogger(__name__)

RENEWED_S: Final = 600.0
"""Seconds after which offsets are committed once more: brokers forget those of a group without members in days."""


class CommittedFollower:
    """Reads topics from a group's committed offsets on, or else from their ends; used from one thread.

    The group has no members, and nothing keeps two programs from reading in its name.

    Args:
        topics: The topics; their full names have the prefix of the settings.
        group: Name of the group, without prefix.
        back: Records of each partition before the committed offset that are read again, to know what was before.
    """

    def __init__(self, bootstrap: str, settings: Settings, topics: Sequence[Topic], group: str, back: int) -> None:
        self._follower = TopicsFollower(bootstrap, settings, topics)
        self._client = admin_client(bootstrap, settings=settings)
        self._consumer = group_consumer(bootstrap, settings.topic(group), settings=settings)
        self._names, self._back = [settings.topic(topic.name) for topic in topics], back
        self.positions: dict[Partition, int] = {}
        """Offset behind what is done of each partition, by full name and number; `done` moves it."""
        self._committed: Mapping[Partition, int] = {}
        self._committed_s = 0.0

    def start(self) -> None:
        """Assign every partition; what was deleted before it was read is reported."""
        every = [(name, number) for name in self._names for number in partition_numbers(self._client, name)]
        firsts, ends = first_offsets(self._client, every), last_offsets(self._client, every)
        known = committed_by_group(self._consumer, every)
        for topic, number in every:
            first, offset = firsts[topic, number], known.get((topic, number), ends[topic, number])
            if offset < first:
                log.error("%s partition %d: offsets %d to %d were deleted unread", topic, number, offset, first - 1)
            self.positions[topic, number] = max(offset, first)
        self._follower.start({at: max(offset - self._back, firsts[at]) for at, offset in self.positions.items()})
        self.commit()

    def poll(self, timeout_s: float) -> list[Record]:
        """Return records that are there; wait up to ``timeout_s`` for the first one."""
        return self._follower.poll(timeout_s)

    def done(self, record: Record) -> None:
        """Move a position behind a record."""
        self.positions[record.topic, record.partition] = record.offset + 1

    def commit(self) -> None:
        """Commit the positions that have moved, and all of them now and then."""
        now_s = time.monotonic()
        is_old = now_s - self._committed_s > RENEWED_S
        moved = {at: offset for at, offset in self.positions.items() if is_old or self._committed.get(at) != offset}
        if not moved:
            return
        offsets = [TopicPartition(*at, offset) for at, offset in moved.items()]
        retried(lambda: self._consumer.commit(offsets=offsets, asynchronous=False))
        self._committed = dict(self.positions)
        self._committed_s = now_s if is_old else self._committed_s

    def close(self) -> None:
        """Close both clients."""
        self._follower.close()
        self._consumer.close()
