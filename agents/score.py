"""The score agent: profiled transactions and labels in, decisions and alerts out."""

from collections.abc import Sequence
from datetime import datetime
from typing import Self

from agents.partitions import Environment, KernelPartitions, StateLocation, WorkerResources, by_partition
from pipeline.engine.decider import Decider
from pipeline.engine.results import Result
from pipeline.engine.score import ScorePartition
from pipeline.engine.state import LoadedState
from pipeline.models.active import ModelSubscriber
from schemas.messages import ProcessingConfig
from schemas.records import Record


class ScorePartitions(KernelPartitions[ScorePartition]):
    """The state of every partition that this worker holds, and the active models."""

    uses_store = False

    def __init__(
        self,
        environment: Environment,
        decider: Decider,
        models: ModelSubscriber,
        *,
        accept_other_kernel: bool = False,
    ) -> None:
        super().__init__(environment)
        self._decider, self._models = decider, models
        self._accept_other_kernel = accept_other_kernel

    @classmethod
    def create(cls, environment: Environment, shared: WorkerResources) -> Self:
        """Return the partitions of a worker's score agent."""
        settings = environment.settings
        models = shared.models(environment.agent)
        all_features = settings.decision_features == "all"
        decider = Decider(settings.base_currency, settings.card_partitions, all_features=all_features)
        return cls(environment, decider, models, accept_other_kernel=settings.accept_other_kernel)

    def new(self, partition: int, location: StateLocation, loaded: LoadedState | None) -> ScorePartition:
        """The state of one partition."""
        del partition
        return ScorePartition(location.storage, loaded, accept_other_kernel=self._accept_other_kernel)

    def replay_into(self, state: ScorePartition, records: Sequence[Record], config: ProcessingConfig | None) -> None:
        """Let committed records enter the state; nothing is decided again."""
        del config  # What the state holds depends on no setting.
        state.replay(records)

    def ready(self) -> bool:
        """Take in new versions, between two batches; False while there is no champion."""
        return self._models.refresh().active is not None

    def process(self, records: Sequence[Record], now: datetime) -> Result:
        """Decide a batch."""
        active = self._models.model_set.active
        if active is None:
            raise RuntimeError("no LightGBM version is active")
        parts = by_partition(records)
        return self._decider.process([(self._held[number], part) for number, part in parts.items()], active, now)

    def close(self) -> None:
        """Release the state."""
        super().close()
        self._models.close()
