"""The label agent: labels of analysts and chargebacks in, accepted labels by card out."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Self

from agents.partitions import Environment, WorkerResources
from pipeline.engine.records.accepted_labels import LabelOptions, accept
from pipeline.engine.records.results import Result
from pipeline.kafka.session.session import Session
from pipeline.kafka.session.state_handler import Stateless
from pipeline.settings.kernel_options import label_options
from schemas.records import Record


class LabelPartitions(Stateless):
    """The label kernel, which holds no state."""

    def __init__(self, environment: Environment, options: LabelOptions) -> None:
        self._environment, self._options = environment, options

    @classmethod
    def create(cls, environment: Environment, shared: WorkerResources) -> Self:
        """Return the partitions of a worker's label agent."""
        del shared
        return cls(environment, label_options(environment.settings))

    def assigning(self, waiting: Callable[[], None]) -> None:
        """Read which records others have quarantined."""
        self._environment.quarantines.refresh(waiting)

    def digest(self, partition: int) -> str:
        """Return the digest of no state."""
        del partition
        return ""

    def save(self, session: Session, *, at_end: bool = False) -> None:
        """Save nothing."""

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
