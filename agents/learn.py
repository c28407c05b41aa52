"""The learn agent: examples in, versions of the online model out."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Self

from agents.online import OnlineModels
from agents.partitions import Environment, Shared
from agents.topology import LEARN
from pipeline.engine.learn import LearnPartition, model_record
from pipeline.engine.results import Result
from pipeline.kafka.handler import Restored
from pipeline.kafka.session import Session
from pipeline.models.active import ModelSubscriber
from pipeline.scoring.river_model import RiverLearner, RiverModel
from pipeline.settings import Settings
from schemas.messages import Rules
from schemas.money import RateTable
from schemas.records import Output, Record

NewLearner = Callable[[str, RiverModel | None, int], RiverLearner]
"""From the LightGBM version to stand on, the published model to go on from, and the first example, to a learner."""
KeepState = Callable[[RiverModel], None]
"""Puts where every worker finds it what a version's record only names."""


class LearnPartitions:
    """The learner (``examples`` is one log, so there is one) and when it publishes."""

    rules: Rules | None = None

    def __init__(
        self,
        environment: Environment,
        new_learner: NewLearner,
        keep_state: KeepState,
        models: ModelSubscriber,
        publish_interval_s: float,
    ) -> None:
        self._environment = environment
        self._started_s = 0.0
        self._new_learner, self._keep_state = new_learner, keep_state
        self._models, self._interval_s = models, publish_interval_s
        self._lightgbm = ""
        self._held: LearnPartition | None = None
        self._published_s = 0.0

    @classmethod
    def prepare(cls, settings: Settings, rates: RateTable) -> None:
        """Load nothing."""

    @classmethod
    def create(cls, environment: Environment, shared: Shared) -> Self:
        """Return the learner of a worker's learn agent."""
        online, models = OnlineModels(environment.settings), shared.models(environment.agent)
        interval_s = environment.settings.river_publish_interval_s
        return cls(environment, online.learner, online.keep, models, interval_s)

    def assigning(self, waiting: Callable[[], None]) -> None:
        """Read what whoever held the partition before has quarantined and published."""
        self._environment.quarantines.refresh(waiting)
        self._models.catch_up(waiting)

    def restore(
        self, partition: int, committed: Mapping[str, int], logs: Mapping[str, range], waiting: Callable[[], None]
    ) -> Restored:
        """Start from the published version: the fold is of the committed examples that it does not have."""
        del partition, logs, waiting
        self._held = None
        self._started_s = time.monotonic()
        self._environment.health.state(LEARN.name, "restoring")
        held = self._of()
        return Restored(dict.fromkeys(committed, held.next_offset), 0)

    def fold(self, partition: int, records: Sequence[Record], rules: Rules | None) -> None:
        """Learn one batch, silently."""
        del partition, rules
        self._environment.health.working(LEARN.name)
        held = self._of()
        held.learn(self._environment.quarantines.without(records))
        held.settle()

    def restored(self, partition: int, records: int) -> None:
        """Tell how the restore went."""
        self._environment.metrics.state_restored(
            LEARN.name, partition, source="log", seconds=time.monotonic() - self._started_s, records=records
        )

    def digest(self, partition: int) -> str:
        """Return the digest of the learner's settled state."""
        del partition
        return self._of().digest()

    def settle(self, partitions: Collection[int]) -> None:
        """The last batch is committed, one of no records included."""
        del partitions
        if self._held is not None:
            self._held.settle()

    def undo(self, partitions: Collection[int]) -> None:
        """Take the last batch back, one of no records included."""
        del partitions
        if self._held is not None:
            self._held.undo()

    def save(self, session: Session, *, at_end: bool = False) -> None:
        """Nothing: the published versions are the snapshots."""

    def forget(self, partition: int) -> None:
        """Drop the learner."""
        self._held = None
        self._environment.metrics.forget_state(LEARN.name, partition)

    def ready(self) -> bool:
        """Take in a new LightGBM version: learning starts anew on it. False while there is none."""
        active = self._models.refresh().active
        if active is None:
            return False
        if self._held is not None and active.lightgbm.version != self._lightgbm:
            self._held = self._on_new_base(self._held.next_offset)
        return True

    def due(self) -> bool:
        """Whether a version waits to be published, and long enough after the last one."""
        return (
            self._held is not None
            and self._held.unpublished
            and time.monotonic() - self._published_s >= self._interval_s
        )

    def process(self, records: Sequence[Record], now: datetime) -> Result:
        """Learn a batch."""
        held = self._of()
        # Whoever takes over must go on with this layer, or begin one at the first example.
        first = [self._publish(held, now)] if held.untold else []
        result = held.learn(records)
        result.outputs += first
        if self.due():
            result.outputs.append(self._publish(held, now))
        return result

    def _publish(self, held: LearnPartition, now: datetime) -> Output:
        model = held.publish()
        self._keep_state(model)
        self._published_s = time.monotonic()
        return model_record("river", model.version, model.to_payload(), now)

    def close(self) -> None:
        """Release the state."""
        self._models.close()

    def _of(self) -> LearnPartition:
        if self._held is None:
            river = self._published_on_base()
            # What was committed is folded up from there, so that lessons of before this version are not lost.
            self._held = self._going_on(river) if river is not None else self._fresh(0)
        return self._held

    def _on_new_base(self, next_offset: int) -> LearnPartition:
        """The layer on a LightGBM version that came while this worker learned, up to the example ``next_offset``."""
        river = self._published_on_base()
        # One that stands elsewhere cannot be gone on from here: examples would be missing between the two.
        if river is not None and _offset(river) == next_offset:
            return self._going_on(river)
        return self._fresh(next_offset)

    def _published_on_base(self) -> RiverModel | None:
        """The published layer on the LightGBM version in force, which is remembered."""
        board = self._models.board
        if board.active is None:
            raise RuntimeError("no LightGBM version is in force")
        self._lightgbm = board.active.lightgbm.version
        return board.river

    def _going_on(self, river: RiverModel) -> LearnPartition:
        offset = _offset(river)
        return LearnPartition(self._new_learner(self._lightgbm, river, offset), offset)

    def _fresh(self, next_offset: int) -> LearnPartition:
        # One that starts at the first example needs no record of it: anyone would start there.
        learner = self._new_learner(self._lightgbm, None, next_offset)
        return LearnPartition(learner, next_offset, published=next_offset == 0)


def _offset(model: RiverModel) -> int:
    """The first example that a version has not seen, which its name ends in."""
    return int(model.version.rpartition("@")[2])
