"""The card agent: transactions and labels in, profiled transactions and labels that follow them out."""

from collections.abc import Callable, Sequence
from datetime import datetime

from agents.partitions import Environment, KernelPartitions, StateLocation, by_partition
from pipeline.engine.cards.card_batch import process_together
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.partition_state.state import LoadedState
from pipeline.engine.records.results import Result
from pipeline.settings.kernel_options import card_options
from schemas.messages import CardConfig, ProcessingConfig
from schemas.records import Record


class CardPartitions(KernelPartitions[CardPartition]):
    """The card kernel of every partition that this worker holds."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        settings = environment.settings
        self._options = card_options(
            settings, environment.rates, settings.card_partitions, settings.topic_prefix, environment.mapping
        )
        self.config, self._files = self._options.config, environment.published_files

    def assigning(self, waiting: Callable[[], None]) -> None:
        """Learn also the rate tables and mappings that others have used."""
        super().assigning(waiting)
        self._files.refresh(waiting)

    def new(self, partition: int, location: StateLocation, loaded: LoadedState | None) -> CardPartition:
        """Make the card kernel of one partition.

        Args:
            partition: Not used.
            location: Where its state is.
            loaded: State of a snapshot to start from; None: it begins from nothing.
        """
        del partition
        return CardPartition(self._options, location.storage, location.store, loaded)

    def replay_into(self, state: CardPartition, records: Sequence[Record], config: ProcessingConfig | None) -> None:
        """Let committed records enter the state as they were processed."""
        options = None
        if isinstance(config, CardConfig):
            options = self._files.under(self._options, config)
        state.process(records, None, options)

    def process(self, records: Sequence[Record], now: datetime) -> Result:
        """Profile a batch."""
        parts = by_partition(records)
        return process_together(
            [(self._held[number].kernels, part) for number, part in parts.items()], now, self._options
        )
