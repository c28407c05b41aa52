"""Compiled tables of the index of segments: the open segment's rows by key, and filters of the sealed ones.

A key is a digest of 128 bits as two words. Rows of the open segment are in a hash table with linear probing; each row
knows the row before it of the same key, so that rows are taken back in the reverse of the order in which they came. A
filter is a Bloom filter whose bits of one key lie in one word, so that a look at a segment costs one cache miss.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.features.compiled import compiled, inlined

FILTER_BITS: Final = 16
"""Bits of a filter for each key: of absent keys about one in two hundred passes."""
_HALF: Final = np.uint64(32)
_STEP: Final = np.uint64(6)
_LOW: Final = np.uint64(63)
_ONE: Final = np.uint64(1)
_BITS_OF_KEY: Final = 5
_LEAST_ROWS: Final = 1_024
NONE: Final = np.int64(-1)


@compiled
def _insert(slots: Any, keys: Any, previous: Any, first: Any, end: Any) -> None:
    mask = slots.shape[0] - 1
    for row in range(first, end):
        at = keys[row, 0] & mask
        while slots[at] > 0:
            held = slots[at] - 1
            if keys[held, 0] == keys[row, 0] and keys[held, 1] == keys[row, 1]:
                break
            at = (at + 1) & mask
        previous[row] = slots[at] - 1
        slots[at] = row + 1


@compiled
def _take_back(slots: Any, keys: Any, previous: Any, first: Any, end: Any) -> None:
    mask = slots.shape[0] - 1
    for row in range(end - 1, first - 1, -1):
        at = keys[row, 0] & mask
        while slots[at] != row + 1:
            at = (at + 1) & mask
        slots[at] = previous[row] + 1


@compiled
def _find(slots: Any, keys: Any, wanted: Any, rows: Any) -> None:
    mask = slots.shape[0] - 1
    for number in range(wanted.shape[0]):
        at = wanted[number, 0] & mask
        rows[number] = NONE
        while slots[at] > 0:
            held = slots[at] - 1
            if keys[held, 0] == wanted[number, 0] and keys[held, 1] == wanted[number, 1]:
                rows[number] = held
                break
            at = (at + 1) & mask


@inlined
def _word(high: Any, words: Any) -> Any:
    return ((np.uint64(high) >> _HALF) * np.uint64(words)) >> _HALF


@inlined
def _bits(low: Any) -> Any:
    rest, bits = np.uint64(low), np.uint64(0)
    for _ in range(_BITS_OF_KEY):
        bits |= _ONE << (rest & _LOW)
        rest >>= _STEP
    return bits


@compiled
def fill_filter(words: Any, keys: Any) -> None:
    """Enter keys, shape (n, 2), into a filter of zeros."""
    for row in range(keys.shape[0]):
        words[_word(keys[row, 0], words.shape[0])] |= _bits(keys[row, 1])


@compiled
def next_candidates(filters: Any, starts: Any, wanted: Any, before: Any) -> None:
    """Replace ``before`` by the last segment before it that may hold each key, `NONE` where there is none.

    ``filters`` has the words of all segments, those of segment k from ``starts[k]`` to ``starts[k + 1]``.
    """
    for number in range(wanted.shape[0]):
        bits = _bits(wanted[number, 1])
        segment = before[number] - 1
        while segment >= 0:
            start = starts[segment]
            word = np.int64(_word(wanted[number, 0], starts[segment + 1] - start))
            if filters[start + word] & bits == bits:
                break
            segment -= 1
        before[number] = segment


class OpenIndex:
    """Rows of the open segment by key, numbered from 0."""

    def __init__(self) -> None:
        self.rows = 0
        self._keys = np.empty((_LEAST_ROWS, 2), np.int64)
        self._times = np.empty(_LEAST_ROWS, np.int64)
        self._previous = np.empty(_LEAST_ROWS, np.int64)
        self._slots = np.zeros(2 * _LEAST_ROWS, np.int64)
        # Compiled here, not while the first batch waits.
        self.take_back(0)
        self.find(self.keys)
        self.add(self.keys, self.times)

    @property
    def keys(self) -> NDArray[np.int64]:
        """Keys of all rows; shape (rows, 2)."""
        return self._keys[: self.rows]

    @property
    def times(self) -> NDArray[np.int64]:
        """Event times of all rows in microseconds; shape (rows,)."""
        return self._times[: self.rows]

    def add(self, keys: NDArray[np.int64], times: NDArray[np.int64]) -> None:
        """Append rows; keys have shape (n, 2), times (n,)."""
        end = self.rows + len(keys)
        if end > len(self._times):
            self._grow(end)
        self._keys[self.rows : end], self._times[self.rows : end] = keys, times
        _insert(self._slots, self._keys, self._previous, self.rows, end)
        self.rows = end

    def take_back(self, rows: int) -> None:
        """Remove the last rows, so that ``rows`` are left."""
        _take_back(self._slots, self._keys, self._previous, rows, self.rows)
        self.rows = rows

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the last row of each key, `NONE` where there is none; shape (n,)."""
        rows = np.empty(len(keys), np.int64)
        _find(self._slots, self._keys, keys, rows)
        return rows

    def last_rows(self, rows: int) -> NDArray[np.int64]:
        """Return those of the first ``rows`` rows that are the last of their key among them, ascending."""
        last = np.ones(rows, np.bool_)
        previous = self._previous[:rows]
        last[previous[previous >= 0]] = False
        return np.flatnonzero(last)

    def _grow(self, rows: int) -> None:
        size = len(self._times)
        while size < rows:
            size *= 2
        keys, times = self.keys, self.times
        self._keys, self._times = np.empty((size, 2), np.int64), np.empty(size, np.int64)
        self._keys[: self.rows], self._times[: self.rows] = keys, times
        self._previous, self._slots = np.empty(size, np.int64), np.zeros(2 * size, np.int64)
        _insert(self._slots, self._keys, self._previous, 0, self.rows)
