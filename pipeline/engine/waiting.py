"""Labels that came before what they are about: kept in the store, so that a flood of them takes no memory."""

import copy
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from pipeline.engine.layout import time_key
from pipeline.engine.state import Store

_NEVER: Final = 2**63 - 1
_COUNT: Final = b"w"
_ITEM: Final = b"i"
_TIME: Final = b"x"


class WaitingState(msgspec.Struct):
    """What of the waiting labels is not in the store."""

    count: int = 0
    next_number: int = 0
    oldest_us: int = _NEVER
    """Nothing that waits is older."""


class Waiting(NamedTuple):
    """One that waits."""

    digest: bytes
    number: int
    """In the order in which they came."""
    at_us: int
    payload: bytes


class WaitingRoom:
    """Items by the digest of what they wait for, and by their time.

    Store keys: ``w`` + digest: how many; ``i`` + digest + number: time and payload; ``x`` + time + number: digest.
    """

    def __init__(self, store: Store, state: WaitingState | None = None) -> None:
        self._store = store
        self._state = state or WaitingState()
        self._settled = copy.copy(self._state)

    @property
    def state(self) -> WaitingState:
        """For the dump."""
        return self._state

    def settle(self) -> None:
        """The batch is committed (the store is settled by its owner)."""
        self._settled = copy.copy(self._state)

    def undo(self) -> None:
        """The batch is not committed."""
        self._state = copy.copy(self._settled)

    def add(self, digest: bytes, at_us: int, payload: bytes) -> None:
        """Let an item wait."""
        state, store = self._state, self._store
        number = state.next_number.to_bytes(8, "big")
        self._recount(digest, 1)
        store.put(_ITEM + digest + number, at_us.to_bytes(8, "big") + payload)
        store.put(time_key(_TIME, at_us, number), digest)
        state.next_number += 1
        state.oldest_us = min(state.oldest_us, at_us)

    def awaited(self, digests: Sequence[bytes]) -> list[bytes]:
        """Those of ``digests`` for which something waits; costs nothing while nothing does."""
        if not self._state.count or not digests:
            return []
        found = self._store.get_many([_COUNT + digest for digest in digests])
        return [digest for digest, count in zip(digests, found, strict=True) if count is not None]

    def items(self, digest: bytes) -> list[Waiting]:
        """What waits for ``digest``, in the order in which it came."""
        start = _ITEM + digest
        return [
            Waiting(digest, int.from_bytes(key[-8:], "big"), int.from_bytes(value[:8], "big"), value[8:])
            for key, value in self._store.scan(start, start + b"\xff" * 9)
        ]

    def remove(self, item: Waiting) -> None:
        """Let go of an item."""
        number = item.number.to_bytes(8, "big")
        self._recount(item.digest, -1)
        self._store.delete(_ITEM + item.digest + number)
        self._store.delete(time_key(_TIME, item.at_us, number))

    def take_older(self, limit_us: int, at_most: int) -> list[Waiting]:
        """Remove and return up to ``at_most`` items whose time lies before ``limit_us``, oldest first."""
        state = self._state
        if not state.count or state.oldest_us >= limit_us:
            return []
        found: list[tuple[int, bytes, bytes]] = []
        next_us = _NEVER
        for key, digest in self._store.scan(time_key(_TIME, state.oldest_us), _TIME + b"\xff" * 8):
            at_us = int.from_bytes(key[1:9], "big")
            if at_us >= limit_us or len(found) == at_most:
                next_us = at_us
                break
            found.append((at_us, key[9:], digest))
        state.oldest_us = next_us
        taken = []
        for at_us, number, digest in found:
            value = self._store.get(_ITEM + digest + number)
            if value is None:
                raise RuntimeError("the store has lost a waiting label: delete it, and let the state be folded again")
            item = Waiting(digest, int.from_bytes(number, "big"), at_us, value[8:])
            self.remove(item)
            taken.append(item)
        return taken

    def _recount(self, digest: bytes, change: int) -> None:
        self._state.count += change
        held = self._store.get(_COUNT + digest)
        count = int.from_bytes(held or b"", "big") + change
        if count:
            self._store.put(_COUNT + digest, count.to_bytes(4, "big"))
        else:
            self._store.delete(_COUNT + digest)
