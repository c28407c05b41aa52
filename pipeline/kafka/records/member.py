"""The member of an agent's group that one worker is."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.kafka.records.batch import Partition
from pipeline.kafka.records.internal import OnRefused, not_counted
from pipeline.settings import Settings
from schemas.topics import Topic


@dataclass(frozen=True)
class Member:
    """One worker's part in the group of one agent, for which a session works."""

    bootstrap: str
    """Addresses of brokers."""
    settings: Settings
    agent: str
    reads: Sequence[Topic]
    """Topics that the agent reads, in the order in which a batch holds them."""
    producers: int = 1
    """Number of producers that take turns."""
    on_refused: OnRefused = not_counted
    """Counts records of internal topics that cannot be read."""

    @cached_property
    def topics(self) -> Mapping[str, Topic]:
        """Topics that the agent reads, by their names on the cluster."""
        return {self.settings.topic(topic.name): topic for topic in self.reads}

    def partitions(self, numbers: Iterable[int]) -> list[Partition]:
        """Return the partitions of all topics with these numbers."""
        return [(topic, number) for number in numbers for topic in self.topics]
