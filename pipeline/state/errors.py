"""Errors of stores and snapshots; the texts say what the operator should do."""

from pipeline.engine.state import StoreError

__all__ = ["SnapshotError", "StoreError"]


class SnapshotError(RuntimeError):
    """A snapshot could not be written; the state itself is not harmed, and the next full one can succeed."""


class SnapshotUnreadable(RuntimeError):
    """A snapshot that a state cannot do without cannot be read now; nothing is lost, and the next start may succeed."""
