"""Record batches that cannot be read: compressed beyond every bound, or damaged on a broker's disk.

librdkafka reports such a batch by its first offset and either reads it again for ever (what it cannot decompress), or
goes on somewhere behind it (a checksum that does not match). Nobody who reads it gets further, so that the unit of a
quarantine is the rest of the batch. ``docs/decisions/0031-unreadable-batches.md`` has what was measured.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, Final, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from pipeline.kafka.batch import Place

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
_POLL_S: Final = 0.1


class Answer(NamedTuple):
    """What a reader finds from some offset on: a record or the end of the log, or a batch that it cannot read."""

    offset: int
    """Of the record, the end of the log, or the unreadable batch's first record."""
    readable: bool


class NoAnswer(RuntimeError):
    """A probe was given up."""


def reader_config(config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` for a consumer that joins no group, with ``own`` over it."""
    # Classic, because it only assigns and never joins; the group's name appears nowhere on the cluster.
    alone = {"group.id": "fraud-pipeline-reader", "group.protocol": "classic"}
    return {**{name: value for name, value in config.items() if name != "group.remote.assignor"}, **alone, **own}


def find_end(config: Mapping[str, Any], place: Place, start: int, waiting: Callable[[], None]) -> int:
    """Return `range_end` of the batch that holds offset ``start``, from the partition itself.

    Raises:
        KafkaException: The partition cannot be read at all.
        NoAnswer: No broker answers.
    """
    with closing(Prober(config, place, waiting)) as prober:
        return range_end(prober.probe, start, prober.log_end())


def range_end(probe: Callable[[int], Answer], start: int, log_end: int) -> int:
    """Return the offset behind the unreadable batch that holds ``start``.

    A reader that starts anywhere in the batch fails, and one that starts behind it does not, or fails with another
    batch: the end is searched in doubling steps, then by bisection.

    Args:
        probe: Reads from an offset.
        start: An offset at which reading fails.
        log_end: The end of the log, as readers see it.

    Returns:
        The first offset behind ``start`` from which a record can be read, or at which another batch or the end of the
        log begins; ``start`` if the batch can be read after all.
    """
    first = probe(start)
    if first.readable:
        return start
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


class Prober:
    """Reads one partition from given offsets, with a client of its own, to see whether it can.

    Args:
        config: Configuration of a consumer.
        place: Topic on the cluster, and partition number.
        waiting: Called while nothing comes; may raise.
    """

    def __init__(self, config: Mapping[str, Any], place: Place, waiting: Callable[[], None]) -> None:
        self._place, self._waiting = place, waiting
        own = {"enable.partition.eof": True, "auto.offset.reset": "error"}
        self._consumer = Consumer(reader_config(config, own))

    def log_end(self) -> int:
        """Return the end of the log as readers of committed records see it."""
        _, end = self._consumer.get_watermark_offsets(TopicPartition(*self._place), timeout=ANSWER_S)
        return int(end)

    def probe(self, offset: int) -> Answer:
        """Return what a reader finds that starts at ``offset``.

        Raises:
            KafkaException: The partition cannot be read, for a reason that is not the batch.
            NoAnswer: No broker answers.
        """
        self._assign(offset)
        deadline_s = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline_s:
            self._waiting()
            message = self._consumer.poll(_POLL_S)
            if message is None:
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
        raise NoAnswer(f"{self._place[0]} partition {self._place[1]} offset {offset}: no answer in {ANSWER_S:.0f} s")

    def _assign(self, offset: int) -> None:
        self._consumer.assign([TopicPartition(*self._place, offset if offset > 0 else OFFSET_BEGINNING)])

    def close(self) -> None:
        """Close the client."""
        self._consumer.close()
