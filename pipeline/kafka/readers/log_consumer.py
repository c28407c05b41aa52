"""A consumer without a group, which skips the record batches that nobody can read where that is agreed.

What agents read is skipped where an agent has quarantined it, so that every reader skips the same. A range on
``control`` is skipped only as far as the batch cannot be read. Of the topics that no agent reads record by record
(``control``, ``models``, ``progress``, ``decisions``, ``alerts``, ``case-events``, ``dead-letters``) nobody quarantines
anything: their readers refuse such a batch, as they refuse a record that is none of the pipeline's messages. Readers
that decide nothing (start-up checks) skip an unreadable batch of any topic.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any, Final, TypeGuard

import msgspec
from confluent_kafka import KafkaError

from pipeline.kafka.cluster.clients import READER_GROUP, consumer_config
from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.readers.bounded_consumer import BoundedConsumer
from pipeline.kafka.records.batch import Item, Partition, ReadError, UnreadableRange
from pipeline.kafka.records.batch_records import ODD_OFFSET
from pipeline.kafka.records.damaged_batch import DAMAGED
from pipeline.kafka.records.internal import OnRefused, not_counted, refuse
from pipeline.protection.signing import Trust
from pipeline.settings import Settings
from schemas.errors import UNREADABLE as NOT_A_MESSAGE
from schemas.messages import Control, Quarantine
from schemas.records import Record
from schemas.topics import ALERTS, CASE_EVENTS, CONTROL, DEAD_LETTERS, DECISIONS, LISTS, MODELS, PROGRESS

log = logging.getLogger(__name__)

_POLL_S: Final = 0.1
_BATCH: Final = 1_000
_CONTROL_S: Final = 60.0
"""Longest wait for the end of ``control``."""
_READ_BY_NO_AGENT: Final = (CONTROL, MODELS, LISTS, PROGRESS, DECISIONS, ALERTS, CASE_EVENTS, DEAD_LETTERS)
_decode: Final = msgspec.json.Decoder(Control).decode


class LogConsumer:
    """Reads partitions of one topic that it is given, and reports the ends of their logs; used from one thread.

    Args:
        bootstrap: Addresses of brokers.
        settings: Settings of the client.
        own: Configuration over that of every reader.
        waiting: Called while a wait takes long; may raise.
        skip_unreadable: Skip every unreadable batch, quarantined or not: for readers that only look.
        skip_refused: Skip records that claim another offset than they have, and batches that an agent has quarantined;
            else refuse them: each agent refuses and quarantines for itself.
        on_refused: Counts unreadable batches of topics that no agent reads, by the topic.

    Raises:
        KeyFileError: A key that signs records cannot be read.
    """

    def __init__(
        self,
        bootstrap: str,
        settings: Settings,
        own: Mapping[str, Any] | None = None,
        waiting: Callable[[], None] = lambda: None,
        *,
        skip_unreadable: bool = False,
        skip_refused: bool = True,
        on_refused: OnRefused = not_counted,
    ) -> None:
        self._bootstrap, self._settings, self._waiting = bootstrap, settings, waiting
        self._skip_unreadable, self._skip_refused, self._on_refused = skip_unreadable, skip_refused, on_refused
        self._trust = Trust.from_settings(settings)
        overrides = {"enable.partition.eof": True, **(own or {})}
        config = consumer_config(bootstrap, READER_GROUP, settings=settings, overrides=overrides)
        self._consumer = BoundedConsumer(config, settings.inputs)
        self._positions: dict[Partition, int] = {}
        """Offsets behind what was taken, or from which reading begins."""

    def assign(self, positions: Mapping[Partition, int]) -> None:
        """Read these partitions, each from its offset; 0: from the log's beginning."""
        for partition, offset in positions.items():
            self._seek(partition, offset)

    def position(self, topic: str, partition: int) -> int:
        """Return the offset behind what was taken or skipped of a partition."""
        return self._positions.get((topic, partition), 0)

    def drop(self, partition: Partition) -> None:
        """Read a partition no more."""
        self._consumer.drop([partition])

    def take(self, timeout_s: float, most: int, end: int | None = None) -> list[Record | ReadError]:
        """Return records and errors that have come.

        Args:
            timeout_s: Longest wait for the first one, in seconds.
            most: Largest number of them.
            end: Offset in the one partition that is read. An unreadable batch at or behind it is not skipped: perhaps
                no agent has come to it yet. None: there is no such offset.

        Raises:
            TopicError: A batch cannot be read, and nobody has quarantined it; or one comes damaged again and again.
        """
        self._consumer.prefetch()
        if not (items := self._consumer.take(most)):
            self._consumer.wait(timeout_s)
            items = self._consumer.take(most)
        read = [item for item in items if isinstance(item, Record) or _is_report(item)]
        if read and isinstance(read[-1], Record) and len(self._positions) == 1:
            self._take(read[-1])
        else:
            for item in read:
                if isinstance(item, Record):
                    self._take(item)
        if len(read) < len(items):
            self._skip(items, end)
        return read

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def _take(self, record: Record) -> None:
        self._positions[record.topic, record.partition] = record.offset + 1

    def _skip(self, items: Sequence[Item], end: int | None) -> None:
        """Go on behind the unreadable batches of partitions, each the last item of its partition, below ``end``."""
        for item in items:
            if not isinstance(item, UnreadableRange):
                if isinstance(item, ReadError) and not _is_report(item) and (end is None or item.offset < end):
                    raise TopicError(item.error.str())
                continue
            partition, start = item.partition, item.start
            behind = start if end is not None and start >= end else self._end_of(item)
            if behind > start:
                log.warning(
                    "%s partition %d: offsets %d to %d cannot be read and are skipped", *partition, start, behind - 1
                )
            self._seek(partition, behind)

    def _seek(self, partition: Partition, offset: int) -> None:
        self._positions[partition] = offset
        self._consumer.seek(partition, offset)

    def _end_of(self, fault: UnreadableRange) -> int:
        """Return where to go on behind an unreadable batch; raises `TopicError` where it must not be passed over."""
        (topic, number), start, found, error, why, _ = fault
        full_name = self._settings.topic
        if topic == full_name(CONTROL.name) and error == DAMAGED and not self._settings.accept_damaged_control:
            raise _damaged_control(fault)
        if topic in {full_name(each.name) for each in _READ_BY_NO_AGENT}:
            batch = Record(topic, number, start, 0, None, None)
            refuse(batch, f"offsets {start} to {found - 1} cannot be read ({why})", self._on_refused)
            return found
        if self._skip_unreadable or (error == ODD_OFFSET and self._skip_refused):
            return found
        if not self._skip_refused:
            raise TopicError(f"topic {topic} partition {number} cannot be read from offset {start} on ({why})")
        ends = [end for first, end in self._quarantined(fault.partition) if first <= start < end]
        if any(end > found for end in ends):
            log.warning(
                "%s partition %d: a quarantine of offset %d names a later end than %d, where the unreadable batch "
                "ends; it is ignored",
                topic, number, start, found,
            )  # fmt: skip
        # Less than the whole batch, where the rest of it makes another range.
        agreed = max((end for end in ends if end <= found), default=None)
        if agreed is None:
            raise _not_quarantined(fault)
        return agreed

    def _quarantined(self, partition: Partition) -> list[tuple[int, int]]:
        """Return the ranges of a partition that ``control`` names: first offset, and offset behind the last."""
        ranges: list[tuple[int, int]] = []
        topic = self._settings.topic(CONTROL.name)
        with closing(LogConsumer(self._bootstrap, self._settings, waiting=self._waiting)) as control:
            control.assign({(topic, 0): 0})
            deadline_s = time.monotonic() + _CONTROL_S
            while time.monotonic() < deadline_s:
                self._waiting()
                for item in control.take(_POLL_S, _BATCH):
                    if isinstance(item, ReadError):
                        if item.error.code() == KafkaError._PARTITION_EOF:
                            return ranges
                    elif self._trust.refusal(item) is None:
                        ranges += self._range_in(item.value or b"", partition)
        raise TopicError(f"topic {topic} cannot be read to its end: check the brokers")

    def _range_in(self, value: bytes, partition: Partition) -> list[tuple[int, int]]:
        try:
            item = _decode(value)
        except NOT_A_MESSAGE:
            # Its own readers report it.
            return []
        if not isinstance(item, Quarantine) or item.position.end is None:
            return []
        at = item.position
        return [(at.offset, item.position.end)] if (self._settings.topic(at.topic), at.partition) == partition else []


def _is_report(item: Item) -> TypeGuard[ReadError]:
    """Return whether it is a report for the caller, and not of a batch that comes damaged again and again."""
    return isinstance(item, ReadError) and item.error.code() != KafkaError._BAD_MSG


def _whole_from(fault: UnreadableRange) -> str:
    """Return what to do about a disk."""
    others = " or ".join(map(str, fault.others))
    return f"let broker {others} lead the partition, which may hold them whole" if others else "restore the disk"


def _damaged_control(fault: UnreadableRange) -> TopicError:
    topic, number = fault.partition
    return TopicError(
        f"topic {topic} partition {number}: the disk of its leader has damaged offsets {fault.start} to "
        f"{fault.end - 1}, which may hold the activation of a model or a quarantine: {_whole_from(fault)} "
        "(docs/operating.md). To go on without them: FRAUD_PIPELINE_ACCEPT_DAMAGED_CONTROL=true"
    )


def _not_quarantined(fault: UnreadableRange) -> TopicError:
    topic, number = fault.partition
    remedy = f"; or {_whole_from(fault)} (docs/operating.md)" if fault.error == DAMAGED else ""
    return TopicError(
        f"topic {topic} partition {number} cannot be read from offset {fault.start} on ({fault.message}) "
        f"and no agent has quarantined that: let a worker that reads the topic run until it has{remedy}"
    )
