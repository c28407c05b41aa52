"""Labels that came before what they are about: kept in the store, so that a flood of them takes no memory."""

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from pipeline.engine.partition_state.layout import DIGEST_BYTES, time_key
from pipeline.engine.partition_state.state import Store, StoreBacked, StoreError

GIVE_UP_AT_MOST: Final = 5_000
"""Labels that one batch gives up; more of them are left to the batches that follow."""
MOST_OF_ONE: Final = 20
"""Labels that wait for one transaction at most at the card agent; nobody reports one so often before it is there."""
MOST_BYTES: Final = 128 * 1024 * 1024
"""Bytes of the labels that wait in one of its partitions at most: a batch may read all of them at once."""
_NEVER: Final = 2**63 - 1
_QUEUE: Final = b"w"
_ITEM: Final = b"i"
_TIME: Final = b"x"
_AFTER: Final = b"\xff" * 64
"""Behind every key of one prefix."""
_NUMBERS: Final = struct.Struct("<III")


class PendingItemsState(msgspec.Struct):
    """The part of the pending labels that is not in the store."""

    count: int = 0
    payload_bytes: int = 0
    oldest_us: int = _NEVER
    """Nothing that waits is older."""


class PendingItem(NamedTuple):
    """A pending label."""

    digest: bytes
    number: int
    """Among those of the same digest, in the order in which they came."""
    at_us: int
    payload: bytes


class _Queue(NamedTuple):
    """The pending labels of one digest; numbers in between may be free again."""

    first: int = 0
    next: int = 0
    held: int = 0


class PendingItems(StoreBacked[PendingItemsState]):
    """Items by the digest of what they wait for, and by their time.

    Store keys: ``w`` + digest: which numbers are taken; ``i`` + digest + number: time and payload; ``x`` + time +
    digest + number, empty.
    """

    def __init__(self, store: Store, state: PendingItemsState | None = None) -> None:
        super().__init__(store, state or PendingItemsState())

    def waiting(self, digest: bytes) -> int:
        """Return how many items wait for ``digest``."""
        return self._queue(digest).held

    def add(self, digest: bytes, at_us: int, payload: bytes) -> None:
        """Let an item wait.

        Args:
            digest: Digest of what it waits for, `DIGEST_BYTES`.
            at_us: Time by which `take_older` finds it, in microseconds since 1970, 0 or more.
            payload: Comes back with the item; its bytes count in the state.
        """
        queue = self._queue(digest)
        item = PendingItem(digest, queue.next, at_us, payload)
        self._store.put(_item_key(digest, item.number), at_us.to_bytes(8, "big") + payload)
        self._store.put(_time_key(item), b"")
        self._keep(digest, queue._replace(next=queue.next + 1, held=queue.held + 1))
        self.state.count += 1
        self.state.payload_bytes += len(payload)
        self.state.oldest_us = min(self.state.oldest_us, at_us)

    def awaited(self, digests: Sequence[bytes]) -> list[bytes]:
        """Those of ``digests`` for which something waits; costs nothing while nothing does."""
        if not self.state.count or not digests:
            return []
        found = self._store.get_many([_QUEUE + digest for digest in digests])
        return [digest for digest, queue in zip(digests, found, strict=True) if queue is not None]

    def items(self, digest: bytes) -> list[PendingItem]:
        """Return the pending labels of ``digest``, in the order in which they came."""
        queue = self._queue(digest)
        numbers = range(queue.first, queue.next)
        # By their keys, which costs less than a scan where a batch has written much.
        found = self._store.get_many([_item_key(digest, number) for number in numbers])
        return [
            PendingItem(digest, number, int.from_bytes(value[:8], "big"), value[8:])
            for number, value in zip(numbers, found, strict=True)
            if value is not None
        ]

    def remove(self, item: PendingItem) -> None:
        """Let go of an item."""
        self._store.delete(_item_key(item.digest, item.number))
        self._store.delete(_time_key(item))
        queue = self._queue(item.digest)
        first = queue.first + (item.number == queue.first)
        self._keep(item.digest, queue._replace(first=first, held=queue.held - 1))
        self.state.count -= 1
        self.state.payload_bytes -= len(item.payload)

    def take_older(self, limit_us: int, at_most: int) -> list[PendingItem]:
        """Remove and return up to ``at_most`` items whose time lies before ``limit_us``, oldest first."""
        state = self.state
        if not state.count or state.oldest_us >= limit_us:
            return []
        positions: list[tuple[int, bytes, int]] = []
        next_us = _NEVER
        for key, _ in self._store.scan(time_key(_TIME, state.oldest_us), _TIME + b"\xff" * 8):
            at_us = int.from_bytes(key[1:9], "big")
            if at_us >= limit_us or len(positions) == at_most:
                next_us = at_us
                break
            positions.append((at_us, key[9 : 9 + DIGEST_BYTES], int.from_bytes(key[9 + DIGEST_BYTES :], "big")))
        state.oldest_us = next_us
        found = self._store.get_many([_item_key(digest, number) for _, digest, number in positions])
        taken = []
        for (at_us, digest, number), value in zip(positions, found, strict=True):
            if value is None:
                raise StoreError(
                    "the store has lost a waiting label: look for errors on its disk; the worker rebuilds it from the "
                    "log when it is started again"
                )
            taken.append(PendingItem(digest, number, at_us, value[8:]))
            self.remove(taken[-1])
        return taken

    def contents(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield what is in the store, for the digest of a state."""
        for prefix in (_ITEM, _QUEUE, _TIME):
            yield from self._store.scan(prefix, prefix + _AFTER)

    def _queue(self, digest: bytes) -> _Queue:
        packed = self._store.get(_QUEUE + digest)
        return _Queue() if packed is None else _Queue(*_NUMBERS.unpack(packed))

    def _keep(self, digest: bytes, queue: _Queue) -> None:
        if queue.held:
            self._store.put(_QUEUE + digest, _NUMBERS.pack(*queue))
        else:
            self._store.delete(_QUEUE + digest)


def _item_key(digest: bytes, number: int) -> bytes:
    return _ITEM + digest + number.to_bytes(4, "big")


def _time_key(item: PendingItem) -> bytes:
    return time_key(_TIME, item.at_us, item.digest + item.number.to_bytes(4, "big"))
