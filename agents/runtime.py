"""What all agents share: the source behind their channel, one unit of work, and what of it is counted."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from agents.channel import BatchSource
from agents.topology import AgentSpec
from pipeline.engine.results import Result
from pipeline.kafka.session import Aborted, Batch, PartitionHandler, Session
from pipeline.metrics import WorkerMetrics
from pipeline.settings import Settings
from schemas.records import Record

log = logging.getLogger(__name__)

POLL_TIMEOUT_S = 0.1
LAG_INTERVAL_S = 1.0


class Partitions(PartitionHandler, Protocol):
    """An agent's state by partition, and its one core call."""

    def ready(self) -> bool:
        """Called before every batch: take in new model versions; False while none can be used."""

    def process(self, records: Sequence[Record], now: datetime) -> Result:
        """Work on a batch of any of the partitions held."""

    def due(self) -> bool:
        """Whether ``process`` has something to write without new records."""

    def close(self) -> None:
        """Release what the state holds."""


class AgentSource(BatchSource):
    """Reads batches for one agent, and commits what its kernel made of them."""

    def __init__(
        self,
        spec: AgentSpec,
        bootstrap: str,
        settings: Settings,
        metrics: WorkerMetrics,
        partitions: Partitions,
        check_broker: Callable[[], None],
    ) -> None:
        self._agent, self._metrics, self._partitions = spec.name, metrics, partitions
        self._session = Session(bootstrap, settings, spec.name, spec.reads, partitions)
        self._check_broker = check_broker
        self._joined = False
        self._lag_told_s = 0.0
        self._lags: set[tuple[str, int]] = set()

    def poll(self) -> Batch | None:
        """The next batch; joins the group once the agent is ready to work."""
        if not self._partitions.ready():
            time.sleep(POLL_TIMEOUT_S)  # on the agent's own thread; readiness comes from a topic read without waiting
            return None
        if not self._joined:
            self._session.start()
            self._joined = True
            log.info("%s: joined", self._agent)
        with self._metrics.stage(self._agent, "poll"):
            batch = self._session.poll(POLL_TIMEOUT_S)
        self._look_around()
        if batch is None and self._partitions.due():
            return self._session.empty_batch()
        return batch

    def work(self, batch: Batch) -> None:
        """One batch: the core call, then outputs and offsets in one commit."""
        try:
            with self._metrics.stage(self._agent, "process"):
                result = self._partitions.process(batch.records, datetime.now(UTC))
        except Exception as error:
            error.add_note(f"agent {self._agent}: nothing is committed of its batch, {_spans(batch.records)}")
            raise
        try:
            with self._metrics.stage(self._agent, "commit"):
                self._session.commit(batch, result.outputs)
        except Aborted as reason:
            log.warning("%s: %d records will be processed again: %s", self._agent, len(batch.records), reason)
            self._metrics.transaction_aborted(self._agent)
            return
        self._count(batch, result)

    def stop(self) -> None:
        """Let a commit that the broker does not answer fail, instead of being tried again."""
        self._session.stop()

    def close(self) -> None:
        """Leave the group and release the state."""
        try:
            self._session.close()
        finally:
            self._partitions.close()

    def _count(self, batch: Batch, result: Result) -> None:
        metrics, agent = self._metrics, self._agent
        metrics.batch_records(agent, len(batch.records))
        for topic, count in Counter(record.topic for record in batch.records).items():
            metrics.records_consumed(agent, topic, count)
        by_kind: dict[str, dict[str, int]] = {}
        for (kind, detail), count in result.counts.items():
            by_kind.setdefault(kind, {})[detail] = count
        metrics.decisions(by_kind.get("decision", {}))
        metrics.alerts(by_kind.get("alert", {}))
        metrics.labels(agent, by_kind.get("label", {}))
        metrics.examples(by_kind.get("example", {}))
        metrics.lessons(by_kind.get("lesson", {}))
        for code, count in by_kind.get("dead_letter", {}).items():
            metrics.dead_letters(agent, code, count)
        if duplicates := by_kind.get("duplicate"):
            metrics.duplicates(sum(duplicates.values()))
        if result.latencies_s:
            metrics.decision_latency_seconds(result.latencies_s)

    def _look_around(self) -> None:
        now_s = time.monotonic()
        if now_s - self._lag_told_s < LAG_INTERVAL_S:
            return
        self._lag_told_s = now_s
        # Where this worker started the broker, its death is this worker's error.
        self._check_broker()
        self._metrics.assigned_partitions(self._agent, len(self._session.assigned))
        lags = self._session.lag()
        for topic, partition in self._lags - lags.keys():
            self._metrics.forget_partition(self._agent, topic, partition)
        for (topic, partition), records in lags.items():
            self._metrics.lag_records(self._agent, topic, partition, records)
        self._lags = set(lags)


def _spans(records: Sequence[Record]) -> str:
    """Where the records of a batch lie, for whoever must find the one that fails."""
    spans: dict[tuple[str, int], tuple[int, int]] = {}
    for record in records:
        first, _ = spans.get((record.topic, record.partition), (record.offset, 0))
        spans[record.topic, record.partition] = (first, record.offset)
    return ", ".join(
        f"{topic} partition {partition} offsets {first} to {last}"
        for (topic, partition), (first, last) in sorted(spans.items())
    )


def by_partition(records: Iterable[Record]) -> dict[int, list[Record]]:
    """Records by partition number, each in the order in which they were read."""
    parts: dict[int, list[Record]] = {}
    for record in records:
        parts.setdefault(record.partition, []).append(record)
    return parts


def merged(results: Iterable[Result]) -> Result:
    """One result of several partitions' results."""
    whole = Result()
    for result in results:
        whole.outputs += result.outputs
        whole.counts += result.counts
        whole.latencies_s += result.latencies_s
    return whole
