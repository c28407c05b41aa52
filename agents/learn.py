"""The learn agent: examples in, versions of the online model out."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Final

from agents.loop import Partitions
from agents.online import OnlineModels
from agents.partitions import Environment
from agents.topology import LEARN
from pipeline.engine.feedback.learn import LearnPartition, model_record
from pipeline.engine.records.results import Result
from pipeline.kafka.session.state_handler import Restored
from pipeline.scoring.kinds import Scorer
from schemas.messages import ProcessingConfig
from schemas.records import Output, Record

FIGURES_INTERVAL_S: Final = 10.0


class LearnPartitions(Partitions):
    """The learner (``examples`` is one log, so there is one) and when it publishes."""

    config: ProcessingConfig | None = None

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._online, self._models = OnlineModels(environment.settings), environment.models()
        self._interval_s = environment.settings.river_publish_interval_s
        self._held: LearnPartition | None = None
        self._started_s, self._published_s = 0.0, -math.inf
        self._reported_s, self._reported = -math.inf, 0

    def assigning(self, waiting: Callable[[], None]) -> None:
        """Read what whoever held the partition before has quarantined and published."""
        self._environment.quarantines.refresh(waiting)
        self._models.catch_up(waiting)

    def restore(
        self, partition: int, committed: Mapping[str, int], logs: Mapping[str, range], waiting: Callable[[], None]
    ) -> Restored:
        """Start from the published version: the replay is of the committed examples that it does not have.

        Args:
            partition: Not used.
            committed: Committed offsets by full topic name; only the names matter.
            logs: Not used.
            waiting: Not used.

        Returns:
            The offset of ``examples`` behind those that the published version has, and 0 for ``progress``.
        """
        del partition, logs, waiting
        self._held = None
        self._started_s = time.monotonic()
        self._environment.health.state(LEARN.name, "restoring")
        held = self._partition()
        return Restored(dict.fromkeys(committed, held.next_offset), 0)

    def replay(self, partition: int, records: Sequence[Record], config: ProcessingConfig | None) -> None:
        """Learn one batch, silently.

        Args:
            partition: Not used.
            records: Committed examples; quarantined ones are left out.
            config: Not used.
        """
        del partition, config
        self._environment.health.working(LEARN.name)
        held = self._partition()
        held.learn(self._environment.quarantines.without(records))
        held.commit()

    def restored(self, partition: int, records: int) -> None:
        """Report how the restore went."""
        self._environment.metrics.state_restored(
            LEARN.name, partition, source="log", seconds=time.monotonic() - self._started_s, records=records
        )

    def digest(self, partition: int) -> str:
        """Return the digest of the learner's committed state."""
        del partition
        return self._partition().digest()

    def commit(self, partitions: Collection[int]) -> None:
        """The last batch is committed, one of no records included."""
        del partitions
        if self._held is None:
            return
        self._held.commit()
        prequential, now_s = self._held.prequential, time.monotonic()
        if prequential.examples != self._reported and now_s - self._reported_s >= FIGURES_INTERVAL_S:
            self._environment.metrics.prequential(prequential.figures())
            self._reported, self._reported_s = prequential.examples, now_s

    def rollback(self, partitions: Collection[int]) -> None:
        """Take the last batch back, one of no records included."""
        del partitions
        if self._held is not None:
            self._held.rollback()

    def forget(self, partition: int) -> None:
        """Drop the learner."""
        self._held, self._reported = None, 0
        self._environment.metrics.prequential({})
        self._environment.metrics.forget_state(LEARN.name, partition)

    def ready(self) -> bool:
        """Return whether models are active; before that there are no examples."""
        return self._models.refresh().active is not None

    def on_hold(self) -> bool:
        """Return whether learning is frozen: examples wait in their topic."""
        return self._models.frozen

    def due(self) -> bool:
        """True if a version waits to be published, and long enough after the last one."""
        return (
            self._held is not None
            and self._held.unpublished
            and time.monotonic() - self._published_s >= self._interval_s
        )

    def process(self, records: Sequence[Record], now: datetime) -> Result:
        """Learn a batch."""
        held = self._partition()
        result = held.learn(records)
        if self.due():
            result.outputs.append(self._publish(held, now))
        return result

    def _publish(self, held: LearnPartition, now: datetime) -> Output:
        model = held.publish()
        self._online.save(model)
        self._published_s = time.monotonic()
        return model_record("river", model.version, model.to_payload(), now)

    def close(self) -> None:
        """Release the state."""
        self._models.close()

    def _partition(self) -> LearnPartition:
        if self._held is None:
            river = self._models.model_set.river
            # The examples that the published version does not have are learned again, so that none is lost.
            self._held = LearnPartition(self._online.learner(river), 0 if river is None else _offset(river))
        return self._held


def _offset(model: Scorer) -> int:
    """The first example that a version has not seen, which its name ends in."""
    return int(model.version.rpartition("@")[2])
