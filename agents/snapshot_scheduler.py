"""When the snapshots of an agent's partitions are taken, and by which thread they are written."""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pipeline.engine.partition_state.state import PartitionState, StateDump
from pipeline.kafka.session.session import Session
from pipeline.observability.metrics import WorkerMetrics
from pipeline.settings import Settings
from pipeline.state.errors import SnapshotError
from pipeline.state.manifest import SnapshotKey
from pipeline.state.snapshots import Snapshot, SnapshotRepository
from pipeline.state.store import RocksStore
from pipeline.state.writer import SnapshotWriter

log = logging.getLogger(__name__)

FIRST_S: Final = 8.0
"""Seconds within which a partition without a snapshot gets its first one, if the interval is not shorter."""
DUTY: Final = 10
"""A snapshot that took t to write is followed by no other of its partition for this many times t."""


class SnapshotScheduler:
    """Takes snapshots on the agent's thread and writes them on one of its own; used from the agent's thread.

    Args:
        repository: Where snapshots are.
        agent: Name of the agent.
        key: Key of its snapshots; that of each partition has its number.
        settings: Settings of the worker.
        metrics: Metrics of the worker.
    """

    def __init__(
        self, repository: SnapshotRepository, agent: str, key: SnapshotKey, settings: Settings, metrics: WorkerMetrics
    ) -> None:
        self._repository, self._agent, self._key = repository, agent, key
        self._settings, self._metrics = settings, metrics
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"snapshots-{agent}")
        self._writing: dict[int, Future[float | None]] = {}
        self._left: list[Future[float | None]] = []
        """Being written, of partitions that are held no more."""
        self._incomplete: set[int] = set()
        """Partitions whose changes were dumped, and not saved."""
        self._due_s: dict[int, float] = {}
        self._saved: dict[int, dict[str, int]] = {}
        self._writers: dict[int, SnapshotWriter] = {}

    def newest(
        self,
        partition: int,
        committed: Mapping[str, int],
        scratch: Path,
        logs: Mapping[str, range],
        waiting: Callable[[], None],
    ) -> Snapshot | None:
        """The newest snapshot that may be used.

        Args:
            partition: Number of the partition.
            committed: Committed offsets, by topic name without prefix; the snapshot does not lie behind them.
            scratch: Directory that the snapshot is fetched into; it is emptied first.
            logs: Offsets that the topics hold now, by topic name without prefix.
            waiting: Called while snapshots are read again after an error; may raise.

        Returns:
            The snapshot; None where there is none that can be used.
        """
        return self._repository.newest(self._key._replace(partition=partition), committed, scratch, logs, waiting)

    def begin(self, partition: int, base: Snapshot | None) -> None:
        """The partition's state begins from ``base``, or from nothing."""
        self._writers[partition] = self._repository.writer(self._key._replace(partition=partition), base)
        if base is not None:
            self._saved[partition] = dict(base.manifest.positions)

    def held(self, partition: int) -> None:
        """The partition's state is complete from now on."""
        interval_s = self._settings.snapshot_interval_s
        if partition not in self._saved:
            # Its next holder would replay the whole log again.
            interval_s = min(interval_s, FIRST_S)
        # Spread over the interval, so that partitions that came together are not saved together.
        spread = (partition % 8 + 1) / 8
        self._due_s[partition] = time.monotonic() + spread * interval_s

    def forget(self, partition: int) -> None:
        """The partition is held no more; a snapshot that is being written is still completed."""
        if (writing := self._writing.pop(partition, None)) is not None:
            self._left.append(writing)
        self._incomplete.discard(partition)
        for known in (self._due_s, self._saved, self._writers):
            known.pop(partition, None)

    def save(self, held: Mapping[int, PartitionState], session: Session, *, at_end: bool = False) -> None:
        """Take one snapshot that is due, or at the end all that can be written in time.

        Args:
            held: State of each partition that the agent holds, by number.
            session: Has the positions of the states.
            at_end: The worker ends: write all that a third of ``settings.shutdown_timeout_s`` allows. None may be saved
                after that.
        """
        self._collect()
        now_s = time.monotonic()
        if not at_end:
            due = [number for number, due_s in self._due_s.items() if due_s <= now_s and number in held]
            if due and not self._writing:
                self._take(min(due, key=self._due_s.__getitem__), held, session)
            return
        deadline_s = now_s + self._settings.shutdown_timeout_s / 3
        for number in sorted(self._due_s):
            if number in held and time.monotonic() < deadline_s:
                if (before := self._writing.get(number)) is not None:
                    wait_for([before], max(0.0, deadline_s - time.monotonic()))
                    self._collect()
                if number not in self._writing:
                    self._take(number, held, session)
        wait_for(self._writing.values(), max(0.0, deadline_s - time.monotonic()))
        self._collect()
        if self._writing:
            log.warning(
                "%s: no time was left to write %d snapshots; a replay makes up for them",
                self._agent,
                len(self._writing),
            )
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _take(self, number: int, held: Mapping[int, PartitionState], session: Session) -> None:
        positions = {
            topic.removeprefix(self._settings.topic_prefix): offset
            for (topic, partition), offset in session.committed.items()
            if partition == number
        }
        self._due_s[number] = time.monotonic() + self._settings.snapshot_interval_s
        if not positions or positions == self._saved.get(number):
            return
        started_s = time.monotonic()
        try:
            dump = held[number].dump(full=self._writers[number].needs_full or number in self._incomplete)
        except SnapshotError as error:
            self._incomplete.add(number)
            self._failed(number, error)
            return
        self._incomplete.discard(number)
        self._metrics.observe("stage_seconds", time.monotonic() - started_s, self._agent, "snapshot")
        self._writing[number] = self._thread.submit(
            self._write, number, self._writers[number], positions, session.progress[number], dump
        )
        self._saved[number] = positions

    def _write(
        self, number: int, writer: SnapshotWriter, positions: dict[str, int], progress: int, dump: StateDump
    ) -> float | None:
        """On the writer's thread; returns the seconds that it took, None where it could not be done."""
        started_s, taken_at_s = time.monotonic(), datetime.now(UTC).timestamp()
        try:
            written = writer.write(positions, progress, dump)
        except SnapshotError as error:
            self._failed(number, error)
            return None
        finally:
            if dump.store is not None:
                RocksStore.release(dump.store)
        seconds = time.monotonic() - started_s
        self._metrics.snapshot_written(
            self._agent, number, size_bytes=written.size_bytes, seconds=seconds, taken_at_s=taken_at_s
        )
        return seconds

    def _collect(self) -> None:
        """Look at what the writer has done; raises what nobody expected of it."""
        for future in [future for future in self._left if future.done()]:
            self._left.remove(future)
            future.result()
        for number, future in list(self._writing.items()):
            if not future.done():
                continue
            del self._writing[number]
            seconds = future.result()
            if seconds is None:
                self._saved.pop(number, None)
                continue
            self._due_s[number] = time.monotonic() + max(self._settings.snapshot_interval_s, DUTY * seconds)

    def _failed(self, number: int, error: SnapshotError) -> None:
        """Log and count it, from either thread: a snapshot only shortens a replay; the next is tried in its time."""
        log.error("%s: partition %d: no snapshot: %s", self._agent, number, error)
        self._metrics.count("snapshots_failed", self._agent)
