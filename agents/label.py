"""The label agent: labels of analysts and chargebacks in, accepted labels by card out."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Self

from agents.partitions import Environment, Shared
from pipeline.engine.accepted_labels import LabelOptions, accept
from pipeline.engine.results import Result
from pipeline.kafka.handler import Restored
from pipeline.kafka.session import Session
from pipeline.options import label_options
from pipeline.settings import Settings
from schemas.messages import Rules
from schemas.money import RateTable
from schemas.records import Record


class LabelPartitions:
    """The label kernel, which holds no state."""

    rules: Rules | None = None

    def __init__(self, environment: Environment, options: LabelOptions) -> None:
        self._environment, self._options = environment, options

    @classmethod
    def prepare(cls, settings: Settings, rates: RateTable) -> None:
        """Load nothing."""

    @classmethod
    def create(cls, environment: Environment, shared: Shared) -> Self:
        """Return the partitions of a worker's label agent."""
        del shared
        return cls(environment, label_options(environment.settings))

    def assigning(self, waiting: Callable[[], None]) -> None:
        """Read which records others have quarantined."""
        self._environment.quarantines.refresh(waiting)

    def restore(
        self, partition: int, committed: Mapping[str, int], logs: Mapping[str, range], waiting: Callable[[], None]
    ) -> Restored:
        """Start where the group stands: there is nothing to replay."""
        del partition, logs, waiting
        return Restored(committed, 0)

    def fold(self, partition: int, records: Sequence[Record], rules: Rules | None) -> None:
        """Replay nothing."""

    def restored(self, partition: int, records: int) -> None:
        """Report nothing."""

    def digest(self, partition: int) -> str:
        """Return the digest of no state."""
        del partition
        return ""

    def settle(self, partitions: Collection[int]) -> None:
        """Commit nothing."""

    def undo(self, partitions: Collection[int]) -> None:
        """Roll nothing back."""

    def save(self, session: Session, *, at_end: bool = False) -> None:
        """Save nothing."""

    def forget(self, partition: int) -> None:
        """Drop nothing."""

    def ready(self) -> bool:
        """Return True: the agent waits for nothing."""
        return True

    def on_hold(self) -> bool:
        """Nothing stops the work."""
        return False

    def due(self) -> bool:
        """Return False: nothing is written without input."""
        return False

    def process(self, records: Sequence[Record], now: datetime) -> Result:
        """Accept a batch."""
        del now
        return accept(records, self._options)

    def close(self) -> None:
        """Release nothing."""
