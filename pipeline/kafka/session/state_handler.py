"""The protocol between a session and the owner of the state of an agent's partitions."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from schemas.messages import ProcessingConfig
from schemas.records import Record


class Restored(NamedTuple):
    """The position of a snapshot: end offsets by full topic name, and where to go on in ``progress``."""

    positions: Mapping[str, int]
    progress: int


class StateHandler(Protocol):
    """The owner of the state of an agent's partitions."""

    @property
    def config(self) -> ProcessingConfig | None:
        """The processing config; committed with each batch, and given back to `replay`. None: no setting matters."""

    def assigning(self, waiting: Callable[[], None]) -> None:
        """Partitions have come, and are about to be restored; a wait for a broker calls ``waiting`` meanwhile."""

    def restore(
        self, partition: int, committed: Mapping[str, int], logs: Mapping[str, range], waiting: Callable[[], None]
    ) -> Restored | None:
        """Start the state of a partition, from a snapshot or from nothing.

        Args:
            partition: Number of the partition.
            committed: Committed offsets by full topic name; a snapshot must not lie behind them.
            logs: Offsets that the agent's topics, and `progress` where it reads several, hold now, by full name.
            waiting: Called during a wait; may raise.

        Returns:
            The position of the snapshot; None where the state begins from nothing.
        """

    def replay(self, partition: int, records: Sequence[Record], config: ProcessingConfig | None) -> None:
        """Replay one batch of committed records into the state of a partition, without output.

        Args:
            partition: Number of the partition.
            records: The batch, topic by topic.
            config: The processing config of the batch; None: it was not recorded, and the active one must do.
        """

    def state_beside(self, partition: int) -> Any:
        """Return what to commit beside an offset: plain values of 4,000 bytes at most, None for nothing."""

    def load_beside(self, partition: int, state: Any) -> None:
        """Take what was committed beside the offset up to which a partition was replayed."""

    def restored(self, partition: int, records: int) -> None:
        """Note that the replay of ``records`` records is complete."""

    def forget(self, partition: int) -> None:
        """Drop the state of ``partition``; one that is not held is no error."""

    def commit(self, partitions: Collection[int]) -> None:
        """Commit the last batch's changes to these partitions."""

    def rollback(self, partitions: Collection[int]) -> None:
        """Roll the last batch's changes to these partitions back."""


class Stateless:
    """The handler of an agent without state: there is nothing to restore, to commit or to roll back."""

    config: ProcessingConfig | None = None

    def restore(
        self, partition: int, committed: Mapping[str, int], logs: Mapping[str, range], waiting: Callable[[], None]
    ) -> Restored:
        """Return the committed offsets: there is nothing to replay.

        Args:
            partition: Not used.
            committed: Committed offsets by full topic name.
            logs: Not used.
            waiting: Not used.
        """
        del partition, logs, waiting
        return Restored(committed, 0)

    def _nothing(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    assigning = replay = state_beside = load_beside = restored = forget = commit = rollback = _nothing
