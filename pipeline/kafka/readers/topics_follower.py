"""Following several topics at once, outside any consumer group, for programs that only look."""

import time
from collections.abc import Mapping, Sequence

from confluent_kafka import KafkaError, KafkaException

from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.cluster import ClusterIdentities, topic_identities
from pipeline.kafka.cluster.errors import ClusterUnreachable
from pipeline.kafka.cluster.log_offsets import partition_numbers
from pipeline.kafka.readers.follower import FETCH_WAIT_MS
from pipeline.kafka.readers.log_consumer import LogConsumer
from pipeline.kafka.readers.topic_reader import PRESENCE_S, READ_BATCH, raise_unless_passing
from pipeline.kafka.records.batch import Partition
from pipeline.settings import Settings
from schemas.records import Record
from schemas.topics import Topic


class TopicsFollower:
    """Reads topics from given positions on, and then whatever comes; batches that nobody can read are skipped.

    Used from one thread.

    Args:
        bootstrap: Addresses of brokers.
        settings: Settings of the client.
        topics: The topics; their full names have the prefix of the settings.
    """

    def __init__(self, bootstrap: str, settings: Settings, topics: Sequence[Topic]) -> None:
        self._bootstrap = bootstrap
        self._names = [settings.topic(topic.name) for topic in topics]
        self._client = admin_client(bootstrap, settings=settings)
        own = {"fetch.wait.max.ms": FETCH_WAIT_MS}
        self._consumer = LogConsumer(bootstrap, settings, own, skip_unreadable=True)
        self._pending_ends: set[Partition] = set()
        self._behind: dict[Partition, int] = {}
        self._heard_s = time.monotonic()

    def identities(self) -> ClusterIdentities:
        """Return the ids of the cluster and of the topics; raises `TopicError` where a topic is missing."""
        return topic_identities(self._client, self._names)

    def start(self, positions: Mapping[Partition, int]) -> None:
        """Assign every partition, each from its offset in ``positions`` (full names), or from its beginning."""
        every = [(name, number) for name in self._names for number in partition_numbers(self._client, name)]
        self._pending_ends = set(every)
        self._consumer.assign({partition: positions.get(partition, 0) for partition in every})

    @property
    def caught_up(self) -> bool:
        """True once the end of every partition has been seen."""
        return not self._pending_ends

    def poll(self, timeout_s: float) -> list[Record]:
        """Return records that are there; wait up to ``timeout_s`` for the first one.

        Raises:
            ClusterUnreachable: No broker answers.
            TopicError: A topic cannot be read.
            KafkaException: The brokers report an error that does not pass.
        """
        records: list[Record] = []
        for item in self._consumer.take(timeout_s, READ_BATCH):
            if isinstance(item, Record):
                records.append(item)
                self._behind[item.topic, item.partition] = item.offset + 1
                continue
            raise_unless_passing(item.error)
            if item.error.code() == KafkaError._PARTITION_EOF:
                self._pending_ends.discard(item.partition)
                # Behind marks of transactions, which are no records.
                self._behind[item.partition] = item.offset
        if records:
            self._heard_s = time.monotonic()
        elif time.monotonic() - self._heard_s >= PRESENCE_S:
            # A reader does not notice when the last broker ends.
            try:
                self._client.list_topics(self._names[0], timeout=PRESENCE_S)
            except KafkaException as error:
                raise ClusterUnreachable(
                    f"no broker answers at {self._bootstrap}: start it, or check the network"
                ) from error
            self._heard_s = time.monotonic()
        return records

    def taken_positions(self) -> dict[Partition, int]:
        """Return the offsets behind what was read since the last call, by partition (full name)."""
        taken, self._behind = self._behind, {}
        return taken

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()
