"""The partitions of one agent: made from a snapshot or from nothing, replayed, committed, rolled back, and saved."""

import logging
import shutil
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Generic, Literal, NamedTuple, TypeVar

from agents.loop import Partitions
from agents.snapshot_scheduler import SnapshotScheduler
from pipeline.engine.partition_state.state import LoadedState, MemoryStore, PartitionState, Store
from pipeline.features.state_columns import MemoryStorage, Storage
from pipeline.kafka.checks.kernel_versions import OtherKernels
from pipeline.kafka.session.quarantine import Quarantines
from pipeline.kafka.session.session import Session
from pipeline.kafka.session.state_handler import Restored
from pipeline.models.active import ModelSubscriber
from pipeline.models.published_files import PublishedFiles
from pipeline.observability.health import Health
from pipeline.observability.metrics import WorkerMetrics
from pipeline.settings import Settings
from pipeline.state.errors import check_present
from pipeline.state.mapped import MappedStorage
from pipeline.state.snapshots import Snapshot
from pipeline.state.store import RocksStore, StoreMemory
from schemas.mapping import FieldMapping
from schemas.messages import ProcessingConfig
from schemas.money import RateTable
from schemas.records import Record

log = logging.getLogger(__name__)

P = TypeVar("P", bound=PartitionState)
MEASURE_INTERVAL_S: Final = 15.0
STORE: Final = "store"
"""The store's directory in that of a partition; what a snapshot has of files is there when a kernel is made."""
CHECK_INTERVAL_S: Final = 1.0
"""Seconds between looks whether the files of the state are still there."""


class StateLocation(NamedTuple):
    """The location of one partition's state while it is held."""

    storage: Storage
    store: Store
    directory: Path


@dataclass(slots=True)
class Environment:
    """The parts of a worker that an agent's partitions need."""

    agent: str
    settings: Settings
    directory: Path
    """For state that may outgrow memory; a cache, emptied when a partition comes and when it goes."""
    store_memory: StoreMemory
    quarantines: Quarantines
    snapshots: SnapshotScheduler | None
    """None: no snapshots are kept."""
    metrics: WorkerMetrics
    health: Health
    rates: RateTable
    mapping: FieldMapping | None
    published_files: PublishedFiles
    models: Callable[[], ModelSubscriber]
    """Makes the agent's subscriber."""
    other_kernels: Callable[[], OtherKernels]
    """Makes what tells which blocks of another kernel are the card agent's."""
    learn_declarations: Callable[[], None] = lambda: None
    """Learns the declarations of features that were published before the call."""


@dataclass(slots=True)
class _Restoring:
    started_s: float = field(default_factory=time.monotonic)
    source: Literal["snapshot", "log"] = "log"
    taken_at_s: float | None = None


class KernelPartitions(Partitions, Generic[P]):
    """Holds the kernel of every partition that this worker has of an agent."""

    uses_store = True
    uses_storage = True
    config: ProcessingConfig | None = None
    """The processing config of batches, where settings decide anything about them."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._held: dict[int, P] = {}
        self._stores: dict[int, RocksStore] = {}
        self._directories: dict[int, Path] = {}
        self._checked_s = 0.0
        self._measured_s = 0.0
        self._restoring: dict[int, _Restoring] = {}
        self._restores = 0
        # What an earlier process left there may not have been committed.
        shutil.rmtree(environment.directory, ignore_errors=True)

    @abstractmethod
    def new(self, partition: int, location: StateLocation, loaded: LoadedState | None) -> P:
        """Make the kernel of one partition.

        Args:
            partition: Number of the partition.
            location: Where its state is.
            loaded: State of a snapshot to start from; None: it begins from nothing.
        """

    @abstractmethod
    def replay_into(self, state: P, records: Sequence[Record], config: ProcessingConfig | None) -> None:
        """Let one batch of committed records enter ``state``, processed under ``config``; nothing is written."""

    def assigning(self, waiting: Callable[[], None]) -> None:
        """Read what was quarantined, by whoever held the partitions before."""
        self._environment.quarantines.refresh(waiting)

    def restore(
        self, partition: int, committed: Mapping[str, int], logs: Mapping[str, range], waiting: Callable[[], None]
    ) -> Restored | None:
        """Start from the newest snapshot that may be used, else from nothing.

        Args:
            partition: Number of the partition; a state of it that is held is dropped.
            committed: Committed offsets by full topic name; a snapshot must not lie behind them.
            logs: Offsets that the topics hold now, by full name.
            waiting: Called while snapshots are read again after an error; may raise.

        Returns:
            The position of the snapshot; None where the state begins from nothing.
        """
        environment = self._environment
        environment.health.state(environment.agent, "restoring")
        self.forget(partition)
        self._restoring[partition] = restoring = _Restoring()
        # A directory of its own each time: the last one's frozen files may still be on their way into a snapshot.
        self._restores += 1
        directory = environment.directory / f"{partition}-{self._restores}"
        directory.mkdir(parents=True)
        self._directories[partition] = directory
        prefix = environment.settings.topic_prefix
        found = None
        if environment.snapshots is not None:
            by_name = {topic.removeprefix(prefix): offset for topic, offset in committed.items()}
            ranges = {topic.removeprefix(prefix): offsets for topic, offsets in logs.items()}
            found = environment.snapshots.newest(partition, by_name, directory / "fetched", ranges, waiting)
            environment.snapshots.begin(partition, found)
        storage = MappedStorage(directory / "columns") if self.uses_storage else MemoryStorage()
        location = StateLocation(storage, self._store(directory, found), directory)
        if isinstance(location.store, RocksStore):
            self._stores[partition] = location.store
        self._held[partition] = self.new(partition, location, found.state if found is not None else None)
        if found is None:
            return None
        found.close()
        restoring.source, restoring.taken_at_s = "snapshot", found.manifest.created_at.timestamp()
        positions = {prefix + topic: offset for topic, offset in found.manifest.positions.items()}
        return Restored(positions, found.manifest.progress)

    def replay(self, partition: int, records: Sequence[Record], config: ProcessingConfig | None) -> None:
        """Replay one batch; a batch of quarantined records alone never was one.

        Args:
            partition: Number of the partition.
            records: The batch; quarantined records are left out.
            config: The processing config of the batch; None: it was not recorded, and the active one must do.
        """
        self._environment.health.working(self._environment.agent)
        if left := self._environment.quarantines.without(records):
            state = self._held[partition]
            self.replay_into(state, left, config)
            state.commit()

    def restored(self, partition: int, records: int) -> None:
        """Report how the restore went."""
        restoring = self._restoring.pop(partition)
        seconds = time.monotonic() - restoring.started_s
        environment = self._environment
        environment.metrics.state_restored(
            environment.agent,
            partition,
            source=restoring.source,
            seconds=seconds,
            records=records,
            snapshot_at_s=restoring.taken_at_s,
        )
        log.info(
            "%s: partition %d: state restored in %.1f s from %s and %d records",
            environment.agent, partition, seconds,
            "a snapshot" if restoring.source == "snapshot" else "the log alone", records,
        )  # fmt: skip
        if environment.snapshots is not None:
            environment.snapshots.held(partition)

    def forget(self, partition: int) -> None:
        """Drop a partition's state and what it is kept in."""
        state = self._held.pop(partition, None)
        self._stores.pop(partition, None)
        self._directories.pop(partition, None)
        if state is not None:
            state.close()
        if self._environment.snapshots is not None:
            self._environment.snapshots.forget(partition)
        self._environment.metrics.forget_state(self._environment.agent, partition)

    def digest(self, partition: int) -> str:
        """Return the digest of the committed state of a partition that is held."""
        return self._held[partition].digest()

    def commit(self, partitions: Collection[int]) -> None:
        """Their last batch is committed."""
        for partition in partitions:
            if (state := self._held.get(partition)) is not None:
                state.commit()

    def rollback(self, partitions: Collection[int]) -> None:
        """Take their last batch back."""
        for partition in partitions:
            if (state := self._held.get(partition)) is not None:
                state.rollback()

    def save(self, session: Session, *, at_end: bool = False) -> None:
        """Keep what is due, one partition a call, or all that changed at the end, as far as time allows.

        Raises:
            StateRemoved: The files of a partition are gone.
        """
        now_s = time.monotonic()
        if at_end or now_s - self._checked_s > CHECK_INTERVAL_S:
            self._checked_s = now_s
            for directory in self._directories.values():
                check_present(directory)
        if (snapshots := self._environment.snapshots) is not None:
            snapshots.save(self._held, session, at_end=at_end)
        if not at_end and time.monotonic() - self._measured_s > MEASURE_INTERVAL_S:
            self._measured_s = time.monotonic()
            for partition, store in self._stores.items():
                entries, size_bytes = self.measured(partition, store)
                self._environment.metrics.show("store_entries", entries, self._environment.agent, partition)
                self._environment.metrics.show("store_bytes", size_bytes, self._environment.agent, partition)

    def measured(self, partition: int, store: RocksStore) -> tuple[int, int]:
        """Return how many entries a partition has on disk, and in how many bytes."""
        del partition
        return store.entries(), store.size_bytes()

    def close(self) -> None:
        """Release the state."""
        for partition in list(self._held):
            self.forget(partition)

    def _store(self, directory: Path, found: Snapshot | None) -> Store:
        if not self.uses_store:
            return MemoryStore()
        memory = self._environment.store_memory
        return RocksStore(directory / STORE, memory=memory, frozen=None if found is None else found.store)


def by_partition(records: Iterable[Record]) -> dict[int, list[Record]]:
    """Return records by partition number, each in the order in which they were read."""
    parts: dict[int, list[Record]] = {}
    for record in records:
        parts.setdefault(record.partition, []).append(record)
    return parts
