"""The card agent's index of accepted transactions: what repeats and labels are recognised by. Kept in the store.

Store keys: ``t`` + digest: what is remembered of a transaction; ``d`` + day + number: a run of digests, by the day to
which the event time of the partition had come when they were accepted; ``r`` + digest: in how many runs more than one a
transaction stands that was accepted again. Day and number only grow, so that the runs are a queue. One key a run and
not one a transaction, because a second random key would double what a write costs; and a count of what was accepted
again, because to ask each transaction for its day before it is forgotten would read a block of the disk for each.
"""

import copy
import struct
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

import msgspec

from pipeline.engine.layout import DIGEST_BYTES, day_key, day_of
from pipeline.engine.state import Store
from pipeline.features.catalogue import US_PER_DAY
from pipeline.learning.labels import FRAUD, LEGITIMATE, NOTHING, LabelState

_TRANSACTION: Final = b"t"
_DAY: Final = b"d"
_AGAIN: Final = b"r"
_HEAD: Final = struct.Struct("<qqbqbI")
_NO_LABEL: Final = -1
_KNOWN: Final = (NOTHING, LEGITIMATE, FRAUD)
_NOT_LABELLED: Final = (_NO_LABEL, 0, _KNOWN.index(NOTHING), 0)
RUN_AT_MOST: Final = 256
"""Digests of a run: what one step of forgetting does too much at most."""


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
    """No run's key lies before."""
    runs: int = 0
    """How many runs were ever written: the number of the next."""
    again: int = 0
    """How many transactions stand in more than one run."""


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

    def add(self, accepted: Sequence[tuple[bytes, Placed]], again: Sequence[bytes] = ()) -> None:
        """Remember a batch's transactions, by digest, in the order of their acceptance.

        ``again``: the digests among them that were remembered already, once for each acceptance but the first.
        """
        put = self._store.put
        for digest, placed in accepted:
            put(_TRANSACTION + digest, _pack(placed))
        first = 0
        while first < len(accepted):
            day = day_of(accepted[first][1].newest_us)
            # How far event time has come never goes back, so that what is of the day's end is of its run.
            end = bisect_left(accepted, (day + 1) * US_PER_DAY, first, key=lambda one: one[1].newest_us)
            end = min(end, first + RUN_AT_MOST)
            run = b"".join([digest for digest, _ in accepted[first:end]])
            put(day_key(_DAY, day, self._state.runs.to_bytes(8, "big")), run)
            self._state.runs += 1
            first = end
        for digest in again:
            self._count_again(digest, 1)

    def change(self, digest: bytes, placed: Placed) -> None:
        """Remember what is known of a transaction now."""
        self._store.put(_TRANSACTION + digest, _pack(placed))

    def forget_before(self, day: int, at_least: int) -> None:
        """Forget transactions that were accepted before ``day``: ``at_least`` so many, if there are, in whole runs."""
        start, end = self._state.swept, day_key(_DAY, day)
        if start >= end:
            return
        self._state.swept = end
        swept: list[bytes] = []
        for key, run in self._store.scan(start, end):
            if len(swept) >= at_least:
                self._state.swept = key
                break
            self._store.delete(key)
            swept += [run[at : at + DIGEST_BYTES] for at in range(0, len(run), DIGEST_BYTES)]
        for digest in swept:
            # One that was accepted again since stands in a later run.
            if self._state.again and self._store.get(_AGAIN + digest) is not None:
                self._count_again(digest, -1)
            else:
                self._store.delete(_TRANSACTION + digest)

    def _count_again(self, digest: bytes, step: int) -> None:
        packed = self._store.get(_AGAIN + digest)
        count = step + (0 if packed is None else int.from_bytes(packed, "big"))
        self._state.again += (count > 0) - (packed is not None)
        if count:
            self._store.put(_AGAIN + digest, count.to_bytes(4, "big"))
        else:
            self._store.delete(_AGAIN + digest)


def _pack(placed: Placed) -> bytes:
    label = placed.label
    said = (
        _NOT_LABELLED if label is None else (label.rank, label.labelled_at_us, _KNOWN.index(label.known), label.changes)
    )
    head = _HEAD.pack(placed.event_time_us, placed.newest_us, *said)
    return head + placed.merchant_id.encode("utf-8", "surrogatepass")


def _unpack(packed: bytes) -> Placed:
    event_time_us, newest_us, rank, labelled_at_us, known, changes = _HEAD.unpack_from(packed)
    label = None if rank == _NO_LABEL else LabelState(rank, labelled_at_us, _KNOWN[known], changes)
    return Placed(packed[_HEAD.size :].decode("utf-8", "surrogatepass"), event_time_us, newest_us, label)
