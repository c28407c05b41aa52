"""Following a topic whole, outside any consumer group: how every worker learns of new model versions."""

from collections.abc import Callable, Mapping
from typing import Final, Self

from confluent_kafka import KafkaError

from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.cluster.log_offsets import partition_numbers
from pipeline.kafka.readers.replay_reader import stable_end
from pipeline.kafka.readers.topic_reader import READ_BATCH, log_consumer
from pipeline.kafka.records.internal import OnRefused, not_counted
from pipeline.settings import Settings
from schemas.records import Record
from schemas.topics import Topic

FETCH_WAIT_MS: Final = 500


class TopicFollower:
    """Reads a topic from its beginning, or from given positions, and then whatever comes; used from one thread."""

    def __init__(self, bootstrap: str, settings: Settings, topic: Topic, on_refused: OnRefused = not_counted) -> None:
        self._bootstrap, self._settings = bootstrap, settings
        self._name = settings.topic(topic.name)
        # Looked at between batches. A broker answers when there is something; an answer without anything is work.
        self._consumer = log_consumer(bootstrap, settings, {"fetch.wait.max.ms": FETCH_WAIT_MS}, on_refused=on_refused)
        self._pending_ends: set[int] = set()
        self._positions: dict[int, int] = {}
        """Offsets behind what was read, by partition."""

    def start(self, positions: Mapping[int, int] | None = None) -> Self:
        """Assign every partition of the topic.

        Args:
            positions: First offset to read, by partition number; the others are read from their beginning.
        """
        numbers = partition_numbers(admin_client(self._bootstrap, settings=self._settings), self._name)
        self._pending_ends = set(numbers)
        self._positions = {number: (positions or {}).get(number, 0) for number in numbers}
        self._assign()
        return self

    def position(self, number: int) -> int:
        """Return the offset behind what was read of a partition."""
        return self._positions[number]

    @property
    def positions(self) -> dict[int, int]:
        """Offsets behind what was read, by partition."""
        return dict(self._positions)

    def _assign(self) -> None:
        self._consumer.assign({(self._name, number): at for number, at in self._positions.items()})

    @property
    def caught_up(self) -> bool:
        """True once the end of every partition has been seen."""
        return not self._pending_ends

    def poll(self, timeout_s: float) -> list[Record]:
        """Records that are there; waits up to ``timeout_s`` for the first one."""
        records = []
        for item in self._consumer.take(timeout_s, READ_BATCH):
            if isinstance(item, Record):
                records.append(item)
                self._positions[item.partition] = item.offset + 1
                continue
            (_, number), offset, error = item
            if error.code() == KafkaError._PARTITION_EOF:
                self._pending_ends.discard(number)
                # Behind marks of transactions, which are no records.
                self._positions[number] = offset
            elif error.fatal():
                raise TopicError(f"topic {self._name}: {error.str()}")
        return records

    def read_to_end(self, waiting: Callable[[], None]) -> list[Record]:
        """All records up to the ends as they are when they are reached; ``waiting`` is called meanwhile, may raise."""
        records = self.poll(0.05)
        while not self.caught_up:
            waiting()
            records += self.poll(0.05)
        return records

    def read_committed(self, waiting: Callable[[], None]) -> list[Record]:
        """All records that were committed before the call; ``waiting`` is called meanwhile, and may raise."""
        ends = {n: stable_end(self._bootstrap, self._settings, self._name, n, waiting) for n in self._positions}
        records: list[Record] = []
        if any(self._positions[number] < end for number, end in ends.items()):
            # An end that was reported is not reported again, unless it is come to anew.
            self._assign()
        while any(self._positions[number] < end for number, end in ends.items()):
            waiting()
            records += self.poll(0.05)
        return records

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()
