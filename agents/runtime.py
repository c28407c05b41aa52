"""What all agents share: the source behind their channel, one unit of work, and what of it is counted."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Final, Protocol

from agents.channel import BatchSource
from agents.topology import AgentSpec
from pipeline.engine.results import Result
from pipeline.engine.score import KernelChanged
from pipeline.engine.state import StoreError
from pipeline.health import Health
from pipeline.kafka.batch import Batch, Place, UnreadableRange
from pipeline.kafka.clients import GroupProtocol
from pipeline.kafka.handler import PartitionHandler
from pipeline.kafka.quarantine import THE_RECORDS_OWN, ProcessDied, Quarantines
from pipeline.kafka.session import Session
from pipeline.kafka.transactions import Aborted, OutputTooLarge, SessionError
from pipeline.metrics import WorkerMetrics
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings
from schemas.records import Record

log = logging.getLogger(__name__)

POLL_TIMEOUT_S = 0.1
LAG_INTERVAL_S = 1.0
RETRY_PAUSE_S: Final = 0.5
NOT_THE_RECORD: Final = (KernelChanged, ModelError, StoreError, OSError, MemoryError, SessionError)
"""Errors that no record is to blame for: quarantining records would lose all of them, one by one."""


class TooManyFailures(RuntimeError):
    """So many records failed that the fault must lie elsewhere; the text says what to do."""


class Partitions(PartitionHandler, Protocol):
    """An agent's state by partition, and its one core call."""

    def ready(self) -> bool:
        """Called before every batch: take in new model versions; False while none can be used."""

    def process(self, records: Sequence[Record], now: datetime) -> Result:
        """Work on a batch of any of the partitions held."""

    def due(self) -> bool:
        """Whether ``process`` has something to write without new records."""

    def save(self, session: Session, *, at_end: bool = False) -> None:
        """Keep the settled state of partitions whose turn it is, or of all ``at_end``."""

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
        health: Health,
        partitions: Partitions,
        quarantines: Quarantines,
        check_broker: Callable[[], None],
        group_protocol: GroupProtocol = "consumer",
    ) -> None:
        self._agent, self._metrics, self._health, self._partitions = spec.name, metrics, health, partitions
        self._settings, self._quarantines = settings, quarantines
        self._session = Session(
            bootstrap,
            settings,
            spec.name,
            spec.reads,
            partitions,
            waiting=lambda: health.working(spec.name),
            renewed=lambda: metrics.producer_renewed(spec.name),
            on_refused=metrics.records_refused,
            group_protocol=group_protocol,
        )
        self._check_broker = check_broker
        self._joined = False
        self._whole = self._survives = True
        self._lag_told_s = 0.0
        self._lags: set[tuple[str, int]] = set()
        self._failures: Counter[tuple[str, int, int]] = Counter()
        self._interval_s = 0.0 if spec.pressing else settings.feedback_interval_s
        self._rested_s = 0.0

    def poll(self) -> Batch | None:
        """The next batch; joins the group once the agent is ready to work."""
        self._health.working(self._agent)
        if not self._partitions.ready():
            self._health.state(self._agent, "waiting for a model")
            time.sleep(POLL_TIMEOUT_S)  # on the agent's own thread; readiness comes from a topic read without waiting
            return None
        if not self._joined:
            self._session.start()
            self._joined = True
            log.info("%s: joined", self._agent)
        with self._metrics.stage(self._agent, "poll"):
            self._session.rest(self._rested_s)
            batch = self._session.poll(POLL_TIMEOUT_S)
        if batch is not None and len(batch.records) < self._settings.batch_max_records:
            self._rested_s = time.monotonic() + self._interval_s
        self._health.state(self._agent, "running")
        self._look_around()
        self._partitions.save(self._session)
        if batch is None and self._partitions.due():
            return self._session.empty_batch()
        return batch

    def work(self, batch: Batch) -> None:
        """One batch: the core call, then outputs and offsets in one commit."""
        try:
            self._work(batch)
        except Aborted as reason:
            log.warning("%s: %d records will be processed again: %s", self._agent, len(batch.records), reason)
            self._metrics.transaction_aborted(self._agent)
        except BaseException as error:
            # The state may hold a part of the batch: it must not be kept.
            self._whole = False
            # A record that takes all memory may end the process in this way too.
            self._survives = not isinstance(error, MemoryError)
            raise

    def positions(self) -> Mapping[Place, int]:
        """Return the offset behind the last committed record of each partition held; for any thread."""
        return self._session.settled

    def stop(self) -> None:
        """Let a commit that the broker does not answer fail, instead of being tried again."""
        self._session.stop()

    def close(self) -> None:
        """Keep the state, leave the group and release the state."""
        self._health.state(self._agent, "stopping")
        try:
            if self._whole:
                self._partitions.save(self._session, at_end=True)
        finally:
            try:
                self._session.close(release=self._survives)
            finally:
                self._partitions.close()

    def _work(self, batch: Batch) -> None:
        """Process and commit; what fails is narrowed down to the record that it fails for.

        Raises ``Aborted`` where nothing from some record on is committed: the caller reads those again.
        """
        self._health.working(self._agent)
        if batch.deaths >= self._settings.set_aside_after:
            died = f"{batch.deaths} processes died while they worked on this record alone"
            self._quarantine(batch, ProcessDied(died))
            return
        if batch.unreadable is not None:
            self._pass_over(batch, batch.unreadable)
            return
        try:
            with self._metrics.stage(self._agent, "process"):
                result = self._partitions.process(batch.records, datetime.now(UTC))
        except NOT_THE_RECORD as error:
            error.add_note(f"agent {self._agent}: nothing is committed of its batch, {_spans(batch.records)}")
            raise
        except Exception as error:
            self._partitions.undo(batch.partitions)
            self._narrow(batch, error)
            return
        try:
            self._commit(batch, result)
        except OutputTooLarge as error:
            self._narrow(batch, error)

    def _narrow(self, batch: Batch, error: Exception) -> None:
        """A batch failed and was taken back: work on its halves, or count the failure of its one record."""
        if not batch.records:
            raise error
        if len(batch.records) == 1:
            self._fail(batch, error)
            return
        first, second = batch.halves()
        try:
            self._work(first)
        except Aborted:
            self._session.rewind(second)
            raise
        self._work(second)

    def _commit(self, batch: Batch, result: Result) -> None:
        with self._metrics.stage(self._agent, "commit"):
            self._session.commit(batch, result.outputs)
        self._count(batch, result)

    def _fail(self, batch: Batch, error: Exception) -> None:
        """Retry a record that fails; quarantine it after as many failures as the settings say."""
        (record,) = batch.records
        place = (record.topic, record.partition, record.offset)
        self._failures[place] += 1
        times, most = self._failures[place], self._settings.set_aside_after
        log.critical(
            "%s: %s partition %d offset %d fails (%d of %d times); nothing of it is committed",
            self._agent, *place, times, most, exc_info=error,
        )  # fmt: skip
        if times < most:
            self._session.rewind(batch)
            time.sleep(RETRY_PAUSE_S)  # on the agent's own thread, which has nothing else to do
            raise Aborted(f"{record.topic} partition {record.partition} offset {record.offset} fails: {error}")
        self._quarantine(batch, error)
        del self._failures[place]

    def _quarantine(self, batch: Batch, error: Exception) -> None:
        """Quarantine the one record of a batch, which ``error`` is for; raise where too many were before."""
        (record,) = batch.records
        now = datetime.now(UTC)
        self._check_limit(now, record, error)
        log.error(
            "%s: %s partition %d offset %d is quarantined: %s",
            self._agent, record.topic, record.partition, record.offset, error,
        )  # fmt: skip
        whole = replace(batch, quarantined=[self._quarantines.position(record)])
        self._commit(whole, self._quarantines.outputs(record, error, now))

    def _pass_over(self, batch: Batch, unreadable: UnreadableRange) -> None:
        """Quarantine offsets that cannot be read, and commit the offset behind them."""
        now = datetime.now(UTC)
        topic, number = unreadable.place
        log.error(
            "%s: %s partition %d offsets %d to %d cannot be read and are quarantined: %s",
            self._agent, topic, number, unreadable.start, unreadable.end - 1, unreadable.message,
        )  # fmt: skip
        whole = replace(batch, quarantined=[self._quarantines.range_position(unreadable)])
        self._commit(whole, self._quarantines.range_outputs(unreadable, now))

    def _check_limit(self, now: datetime, record: Record, error: Exception) -> None:
        """Raise `TooManyFailures` where so many records failed today that the fault may be the program's.

        What a producer can bring about at will (a range that cannot be read, an output too large) does not count.
        """
        if isinstance(error, THE_RECORDS_OWN):
            return
        self._quarantines.refresh(lambda: self._health.working(self._agent))
        quarantined = self._quarantines.within_a_day(now)
        if quarantined >= self._settings.set_aside_limit:
            raise TooManyFailures(
                f"agent {self._agent}: {quarantined} records were quarantined within a day, by this worker or others, "
                f"and {record.topic} partition {record.partition} offset {record.offset} fails too: the fault is "
                "hardly theirs. Read the errors above; FRAUD_PIPELINE_SET_ASIDE_LIMIT raises the limit"
            ) from error

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
        for topic, count in by_kind.get("rerouted", {}).items():
            metrics.rerouted(topic, count)
        for topic, count in by_kind.get("set_aside", {}).items():
            metrics.set_aside(agent, topic, count)
        if duplicates := by_kind.get("duplicate"):
            (metrics.duplicates if agent == "card" else partial(metrics.repeats, agent))(sum(duplicates.values()))
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
