"""Following a topic whole, outside any consumer group: how workers learn of model versions."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Self

from confluent_kafka import KafkaError

from pipeline.kafka.cluster.admin import end_offsets
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.cluster.log_offsets import partition_numbers
from pipeline.kafka.readers.log_consumer import LogConsumer
from pipeline.kafka.readers.replay_reader import readable_ends
from pipeline.kafka.readers.topic_reader import READ_BATCH
from pipeline.kafka.records.internal import OnRefused, not_counted
from pipeline.kafka.records.raw_fetch import complain
from pipeline.settings import Settings
from schemas.records import Record
from schemas.topics import Topic

FETCH_WAIT_MS: Final = 500


class TopicFollower:
    """Reads a topic from its beginning, from given positions or from its end, and then whatever comes.

    Used from one thread.

    Args:
        topic: The topic; its full name has the prefix of the settings.
        on_refused: Counts unreadable batches of topics that no agent reads, by the topic.
        fetch: What `late_fetch_config` returns; None: brokers answer soon after there is something.
    """

    def __init__(
        self,
        bootstrap: str,
        settings: Settings,
        topic: Topic,
        on_refused: OnRefused = not_counted,
        fetch: Mapping[str, Any] | None = None,
    ) -> None:
        self._bootstrap, self._settings = bootstrap, settings
        self._name = settings.topic(topic.name)
        # Looked at between batches. A broker answers when there is something; an answer without anything is work.
        own = {"fetch.wait.max.ms": FETCH_WAIT_MS, **(fetch or {})}
        self._consumer = LogConsumer(bootstrap, settings, own, on_refused=on_refused)
        self._pending_ends: set[int] = set()
        self._positions: dict[int, int] = {}
        """Offsets behind what was read, by partition."""

    def start(self, positions: Mapping[int, int] | None = None) -> Self:
        """Assign every partition of the topic, each from its first offset in ``positions``, or from its beginning."""
        numbers = partition_numbers(admin_client(self._bootstrap, settings=self._settings), self._name)
        return self._started({number: (positions or {}).get(number, 0) for number in numbers})

    def start_at_end(self) -> Self:
        """Assign every partition of the topic, to be read from its end of now."""
        ends = end_offsets(self._bootstrap, [self._name], settings=self._settings)
        return self._started({number: end for (_, number), end in ends.items()})

    def _started(self, positions: dict[int, int]) -> Self:
        self._pending_ends, self._positions = set(positions), positions
        self._assign()
        return self

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
            else:
                complain(error.code(), f"topic {self._name} partition {number} cannot be read: {error.str()}")
        return records

    def poll_values(self, timeout_s: float) -> list[bytes]:
        """Values of the records that are there, as of `poll`."""
        return [record.value for record in self.poll(timeout_s) if record.value is not None]

    def read_to_end(self, waiting: Callable[[], None]) -> list[Record]:
        """All records up to the ends as they are when they are reached; ``waiting`` is called meanwhile, may raise."""
        records = self.poll(0.05)
        while not self.caught_up:
            waiting()
            records += self.poll(0.05)
        return records

    def read_committed(self, waiting: Callable[[], None]) -> list[Record]:
        """All records that were committed before the call; ``waiting`` is called meanwhile, and may raise."""
        partitions = [(self._name, number) for number in self._positions]
        found = readable_ends(self._bootstrap, self._settings, partitions, waiting)
        ends = {number: end for (_, number), end in found.items()}
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
