"""The card agent's index of accepted transactions: what repeats and labels are recognised by. Kept in the store.

Store keys: ``t`` + digest: what is remembered of a transaction; ``d`` + day + digest, empty: by the day to which the
event time of the partition had come when it was accepted. That day only grows, so that the index of days is a queue.
"""

import copy
import struct
from collections.abc import Sequence
from itertools import islice
from typing import Final

import msgspec

from pipeline.engine.layout import day_key, day_of, day_of_key, digest_of_key
from pipeline.engine.state import Store
from pipeline.learning.labels import FRAUD, LEGITIMATE, NOTHING, LabelState

_TRANSACTION: Final = b"t"
_DAY: Final = b"d"
_HEAD: Final = struct.Struct("<qqbqbI")
_NO_LABEL: Final = -1
_KNOWN: Final = (NOTHING, LEGITIMATE, FRAUD)


class Placed(msgspec.Struct):
    """What is remembered of an accepted transaction."""

    merchant_id: str
    event_time_us: int
    newest_us: int
    """How far the event time of its partition had come when it was accepted."""
    label: LabelState | None = None


class IndexState(msgspec.Struct):
    """What of the index is not in the store."""

    swept: bytes = _DAY
    """No day key lies before."""


class PlacedIndex:
    """Accepted transactions by digest, forgotten a bounded number at a time."""

    def __init__(self, store: Store, state: IndexState | None = None) -> None:
        self._store = store
        self._state = state or IndexState()
        self._settled = copy.copy(self._state)

    @property
    def state(self) -> IndexState:
        """For the dump."""
        return self._state

    def settle(self) -> None:
        """The batch is committed (the store is settled by its owner)."""
        self._settled = copy.copy(self._state)

    def undo(self) -> None:
        """The batch is not committed."""
        self._state = copy.copy(self._settled)

    def find(self, digests: Sequence[bytes]) -> list[Placed | None]:
        """The transactions of ``digests``."""
        found = self._store.get_many([_TRANSACTION + digest for digest in digests])
        return [None if packed is None else _unpack(packed) for packed in found]

    def add(self, digest: bytes, placed: Placed) -> None:
        """Remember a transaction."""
        self.change(digest, placed)
        self._store.put(day_key(_DAY, day_of(placed.newest_us), digest), b"")

    def change(self, digest: bytes, placed: Placed) -> None:
        """Remember what is known of a transaction now."""
        self._store.put(_TRANSACTION + digest, _pack(placed))

    def forget_before(self, day: int, at_most: int) -> None:
        """Forget up to ``at_most`` of the transactions that were accepted before ``day``."""
        start, end = self._state.swept, day_key(_DAY, day)
        if start >= end:
            return
        keys = [key for key, _ in islice(self._store.scan(start, end), at_most)]
        self._state.swept = end if len(keys) < at_most else keys[-1] + b"\x00"
        found = self.find([digest_of_key(key) for key in keys])
        for key, placed in zip(keys, found, strict=True):
            self._store.delete(key)
            # One that was accepted again since stands under its later day.
            if placed is not None and day_of(placed.newest_us) == day_of_key(key):
                self._store.delete(_TRANSACTION + digest_of_key(key))


def _pack(placed: Placed) -> bytes:
    label = placed.label or LabelState(_NO_LABEL, 0, NOTHING, 0)
    head = _HEAD.pack(
        placed.event_time_us,
        placed.newest_us,
        label.rank,
        label.labelled_at_us,
        _KNOWN.index(label.known),
        label.changes,
    )
    return head + placed.merchant_id.encode("utf-8", "surrogatepass")


def _unpack(packed: bytes) -> Placed:
    event_time_us, newest_us, rank, labelled_at_us, known, changes = _HEAD.unpack_from(packed)
    label = None if rank == _NO_LABEL else LabelState(rank, labelled_at_us, _KNOWN[known], changes)
    return Placed(packed[_HEAD.size :].decode("utf-8", "surrogatepass"), event_time_us, newest_us, label)
