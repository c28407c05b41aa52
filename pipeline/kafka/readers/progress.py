"""The lag of a consumer group, and the newest records of a topic, for programs that feed topics."""

from collections.abc import Mapping
from typing import Any, Final

from confluent_kafka import IsolationLevel, KafkaException
from confluent_kafka.admin import ResourceType

from pipeline.kafka.cluster.admin import committed_by_group, end_offsets, group_consumer
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.cluster import configs_of
from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.cluster.log_offsets import last_offsets, partition_numbers
from pipeline.kafka.readers.topic_reader import log_consumer
from pipeline.kafka.records.batch import ReadError
from pipeline.settings import Settings

_TAIL_BATCH: Final = 500


class GroupLag:
    """Measures by how many records a group's commits are behind the end of one topic.

    Where the group has committed nothing, it counts from the end as it was when this object was made: what an absent
    group never read before is not this program's to wait for.
    """

    def __init__(self, bootstrap: str, settings: Settings, topic: str, group: str) -> None:
        # The same clients for all measurements: making one costs threads and connections.
        self._client = admin_client(bootstrap, settings=settings)
        self._consumer = group_consumer(bootstrap, group, settings=settings)
        self._partitions = [(topic, number) for number in partition_numbers(self._client, topic)]
        self._base = self._ends()

    def measure(self) -> tuple[int, int]:
        """Records between the commits and the ends; and the sum of the commits, which grows with the group's work."""
        ends, committed = self._ends(), committed_by_group(self._consumer, self._partitions)
        lag = sum(max(0, end - committed.get(at, self._base[at])) for at, end in ends.items())
        return lag, sum(committed.values())

    def _ends(self) -> dict[tuple[str, int], int]:
        return last_offsets(self._client, self._partitions, IsolationLevel.READ_UNCOMMITTED)


class TopicTail:
    """Reads what is added to a topic from now on, committed records only; used from one thread."""

    def __init__(self, bootstrap: str, settings: Settings, topic: str, fetch: Mapping[str, Any] | None = None) -> None:
        """``fetch``: what `late_fetch_config` returns."""
        self._consumer = log_consumer(bootstrap, settings, {**(fetch or {}), "enable.partition.eof": False})
        self._consumer.assign(end_offsets(bootstrap, [topic], settings=settings))

    def poll(self, timeout_s: float) -> list[bytes]:
        """Values that came; waits up to ``timeout_s`` for the first one."""
        values: list[bytes] = []
        for item in self._consumer.take(timeout_s, _TAIL_BATCH):
            if isinstance(item, ReadError):
                if item.error.fatal():
                    raise KafkaException(item.error)
            elif item.value is not None:
                values.append(item.value)
        return values

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()


def require_producer_timestamps(bootstrap: str, settings: Settings, topics: list[str]) -> None:
    """Raise `TopicError` for a topic that is missing or that stamps records on arrival."""
    client = admin_client(bootstrap, settings=settings)
    for topic in topics:
        partition_numbers(client, topic)
    configs, denied = configs_of(client, ResourceType.TOPIC, topics)
    if denied:
        raise TopicError(denied[0])
    for topic, config in configs.items():
        if (stamp := config["message.timestamp.type"]) != "CreateTime":
            raise TopicError(
                f"topic {topic} stamps records when they arrive ({stamp}): a simulated clock cannot be kept; "
                "use topics created under FRAUD_PIPELINE_TIMESTAMPS=producer, with another FRAUD_PIPELINE_TOPIC_PREFIX"
            )
