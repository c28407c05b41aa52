"""Record batches that cannot be read: compressed beyond every bound, or damaged on a broker's disk.

librdkafka reports such a batch by its first offset and either reads it again for ever (what it cannot decompress), or
goes on somewhere behind it (a checksum that does not match). Of one kind it reports nothing at all: it fetches the
batch again and again, and delivers nothing of it. Nobody who reads it gets further, so that the unit of a quarantine is
the rest of the batch. ``docs/decisions/0031-unreadable-batches.md`` has what was measured.
"""

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from pipeline.kafka.batch import Partition, start_at

log = logging.getLogger(__name__)

UNREADABLE: Final = frozenset(
    {
        KafkaError._BAD_COMPRESSION,  # a stream that is no such stream, or zstd beyond receive.message.max.bytes
        KafkaError._BAD_MSG,  # a checksum that does not match, or bytes left over behind an lz4 frame
        KafkaError._UNDERFLOW,  # a batch that says of itself that it is longer than it is
        KafkaError._NOT_IMPLEMENTED,  # an unknown format or codec
    }
)
"""Errors of the client itself about one batch, with its first offset; what brokers answer is none of them."""
FETCHES: Final = 3
"""Fetches that must fail at the same offset: one alone may be the network's fault."""
ANSWER_S: Final = 120.0
"""Longest wait for one answer of a broker: a client may take seconds to decompress what 1 MiB can hold."""
MOST_SILENT: Final = 100_000
"""Longest range of a batch that gives no error: its offsets are probed one by one."""
_POLL_S: Final = 0.002
_ASK_S: Final = 1.0
_ERROR_BACKOFF_MS: Final = 5
_SILENT_FETCHES: Final = 2
"""Fetches from the same offset that must give nothing: behind a batch that is only cut short the client goes on."""


class Answer(NamedTuple):
    """The first thing a reader finds from an offset on: a record, the end of the log, or an unreadable batch."""

    offset: int
    """Offset of the record, the end, or the unreadable batch's first record; as asked where it is silent."""
    readable: bool
    silent: bool = False
    """The client fetched the batch, more than once, and delivered nothing of it and no error."""


class NoAnswer(RuntimeError):
    """A probe was given up."""


def reader_config(config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` for a consumer that joins no group, with ``own`` over it."""
    # Classic, because it only assigns and never joins; the group's name appears nowhere on the cluster.
    alone = {"group.id": "fraud-pipeline-reader", "group.protocol": "classic"}
    return {**{name: value for name, value in config.items() if name != "group.remote.assignor"}, **alone, **own}


def find_end(config: Mapping[str, Any], partition: Partition, start: int, waiting: Callable[[], None]) -> int:
    """Return `range_end` of the batch that holds offset ``start``, from the partition itself.

    Raises:
        KafkaException: The partition cannot be read at all.
        NoAnswer: No broker answers.
    """
    with closing(Prober(config, partition, waiting)) as prober:
        return range_end(prober.probe, start, prober.log_end())


def silent_start(
    config: Mapping[str, Any], partition: Partition, offset: int, waiting: Callable[[], None], wait_s: float
) -> int | None:
    """Return ``offset``, or the log's first one above it, if its batch gives neither a record nor an error.

    None too where no broker answers within ``wait_s``, or the partition cannot be read for another reason.
    """
    with closing(Prober(config, partition, waiting, wait_s)) as prober:
        try:
            answer = prober.probe(offset)
        except (KafkaException, NoAnswer) as error:
            log.info("%s partition %d stands still, and nobody says why: %s", *partition, error)
            return None
        return answer.offset if answer.silent else None


def range_end(probe: Callable[[int], Answer], start: int, log_end: int) -> int:
    """Return the offset behind the unreadable batch that holds ``start``.

    A reader that starts anywhere in the batch fails, and one that starts behind it does not, or fails with another
    batch: the end is searched in doubling steps, then by bisection.

    A batch that gives no error does not say which batch it is. A step could lead over readable records into another
    one of its kind, so that its offsets are probed one by one.

    Args:
        probe: Reads from an offset.
        start: An offset at which reading fails.
        log_end: The end of the log, as readers see it.

    Returns:
        The first offset behind ``start`` from which a record can be read, or at which another batch or the end of the
        log begins; ``start`` if the batch can be read after all. Less where the batch gives no error and has more than
        `MOST_SILENT` offsets.
    """
    first = probe(start)
    if first.readable:
        return start
    if first.silent:
        start = max(start, first.offset)
        return _silent_end(probe, start, min(log_end, start + MOST_SILENT))
    inside, step = start, 1
    outside = log_end
    found: Answer | None = None
    while inside + step < log_end:
        answer = probe(inside + step)
        if answer != first:
            outside, found = inside + step, answer
            break
        inside, step = inside + step, 2 * step
    while outside - inside > 1:
        middle = (inside + outside) // 2
        answer = probe(middle)
        if answer == first:
            inside = middle
        else:
            outside, found = middle, answer
    # Offsets between the batch and what follows it hold no records: marks of transactions, or what compaction removed.
    return outside if found is None else max(outside, found.offset)


def _silent_end(probe: Callable[[int], Answer], start: int, most: int) -> int:
    for offset in range(start + 1, most):
        answer = probe(offset)
        if not answer.silent:
            return max(offset, answer.offset)
    # Whatever the answer is: without any, nothing is quarantined.
    probe(most)
    return most


class EmptyFetches(logging.Handler):
    """Finds in a client's log (``debug=fetch``) the offsets from which fetches deliver nothing, and no error either.

    librdkafka says so nowhere else. A line says from which offset it fetches, and another one how many messages came of
    the answer; both bear the version of the assignment.

    Args:
        forward: Gets what is not for debugging.
    """

    _FETCH = re.compile(r"Fetch topic .* at offset (\d+) \(.*, v(\d+)\)$")
    _NOTHING = re.compile(
        r"Enqueue 0 message\(s\) \(0 bytes, 0 ops\) .*, v(\d+), last_offset -1, 0 ctrl msgs, 0 aborted msgsets, \w+\)$"
    )

    def __init__(self, forward: logging.Logger | None = None) -> None:
        super().__init__(logging.DEBUG)
        self._forward = forward
        self._first: dict[int, int] = {}
        """First offset that was fetched, by version."""
        self._fetched = (-1, -1)
        """Version and offset of the last fetch."""
        self._nothing: Counter[tuple[int, int]] = Counter()
        self._silent: set[int] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Take in one line."""
        if record.levelno > logging.DEBUG:
            if self._forward is not None:
                self._forward.handle(record)
            return
        line = record.getMessage()
        if (fetch := self._FETCH.search(line)) is not None:
            self._fetched = (version, offset) = (int(fetch[2]), int(fetch[1]))
            self._first.setdefault(version, offset)
        elif (nothing := self._NOTHING.search(line)) is not None and int(nothing[1]) == self._fetched[0]:
            self._nothing[self._fetched] += 1
            if self._nothing[self._fetched] >= _SILENT_FETCHES:
                self._silent.add(self._first[self._fetched[0]])

    def silent_start(self, offset: int) -> int | None:
        """Return where a client began that started at ``offset`` and gets nothing any more; else None."""
        if offset == 0:
            # It begins where the log does.
            return min(self._silent, default=None)
        return offset if offset in self._silent else None

    def clear(self) -> None:
        """Forget what was seen."""
        self._first.clear()
        self._nothing.clear()
        self._silent.clear()


class Prober:
    """Reads one partition from given offsets, with a client of its own, to see whether it can.

    Args:
        config: Configuration of a consumer.
        partition: Topic on the cluster, and partition number.
        waiting: Called while nothing comes; may raise.
        wait_s: Longest wait for one answer.
    """

    def __init__(
        self, config: Mapping[str, Any], partition: Partition, waiting: Callable[[], None], wait_s: float = ANSWER_S
    ) -> None:
        self._partition, self._waiting, self._wait_s = partition, waiting, wait_s
        self._log = EmptyFetches(config.get("logger"))
        self._reported = False
        logger = logging.Logger("pipeline.kafka.probe", logging.DEBUG)
        logger.addHandler(self._log)
        own = {
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "debug": "fetch",
            "logger": logger,
            "fetch.error.backoff.ms": _ERROR_BACKOFF_MS,
        }
        self._consumer = Consumer(reader_config(config, own))

    def log_end(self) -> int:
        """Return the end of the log as readers of committed records see it.

        Raises:
            NoAnswer: No broker answers.
        """
        deadline_s = time.monotonic() + self._wait_s
        while True:
            self._waiting()
            try:
                _, end = self._consumer.get_watermark_offsets(TopicPartition(*self._partition), timeout=_ASK_S)
                return int(end)
            except KafkaException as error:
                if time.monotonic() > deadline_s:
                    raise NoAnswer(f"{self._partition[0]} partition {self._partition[1]}: {error}") from error

    def probe(self, offset: int) -> Answer:
        """Return what a reader finds that starts at ``offset``.

        Raises:
            KafkaException: The partition cannot be read, for a reason that is not the batch.
            NoAnswer: No broker answers.
        """
        self._log.clear()
        self._assign(offset)
        deadline_s = time.monotonic() + self._wait_s
        while time.monotonic() < deadline_s:
            self._waiting()
            message = self._consumer.poll(_POLL_S)
            if message is None:
                if (first := self._log.silent_start(offset)) is not None:
                    if not self._reported:
                        self._reported = True
                        log.warning("%s partition %d offset %d: nothing comes of this batch", *self._partition, first)
                    return Answer(first, readable=False, silent=True)
                continue
            error = message.error()
            if error is None or error.code() == KafkaError._PARTITION_EOF:
                return Answer(message.offset(), readable=True)
            if error.code() in UNREADABLE:
                return Answer(message.offset(), readable=False)
            if error.code() == KafkaError._AUTO_OFFSET_RESET:
                if message.offset() == offset:
                    raise KafkaException(error)
                # What an earlier probe left: the client had gone on somewhere behind a damaged batch.
                self._assign(offset)
        topic, number = self._partition
        raise NoAnswer(f"{topic} partition {number} offset {offset}: no answer in {self._wait_s:.0f} s")

    def _assign(self, offset: int) -> None:
        self._consumer.assign([start_at(self._partition, offset)])

    def close(self) -> None:
        """Close the client."""
        self._consumer.close()
