"""Errors of stores and snapshots; the texts say what the operator should do."""

from pathlib import Path

from pipeline.engine.partition_state.state import StoreError


class StateRemoved(StoreError):
    """The directory of a partition's state is gone while the partition is held.

    The worker ends: what is in memory cannot be relied on without its files, and a start restores all of it.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(
            f"the state in {directory} was removed while the worker ran; nothing is lost: leave the data directory "
            "alone and start the worker again, which restores the state from its snapshots and the log"
        )


def check_present(directory: Path) -> None:
    """Raise StateRemoved where ``directory`` is gone."""
    if not directory.exists():
        raise StateRemoved(directory)


class UnusableAddress(ValueError):
    """An address of snapshots whose file system is not known, or not installed."""


class SnapshotError(RuntimeError):
    """A snapshot could not be written; the state itself is not harmed, and the next full one can succeed."""


class SnapshotUnreadable(RuntimeError):
    """A snapshot that a state cannot do without cannot be read now; nothing is lost, and the next start may succeed."""
