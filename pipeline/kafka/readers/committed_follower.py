"""Following topics from where a group has got to, by one program that commits what it has done."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final

from confluent_kafka import TopicPartition

from pipeline.kafka.cluster.admin import committed_by_group, group_consumer
from pipeline.kafka.cluster.log_offsets import first_offsets, last_offsets, partition_numbers
from pipeline.kafka.cluster.retries import retried
from pipeline.kafka.readers.topics_follower import TopicsFollower
from pipeline.kafka.records.batch import Partition
from pipeline.settings import Settings
from schemas.topics import Topic

log = logging.getLogger(__name__)

RENEWED_S: Final = 600.0
"""Seconds after which offsets are committed once more: brokers forget those of a group without members in days."""


class CommittedFollower(TopicsFollower):
    """Reads topics from a group's committed offsets on, or else from their ends; nothing joins the group.

    Args:
        group: Name of the group, without prefix.
        back: Records of each partition before the committed offset that are read again, to know what was before.
    """

    def __init__(self, bootstrap: str, settings: Settings, topics: Sequence[Topic], group: str, back: int) -> None:
        super().__init__(bootstrap, settings, topics)
        self._group, self._back = group_consumer(bootstrap, settings.topic(group), settings=settings), back
        self.done: dict[Partition, int] = {}
        """Offset behind what is done of each partition, by full name and number, for `commit`."""
        self._committed, self._renewed_s = dict[Partition, int](), time.monotonic()

    def start(self, positions: Mapping[Partition, int] | None = None) -> None:
        """Assign every partition; where its group has committed nothing, from ``positions``, or else from its end."""
        every = [(name, number) for name in self._names for number in partition_numbers(self._client, name)]
        firsts, ends = first_offsets(self._client, every), last_offsets(self._client, every)
        self.done = {**ends, **(positions or {}), **committed_by_group(self._group, every)}
        for at, first in firsts.items():
            if self.done[at] < first:
                log.error("%s partition %d: offsets %d to %d were deleted unread", *at, self.done[at], first - 1)
                self.done[at] = first
        super().start({at: max(offset - self._back, firsts[at]) for at, offset in self.done.items()})
        self.commit()

    def commit(self) -> None:
        """Commit what is done since the last call, and all of it now and then."""
        if time.monotonic() - self._renewed_s > RENEWED_S:
            self._committed, self._renewed_s = {}, time.monotonic()
        moved = {at: offset for at, offset in self.done.items() if self._committed.get(at) != offset}
        if moved:
            offsets = [TopicPartition(*at, offset) for at, offset in moved.items()]
            retried(lambda: self._group.commit(offsets=offsets, asynchronous=False))
            self._committed |= moved

    def close(self) -> None:
        """Close both clients."""
        super().close()
        self._group.close()
