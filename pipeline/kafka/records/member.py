"""The member of an agent's group that one worker is."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pipeline.kafka.records.batch import Partition
from pipeline.settings import Settings
from schemas.topics import Topic


class Member(NamedTuple):
    """One worker's part in the group of one agent, for which a session works."""

    bootstrap: str
    """Addresses of brokers."""
    settings: Settings
    agent: str
    topics: Mapping[str, Topic]
    """Topics that the agent reads, by their names on the cluster, in the order in which a batch holds them."""
    producers: int
    """Number of producers that take turns."""

    def partitions(self, numbers: Iterable[int]) -> list[Partition]:
        """Return the partitions of all topics with these numbers."""
        return [(topic, number) for number in numbers for topic in self.topics]
