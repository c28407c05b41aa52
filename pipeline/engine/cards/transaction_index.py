"""The accepted transactions by which repeats and labels are recognised: in memory, or over a store.

Store keys: ``t`` + digest: what is remembered of a transaction; ``d`` + day + number: a run of digests, by the day to
which the event time of the partition had come when they were accepted; ``r`` + digest: in how many runs more than one a
transaction stands that was accepted again. Day and number only grow, so that the runs are a queue. One key a run and
not one a transaction, because a second random key would double what a write costs; and a count of what was accepted
again, because to ask each transaction for its day before it is forgotten would read a block of the disk for each.
"""

from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.engine.cards.joins import (
    ACCEPTED_AGAIN,
    DUPLICATE,
    ENTRY_WORDS,
    EVENT_US,
    JOURNAL_ENTRY,
    RANK,
    STREAM_TIME_US,
    Entries,
    PassResult,
)
from pipeline.engine.partition_state.layout import DIGEST_BYTES, day_key, day_of
from pipeline.engine.partition_state.state import Store, StoreBacked
from pipeline.engine.records.columns import digest_bytes
from schemas.times import US_PER_DAY

_TRANSACTION: Final = b"t"
_DAY: Final = b"d"
_AGAIN: Final = b"r"
_WORD: Final = np.dtype("<i8")
_HEAD_BYTES: Final = (ENTRY_WORDS - EVENT_US) * _WORD.itemsize
"""Bytes of a value of ``t`` before the merchant's name: the words of the entry behind its digest."""
_DIGEST_WORDS: Final = 2
_MERCHANT_WORDS: Final = 3
RUN_AT_MOST: Final = 256
"""Digests of a run: what one step of forgetting does too much at most."""
_LEAST: Final = 1_024


class MemoryIndex:
    """Entries in memory, all of them until room is needed; merchants are rows of three words."""

    def __init__(self) -> None:
        self._entries = Entries(_LEAST)
        self._merchants = np.zeros((_LEAST, _MERCHANT_WORDS), np.int64)
        self._day = self._committed_day = self._committed_count = 0
        self._journals: list[NDArray[np.int64]] = []

    @property
    def transactions(self) -> int:
        """Number of entries; some may be due to be forgotten."""
        return self._entries.count

    @property
    def capacity(self) -> int:
        """For how many there is room; each takes 96 bytes."""
        return len(self._entries.rows)

    def fetch(self, digest: NDArray[np.int64], label_digest: NDArray[np.int64]) -> Entries:
        """Return all entries, with room for those of ``digest``, shape (n, 2)."""
        del label_digest
        if self.transactions + len(digest) > self.capacity:
            self._make_room(len(digest))
        return self._entries

    def update(self, entries: Entries, result: PassResult, merchants: NDArray[np.int64]) -> None:
        """Keep what a pass has added to the fetched entries and changed of them.

        Args:
            entries: What `fetch` returned, with the accepted transactions of the pass behind.
            result: Result of the pass over n transactions.
            merchants: Shape (n, 3): words of the merchant of each, accepted or not.
        """
        accepted = result.fate != DUPLICATE
        added = int(np.count_nonzero(accepted))
        self._merchants[entries.count - added : entries.count] = merchants[accepted]
        if len(result.journal):
            self._journals.append(result.journal)

    def merchants(self, entry: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the merchants of entries; shape (k, 3)."""
        found: NDArray[np.int64] = self._merchants[entry]
        return found

    def forget_before(self, day: int, at_least: int) -> None:
        """Forget transactions that were accepted before ``day`` when room is needed next."""
        del at_least
        self._day = day

    def commit(self) -> None:
        """Commit the batch."""
        self._committed_count, self._committed_day = self._entries.count, self._day
        self._journals.clear()

    def rollback(self) -> None:
        """Roll the batch back."""
        for journal in reversed(self._journals):
            # Backwards, so that what an entry was first is written last.
            for entry, *state in journal[::-1].tolist():
                self._entries.rows[entry, RANK:] = state
        self._entries.fill(self._committed_count)
        self._day = self._committed_day
        self._journals.clear()

    def _make_room(self, arriving: int) -> None:
        held = self._entries
        # In the order of acceptance, in which the event time that had been reached only grows.
        stream_time_us = held.rows[: self._committed_count, STREAM_TIME_US]
        # What an undo would number otherwise stays where it is.
        committed = not self._journals and held.count == self._committed_count
        gone = int(np.searchsorted(stream_time_us, self._day * US_PER_DAY)) if committed else 0
        kept, merchants = held.rows[gone : held.count], self._merchants[gone : held.count]
        size = self.capacity
        while 2 * (len(kept) + arriving) > size:
            size *= 2
        self._entries, self._merchants = Entries(size), np.zeros((size, _MERCHANT_WORDS), np.int64)
        self._entries.rows[: len(kept)], self._merchants[: len(kept)] = kept, merchants
        self._entries.fill(len(kept))
        self._committed_count -= gone


class IndexState(msgspec.Struct):
    """State of the index that is not in the store."""

    swept: bytes = _DAY
    """No run's key lies before."""
    runs: int = 0
    """Number of runs ever written, and of the next one."""
    again: int = 0
    """Number of transactions that stand in more than one run."""


class StoreIndex(StoreBacked[IndexState]):
    """Entries in a store, forgotten a bounded number at a time."""

    def __init__(self, store: Store, state: IndexState | None = None) -> None:
        super().__init__(store, state or IndexState())
        self._fetched = 0
        self._asked: list[bytes] = []
        self._names: NDArray[Any] = np.empty(0, object)
        """Merchants of the entries that were fetched and kept last."""

    def fetch(self, digest: NDArray[np.int64], label_digest: NDArray[np.int64]) -> Entries:
        """Read the entries of these digests, shape (n, 2) and (m, 2), with room for n more."""
        asked = digest_bytes(digest)
        if len(label_digest):
            asked += digest_bytes(label_digest)
        values = self._store.get_many([_TRANSACTION + digest for digest in asked])
        # One that is asked for twice has one entry.
        found = {digest: value for digest, value in zip(asked, values, strict=True) if value is not None}
        entries = Entries(len(found) + len(digest))
        self._fetched, self._asked = len(found), asked
        self._names = np.array([value[_HEAD_BYTES:] for value in found.values()], object)
        if found:
            rows = entries.rows[: len(found)]
            rows[:, :_DIGEST_WORDS] = np.frombuffer(b"".join(found), ">i8").reshape(-1, _DIGEST_WORDS)
            heads = b"".join([value[:_HEAD_BYTES] for value in found.values()])
            rows[:, EVENT_US:] = np.frombuffer(heads, _WORD).reshape(len(found), -1)
            entries.fill(len(found))
        return entries

    def update(self, entries: Entries, result: PassResult, merchants: NDArray[Any]) -> None:
        """Write the added entries and those that have changed.

        Args:
            entries: What `fetch` returned, with the accepted transactions of the pass behind.
            result: Result of the pass over n transactions.
            merchants: Shape (n,): name of the merchant of each, accepted or not, in UTF-8.
        """
        first = self._fetched
        accepted = (result.fate != DUPLICATE).nonzero()[0]
        if len(accepted) < len(merchants):
            merchants = merchants[accepted]
        self._names = np.concatenate([self._names, merchants]) if first else merchants
        if len(result.journal):
            changed = np.unique(result.journal[:, JOURNAL_ENTRY])
            changed = changed[changed < first]
            rows = entries.rows[changed]
            self._put(rows, digest_bytes(rows[:, :_DIGEST_WORDS]), self.merchants(changed))
        if entries.count == first:
            return
        # Behind what has changed: of a digest that was accepted again, the latest entry stays.
        rows = entries.rows[first : entries.count]
        digests = [self._asked[row] for row in accepted.tolist()]
        self._put(rows, digests, merchants)
        self._put_runs(digests, rows[:, STREAM_TIME_US])
        for row in (result.fate[accepted] == ACCEPTED_AGAIN).nonzero()[0].tolist():
            self._count_again(digests[row], 1)

    def merchants(self, entry: NDArray[np.int64]) -> NDArray[Any]:
        """Return the merchants' names in UTF-8; shape (k,)."""
        return self._names[entry]

    def _put(self, rows: NDArray[np.int64], digests: list[bytes], names: NDArray[Any]) -> None:
        packed = rows[:, EVENT_US:].astype(_WORD, copy=False).tobytes()
        heads = [packed[at : at + _HEAD_BYTES] for at in range(0, len(packed), _HEAD_BYTES)]
        self._store.put_many(
            [_TRANSACTION + digest for digest in digests],
            [head + name for head, name in zip(heads, names.tolist(), strict=True)],
        )

    def _put_runs(self, digests: list[bytes], stream_time_us: NDArray[np.int64]) -> None:
        """Write runs of digests by day, in the order of their acceptance."""
        first = 0
        while first < len(digests):
            day = day_of(int(stream_time_us[first]))
            # How far event time has come never goes back, so that what is of the day's end is of its run.
            end = int(stream_time_us.searchsorted((day + 1) * US_PER_DAY))
            end = min(end, first + RUN_AT_MOST)
            key = day_key(_DAY, day, self.state.runs.to_bytes(8, "big"))
            self._store.put(key, b"".join(digests[first:end]))
            self.state.runs += 1
            first = end

    def forget_before(self, day: int, at_least: int) -> None:
        """Forget transactions that were accepted before ``day``: ``at_least`` so many, if there are, in whole runs."""
        start, end = self.state.swept, day_key(_DAY, day)
        if start >= end:
            return
        self.state.swept = end
        swept: list[bytes] = []
        for key, run in self._store.scan(start, end):
            if len(swept) >= at_least:
                self.state.swept = key
                break
            self._store.delete(key)
            swept += [run[at : at + DIGEST_BYTES] for at in range(0, len(run), DIGEST_BYTES)]
        for digest in swept:
            # One that was accepted again since stands in a later run.
            if self.state.again and self._store.get(_AGAIN + digest) is not None:
                self._count_again(digest, -1)
            else:
                self._store.delete(_TRANSACTION + digest)

    def _count_again(self, digest: bytes, step: int) -> None:
        packed = self._store.get(_AGAIN + digest)
        count = step + (0 if packed is None else int.from_bytes(packed, "big"))
        self.state.again += (count > 0) - (packed is not None)
        if count:
            self._store.put(_AGAIN + digest, count.to_bytes(4, "big"))
        else:
            self._store.delete(_AGAIN + digest)
