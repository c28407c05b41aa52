"""The card agent: transactions and labels in, profiled transactions and labels that follow them out."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

import faust

from agents.channel import BatchChannel
from agents.runtime import by_partition, merged
from agents.topology import CARD
from pipeline.engine.card import CardOptions, CardPartition
from pipeline.engine.results import Result
from pipeline.kafka.session import Batch
from schemas.records import Record


class CardPartitions:
    """The card kernel of every partition that this worker holds."""

    def __init__(self, options: CardOptions) -> None:
        self._options = options
        self._transactions = options.topic_prefix + CARD.reads[0].name
        self._held: dict[int, CardPartition] = {}

    def restore(self, partition: int, records: Sequence[Record]) -> None:
        """Fold committed records; nothing is written."""
        transactions, labels = self._split(records)
        self._of(partition).process(transactions, labels, None)

    def forget(self, partition: int) -> None:
        """Drop a partition's state."""
        self._held.pop(partition, None)

    def ready(self) -> bool:
        """Nothing to wait for."""
        return True

    def due(self) -> bool:
        """Nothing is written without input."""
        return False

    def process(self, records: Sequence[Record], now: datetime) -> Result:
        """Profile a batch."""
        results = []
        for partition, part in by_partition(records).items():
            transactions, labels = self._split(part)
            results.append(self._of(partition).process(transactions, labels, now))
        return merged(results)

    def close(self) -> None:
        """Release the state."""
        self._held.clear()

    def _of(self, partition: int) -> CardPartition:
        return self._held.setdefault(partition, CardPartition(self._options))

    def _split(self, records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
        transactions = [record for record in records if record.topic == self._transactions]
        return transactions, [record for record in records if record.topic != self._transactions]


def create(app: faust.App, channel: BatchChannel) -> None:
    """Register the agent."""

    @app.agent(channel, name=CARD.name)  # type: ignore[untyped-decorator]
    async def card(batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:
            await channel.work(batch)
