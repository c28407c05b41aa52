"""The score agent: profiled transactions and labels in, decisions and alerts out."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from agents.partitions import Environment, KernelPartitions, StateLocation, by_partition
from pipeline.decision.rule_caps import PartitionCaps
from pipeline.engine.encoding.blocks import KernelChanged, KernelMismatch, parse_block
from pipeline.engine.partition_state.state import LoadedState
from pipeline.engine.records.results import Result
from pipeline.engine.scores.decider import Decider
from pipeline.engine.scores.score import ScorePartition
from pipeline.features.known_sets import is_known
from pipeline.kafka.cluster.errors import ClusterUnreachable, FailedRequest, SessionError, TopicError
from schemas.messages import ProcessingConfig
from schemas.records import Record


class ScorePartitions(KernelPartitions[ScorePartition]):
    """The state of every partition that this worker holds, and the active models."""

    uses_store = False

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        settings = environment.settings
        all_features = settings.decision_features == "all"
        self._decider = Decider(settings.base_currency, settings.card_partitions, all_features=all_features)
        self._models = environment.models()
        self._others = None if settings.accept_other_kernel else environment.other_kernels()
        """Says which blocks of another kernel the card agent wrote; None: any such block is quarantined."""

    def new(self, partition: int, location: StateLocation, loaded: LoadedState | None) -> ScorePartition:
        """Make the state of one partition.

        Args:
            partition: Not used.
            location: Has the storage of its columns; its store is not used.
            loaded: State of a snapshot to start from; None: it begins from nothing.
        """
        del partition
        return ScorePartition(location.storage, loaded)

    def replay_into(self, state: ScorePartition, records: Sequence[Record], config: ProcessingConfig | None) -> None:
        """Let committed records enter the state; nothing is decided again."""
        del config  # What the state holds depends on no setting.
        state.replay(records)

    def state_beside(self, partition: int) -> Any:
        """Return what the caps on rules have counted in a partition."""
        return self._held[partition].caps.state

    def load_beside(self, partition: int, state: Any) -> None:
        """Go on counting from what is committed."""
        self._held[partition].caps = PartitionCaps(state)

    def ready(self) -> bool:
        """Take in new versions, between two batches; False while there is no champion."""
        return self._models.refresh().active is not None

    def process(self, records: Sequence[Record], now: datetime) -> Result:
        """Decide a batch."""
        active = self._models.model_set.active
        if active is None:
            raise RuntimeError("no LightGBM version is active")
        parts = by_partition(records)
        try:
            return self._decider.process([(self._held[number], part) for number, part in parts.items()], active, now)
        except KernelMismatch as error:
            # Of a larger batch a half is tried next.
            if len(records) == 1 and self._is_readable(records[0], error):
                return self.process(records, now)
            raise

    def _is_readable(self, record: Record, error: KernelMismatch) -> bool:
        """Return whether a block of another kernel is of a declaration that was published since.

        Raises:
            KernelChanged: It is of none, and the card agent wrote it.
        """
        state = self._held[record.partition]
        state.rollback()  # what the block itself has shown is no evidence
        try:
            self._environment.learn_declarations()
            if is_known(parse_block(record.value).kernel):
                return True
            was_written = self._others is not None and self._others.wrote(record, state.unseen)
        except (ClusterUnreachable, FailedRequest, TopicError) as failure:
            # No answer is no fault of the block.
            raise SessionError(f"{error}: whether the card agent wrote it cannot be seen: {failure}") from failure
        if was_written:
            raise KernelChanged(
                f"{error}: the card agent wrote it, and this release cannot compute the rest of its features. Nothing "
                f"of partition {record.partition} is decided by this worker: stop it, and let a score agent of the "
                "release that wrote it decide it (docs/operating.md, another kernel version)"
            ) from error
        return False

    def close(self) -> None:
        """Release the state."""
        super().close()
        self._models.close()
