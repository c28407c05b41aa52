"""A consumer without a group, which skips the record batches that nobody can read where that is agreed.

What agents read is skipped where an agent has quarantined it, so that every reader skips the same. A range on
``control`` is skipped only as far as the batch cannot be read. Of the topics that no agent reads record by record
(``control``, ``models``, ``progress``, ``decisions``, ``alerts``, ``dead-letters``) nobody quarantines anything: their
readers refuse such a batch, as they refuse a record that is none of the pipeline's messages. Readers that decide
nothing (start-up checks) skip an unreadable batch of any topic.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, Final

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.damage.batch_records import ODD_OFFSET
from pipeline.kafka.damage.standstill import Standstills, assigned, known_end
from pipeline.kafka.damage.unreadable import DAMAGED, FETCHES, UNREADABLE, Fault, find_fault, reader_config
from pipeline.kafka.readers.bounded_consumer import BoundedConsumer
from pipeline.kafka.records.batch import Partition, UnreadableRange
from pipeline.kafka.records.carried import partition_of
from pipeline.kafka.records.internal import OnRefused, not_counted, refuse
from pipeline.kafka.records.message_records import Item, ReadError, item_of
from pipeline.kafka.records.raw_fetch import FetchRefused, FetchUnanswered
from schemas.errors import UNREADABLE as NOT_A_MESSAGE
from schemas.messages import Control, Quarantine
from schemas.records import Record
from schemas.topics import ALERTS, CONTROL, DEAD_LETTERS, DECISIONS, LABELS, MODELS, PROGRESS, TRANSACTIONS

log = logging.getLogger(__name__)

_POLL_S: Final = 0.1
_METADATA_S: Final = 1.0
_BATCH: Final = 1_000
_CONTROL_S: Final = 60.0
"""Longest wait for the end of ``control``."""
_READ_BY_NO_AGENT: Final = (CONTROL, MODELS, PROGRESS, DECISIONS, ALERTS, DEAD_LETTERS)
_decode: Final = msgspec.json.Decoder(Control).decode


class LogConsumer:
    """Reads partitions of one topic that it is given; used from one thread.

    Topics that producers write to are read by a `BoundedConsumer`. Their batches with records that claim another offset
    than they have are skipped.

    Args:
        config: Configuration of a consumer.
        prefix: Prefix of the pipeline's topics.
        own: Configuration over ``config``.
        waiting: Called while a wait takes long; may raise.
        skip_unreadable: Skip every unreadable batch, quarantined or not: for readers that only look.
        skip_refused: Skip records that claim another offset than they have, and batches that an agent has quarantined;
            else refuse them: each agent refuses and quarantines for itself.
        on_refused: Counts unreadable batches of topics that no agent reads, by the topic.
        accept_damaged_control: Skip a batch of ``control`` that a disk has damaged, as other unreadable ones.
        inputs: Topics that producers write to (full names).
        trusted: Whether a record of ``control`` counts.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        prefix: str,
        own: Mapping[str, Any],
        waiting: Callable[[], None] = lambda: None,
        *,
        skip_unreadable: bool = False,
        skip_refused: bool = True,
        on_refused: OnRefused = not_counted,
        accept_damaged_control: bool = False,
        inputs: Collection[str] = (TRANSACTIONS.name, LABELS.name),
        trusted: Callable[[Record], bool] = lambda _: True,
    ) -> None:
        self._config, self._prefix, self._waiting = config, prefix, waiting
        self._skip_unreadable, self._trusted = skip_unreadable, trusted
        self._accept_damaged_control, self._on_refused = accept_damaged_control, on_refused
        self.consumer = Consumer(reader_config(config, own))
        self._positions: dict[Partition, int] = {}
        """Offsets behind what was taken, or from which reading begins."""
        self._failures: Counter[tuple[Partition, int]] = Counter()
        """Failed fetches of a batch that can be read, by its first offset."""
        self._skipped: set[Partition] = set()
        """Partitions with an unreadable batch: behind a damaged one the client may have gone on anywhere."""
        self._skip_refused = skip_refused
        self._inputs, self._standstills = inputs, Standstills()
        self._bounded: BoundedConsumer | None = None
        self._own = own

    def assign(self, positions: Sequence[TopicPartition]) -> None:
        """Read these partitions, each from its offset; once."""
        if positions and positions[0].topic in self._inputs:
            self._bounded = BoundedConsumer(reader_config(self._config, self._own))
            self._positions = {(at.topic, at.partition): max(at.offset, 0) for at in positions}
            for partition, offset in self._positions.items():
                self._bounded.seek(partition, offset)
            return
        for topic in {at.topic for at in positions if at.offset == OFFSET_BEGINNING or len(positions) > 1}:
            # A client that does not know the leaders yet asks where a log begins only half a second later, and begins
            # to fetch from several partitions up to a second later. Where no broker answers, it goes on asking.
            with suppress(KafkaException):
                self.consumer.list_topics(topic, timeout=_METADATA_S)
        self._positions = {(at.topic, at.partition): max(at.offset, 0) for at in positions}
        self.consumer.assign(list(positions))

    def position(self, topic: str, partition: int) -> int:
        """Return the offset behind what was taken or skipped of a partition."""
        return self._positions.get((topic, partition), 0)

    def drop(self, partition: Partition) -> None:
        """Read a partition no more."""
        if self._bounded is not None:
            self._bounded.drop([partition])
        else:
            self.consumer.incremental_unassign([TopicPartition(*partition)])

    def take(self, timeout_s: float, most: int, end: int | None = None) -> list[Record | ReadError]:
        """Return up to ``most`` records and errors; waits up to ``timeout_s`` for the first one.

        Errors of unreadable batches are not among them.

        Args:
            timeout_s: Longest wait for the first record.
            most: Most records to return.
            end: Offset below which records are wanted, of the one partition that is read. An unreadable batch at or
                behind it is not skipped: perhaps no agent has come to it yet.

        Raises:
            TopicError: A batch cannot be read, with an error or without, and nobody has quarantined it.
        """
        if self._bounded is not None:
            self._bounded.prefetch()
            if not (items := self._bounded.take(most)):
                self._bounded.wait(timeout_s)
                items = self._bounded.take(most)
            return self._taken(items, end)
        if self._standstills.due():
            self._look(end)
        # ``consume`` with a timeout waits for a full list.
        first = self.consumer.poll(timeout_s)
        if first is None:
            return []
        return self._taken(list(map(item_of, [first, *(self.consumer.consume(most - 1, 0) if most > 1 else ())])), end)

    def _taken(self, items: Sequence[Item], end: int | None) -> list[Record | ReadError]:
        read = [item for item in items if isinstance(item, Record)]
        if not self._skipped and len(read) == len(items):
            if read and len(self._positions) == 1:
                self._take(read[-1])
            else:
                for record in read:
                    self._take(record)
            return list(read)
        return self._readable(items, end)

    def close(self) -> None:
        """Close the consumer."""
        if self._bounded is not None:
            self._bounded.close()
        self.consumer.close()

    def _take(self, record: Record) -> None:
        self._positions[record.topic, record.partition] = record.offset + 1

    def _readable(self, items: Sequence[Item], end: int | None) -> list[Record | ReadError]:
        """Return what of ``items`` stands before unreadable batches, and go on behind those below ``end``."""
        readable: list[Record | ReadError] = []
        ended: set[Partition] = set()
        for item in items:
            partition = partition_of(item)
            if partition in ended:
                continue
            position = self._positions.get(partition, 0)
            if isinstance(item, Record):
                if partition not in self._skipped or item.offset >= position:
                    self._take(item)
                    readable.append(item)
            elif isinstance(item, UnreadableRange) or item.error.code() in UNREADABLE:
                ended.add(partition)
                start = max(position, item.start if isinstance(item, UnreadableRange) else item.offset)
                self._skipped.add(partition)
                if end is not None and start >= end:
                    self._seek(partition, start)
                else:
                    self._skip(partition, start, item)
            elif partition in self._skipped and _is_astray(item, position):
                self._seek(partition, position)
            else:
                readable.append(item)
        return readable

    def _skip(self, partition: Partition, start: int, failure: UnreadableRange | ReadError) -> None:
        """Go on behind the unreadable batch at ``start``, or read it again: the network may have damaged it."""
        if isinstance(failure, UnreadableRange) and failure.error != DAMAGED:
            fault = Fault(start, *failure[2:])
            self._go_on(partition, start, self._end_of(partition, fault))
            return
        why = failure.message if isinstance(failure, UnreadableRange) else failure.error.name()
        try:
            examined = find_fault(self._config, partition, start, self._waiting)
        except (KafkaException, FetchUnanswered, FetchRefused) as unknown:
            log.warning("%s partition %d: an unreadable batch cannot be examined yet: %s", *partition, unknown)
            self._go_on(partition, start, start)
            return
        if examined is None:
            self._failures[partition, start] += 1
            if self._failures[partition, start] >= FETCHES:
                topic, number = partition
                raise TopicError(
                    f"topic {topic} partition {number} cannot be read from offset {start} on ({why}), or only "
                    "sometimes: check the network"
                )
        self._go_on(partition, start, start if examined is None else self._end_of(partition, examined))

    def _look(self, end: int | None) -> None:
        """Go on behind batches below ``end`` of which the client delivers nothing, and no error either."""
        read = assigned(self.consumer, self._positions)
        for partition in self._standstills.suspects(read, lambda partition: known_end(self.consumer, partition)):
            start = read[partition]
            try:
                fault = find_fault(self._config, partition, start, self._waiting, is_silent=True)
            except (FetchUnanswered, FetchRefused) as unknown:
                log.info("%s partition %d stands still, and nobody says why: %s", *partition, unknown)
                continue
            if fault is not None and (end is None or start < end):
                self._go_on(partition, start, self._end_of(partition, fault))

    def _go_on(self, partition: Partition, start: int, end: int) -> None:
        if end > start:
            log.warning("%s partition %d: offsets %d to %d cannot be read and are skipped", *partition, start, end - 1)
        self._seek(partition, end)

    def _seek(self, partition: Partition, offset: int) -> None:
        # A client that has asked for an offset that is not there stops reading the partition, and refuses to seek.
        self._positions[partition] = offset
        if self._bounded is not None:
            self._bounded.seek(partition, offset)
            return
        self.consumer.incremental_unassign([TopicPartition(*partition)])
        self.consumer.incremental_assign([TopicPartition(*partition, offset)])

    def _end_of(self, partition: Partition, fault: Fault) -> int:
        """Return where to go on behind an unreadable batch.

        Raises:
            TopicError: Nobody has quarantined it, or it must not be passed over.
        """
        topic, _ = partition
        if topic == self._prefix + CONTROL.name and fault.error == DAMAGED and not self._accept_damaged_control:
            raise _damaged_control(partition, fault)
        start, found, why = fault.start, fault.end, fault.message
        if topic in {self._prefix + each.name for each in _READ_BY_NO_AGENT}:
            batch = Record(topic, partition[1], start, 0, None, None)
            refuse(batch, f"offsets {start} to {found - 1} cannot be read ({why})", self._on_refused)
            return found
        if self._skip_unreadable or (fault.error == ODD_OFFSET and self._skip_refused):
            return found
        if not self._skip_refused:
            raise TopicError(f"topic {topic} partition {partition[1]} cannot be read from offset {start} on ({why})")
        ends = [end for first, end in self._quarantined(partition) if first <= start < end]
        if any(end > found for end in ends):
            log.warning(
                "%s partition %d: a quarantine of offset %d names a later end than %d, where the unreadable batch "
                "ends; it is ignored",
                *partition, start, found,
            )  # fmt: skip
        # Less than the whole batch, where the rest of it makes another range.
        agreed = max((end for end in ends if end <= found), default=None)
        if agreed is None:
            raise _not_quarantined(partition, fault)
        return agreed

    def _quarantined(self, partition: Partition) -> list[tuple[int, int]]:
        """Return the ranges of a partition that ``control`` names: first offset, and offset behind the last."""
        ranges: list[tuple[int, int]] = []
        own = {"enable.partition.eof": True, "auto.offset.reset": "earliest"}
        accepts = self._accept_damaged_control
        with closing(
            LogConsumer(self._config, self._prefix, own, self._waiting, accept_damaged_control=accepts)
        ) as control:
            control.assign([TopicPartition(self._prefix + CONTROL.name, 0, OFFSET_BEGINNING)])
            deadline_s = time.monotonic() + _CONTROL_S
            while time.monotonic() < deadline_s:
                self._waiting()
                for item in control.take(_POLL_S, _BATCH):
                    if isinstance(item, ReadError):
                        if item.error.code() == KafkaError._PARTITION_EOF:
                            return ranges
                    elif self._trusted(item):
                        ranges += self._range_in(item.value or b"", partition)
        raise TopicError(f"topic {self._prefix}{CONTROL.name} cannot be read to its end: check the brokers")

    def _range_in(self, value: bytes, partition: Partition) -> list[tuple[int, int]]:
        try:
            item = _decode(value)
        except NOT_A_MESSAGE:
            # Its own readers report it.
            return []
        if not isinstance(item, Quarantine) or item.position.end is None:
            return []
        at = item.position
        return [(at.offset, item.position.end)] if (self._prefix + at.topic, at.partition) == partition else []


def _whole_from(fault: Fault) -> str:
    """Return what to do about a disk."""
    others = " or ".join(map(str, fault.others))
    return f"let broker {others} lead the partition, which may hold them whole" if others else "restore the disk"


def _damaged_control(partition: Partition, fault: Fault) -> TopicError:
    return TopicError(
        f"topic {partition[0]} partition {partition[1]}: the disk of its leader has damaged offsets {fault.start} to "
        f"{fault.end - 1}, which may hold the activation of a model or a quarantine: {_whole_from(fault)} "
        "(docs/operating.md). To go on without them: FRAUD_PIPELINE_ACCEPT_DAMAGED_CONTROL=true"
    )


def _not_quarantined(partition: Partition, fault: Fault) -> TopicError:
    remedy = f"; or {_whole_from(fault)} (docs/operating.md)" if fault.error == DAMAGED else ""
    return TopicError(
        f"topic {partition[0]} partition {partition[1]} cannot be read from offset {fault.start} on ({fault.message}) "
        f"and no agent has quarantined that: let a worker that reads the topic run until it has{remedy}"
    )


def _is_astray(item: ReadError, position: int) -> bool:
    """Return whether an error is of where the client had gone on by itself behind a damaged batch."""
    return item.error.code() == KafkaError._AUTO_OFFSET_RESET and item.offset != position
