"""The label agent: labels of analysts and chargebacks in, accepted labels by card out."""

from collections.abc import Callable, Sequence
from datetime import datetime

from agents.loop import Partitions
from agents.partitions import Environment
from pipeline.engine.records.accepted_labels import accept
from pipeline.engine.records.results import Result
from pipeline.kafka.session.state_handler import Stateless
from pipeline.settings.kernel_options import label_options
from schemas.records import Record


class LabelPartitions(Stateless, Partitions):
    """The label kernel, which holds no state."""

    def __init__(self, environment: Environment) -> None:
        self._environment, self._options = environment, label_options(environment.settings)

    def assigning(self, waiting: Callable[[], None]) -> None:
        """Read which records others have quarantined."""
        self._environment.quarantines.refresh(waiting)

    def digest(self, partition: int) -> str:
        """Return the digest of no state."""
        del partition
        return ""

    def process(self, records: Sequence[Record], now: datetime) -> Result:
        """Accept a batch."""
        del now
        return accept(records, self._options)
