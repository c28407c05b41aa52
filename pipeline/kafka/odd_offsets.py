"""Records that claim another offset than the broker gave them, on the topics that others than the pipeline write.

A record in a batch names its offset as a distance from the batch's first one. Brokers do not check it in uncompressed
batches, and librdkafka believes it: a record that claims a higher offset hides the records of others up to there.
``docs/decisions/0031-unreadable-batches.md`` has the rule and its costs.
"""

import logging
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message

from pipeline.kafka.batch import Partition, start_at
from pipeline.kafka.log_offsets import log_range
from pipeline.kafka.unreadable import UNREADABLE, reader_config

log = logging.getLogger(__name__)

ODD_OFFSET: Final = "OddOffset"
EXPLANATION: Final = "a record claims another offset than the broker gave it"
MOST_PROBES: Final = 500
"""Offsets that a check probes, one by one; the next check of the same gap goes on there."""
MOST_CALLS: Final = 3
SLICE_S: Final = 2.0
"""Longest time for a check, and for one probe of it: other partitions wait meanwhile. The next check goes on."""
_UNCOMMITTED: Final = "read_uncommitted"
"""Behind a batch of which it delivers nothing, as of an aborted one, a client would fetch more than one at a time."""
_COMMITTED: Final = "read_committed"
_POLL_S: Final = 0.002
_ASK_S: Final = 1.0
_ENDS: Final = UNREADABLE | {KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET}


class ReadableEnd(NamedTuple):
    """Offset up to which records can be believed, and where reading goes on."""

    position: int
    """Records below this offset have the offsets that they claim."""
    resume: int
    """Offset to read from again: the offsets from ``position`` to here have no record that can be read there."""


class Seen(NamedTuple):
    """A record as a fresh reader sees it."""

    offset: int
    content: object


Content = tuple[int, bytes | None, bytes | None]
"""Time in milliseconds, key, value."""


class Fetch(NamedTuple):
    """Records that came at a time."""

    records: list[Seen]
    start: int | None = None
    """Offset that was fetched from, where it is known."""
    is_batch: bool = False
    """All of them are of one batch."""


class NotSeen(NamedTuple):
    """Nothing more comes for now: the broker is away, or the log ends."""

    position: int
    """Offset up to which fetches led, of which every record was seen; 0 where that is not known."""


FirstAt = Callable[[int], Seen | None]
"""Returns the first record from an offset on, or None where the log ends before one."""


def check_claims(
    read: Callable[[], Fetch | NotSeen],
    first_at: FirstAt,
    committed_at: FirstAt,
    gap: range,
    claims: Sequence[int],
    log_start: Callable[[], int],
    own: dict[int, int],
) -> ReadableEnd | None:
    """Return how far records can be believed; None if all of them can.

    The n-th record of a fetch from offset f is at f + n or behind it. A record that claims no more hides nothing, and
    the next fetch begins where a batch does. A batch with another record is odd: reading goes on at the first offset
    from which a fresh reader finds none of its records any more.

    Records before the first claim were aborted, or the claims were read from an earlier offset, before the client was
    called back, and the first of them hides these records: then everything is read again.

    Args:
        read: Returns the records from the gap's beginning on, as fetches of one batch each bring them.
        first_at: A fresh reader.
        committed_at: A fresh reader of committed records.
        gap: From an offset before which all records were taken to the highest one that is to be checked.
        claims: The offsets that were read, in ascending order.
        log_start: Returns the first offset of the log.
        own: By the beginning of a range, up to where it was found by earlier calls.
    """
    position, is_known = gap.start, not claims or claims[0] <= gap.start
    while position < gap.stop:
        fetch = read()
        if isinstance(fetch, NotSeen):
            start = max(position, fetch.position)
        else:
            start = position if fetch.start is None else fetch.start
        first = bisect_left(claims, position)
        if first < len(claims) and claims[first] < start:
            # A fresh reader finds nothing there: a record behind it claims the offset of a transaction's mark.
            return ReadableEnd(claims[first], start)
        if isinstance(fetch, NotSeen):
            return ReadableEnd(start, start)
        for number, seen in enumerate(fetch.records):
            if seen.offset > start + number:
                return _odd_range(first_at, fetch, seen, max(position, start, log_start()), own)
            if not is_known and seen.offset < claims[0]:
                committed = committed_at(gap.start)
                if committed is not None and committed.offset < claims[0]:
                    return ReadableEnd(gap.start, gap.start)
                is_known = True
            position = max(position, seen.offset + 1)
    return None


def is_fresh(first: Seen, fresh: Seen | None, times: int) -> bool:
    """Return whether the first record that a client brings after it was called back can be believed.

    Args:
        first: That record.
        fresh: The first record that a fresh client of committed records finds from the same offset on.
        times: How often the client was called back for the same reason. A batch may claim an offset before its own,
            which hides nothing: a client that got it with the batch before brings it each time, a fresh one does not.
    """
    if fresh is None or fresh.offset > first.offset:
        return times >= MOST_CALLS
    return fresh == first


def _odd_range(first_at: FirstAt, fetch: Fetch, seen: Seen, position: int, own: dict[int, int]) -> ReadableEnd:
    """Return the range of the batch whose record ``seen`` claims more than it has; offsets before are taken."""
    records = fetch.records if fetch.is_batch else [seen]

    def is_own(offset: int) -> bool:
        record = next((candidate for candidate in records if candidate.offset >= offset), None)
        return record is not None and first_at(offset) == record

    offset = own.pop(position, position + 1)
    if fetch.is_batch and fetch.start is not None:
        # As many offsets as records are of the batch at least.
        ahead = min(fetch.start + len(records) - 1, max(known.offset for known in records))
        offset = ahead if ahead > offset and is_own(ahead) else offset
    most = offset + MOST_PROBES
    while is_own(offset):
        offset += 1
        if offset == most:
            own[position] = offset
            return ReadableEnd(position, position)
    if not fetch.is_batch and offset > seen.offset:
        # Behind a mark of a transaction, of which the same fetch brought what stands before.
        return ReadableEnd(offset, offset)
    return ReadableEnd(position, offset)


class FetchLog(logging.Handler):
    """The fetches of a client (``debug=fetch``): where each began, and how many records came of it."""

    _FETCH = re.compile(r"Fetch topic (\S+) \[(\d+)\] at offset (\d+) \(.*, v(\d+)\)$")
    _CAME = re.compile(
        r"Enqueue (\d+) message\(s\) \(.*\) on (\S+) \[(\d+)\] fetch queue "
        r"\(qlen \d+, v(\d+), last_offset -?\d+, (\d+) ctrl msgs"
    )

    def __init__(self, forward: logging.Logger | None = None) -> None:
        super().__init__(logging.DEBUG)
        self._forward = forward
        self.begin(("", -1))

    def begin(self, partition: Partition) -> None:
        """Note fetches of this partition from now on, and forget others."""
        self._partition, self._version = partition, -1
        self.position = 0
        """Offset of the last fetch."""
        self._fetches: dict[int, tuple[int, int, bool]] = {}
        self._records = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Take in one line."""
        if record.levelno > logging.DEBUG:
            if self._forward is not None:
                self._forward.handle(record)
            return
        line = record.getMessage()
        if (fetch := self._FETCH.search(line)) is not None:
            version = int(fetch[4])
            if (fetch[1], int(fetch[2])) != self._partition or version < self._version:
                return
            if version > self._version:
                # Another assignment: a fetch of an earlier one may have been under way.
                self._version, self._fetches, self._records = version, {}, 0
            self.position = int(fetch[3])
        elif (came := self._CAME.search(line)) is not None:
            records = int(came[1]) - int(came[5])
            if ((came[2], int(came[3])), int(came[4])) == (self._partition, self._version) and records > 0:
                # Marks of transactions are batches of their own.
                self._fetches[self._records] = (records, self.position, int(came[5]) == 0)
                self._records += records

    def fetch_of(self, number: int) -> tuple[int, int, bool] | None:
        """Return the fetch whose first record was the one with this number, counted from 0.

        Returns:
            How many records it brought, from which offset, and whether these are one batch.
        """
        return self._fetches.pop(number, None)


class OddOffsets:
    """Checks what records of producers claim; used from one thread.

    Costs nothing where offsets follow each other. A gap is read a second time, by a client of its own.

    Args:
        config: Configuration of a consumer.
        inputs: Topics that producers write to (full names).
        waiting: Called while nothing comes; may raise.
    """

    def __init__(self, config: Mapping[str, Any], inputs: Collection[str], waiting: Callable[[], None]) -> None:
        self._config, self._waiting, self.topics = config, waiting, frozenset(inputs)
        self._log = FetchLog(config.get("logger"))
        self._made: dict[str, Consumer] = {}
        """Clients by isolation level."""
        self._own: dict[Partition, dict[int, int]] = {}
        self.called_back: dict[Partition, int] = {}
        """Partitions whose next record must be the one that a fresh client finds, with the number of calls."""
        self._ends_s = 0.0

    def check(
        self, partition: Partition, position: int, offsets: Sequence[int], content: Content
    ) -> ReadableEnd | None:
        """Return how far records with these offsets, in ascending order, can be believed; None if all of them can.

        Args:
            partition: Their partition.
            position: The offset behind what was taken before.
            offsets: What they claim, at least one.
            content: Of the first of them.
        """
        is_whole = offsets[0] == position and offsets[-1] - position + 1 == len(offsets)
        if partition[0] not in self.topics or (is_whole and partition not in self.called_back):
            return None
        expected = (position, *(offset + 1 for offset in offsets))
        gaps = [index for index, offset in enumerate(offsets) if offset != expected[index]]
        start, last = (position, position) if is_whole else (expected[gaps[0]], offsets[gaps[-1]])
        times = self.called_back.get(partition, 0)
        reach: ReadableEnd | None
        try:
            if times and not is_fresh(Seen(offsets[0], content), self._committed_at(partition, position), times):
                reach = ReadableEnd(position, position)
            else:
                reach = None if is_whole else self._reread(partition, range(start, last + 1), offsets)
                times = 0
        except (KafkaException, TimeoutError) as error:
            log.warning("%s partition %d: offset %d cannot be checked yet: %s", *partition, last, error)
            reach, times = ReadableEnd(start, start), max(times - 1, 0)
        if reach is None:
            self.called_back.pop(partition, None)
            return None
        # What the client has fetched from an earlier offset may come once more: a record among it that claims to be the
        # next one, or a later one, would hide others.
        self.called_back[partition] = times + 1
        if reach.resume > reach.position:
            log.warning(
                "%s partition %d: offsets %d to %d are passed over: %s",
                *partition, reach.position, reach.resume - 1, EXPLANATION,
            )  # fmt: skip
        return reach

    def close(self) -> None:
        """Close the clients."""
        for consumer in self._made.values():
            consumer.close()
        self._made.clear()

    def _reread(self, partition: Partition, gap: range, claims: Sequence[int]) -> ReadableEnd | None:
        consumer, number = self._consumer(_UNCOMMITTED), 0

        def log_start() -> int:
            return log_range(consumer, partition, _ASK_S).start

        def read() -> Fetch | NotSeen:
            nonlocal number
            found: list[Seen] = []
            length, start, is_batch = 1, None, False
            if time.monotonic() > self._ends_s:
                return NotSeen(0)
            while len(found) < length:
                message = self._next(consumer, partition, gap.start)
                if message is None:
                    return NotSeen(0 if found else self._log.position)
                if (error := message.error()) is not None:
                    is_end = error.code() == KafkaError._PARTITION_EOF and not found
                    return NotSeen(message.offset() if is_end else 0)
                if not found:
                    length, start, is_batch = self._log.fetch_of(number) or (1, None, False)
                found.append(_seen(message))
                number += 1
            return Fetch(found, start, is_batch)

        def first_at(offset: int) -> Seen | None:
            return self._first(consumer, partition, offset)

        try:
            self._assign(consumer, partition, gap.start)
            own = self._own.setdefault(partition, {})
            return check_claims(read, first_at, partial(self._committed_at, partition), gap, claims, log_start, own)
        finally:
            consumer.unassign()

    def _committed_at(self, partition: Partition, offset: int) -> Seen | None:
        consumer = self._consumer(_COMMITTED)
        try:
            return self._first(consumer, partition, offset)
        finally:
            consumer.unassign()

    def _first(self, consumer: Consumer, partition: Partition, offset: int) -> Seen | None:
        self._assign(consumer, partition, offset)
        if (message := self._next(consumer, partition, offset)) is None:
            raise TimeoutError(f"no answer for {SLICE_S:.0f} s")
        return _seen(message) if message.error() is None else None

    def _consumer(self, isolation: str) -> Consumer:
        if isolation not in self._made:
            self._made[isolation] = self._new_consumer(isolation)
        return self._made[isolation]

    def _new_consumer(self, isolation: str) -> Consumer:
        own: dict[str, Any] = {
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "isolation.level": isolation,
            "max.partition.fetch.bytes": 1,  # a broker returns a whole record batch all the same, and no second one
            # A fetch that waits at the end of the log delays the next one.
            "fetch.wait.max.ms": 5,
            "fetch.error.backoff.ms": 5,
        }
        if isolation == _UNCOMMITTED:
            logger = logging.Logger("pipeline.kafka.odd_offsets", logging.DEBUG)
            logger.addHandler(self._log)
            own |= {"debug": "fetch", "logger": logger}
        return Consumer(reader_config(self._config, own))

    def _assign(self, consumer: Consumer, partition: Partition, offset: int) -> None:
        if consumer is self._made.get(_UNCOMMITTED):
            self._log.begin(partition)
        self._ends_s = time.monotonic() + SLICE_S
        consumer.assign([start_at(partition, offset)])

    def _next(self, consumer: Consumer, partition: Partition, start: int) -> Message | None:
        """Return the next record, or what ends the reading from ``start``; None where nothing comes in time."""
        while True:
            self._waiting()
            message = consumer.poll(_POLL_S)
            error = None if message is None else message.error()
            if message is not None and (error is None or error.code() in _ENDS):
                if error is None or error.code() != KafkaError._AUTO_OFFSET_RESET or message.offset() == start:
                    return message
                # Of an earlier reading, which had come to a record's claim behind the log's end.
                self._assign(consumer, partition, start)
            elif message is None and time.monotonic() > self._ends_s:
                return None


def _seen(message: Message) -> Seen:
    return Seen(message.offset(), content_of(message))


def content_of(message: Message) -> Content:
    """Return the identity of a record."""
    return message.timestamp()[1], message.key(), message.value()
