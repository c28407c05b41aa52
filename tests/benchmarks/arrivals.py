"""Reads decisions and alerts as a consumer of them would, and notes when each was in its hands."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import OFFSET_END, Consumer, KafkaException, Message, TopicPartition
from numpy.typing import NDArray

from pipeline.kafka.cluster.admin import partition_count
from pipeline.kafka.cluster.clients import consumer_config
from pipeline.settings import Settings
from schemas.messages import LogPosition, RecordPosition
from schemas.topics import ALERTS, DECISIONS

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
POLL_S = 0.1
MOST = 10_000


class _Decision(msgspec.Struct, gc=False):
    transaction_id: str
    source: RecordPosition
    log: LogPosition
    ingested_at: datetime
    decided_at: datetime


class _Alert(msgspec.Struct, gc=False):
    transaction_id: str


@dataclass(frozen=True, slots=True)
class Columns:
    """What was read, in the order in which it came; arrays of n rows. ``*_us``: wall clock, since 1970."""

    transaction: list[str]
    received_ns: NDArray[np.int64]
    """Monotonic clock, once the record's batch was out of the client's queue."""
    timestamp_ms: NDArray[np.int64]
    """When the record was handed to the producer that wrote it."""
    partition: NDArray[np.int64]
    """Of the transaction's record, for decisions."""
    offset: NDArray[np.int64]
    log_partition: NDArray[np.int64]
    """Of the profiled record, for decisions."""
    log_offset: NDArray[np.int64]
    ingested_us: NDArray[np.int64]
    decided_us: NDArray[np.int64]


class Arrivals(threading.Thread):
    """Follows both topics with ``read_committed``, on a thread of its own, from their ends at the start."""

    def __init__(self, bootstrap: str, settings: Settings) -> None:
        super().__init__(name="arrivals", daemon=True)
        self._topics = {settings.topic(DECISIONS.name): DECISIONS, settings.topic(ALERTS.name): ALERTS}
        # Classic, because it only assigns and never joins.
        self._consumer = Consumer(
            consumer_config(bootstrap, "benchmark-reader", settings=settings, overrides={"group.protocol": "classic"})
        )
        count = partition_count(DECISIONS, settings)
        self._consumer.assign(
            [TopicPartition(topic, number, OFFSET_END) for topic in self._topics for number in range(count)]
        )
        for topic in self._topics:
            for number in range(count):
                self._consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=30)
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._rows: dict[str, list[tuple[Any, ...]]] = {topic: [] for topic in self._topics}
        self.error: BaseException | None = None
        self.decisions_read = 0

    def run(self) -> None:
        """Read until told to end."""
        try:
            while not self._ended.is_set():
                self._read()
        except BaseException as error:  # whoever waits for records is told by `check`
            self.error = error
        finally:
            self._consumer.close()

    def check(self) -> None:
        """Raise what ended the reading."""
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        """Stop reading."""
        self._ended.set()
        self.join()
        self.check()

    def take(self) -> tuple[Columns, Columns]:
        """(decisions, alerts) since the last call."""
        with self._lock:
            taken = list(self._rows.values())
            self._rows = {topic: [] for topic in self._topics}
            self.decisions_read = 0
        decisions, alerts = map(_columns, taken)
        return decisions, alerts

    def _read(self) -> None:
        first = self._consumer.poll(POLL_S)
        if first is None:
            return
        messages = [first, *self._consumer.consume(MOST, 0)]
        received_ns = time.monotonic_ns()
        with self._lock:
            self._take_in(messages, received_ns)

    def _take_in(self, messages: Sequence[Message], received_ns: int) -> None:
        decisions = 0
        for message in messages:
            if (error := message.error()) is not None:
                raise KafkaException(error)
            topic = message.topic()
            stamp_ms = message.timestamp()[1]
            if self._topics[topic] is DECISIONS:
                decision = _decode_decision(message.value())
                source, log = decision.source, decision.log
                self._rows[topic].append(
                    (
                        decision.transaction_id, received_ns, stamp_ms, source.partition, source.offset, log.partition,
                        log.offset, (decision.ingested_at - EPOCH) // MICROSECOND,
                        (decision.decided_at - EPOCH) // MICROSECOND,
                    )
                )  # fmt: skip
                decisions += 1
            else:
                alert = _decode_alert(message.value())
                self._rows[topic].append((alert.transaction_id, received_ns, stamp_ms, 0, 0, 0, 0, 0, 0))
        self.decisions_read += decisions


def _columns(rows: list[tuple[Any, ...]]) -> Columns:
    names, *numbers = zip(*rows, strict=True) if rows else ((), *((),) * 8)
    return Columns(list(names), *(np.array(column, np.int64) for column in numbers))


@dataclass(frozen=True, slots=True)
class Stamps:
    """Record timestamps of a topic by place."""

    by_partition: Mapping[int, tuple[NDArray[np.int64], NDArray[np.int64]]]
    """Partition to (offsets, ascending; timestamps in ms)."""

    def stamps_of(self, partition: NDArray[np.int64], offset: NDArray[np.int64]) -> NDArray[np.float64]:
        """Timestamps in ms, NaN where the place is not among them."""
        found = np.full(len(offset), np.nan)
        for number, (offsets, stamps_ms) in self.by_partition.items():
            rows = np.flatnonzero(partition == number)
            at = np.minimum(np.searchsorted(offsets, offset[rows]), len(offsets) - 1)
            right = offsets[at] == offset[rows]
            found[rows[right]] = stamps_ms[at[right]]
        return found


_decode_decision = msgspec.json.Decoder(_Decision).decode
_decode_alert = msgspec.json.Decoder(_Alert).decode
