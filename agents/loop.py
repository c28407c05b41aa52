"""The loop of every agent: poll, process, commit."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from agents.counts import Counts
from agents.failures import NOT_THE_RECORD, Failures, Process, spans
from agents.topology import AgentSpec
from pipeline.engine.encoding.blocks import KernelChanged
from pipeline.engine.records.results import Result
from pipeline.kafka.cluster.clients import LATE_FETCH_MS, GroupProtocol
from pipeline.kafka.cluster.errors import Aborted, OutputTooLarge
from pipeline.kafka.records.batch import Batch, Partition
from pipeline.kafka.session.quarantine import Quarantines
from pipeline.kafka.session.session import Session
from pipeline.kafka.session.state_handler import StateHandler
from pipeline.observability.health import Health
from pipeline.observability.metrics import WorkerMetrics
from pipeline.settings import Settings
from schemas.records import Record

log = logging.getLogger(__name__)

POLL_TIMEOUT_S = 0.1
LATE_POLL_S: Final = 0.25
"""Time for which an agent that no alert waits for looks for records: each look costs as much as a small batch."""
TURN_S: Final = 1.0
"""Time for which batches follow each other without the event loop: each hand-over costs as much as a small batch."""


class Partitions(StateHandler, Protocol):
    """An agent's state by partition, and its one core call."""

    def ready(self) -> bool:
        """Called before every batch: take in new model versions; False while none can be used."""
        return True

    def on_hold(self) -> bool:
        """Return whether the agent must not work: it then stays in its group and reads nothing."""
        return False

    def process(self, records: Sequence[Record], now: datetime) -> Result:
        """Work on a batch of any of the partitions held.

        Raises:
            KernelChanged: Another release must process the only record; its partition waits for that.
        """

    def due(self) -> bool:
        """True if ``process`` has something to write without new records."""
        return False

    def save(self, session: Session, *, at_end: bool = False) -> None:
        """Save the committed state of partitions whose turn it is, or of all ``at_end``."""

    def digest(self, partition: int) -> str:
        """The digest of the committed state of a partition held (`PartitionState.digest`)."""

    def close(self) -> None:
        """Release what the state holds."""


class AgentLoop:
    """Reads batches for one agent, processes them, and commits the results; used from the agent's own thread.

    Each batch becomes one commit: outputs and input offsets together. A batch that fails is halved down to the record
    that it fails for, which `Failures` retries and then quarantines.
    """

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
        self._full_batch = settings.batch_max_records
        self._failures = Failures(spec.name, settings, quarantines, health)
        self._counts = Counts(spec.name, metrics)
        self._poll_timeout_s = POLL_TIMEOUT_S if spec.latency_critical else LATE_POLL_S
        self._interval_s = 0.0 if spec.latency_critical else settings.feedback_interval_s
        self._session = Session(
            bootstrap,
            settings,
            spec.name,
            spec.reads,
            partitions,
            waiting=lambda: health.working(spec.name),
            renewed=lambda: metrics.count("producers_renewed", spec.name),
            on_refused=metrics.records_refused,
            group_protocol=group_protocol,
            late_ms=min(round(self._interval_s * 1_000), LATE_FETCH_MS),
            producers=spec.producers,
        )
        self._check_broker = check_broker
        self._joined = False
        self._stopping = False
        self._whole = self._survives = True
        self._rested_s = 0.0

    def turn(self, batch: Batch) -> None:
        """Work on a batch, and on those that follow it until the turn of `TURN_S` is over or none is there."""
        ends_s = time.monotonic() + TURN_S
        following: Batch | None = batch
        while following is not None:
            self.work(following)
            if self._stopping or time.monotonic() >= ends_s:
                return
            following = self.poll()

    def poll(self) -> Batch | None:
        """Return the next batch, None where none is there yet; joins the group once the agent is ready to work."""
        self._health.working(self._agent)
        if not self._partitions.ready():
            self._health.state(self._agent, "waiting for a model")
            time.sleep(POLL_TIMEOUT_S)  # on the agent's own thread; readiness comes from a topic read without waiting
            return None
        if not self._joined:
            self._session.start()
            self._joined = True
            log.info("%s: joined", self._agent)
        on_hold = self._partitions.on_hold()
        with self._metrics.stage(self._agent, "poll"):
            if not on_hold:
                self._session.rest(self._rested_s)
            batch = (self._session.hold if on_hold else self._session.poll)(self._poll_timeout_s)
        if batch is not None and len(batch.records) < self._full_batch:
            self._rested_s = time.monotonic() + self._interval_s
        self._health.state(self._agent, "running")
        if self._counts.lag(self._session):
            # Where this worker started the broker, its death is this worker's error.
            self._check_broker()
        self._partitions.save(self._session)
        if batch is None and not on_hold and self._partitions.due():
            return self._session.empty_batch()
        return batch

    def work(self, batch: Batch) -> None:
        """Process and commit a batch; one whose transaction was aborted is read again."""
        try:
            self._work(batch)
        except Aborted as reason:
            log.warning("%s: %d records will be processed again: %s", self._agent, len(batch.records), reason)
            self._metrics.count("transactions_aborted", self._agent)
        except BaseException as error:
            # The state may hold a part of the batch: it must not be kept.
            self._whole = False
            # A record that takes all memory may end the process in this way too.
            self._survives = not isinstance(error, MemoryError)
            raise

    def _work(self, batch: Batch) -> None:
        self._health.working(self._agent)
        if (quarantined := self._failures.unprocessed(batch)) is not None:
            self._commit(*quarantined)
            return
        try:
            with self._metrics.stage(self._agent, "process"):
                result = self._partitions.process(batch.records, datetime.now(UTC))
        except KernelChanged as error:
            log.critical("%s: %s", self._agent, error)
            self._session.halt(batch)
            raise Aborted(str(error)) from error
        except NOT_THE_RECORD as error:
            error.add_note(f"agent {self._agent}: nothing is committed of its batch, {spans(batch.records)}")
            raise
        except Exception as error:
            self._partitions.rollback(batch.partitions)
            self._narrow(batch, error)
            return
        try:
            self._commit(batch, result)
        except OutputTooLarge as error:
            self._narrow(batch, error)

    def _commit(self, batch: Batch, result: Result) -> None:
        with self._metrics.stage(self._agent, "commit"):
            self._session.commit(batch, result.outputs)
        self._counts.batch(batch, result)

    def _narrow(self, batch: Batch, error: Exception) -> None:
        """Work on the halves of a batch that failed and was rolled back, or quarantine its one record.

        Raises:
            Aborted: Nothing is committed from some record on; reading goes back to it.
        """
        if not batch.records:
            raise error
        if len(batch.records) == 1:
            try:
                quarantined = self._failures.failed(batch, error, Process(self._kept, self._tried))
            except Aborted:
                self._session.rewind(batch)
                raise
            self._commit(*quarantined)
            return
        first, second = batch.halves()
        try:
            self._work(first)
        except Aborted:
            self._session.rewind(second)
            raise
        self._work(second)

    def _kept(self, record: Record) -> Result:
        return self._partitions.process([record], datetime.now(UTC))

    def _tried(self, record: Record) -> Exception | None:
        try:
            self._kept(record)
        except NOT_THE_RECORD:
            raise
        except Exception as error:
            return error
        finally:
            self._partitions.rollback({record.partition})
        return None

    def positions(self) -> Mapping[Partition, int]:
        """Return the offset behind the last committed record of each partition held; for any thread."""
        return self._session.committed

    @property
    def member_id(self) -> str:
        """The id of this process's member of the agent's group."""
        return self._session.member_id

    def stop(self) -> None:
        """End the turn after this batch, and let a commit that the broker does not answer fail; for any thread."""
        self._stopping = True
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
