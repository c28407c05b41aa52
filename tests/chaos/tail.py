"""What comes out of the pipeline while faults happen, seen from outside: the measure of every recovery."""

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from tests.chaos.arithmetic import microseconds, partition_of
from tests.chaos.records import HOSTILE_HEADER

TAILED = ("rerouted", "accepted-labels", "profiled", "decisions", "features", "examples", "models", "dead-letters")
POLL_S = 0.1
READ = 1_000
MIXED_S = 10.0
"""Work of several partitions arrives out of order by less than this."""


class Tail:
    """A thread that reads the outputs as they are committed."""

    def __init__(self, bootstrap: str, prefix: str, card_partitions: int) -> None:
        self._prefix, self._card_partitions = prefix, card_partitions
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "chaos-tail",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "reconnect.backoff.max.ms": 500,
                "error_cb": lambda _error: None,
                "log_level": 0,
            }
        )
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tail", daemon=True)
        self._lock = threading.Lock()
        self._first_after: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        """By what it shows to work: (wall time of the work, monotonic time of arrival), in order of arrival."""
        self.ends: dict[tuple[str, int], int] = {}
        """One past the last record of each partition seen so far."""
        self.kernels: Counter[str] = Counter()
        """Decisions by the kernel version that made them."""
        self.counts: dict[str, int] = defaultdict(int)
        self.last_arrival_s = time.monotonic()
        self.examples_end = self.learned_end = 0
        """Offsets behind the last example, and behind those that a published River version has."""
        self.error: Exception | None = None

    def start(self) -> None:
        """Begin at the beginning."""
        topics = self._consumer.list_topics(timeout=30.0).topics
        self._consumer.assign(
            [
                TopicPartition(self._prefix + name, number, OFFSET_BEGINNING)
                for name in TAILED
                if self._prefix + name in topics
                for number in topics[self._prefix + name].partitions
            ]
        )
        self._thread.start()

    def stop(self) -> None:
        """End, and close the consumer."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._consumer.close()

    def recovered(self, wall_s: float, kind: str, merchant_partitions: int) -> float | None:
        """When (monotonic) all partitions were seen at work on something of after ``wall_s``; None: not yet.

        ``kind`` is the agent that was hit: ``any`` and ``broker`` ask for decisions in every partition.
        """
        if kind == "feedback":
            shown = [("examples", number) for number in range(self._card_partitions)]
        elif kind == "learn":
            shown = [("river", 0)]
        elif kind == "label":
            shown = [("accepted labels", number) for number in range(self._card_partitions)]
        else:
            shown = [("decided card", number) for number in range(self._card_partitions)]
            shown += [("decided merchant", number) for number in range(merchant_partitions)]
        with self._lock:
            firsts = [_first(self._first_after[what], wall_s) for what in shown]
        times = [first for first in firsts if first is not None]
        return max(times) if len(times) == len(shown) else None

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                first = self._consumer.poll(POLL_S)
                if first is None:
                    continue
                arrived_s = time.monotonic()
                with self._lock:
                    for message in [first, *self._consumer.consume(READ, 0)]:
                        if message.error() is None:
                            self._take(message, arrived_s)
                        elif message.error().fatal():
                            raise KafkaException(message.error())
        except Exception as error:
            # Whoever looks at the run next is told.
            self.error = error

    def _take(self, message: Any, arrived_s: float) -> None:
        topic = message.topic().removeprefix(self._prefix)
        self.ends[topic, message.partition()] = message.offset() + 1
        self.counts[topic] += 1
        self.last_arrival_s = arrived_s
        if any(name == HOSTILE_HEADER for name, _ in message.headers() or ()):
            return
        wall_s = message.timestamp()[1] / 1e3
        if topic == "decisions":
            row = json.loads(message.value())
            self.kernels[row["versions"]["kernel"]] += 1
            ingested_s = microseconds(row["ingested_at"]) / 1e6
            # Work of after the fault, by both agents: taken in and decided since.
            home = partition_of(row["card_id"], self._card_partitions)
            self._first_after["decided card", home].append((ingested_s, arrived_s))
            self._first_after["decided merchant", row["log"]["partition"]].append((ingested_s, arrived_s))
        elif topic == "accepted-labels":
            self._first_after["accepted labels", message.partition()].append((wall_s, arrived_s))
        elif topic == "examples":
            number = partition_of(message.key() or b"", self._card_partitions)
            self._first_after["examples", number].append((wall_s, arrived_s))
            self.examples_end = message.offset() + 1
        elif topic == "models" and (model := json.loads(message.value()))["name"] == "river":
            self._first_after["river", 0].append((wall_s, arrived_s))
            self.learned_end = model["payload"]["examples_offset"]


def _first(shown: Sequence[tuple[float, float]], wall_s: float) -> float | None:
    """Arrival of the first that was worked on after ``wall_s``; from the end, because faults are recent."""
    found = None
    for worked_s, arrived_s in reversed(shown):
        if worked_s > wall_s:
            found = arrived_s
        elif worked_s < wall_s - MIXED_S:
            break
    return found
