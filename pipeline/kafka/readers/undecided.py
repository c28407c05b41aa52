"""The age of the oldest undecided record of each partition, measured beside the agents.

Offsets show nearly always that nothing waits. Only where a record that was there at the last measurement is still
undecided is one record read, for its timestamp; an open transaction hides it from agents, but not from here.
"""

import logging
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from pipeline.kafka.cluster.clients import READER_GROUP, admin_client, consumer_config
from pipeline.kafka.cluster.log_offsets import listed_offset
from pipeline.kafka.readers.bounded_consumer import BoundedConsumer
from pipeline.kafka.records.batch import Partition, UnreadableRange
from pipeline.settings import Settings
from schemas.records import Record

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.1


class FirstRecord(NamedTuple):
    """The first thing at an offset or behind it."""

    kind: Literal["record", "end", "unreadable"]
    offset: int
    """Offset of the record, or of the end of what can be read."""
    timestamp_ms: int = 0


class KafkaLog:
    """The logs on the brokers; used from one thread.

    Args:
        stopping: Set when the worker ends; `first` then returns what it has found so far.
    """

    def __init__(self, bootstrap: str, settings: Settings, stopping: threading.Event) -> None:
        self._bootstrap, self._settings, self._stopping = bootstrap, settings, stopping
        # The agents' clients complain of the same brokers.
        quiet = {"log_level": 0, "error_cb": lambda _error: None}
        self._client = admin_client(bootstrap, settings=settings, overrides=quiet)

    def ends(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        """Return the end of each partition's log, open transactions included; what nobody answers for is absent."""
        asked = {TopicPartition(*partition): OffsetSpec.latest() for partition in partitions}
        ends: dict[Partition, int] = {}
        futures = self._client.list_offsets(
            asked, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=REQUEST_TIMEOUT_S
        )
        for at, future in futures.items():
            try:
                ends[at.topic, at.partition] = listed_offset(future)
            except KafkaException as error:
                log.debug("nobody tells where %s partition %d ends: %s", at.topic, at.partition, error)
        return ends

    def first(self, offsets: Mapping[Partition, int], *, committed: bool) -> Mapping[Partition, FirstRecord]:
        """Look for the first record at or behind an offset of each partition; one that does not answer is absent.

        Those of open and aborted transactions are passed over if only ``committed`` ones are looked for.
        """
        overrides: dict[str, Any] = {
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            "enable.partition.eof": True,
            "max.partition.fetch.bytes": 64 * 1024,  # one record of each partition is looked at
        }
        config = consumer_config(self._bootstrap, READER_GROUP, settings=self._settings, overrides=overrides)
        reader = BoundedConsumer(config, self._settings.inputs)
        found: dict[Partition, FirstRecord] = {}
        ends_s = time.monotonic() + READ_TIMEOUT_S
        try:
            for partition, offset in offsets.items():
                reader.seek(partition, offset)
            while len(found) < len(offsets) and time.monotonic() < ends_s and not self._stopping.is_set():
                reader.wait(POLL_S)
                for item in reader.take(len(offsets)):
                    if isinstance(item, Record):
                        partition = (item.topic, item.partition)
                        first = FirstRecord("record", item.offset, item.timestamp_ms)
                    elif isinstance(item, UnreadableRange):
                        partition, first = item.partition, FirstRecord("unreadable", item.start)
                    elif item.error.code() == KafkaError._PARTITION_EOF:
                        partition, first = item.partition, FirstRecord("end", item.offset)
                    else:
                        continue
                    found.setdefault(partition, first)
                    reader.drop([partition])
        finally:
            reader.close()
        return found


_Kind = Literal["record", "hidden", "unreadable", "unknown"]


class _Oldest(NamedTuple):
    offset: int
    since_s: float
    kind: _Kind


@dataclass(slots=True)
class OldestUndecided:
    """The oldest undecided record of each partition that one agent holds."""

    log: KafkaLog
    untimed: Collection[str] = ()
    """Topics (full names) whose timestamps are a simulated clock's: age counts from when the record was first seen."""
    _ends: dict[Partition, int] = field(default_factory=dict)
    _empty: dict[Partition, int] = field(default_factory=dict)
    """Offsets below which nothing is left: what follows the agent's position are transaction markers, or aborted."""
    _oldest: dict[Partition, _Oldest] = field(default_factory=dict)

    def ages_s(self, positions: Mapping[Partition, int], now_s: float) -> dict[Partition, float]:
        """Measure once: seconds by partition; 0 where all that was there at the last measurement is decided.

        ``positions`` are the offsets behind the last committed record of each partition held; ``now_s`` is in seconds
        since 1970.
        """
        answered = self.log.ends(positions.keys()) if positions else {}
        # Without an answer, what was there before is all that is known to be there.
        ends = {
            partition: answered.get(partition, self._ends.get(partition, position))
            for partition, position in positions.items()
        }
        self._empty = {partition: end for partition, end in self._empty.items() if partition in positions}
        waiting = {}
        for partition, position in positions.items():
            at = max(position, self._empty.get(partition, 0))
            if min(ends[partition], self._ends.get(partition, ends[partition])) > at:
                waiting[partition] = at
        self._oldest, self._ends = self._find(waiting, ends, now_s), ends
        since_s = {partition: known.since_s for partition, known in self._oldest.items()}
        return {partition: max(0.0, now_s - since_s.get(partition, now_s)) for partition in positions}

    def _find(
        self, waiting: Mapping[Partition, int], ends: Mapping[Partition, int], now_s: float
    ) -> dict[Partition, _Oldest]:
        oldest: dict[Partition, _Oldest] = {}
        asked = dict(waiting)
        # What readers of committed records get, and behind it what an open transaction hides from them.
        for committed in (True, False):
            kinds = ("record", "unreadable") if committed else ("hidden",)
            for partition, at in asked.items():
                known = self._oldest.get(partition)
                # What cannot be read is not read again either: it may be large.
                if known is not None and known.kind in kinds and known.offset >= at:
                    oldest[partition] = known
            asked = {partition: at for partition, at in asked.items() if partition not in oldest}
            found = self.log.first(asked, committed=committed) if asked else {}
            hidden: dict[Partition, int] = {}
            for partition, at in asked.items():
                first = found.get(partition)
                if first is None:
                    oldest[partition] = self._since(partition, at, "unknown", now_s)
                elif first.kind != "end":
                    kind: _Kind = first.kind if committed else "hidden"
                    offset = first.offset if first.kind == "record" else at
                    oldest[partition] = self._since(partition, offset, kind, now_s, first.timestamp_ms)
                elif committed:
                    self._empty[partition] = max(at, first.offset)
                    if first.offset < ends[partition]:
                        hidden[partition] = first.offset
            asked = hidden
        return oldest

    def _since(self, partition: Partition, offset: int, kind: _Kind, now_s: float, timestamp_ms: int = 0) -> _Oldest:
        """Count from a record's timestamp; without one from now, or from when the same record was first seen."""
        if timestamp_ms > 0 and partition[0] not in self.untimed:
            return _Oldest(offset, timestamp_ms / 1_000, kind)
        known = self._oldest.get(partition)
        # One whose offset was not known yet was looked for from the same position.
        same = known is not None and (known.offset == offset or known.kind == "unknown")
        return _Oldest(offset, known.since_s if known is not None and same else now_s, kind)
