"""The state of a partition: committed, rolled back, saved and loaded; where it is kept is an adapter's.

A batch changes state at once. `commit` then says that the batch is committed, `rollback` that it was not: exactly what
it changed is taken back. Between the two a partition works on one batch only.
"""

import copy
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import msgspec

from pipeline.features.state_columns import Pages, SavedColumn

_LAST_KEY: Final = b"\xff" * 64

S = TypeVar("S")


class StateDump(NamedTuple):
    """A committed state, copied; what is written of it later does not change with the partition any more."""

    values: bytes
    """The small part of the state, in the kernel's own encoding."""
    columns: Mapping[str, Pages]
    store: str | None = None
    """A directory that holds the store's files, frozen; None where the store is in memory or there is none."""


class LoadedState(NamedTuple):
    """A state as it was dumped, to start a partition from."""

    values: bytes
    columns: Mapping[str, SavedColumn]


class StoreError(RuntimeError):
    """The store cannot be read or written, or has lost something; its partition must be assigned again.

    No record is to blame: a start builds the store anew, from a snapshot and the log.
    """


class Store(Protocol):
    """Keys and values that may outgrow memory, ordered by key. Writes show at once; `rollback` takes them back.

    Raises StoreError where it fails.
    """

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of ``keys``, in order; cheaper than one by one."""

    def put(self, key: bytes, value: bytes) -> None:
        """Keep a value."""

    def put_many(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Keep the value of each key; cheaper than one by one."""

    def delete(self, key: bytes) -> None:
        """Forget a key; one that is not there is no error."""

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values with ``start`` <= key < ``end``, ascending, as they are now."""

    def commit(self) -> None:
        """Commit what was written since the last time."""

    def rollback(self) -> None:
        """Take back what was written since the last time."""

    def freeze(self) -> str | None:
        """A directory with the store's committed files as they are now, or None where there are none to keep.

        An error other than StoreError leaves the store as it was.
        """

    def close(self) -> None:
        """Close and remove what is held."""


class StoreBacked(Generic[S]):
    """A part of a state that lies in a store, but for ``state``: a few values, which are dumped."""

    def __init__(self, store: Store, state: S) -> None:
        self._store, self.state = store, state
        self._committed = copy.copy(state)

    def commit(self) -> None:
        """Commit the batch (the store is committed by its owner)."""
        self._committed = copy.copy(self.state)

    def rollback(self) -> None:
        """Roll the batch back."""
        self.state = copy.copy(self._committed)


class PartitionState(Protocol):
    """The state of one partition, as the agents keep it."""

    def commit(self) -> None:
        """The batch is committed."""

    def rollback(self) -> None:
        """The batch is not committed: take back all that it changed."""

    def dump(self, *, full: bool = False) -> StateDump:
        """Copy the committed state: what changed since the last dump, or all of it when ``full``."""

    def digest(self) -> str:
        """Return the digest of the committed state: equal live, after a rollback, after a restore and in a backtest."""

    def close(self) -> None:
        """Let go of the state and of what it is kept in."""


def state_digest(*parts: Any) -> str:
    """Return the SHA-256 of parts of a state, in hexadecimal digits.

    Args:
        parts: Values that msgpack can hold, windows as `pipeline.features.kernel.CardWindows.contents` returns them,
            and stores, of which every key and value counts.
    """
    values = [list(part.scan(b"", _LAST_KEY)) if hasattr(part, "scan") else part for part in parts]
    return hashlib.sha256(msgspec.msgpack.encode(values, order="sorted")).hexdigest()


class MemoryStore:
    """A store in memory."""

    def __init__(self, items: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._committed: defaultdict[bytes, dict[bytes, bytes]] = defaultdict(dict)
        """Grouped by the first byte of the keys, so that a scan need not look at all of them."""
        self._pending: dict[bytes, bytes | None] = dict(items)
        self.commit()

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""
        if key in self._pending:
            return self._pending[key]
        return self._committed[key[:1]].get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of ``keys``, in order."""
        return [self.get(key) for key in keys]

    def put(self, key: bytes, value: bytes) -> None:
        """Keep a value."""
        self._pending[key] = value

    def put_many(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Keep the value of each key."""
        self._pending.update(zip(keys, values, strict=True))

    def delete(self, key: bytes) -> None:
        """Forget a key."""
        self._pending[key] = None

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values with ``start`` <= key < ``end``, ascending."""
        keys = chain(self._pending, *(held for first, held in self._committed.items() if start[:1] <= first <= end[:1]))
        for key in sorted({key for key in keys if start <= key < end}):
            value = self.get(key)
            if value is not None:
                yield key, value

    def commit(self) -> None:
        """Let the writes be for good."""
        for key, value in self._pending.items():
            if value is None:
                self._committed[key[:1]].pop(key, None)
            else:
                self._committed[key[:1]][key] = value
        self.rollback()

    def rollback(self) -> None:
        """Drop the writes."""
        self._pending.clear()

    def freeze(self) -> str | None:
        """Nothing on disk."""
        return None

    def items(self) -> dict[bytes, bytes]:
        """All that is committed."""
        return {key: value for held in self._committed.values() for key, value in held.items()}

    def close(self) -> None:
        """Drop everything."""
        self._committed.clear()
        self.rollback()
