"""The age of the oldest undecided record of each partition, measured beside the agents.

Offsets show nearly always that nothing waits. Only where a record that was there at the last measurement is still
undecided is one record read, for its timestamp; an open transaction hides it from agents, but not from here.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, NamedTuple

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from pipeline.kafka.cluster.clients import READER_GROUP, Config, admin_client, consumer_config
from pipeline.kafka.cluster.log_offsets import listed_offset
from pipeline.kafka.cluster.watch import WatchThread
from pipeline.kafka.readers.bounded_consumer import BoundedConsumer
from pipeline.kafka.records.batch import Partition, UnreadableRange
from pipeline.observability.metrics import WorkerMetrics
from pipeline.settings import Settings
from schemas.records import Record

log = logging.getLogger(__name__)

INTERVAL_S: Final = 2.0
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
    """The logs on the brokers; used from one thread."""

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
        """Look for the first record at or behind an offset of each partition.

        Args:
            offsets: where to look.
            committed: whether records of open and aborted transactions are passed over.

        Returns:
            What was found; a partition that did not answer in time is absent.
        """
        reader = BoundedConsumer(self._config(committed), self._settings.inputs)
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

    def _config(self, committed: bool) -> Config:
        overrides: dict[str, Any] = {
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            "enable.partition.eof": True,
            "max.partition.fetch.bytes": 64 * 1024,  # one record of each partition is looked at
        }
        return consumer_config(self._bootstrap, READER_GROUP, settings=self._settings, overrides=overrides)


@dataclass(frozen=True, slots=True)
class _Oldest:
    offset: int
    since_s: float
    kind: Literal["record", "hidden", "unreadable", "unknown"]


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
        """Measure once.

        Args:
            positions: the offset behind the last committed record of each partition held.
            now_s: the time, seconds since 1970.

        Returns:
            Seconds by partition; 0 where all that was there at the last measurement is decided.
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
        self._oldest = self._find(waiting, ends, now_s)
        self._ends = ends
        return {
            partition: max(0.0, now_s - self._oldest[partition].since_s) if partition in self._oldest else 0.0
            for partition in positions
        }

    def _find(
        self, waiting: Mapping[Partition, int], ends: Mapping[Partition, int], now_s: float
    ) -> dict[Partition, _Oldest]:
        # What cannot be read is not read again either: it may be large.
        oldest = {
            partition: known
            for partition, known in self._oldest.items()
            if known.kind in ("record", "unreadable") and waiting.get(partition, known.offset + 1) <= known.offset
        }
        asked = {partition: at for partition, at in waiting.items() if partition not in oldest}
        found = self.log.first(asked, committed=True) if asked else {}
        hidden: dict[Partition, int] = {}
        for partition, at in asked.items():
            record = found.get(partition)
            if record is None:
                oldest[partition] = self._seen(partition, at, "unknown", now_s)
            elif record.kind == "record":
                oldest[partition] = self._timed(partition, record, "record", now_s)
            elif record.kind == "unreadable":
                oldest[partition] = self._seen(partition, at, "unreadable", now_s)
            else:
                self._empty[partition] = max(at, record.offset)
                if record.offset < ends[partition]:
                    hidden[partition] = record.offset
        known_hidden = {partition for partition, at in hidden.items() if self._is_hidden(partition, at)}
        oldest |= {partition: self._oldest[partition] for partition in known_hidden}
        asked = {partition: at for partition, at in hidden.items() if partition not in known_hidden}
        found = self.log.first(asked, committed=False) if asked else {}
        for partition, at in asked.items():
            record = found.get(partition)
            if record is not None and record.kind == "record":
                oldest[partition] = self._timed(partition, record, "hidden", now_s)
            elif record is None or record.kind == "unreadable":
                oldest[partition] = self._seen(partition, at, "unknown" if record is None else "hidden", now_s)
        return oldest

    def _is_hidden(self, partition: Partition, at: int) -> bool:
        known = self._oldest.get(partition)
        return known is not None and known.kind == "hidden" and known.offset >= at

    def _timed(
        self, partition: Partition, found: FirstRecord, kind: Literal["record", "hidden"], now_s: float
    ) -> _Oldest:
        if partition[0] in self.untimed or found.timestamp_ms <= 0:
            return self._seen(partition, found.offset, kind, now_s)
        return _Oldest(found.offset, found.timestamp_ms / 1_000, kind)

    def _seen(
        self,
        partition: Partition,
        offset: int,
        kind: Literal["record", "hidden", "unreadable", "unknown"],
        now_s: float,
    ) -> _Oldest:
        """Count from now, or from when the same record was first seen."""
        known = self._oldest.get(partition)
        # One whose offset was not known yet was looked for from the same position.
        same = known is not None and (known.offset == offset or known.kind == "unknown")
        return _Oldest(offset, known.since_s if known is not None and same else now_s, kind)


class UndecidedWatch(WatchThread):
    """Measures for several agents; ``stop`` waits for the measurement that is under way, but not for brokers."""

    def __init__(
        self, bootstrap: str, settings: Settings, metrics: WorkerMetrics, *, interval_s: float = INTERVAL_S
    ) -> None:
        super().__init__("undecided-watch", 1.0)
        self._metrics, self._interval_s = metrics, interval_s
        self._new_log = partial(KafkaLog, bootstrap, settings, self._stopping)
        self._untimed = settings.inputs if settings.timestamps == "producer" else frozenset()
        self._positions: dict[str, Callable[[], Mapping[Partition, int]]] = {}

    def follow(self, agent: str, positions: Callable[[], Mapping[Partition, int]]) -> None:
        """Measure for ``agent`` too.

        Args:
            agent: its name.
            positions: returns the offset behind the last committed record of each partition that it holds now.
        """
        self._positions[agent] = positions

    def _run(self) -> None:
        logs = self._new_log()
        agents: dict[str, OldestUndecided] = {}
        shown: dict[str, set[Partition]] = {}
        while not self._stopping.wait(self._interval_s):
            for agent, positions in list(self._positions.items()):
                oldest = agents.setdefault(agent, OldestUndecided(logs, self._untimed))
                shown[agent] = self._measure(agent, oldest, positions, shown.get(agent, set()))

    def _measure(
        self,
        agent: str,
        oldest: OldestUndecided,
        positions: Callable[[], Mapping[Partition, int]],
        shown: set[Partition],
    ) -> set[Partition]:
        """Export one agent's ages; return the partitions that have one now, of those ``shown`` before and others."""
        ages_s: Mapping[Partition, float] = {}
        try:
            ages_s = oldest.ages_s(dict(positions()), time.time())
        except Exception:
            # The next measurement may do better; a thread that ends would be seen by nobody. No value says that
            # nothing is known: the last one, mostly 0, would say that nothing waits.
            log.exception("%s: the age of the oldest undecided records cannot be measured", agent)
        for topic, number in shown - ages_s.keys():
            self._metrics.forget("oldest_undecided_seconds", agent=agent, topic=topic, partition=number)
        for (topic, number), age_s in ages_s.items():
            self._metrics.show("oldest_undecided_seconds", age_s, agent, topic, number)
        return set(ages_s)
