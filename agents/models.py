"""The models in force, as a worker learns of them from the ``models`` topic."""

import logging
from collections.abc import Callable

import msgspec

from pipeline.engine.models import ActiveModels, ModelBoard
from pipeline.kafka.follower import TopicFollower
from pipeline.metrics import WorkerMetrics
from pipeline.scoring.errors import ModelError
from schemas.messages import ModelVersion
from schemas.records import Record

log = logging.getLogger(__name__)

CONTROL = b"control/"
"""What keys begin with that are no model's."""
RATES = CONTROL + b"rates/"

_decode = msgspec.json.Decoder(ModelVersion).decode


class ModelWatch:
    """Follows ``models`` on the thread of one agent; a version that may not be used is refused and told."""

    def __init__(self, follower: TopicFollower, board: ModelBoard, metrics: WorkerMetrics) -> None:
        self._follower, self.board, self._metrics = follower, board, metrics
        self._started = False
        self._told_waiting = False

    def refresh(self) -> ModelBoard:
        """Take in what was published since; the whole topic at the first call."""
        if not self._started:
            self._started = True
            return self._take(self._follower.start().read_to_end())
        return self._take(self._follower.poll(0))

    def catch_up(self, waiting: Callable[[], None]) -> ModelBoard:
        """Take in all that was committed before this call; a wait for a broker calls ``waiting`` meanwhile."""
        self.refresh()
        return self._take(self._follower.read_committed(waiting))

    def _take(self, records: list[Record]) -> ModelBoard:
        by_name: dict[bytes | None, list[Record]] = {}
        for record in records:
            if record.value is not None and not (record.key or b"").startswith(CONTROL):
                by_name.setdefault(record.key, []).append(record)
        for versions in by_name.values():
            # Only the newest that may be used matters; the topic may hold many that compaction has not removed yet.
            for record in reversed(versions):
                if self._accepts(record):
                    break
        if by_name:
            self._tell(self.board.active)
        elif self.board.active is None and not self._told_waiting:
            self._told_waiting = True
            log.warning("no LightGBM version is in force; publish one with `fraud-pipeline train --publish`")
        return self.board

    def close(self) -> None:
        """Stop following."""
        self._follower.close()

    def _accepts(self, record: Record) -> bool:
        try:
            self.board = self.board.updated(_decode(record.value or b""))
        except (ModelError, msgspec.MsgspecError) as error:
            log.error("%s offset %d is refused: %s", record.topic, record.offset, error)
            self._metrics.model_refused(str((record.key or b"").decode(errors="replace")))
            return False
        return True

    def _tell(self, active: ActiveModels | None) -> None:
        if active is None:
            return
        for name, model in (("lightgbm", active.lightgbm), ("river", active.river), ("policy", active.policy)):
            self._metrics.model_version(name, model.version)
