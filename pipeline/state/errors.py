"""Errors of stores and snapshots; the texts say what the operator should do."""


class StoreError(RuntimeError):
    """The store on disk cannot be read or written; its partition must be assigned again, which rebuilds it."""


class SnapshotError(RuntimeError):
    """A snapshot could not be written; the state itself is not harmed, and the next full one can succeed."""


class SnapshotUnreadable(RuntimeError):
    """A snapshot that a state cannot do without cannot be read now; nothing is lost, and the next start may succeed."""
