"""The feedback agent: labels and decisions in, examples out."""

from collections.abc import Sequence
from datetime import datetime

from agents.partitions import STORE, Environment, KernelPartitions, StateLocation, by_partition
from pipeline.engine.feedback.feedback import FeedbackPartition
from pipeline.engine.partition_state.state import LoadedState
from pipeline.engine.records.results import Result, merged
from pipeline.settings.kernel_options import feedback_config
from pipeline.state.segments import FileSegments
from pipeline.state.store import RocksStore
from schemas.messages import FeedbackConfig, ProcessingConfig
from schemas.records import Record


class FeedbackPartitions(KernelPartitions[FeedbackPartition]):
    """The feedback kernel of every partition that this worker holds."""

    uses_storage = False

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.config = self._config = feedback_config(environment.settings)
        self._segments: dict[int, FileSegments] = {}

    def new(self, partition: int, location: StateLocation, loaded: LoadedState | None) -> FeedbackPartition:
        """Make the feedback kernel of one partition.

        Args:
            partition: Number of the partition.
            location: Where its state is; its segments of decisions come below the same directory.
            loaded: State of a snapshot to start from; None: it begins from nothing.
        """
        self._segments[partition] = segments = FileSegments(location.directory / "segments", location.directory / STORE)
        return FeedbackPartition(
            self._config, location.store, loaded, segments, self._environment.settings.topic_prefix
        )

    def forget(self, partition: int) -> None:
        """Drop a partition's state."""
        super().forget(partition)
        self._segments.pop(partition, None)

    def measured(self, partition: int, store: RocksStore) -> tuple[int, int]:
        """Add the decisions to the store's entries."""
        entries, size_bytes = super().measured(partition, store)
        segments = self._segments[partition]
        return entries + segments.rows(), size_bytes + segments.size_bytes()

    def replay_into(self, state: FeedbackPartition, records: Sequence[Record], config: ProcessingConfig | None) -> None:
        """Let committed records enter the state as they were processed; nothing is written."""
        state.process(records, None, config if isinstance(config, FeedbackConfig) else None)

    def process(self, records: Sequence[Record], now: datetime) -> Result:
        """Join a batch."""
        parts = by_partition(records)
        return merged(self._held[partition].process(part, now) for partition, part in parts.items())
