"""The input of a replay: ranges of the input topics, batch by batch in the order in which they were read live.

An agent that reads several topics commits, with every batch, a `schemas.messages.Progress` record that says how far it
had read each of them, and its processing config. State depends on the topics, on that order and on this config alone,
so that a replay repeats all three.
"""

import logging
import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import accumulate
from typing import Final, NamedTuple

import msgspec
import numpy as np
from confluent_kafka import (
    IsolationLevel,
    KafkaError,
)
from numpy.typing import NDArray

from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.cluster.log_offsets import Waiting, last_offsets, partition_numbers
from pipeline.kafka.readers.log_consumer import LogConsumer
from pipeline.kafka.readers.topic_reader import EARLY_END_S, READ_BATCH, ends_early, raise_unless_passing
from pipeline.kafka.records.batch import Partition, ReadError
from pipeline.kafka.records.internal import OnRefused, not_counted, readable
from pipeline.settings import Settings
from schemas.messages import ProcessingConfig, Progress, RecordPosition
from schemas.records import LATEST_STAMP_MS, Record
from schemas.times import US_PER_MS

log = logging.getLogger(__name__)

_POLL_S: Final = 0.1
_LOOK_S: Final = 0.02
_EMPTY_FETCH_MS: Final = 10
"""Longest wait of a broker for records behind the last one; a range that ends with a transaction's marker waits so."""
MOST_OPEN_S: Final = 1_200.0
"""Longest wait for an open transaction: brokers end one after 15 minutes at most, unless set otherwise."""
OPEN_S: Final = 30.0
"""Time after which an open transaction is reported, and reported again; the pipeline's own end within 20 s."""
decode_progress: Final = msgspec.json.Decoder(Progress).decode


def readable_ends(
    bootstrap: str, settings: Settings, partitions: Sequence[Partition], waiting: Waiting = None
) -> dict[Partition, int]:
    """The offsets behind all that was committed to partitions before the call, once it can be read.

    Args:
        partitions: Full topic name and number of each partition.
        waiting: Called again and again while no broker answers, and may raise; None: give up after
            `METADATA_TIMEOUT_S`.

    Raises:
        TopicError: The topic is missing, or a transaction stays open for longer than `MOST_OPEN_S`.
    """
    if not partitions:
        return {}
    client = admin_client(bootstrap, settings=settings)
    for topic in sorted({topic for topic, _ in partitions}):
        # A client whose first request is for offsets may wait for seconds.
        partition_numbers(client, topic, waiting)
    written = last_offsets(client, partitions, IsolationLevel.READ_UNCOMMITTED, waiting)
    began_s = time.monotonic()
    report_s = began_s + OPEN_S
    while True:
        readable_now = last_offsets(client, partitions, IsolationLevel.READ_COMMITTED, waiting)
        behind = [at for at in partitions if readable_now[at] < written[at]]
        if not behind:
            return written
        now_s = time.monotonic()
        topic, partition = behind[0]
        sentence = (
            f"topic {topic} partition {partition}: a transaction has been open for {now_s - began_s:.0f} s, and what "
            "was committed behind it cannot be read: docs/operating.md (hanging transactions) says how to end it"
        )
        if now_s > began_s + MOST_OPEN_S:
            raise TopicError(sentence)
        if now_s > report_s:
            report_s = now_s + OPEN_S
            log.warning("%s", sentence)
        time.sleep(_LOOK_S)


class ReplayBatch(NamedTuple):
    """Records that were one batch, and their processing config; None where no marker says so."""

    records: list[Record]
    config: ProcessingConfig | None


class RecordColumns(NamedTuple):
    """n records of one partition, in order; what columns are made of needs no `Record` of each."""

    partition: int
    offset: NDArray[np.int64]
    """Shape (n,)."""
    timestamp_ms: NDArray[np.int64]
    """Shape (n,): when each arrived."""
    values: list[bytes | None]

    @property
    def arrived_us(self) -> NDArray[np.int64]:
        """Shape (n,): `Record.arrived_us` of each."""
        return np.clip(self.timestamp_ms, 0, LATEST_STAMP_MS) * US_PER_MS


class RangeReader:
    """Committed records of one partition of one topic (full name), in order, without a group."""

    def __init__(
        self,
        bootstrap: str,
        settings: Settings,
        topic: str,
        partition: int,
        start: int,
        waiting: Waiting = None,
        tuning: Mapping[str, int] | None = None,
        *,
        skip_refused: bool = True,
        most_bytes: float = math.inf,
        on_refused: OnRefused = not_counted,
    ) -> None:
        """Begin at an offset.

        Args:
            topic: Full name of the topic.
            partition: Number of the partition.
            start: First offset to read.
            waiting: Called while nothing comes, and may raise; None: give up after `EARLY_END_S`.
            tuning: Properties of librdkafka, over those of every reader.
            skip_refused: Skip records that claim another offset than they have, and batches that an agent has
                quarantined; else refuse them.
            most_bytes: Bytes of the values that a call returns at most, without limit by default; one record may be
                larger by itself.
            on_refused: Counts unreadable batches of topics that no agent reads, by the topic.
        """
        self.topic, self.partition, self.position = topic, partition, start
        """``position``: the offset behind everything that was returned."""
        self._bootstrap, self._settings, self._waiting = bootstrap, settings, waiting or (lambda: None)
        self._bounded_wait = waiting is None
        self._tuning, self._skip_refused, self._most_bytes = tuning or {}, skip_refused, most_bytes
        self._on_refused = on_refused
        self._consumer: LogConsumer | None = None
        self._ahead: list[Record] = []
        self._next = 0
        """Number of records of ``_ahead`` that were returned already."""
        self._log_end = -1
        """Offset at which the client has last met the end of what can be read."""

    def read_to(self, end: int, most: int = READ_BATCH) -> list[Record]:
        """The next records below offset ``end``, at most ``most``; none only where there are no more of them."""
        found: list[Record] = []
        deadline_s = time.monotonic() + EARLY_END_S
        while len(found) < most and self.position < end:
            if self._next == len(self._ahead):
                read_up_to = -1 if self._consumer is None else self._consumer.position(self.topic, self.partition)
                if self._log_end >= end or read_up_to >= end:
                    # Behind the last record there may be marks of transactions, which are no records, or a range that
                    # was skipped.
                    self.position = end
                    break
                if self._fetch(end):
                    deadline_s = time.monotonic() + EARLY_END_S
                elif (self._bounded_wait or self._log_end >= 0) and time.monotonic() > deadline_s:
                    raise ends_early(self.topic, self.partition, max(self._log_end, self.position), end)
                continue
            last = min(self._next + most - len(found), len(self._ahead))
            if self._ahead[last - 1].offset >= end:
                last = bisect_left(self._ahead, end, self._next, last, key=lambda record: record.offset)
                self.position = end
            else:
                self.position = self._ahead[last - 1].offset + 1
            found += self._ahead[self._next : last]
            self._next = last
        return found if self._most_bytes == math.inf else self._bounded(found)

    def read_columns(self, end: int) -> RecordColumns:
        """Read like `read_to`, as columns."""
        records = self.read_to(end)
        n = len(records)
        return RecordColumns(
            self.partition,
            np.fromiter((record.offset for record in records), np.int64, n),
            np.fromiter((record.timestamp_ms for record in records), np.int64, n),
            [record.value for record in records],
        )

    def _bounded(self, found: list[Record]) -> list[Record]:
        """Return the first of the records ``found``, as many as may be returned; the others come again."""
        sizes = list(accumulate(len(record.value or b"") for record in found))
        if not found or sizes[-1] <= self._most_bytes:
            return found
        end = max(bisect_right(sizes, self._most_bytes), 1)
        if end < len(found):
            self._ahead, self._next = [*found[end:], *self._ahead[self._next :]], 0
            self.position = found[end].offset
        return found[:end]

    def close(self) -> None:
        """Close the reader."""
        if self._consumer is not None:
            self._consumer.close()

    def _fetch(self, end: int) -> bool:
        """Wait a moment for records below ``end``; returns whether any came."""
        if self._consumer is None:
            own = {"auto.offset.reset": "error", "fetch.wait.max.ms": _EMPTY_FETCH_MS, **self._tuning}
            self._consumer = LogConsumer(
                self._bootstrap, self._settings, own, self._waiting,
                skip_refused=self._skip_refused, on_refused=self._on_refused,
            )  # fmt: skip
            self._consumer.assign({(self.topic, self.partition): self.position})
        self._waiting()
        came = self._consumer.take(_POLL_S, READ_BATCH, end)
        self._ahead, self._next = [item for item in came if isinstance(item, Record)], 0
        if len(self._ahead) < len(came):
            for item in came:
                if isinstance(item, ReadError):
                    self._look_at(item.offset, item.error)
        return bool(self._ahead)

    def _look_at(self, offset: int, error: KafkaError) -> None:
        """Note the end of the log; raise what does not pass."""
        if error.code() == KafkaError._PARTITION_EOF:
            # Not the end for good: a new leader may not know yet how much is committed, and what stands behind an open
            # transaction cannot be read.
            self._log_end = offset
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:
            raise TopicError(
                f"topic {self.topic} partition {self.partition} no longer holds offset {self.position}, which a "
                "restore of state needs: give the topic a longer retention; docs/operating.md says how to go on"
            )
        else:
            raise_unless_passing(error)


class NewRecords:
    """The records committed to the only partition of a topic, from the beginning, then call by call.

    Args:
        topic: Full name of the topic.
        on_refused: Counts unreadable batches of topics that no agent reads, by the topic.
    """

    def __init__(self, bootstrap: str, settings: Settings, topic: str, on_refused: OnRefused) -> None:
        self._bootstrap, self._settings, self._topic = bootstrap, settings, topic
        self._next, self._on_refused = 0, on_refused

    def read(self, waiting: Waiting) -> Iterator[Record]:
        """All that was committed before this call and not returned by an earlier one; ``waiting`` may raise.

        To be iterated to its end: what is left over comes again.
        """
        (end,) = readable_ends(self._bootstrap, self._settings, [(self._topic, 0)], waiting).values()
        at = (self._topic, 0, self._next)
        with closing(RangeReader(self._bootstrap, self._settings, *at, waiting, on_refused=self._on_refused)) as reader:
            while records := reader.read_to(end):
                yield from records
            self._next = reader.position


def _without(batch: list[Record], quarantined: Sequence[RecordPosition], name_of: Callable[[str], str]) -> list[Record]:
    """Return the records of a batch that did enter the state, without what its marker says was quarantined."""
    if not quarantined:
        return batch

    def covers(at: RecordPosition, record: Record) -> bool:
        end = at.offset + 1 if at.end is None else at.end
        is_there = at.topic == name_of(record.topic) and at.partition == record.partition
        return is_there and at.offset <= record.offset < end

    left = (unskipped(record, [at for at in quarantined if covers(at, record)]) for record in batch)
    return [record for record in left if record is not None]


def unskipped(record: Record, quarantined: Sequence[RecordPosition]) -> Record | None:
    """Return what quarantines of a record leave of it: all but some rows of a block, or nothing."""
    rows = {at.row for at in quarantined}
    if None in rows:
        return None
    skipped = tuple(sorted(row for row in rows if row is not None))
    return msgspec.structs.replace(record, skipped_rows=skipped) if skipped else record


def read_markers(reader: RangeReader, agent: str, end: int, on_refused: OnRefused = not_counted) -> Iterator[Progress]:
    """Yield what each batch of an agent read, in order.

    A record that is no marker is refused; what only it records is replayed topic by topic.

    Args:
        reader: Reads a partition of ``progress``, from its position on.
        agent: Name of the agent; markers of others are passed over.
        end: Offset to read up to.
        on_refused: Counts records that are no markers.
    """
    key = agent.encode()
    while records := reader.read_to(end):
        own = (record for record in records if record.key == key)
        yield from (marker for _, marker in readable(own, decode_progress, on_refused))


def in_recorded_order(
    readers: Sequence[RangeReader], markers: Iterator[Progress], ends: Mapping[str, int], name_of: Callable[[str], str]
) -> Iterator[ReplayBatch]:
    """Yield batches as they were read live, from the readers' positions on.

    What no marker covers (records from before there were any, and all of an agent with one input) comes topic by topic,
    and without config.

    Args:
        readers: Readers of one partition of each input topic; their order is that of the topics within a batch.
        markers: What each batch read, in order (`read_markers`).
        ends: Offsets to read up to, by full topic name; a topic that is absent is not read.
        name_of: Turns a topic's full name into the one that markers bear.
    """
    if any(reader.position < ends.get(reader.topic, 0) for reader in readers):
        for marker in markers:
            batch: list[Record] = []
            for reader in readers:
                # What stands before is all of a history without markers, perhaps: a part at a time.
                start = min(marker.starts.get(name_of(reader.topic), 0), ends.get(reader.topic, 0))
                while records := reader.read_to(start):
                    yield ReplayBatch(records, None)
            for reader in readers:
                end = min(marker.ends.get(name_of(reader.topic), 0), ends.get(reader.topic, 0))
                while records := reader.read_to(end):
                    batch += records
            if left := _without(batch, marker.quarantined, name_of):
                yield ReplayBatch(left, marker.config)
            if all(reader.position >= ends.get(reader.topic, 0) for reader in readers):
                return
    for reader in readers:
        while records := reader.read_to(ends.get(reader.topic, 0)):
            yield ReplayBatch(records, None)
