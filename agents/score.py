"""The score agent: profiled transactions and labels in, decisions and alerts out."""

import logging
from collections.abc import AsyncIterator, Sequence
from datetime import datetime

import faust

from agents.channel import BatchChannel
from agents.models import ModelWatch
from agents.runtime import by_partition, merged
from agents.topology import SCORE
from pipeline.engine.results import Result
from pipeline.engine.score import ScorePartition
from pipeline.kafka.session import Batch
from schemas.records import Record

log = logging.getLogger(__name__)


class ScorePartitions:
    """The score kernel of every partition that this worker holds, and the models in force."""

    def __init__(self, base_currency: str, models: ModelWatch) -> None:
        self._base_currency, self._models = base_currency, models
        self._held: dict[int, ScorePartition] = {}

    def restore(self, partition: int, records: Sequence[Record]) -> None:
        """Fold committed records; nothing is decided again."""
        self._of(partition).fold(records)

    def forget(self, partition: int) -> None:
        """Drop a partition's state."""
        self._held.pop(partition, None)

    def ready(self) -> bool:
        """Take in new versions, between two batches; False while there is no champion."""
        return self._models.refresh().active is not None

    def due(self) -> bool:
        """Nothing is written without input."""
        return False

    def process(self, records: Sequence[Record], now: datetime) -> Result:
        """Decide a batch."""
        active = self._models.board.active
        if active is None:
            raise RuntimeError("no LightGBM version is in force")
        parts = by_partition(records)
        return merged(self._of(partition).process(part, active, now) for partition, part in parts.items())

    def close(self) -> None:
        """Release the state."""
        self._held.clear()
        self._models.close()

    def _of(self, partition: int) -> ScorePartition:
        return self._held.setdefault(partition, ScorePartition(self._base_currency))


def create(app: faust.App, channel: BatchChannel) -> None:
    """Register the agent."""

    @app.agent(channel, name=SCORE.name)  # type: ignore[untyped-decorator]
    async def score(batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:
            await channel.work(batch)
