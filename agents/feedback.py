"""The feedback agent: decisions and labels in, examples out."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path

import faust

from agents.channel import BatchChannel
from agents.runtime import by_partition, merged
from agents.topology import FEEDBACK
from pipeline.engine.feedback import FeedbackOptions, FeedbackPartition
from pipeline.engine.results import Result
from pipeline.kafka.session import Batch
from pipeline.served import DiskServedStore
from schemas.records import Record


class FeedbackPartitions:
    """The feedback kernel of every partition that this worker holds, each with its store on disk."""

    def __init__(self, options: FeedbackOptions, directory: Path, topic_prefix: str) -> None:
        self._options, self._directory = options, directory
        self._labels = topic_prefix + FEEDBACK.reads[0].name
        self._held: dict[int, tuple[FeedbackPartition, DiskServedStore]] = {}

    def restore(self, partition: int, records: Sequence[Record]) -> None:
        """Fold committed records; nothing is written."""
        decisions, labels = self._split(records)
        self._of(partition).process(decisions, labels, emit=False)

    def forget(self, partition: int) -> None:
        """Drop a partition's state and its store."""
        held = self._held.pop(partition, None)
        if held is not None:
            held[1].close()

    def ready(self) -> bool:
        """Nothing to wait for."""
        return True

    def due(self) -> bool:
        """Nothing is written without input."""
        return False

    def process(self, records: Sequence[Record], now: datetime) -> Result:
        """Join a batch."""
        del now
        results = []
        for partition, part in by_partition(records).items():
            decisions, labels = self._split(part)
            results.append(self._of(partition).process(decisions, labels))
        return merged(results)

    def close(self) -> None:
        """Release the state."""
        for partition in list(self._held):
            self.forget(partition)

    def _of(self, partition: int) -> FeedbackPartition:
        if partition not in self._held:
            store = DiskServedStore(self._directory / str(partition))
            self._held[partition] = (FeedbackPartition(self._options, store), store)
        return self._held[partition][0]

    def _split(self, records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
        decisions = [record for record in records if record.topic != self._labels]
        return decisions, [record for record in records if record.topic == self._labels]


def create(app: faust.App, channel: BatchChannel) -> None:
    """Register the agent."""

    @app.agent(channel, name=FEEDBACK.name)  # type: ignore[untyped-decorator]
    async def feedback(batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:
            await channel.work(batch)
