"""Following a topic whole, outside any consumer group: how every worker learns of new model versions."""

from typing import Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from pipeline.kafka.clients import TopicError, consumer_config, partition_numbers, record_of
from pipeline.settings import Settings
from schemas.records import Record
from schemas.topics import Topic


class TopicFollower:
    """Reads a topic from its beginning and then whatever comes; used from one thread."""

    def __init__(self, bootstrap: str, settings: Settings, topic: Topic) -> None:
        self._name = settings.topic(topic.name)
        self._consumer = Consumer(
            consumer_config(
                bootstrap,
                f"{self._name}-follower",
                settings=settings,
                overrides={"group.protocol": "classic", "enable.partition.eof": True},
            )
        )
        self._pending_ends: set[int] = set()

    def start(self) -> Self:
        """Assign every partition of the topic, from its beginning."""
        numbers = partition_numbers(self._consumer, self._name)
        self._pending_ends = set(numbers)
        self._consumer.assign([TopicPartition(self._name, number, OFFSET_BEGINNING) for number in numbers])
        return self

    @property
    def caught_up(self) -> bool:
        """Whether the end of every partition has been seen once."""
        return not self._pending_ends

    def poll(self, timeout_s: float) -> list[Record]:
        """Records that are there; waits up to ``timeout_s`` for the first one."""
        records = []
        message = self._consumer.poll(timeout_s)
        while message is not None:
            error = message.error()
            if error is None:
                records.append(record_of(message))
            elif error.code() == KafkaError._PARTITION_EOF:
                self._pending_ends.discard(message.partition())
            elif error.fatal():
                raise TopicError(f"topic {self._name}: {error.str()}")
            message = self._consumer.poll(0)
        return records

    def read_to_end(self) -> list[Record]:
        """All records up to the ends as they are when they are reached."""
        records = self.poll(0.05)
        while not self.caught_up:
            records += self.poll(0.05)
        return records

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()
