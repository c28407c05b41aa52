"""Segments: append-only decisions with an index by transaction, as a port, and in memory.

Decisions are rows, numbered in the order in which they came. Of several decisions of one transaction the last one
holds. Segments lie in the order of arrival and are forgotten from the front, each once all of its event times lie
before a day: so no earlier decision comes to light when a later one of its transaction is forgotten.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.engine.partition_state.layout import DIGEST_BYTES
from pipeline.features.state_columns import PAGE_ITEMS, Pages, SavedColumn
from schemas.times import US_PER_DAY

NO_TIME_US: Final = -(2**63)
KEYS: Final = "segment-keys"
"""Column of digests, two words each, of the rows that are in no sealed segment."""
TIMES: Final = "segment-times"
"""Column of their event times."""
KEY_WORDS: Final = DIGEST_BYTES // 8


class DecisionReference(NamedTuple):
    """Reference to a decision."""

    event_time_us: int
    row: int


class SealedSegment(msgspec.Struct, frozen=True, array_like=True):
    """A segment that does not change any more."""

    number: int
    first_row: int
    rows: int
    max_event_time_us: int
    """Latest event time of its decisions."""


class SegmentsState(msgspec.Struct):
    """Segments as they are dumped, beside the columns `KEYS` and `TIMES` and files."""

    sealed: list[SealedSegment] = []
    number: int = 0
    """Number of the open segment."""
    first_row: int = 0
    """First row that is in no sealed segment."""
    started_us: int = NO_TIME_US
    """Stream time at which the open segment began."""
    stored_bytes: int = 0
    """Bytes of the open segment's file."""
    gathering: list[bytes] = []
    """Last rows, which are in no file."""


class SegmentsDump(NamedTuple):
    """Segments, copied."""

    state: SegmentsState
    columns: dict[str, Pages]


class DecisionSegments(Protocol):
    """Append-only decisions by row, and rows by transaction. A batch is rolled back by `rollback`."""

    def add(self, digests: Sequence[bytes], event_time_us: Sequence[int], decisions: Sequence[Any]) -> int:
        """Append n decisions.

        Args:
            digests: Digests of their transactions, `DIGEST_BYTES` each; of equal ones the last holds.
            event_time_us: Microseconds since 1970, n of them, in any order.
            decisions: n of them, in the form in which `read` returns them; bytes where they are dumped.

        Returns:
            The row of the first, which the others follow; of none, the next row.
        """

    def find(self, digests: Sequence[bytes]) -> dict[bytes, DecisionReference]:
        """Return the last decision of those of ``digests`` that have one, forgotten ones perhaps included."""

    def read(self, entries: Sequence[DecisionReference]) -> list[Any]:
        """Return the decisions of ``entries``, which a batch that is not committed may have forgotten."""

    def forget_before(self, day: int) -> None:
        """Let go of the first segments, as far as all of their event times lie before ``day``, with the commit."""

    def checksum(self, day: int) -> bytes:
        """Return a checksum of the decisions that hold from ``day`` on, whatever segments they lie in."""

    def commit(self) -> None:
        """Commit the batch."""

    def rollback(self) -> None:
        """Roll the batch back."""

    def dump(self, *, full: bool) -> SegmentsDump:
        """Copy what is committed: of columns what changed since the last dump, or all of it when ``full``."""

    def load(self, state: SegmentsState, columns: Mapping[str, SavedColumn]) -> None:
        """Begin with what was dumped; nothing has been added yet."""

    def link(self, directory: str) -> None:
        """Link the files of the sealed segments into ``directory``."""

    def close(self) -> None:
        """Close and remove what is held."""


def keys_of(digests: Sequence[bytes]) -> NDArray[np.int64]:
    """Return n digests as words; shape (n, 2).

    >>> keys_of([bytes(8) + bytes([1]) + bytes(7)]).tolist()
    [[0, 1]]
    """
    return np.frombuffer(b"".join(digests), "<i8").reshape(-1, KEY_WORDS)


def row_checksum(digest: bytes, event_time_us: int, decision: bytes) -> int:
    """Return a number of 128 bits that stands for a decision; those of a state are added up.

    Args:
        digest: Digest of its transaction, `DIGEST_BYTES`.
        event_time_us: Microseconds since 1970, within 64 bits.
        decision: The packed decision.
    """
    return xxhash.xxh3_128_intdigest(b"".join((digest, event_time_us.to_bytes(8, "little", signed=True), decision)))


def checksum_bytes(total: int) -> bytes:
    """Return the checksum of decisions whose numbers add up to ``total``."""
    return (total % 2**128).to_bytes(16, "little")


def changed_pages(array: NDArray[Any], first_item: int) -> Pages:
    """Return the pages of a column that only grew since it had ``first_item`` items."""
    first_page = first_item // PAGE_ITEMS
    starts = range(first_page * PAGE_ITEMS, len(array), PAGE_ITEMS)
    pages = {start // PAGE_ITEMS: array[start : start + PAGE_ITEMS].tobytes() for start in starts}
    return Pages(array.dtype.str, len(array), pages)


def loaded_column(column: SavedColumn) -> NDArray[Any]:
    """Return a column that was saved."""
    array = np.empty(column.items, column.dtype)
    column.read_into(array)
    return array


class _Chunk(NamedTuple):
    digests: Sequence[bytes]
    event_time_us: Sequence[int]
    decisions: Sequence[Any]
    max_event_time_us: int


class MemorySegments:
    """Segments in memory, one for each time that decisions are added."""

    def __init__(self) -> None:
        self._rows: dict[bytes, int] = {}
        self._firsts: list[int] = []
        """First row of each chunk."""
        self._chunks: list[_Chunk] = []
        self._next = self._committed_next = 0
        self._committed_chunks = 0
        self._replaced: list[tuple[bytes, int | None]] = []
        """Digests of the open batch, each with the row before."""
        self._limit_us = NO_TIME_US

    def add(self, digests: Sequence[bytes], event_time_us: Sequence[int], decisions: Sequence[Any]) -> int:
        """Append n decisions.

        Args:
            digests: Digests of their transactions, `DIGEST_BYTES` each; of equal ones the last holds.
            event_time_us: Microseconds since 1970, n of them, in any order.
            decisions: n of them, of any type; bytes for `dump` and `checksum`. Like the others, held without a copy.

        Returns:
            The row of the first, which the others follow; of none, the next row.
        """
        first = self._next
        if digests:
            self._firsts.append(first)
            self._chunks.append(_Chunk(digests, event_time_us, decisions, max(event_time_us)))
            for row, digest in enumerate(digests, first):
                self._replaced.append((digest, self._rows.get(digest)))
                self._rows[digest] = row
            self._next += len(digests)
        return first

    def find(self, digests: Sequence[bytes]) -> dict[bytes, DecisionReference]:
        """Return entries by digest."""
        found = {}
        for digest in digests:
            if (row := self._rows.get(digest)) is not None:
                chunk, number = self._chunk_of(row)
                found[digest] = DecisionReference(chunk.event_time_us[number], row)
        return found

    def read(self, entries: Sequence[DecisionReference]) -> list[Any]:
        """Return decisions."""
        positions = [self._chunk_of(entry.row) for entry in entries]
        return [chunk.decisions[number] for chunk, number in positions]

    def forget_before(self, day: int) -> None:
        """Forget with the commit."""
        self._limit_us = day * US_PER_DAY

    def checksum(self, day: int) -> bytes:
        """Add up the checksums of rows."""
        total = 0
        for digest, row in self._rows.items():
            chunk, number = self._chunk_of(row)
            if chunk.event_time_us[number] >= day * US_PER_DAY:
                total += row_checksum(digest, chunk.event_time_us[number], chunk.decisions[number])
        return checksum_bytes(total)

    def commit(self) -> None:
        """Commit the batch."""
        gone = 0
        while gone < len(self._chunks) and self._chunks[gone].max_event_time_us < self._limit_us:
            for row, digest in enumerate(self._chunks[gone].digests, self._firsts[gone]):
                if self._rows.get(digest) == row:
                    del self._rows[digest]
            gone += 1
        del self._chunks[:gone], self._firsts[:gone]
        self._committed_chunks, self._committed_next = len(self._chunks), self._next
        self._replaced.clear()

    def rollback(self) -> None:
        """Roll the batch back."""
        for digest, row in reversed(self._replaced):
            if row is None:
                del self._rows[digest]
            else:
                self._rows[digest] = row
        del self._chunks[self._committed_chunks :], self._firsts[self._committed_chunks :]
        self._next = self._committed_next
        self._replaced.clear()
        self._limit_us = NO_TIME_US

    def dump(self, *, full: bool) -> SegmentsDump:
        """Copy everything."""
        del full
        digests = [digest for chunk in self._chunks for digest in chunk.digests]
        times = np.array([time_us for chunk in self._chunks for time_us in chunk.event_time_us], "<i8")
        state = SegmentsState(
            first_row=self._firsts[0] if self._firsts else self._next,
            gathering=[decision for chunk in self._chunks for decision in chunk.decisions],
        )
        return SegmentsDump(state, {KEYS: changed_pages(keys_of(digests).ravel(), 0), TIMES: changed_pages(times, 0)})

    def load(self, state: SegmentsState, columns: Mapping[str, SavedColumn]) -> None:
        """Begin with what a dump of such segments holds."""
        self._next = state.first_row
        packed, times = loaded_column(columns[KEYS]).tobytes(), loaded_column(columns[TIMES]).tolist()
        digests = [packed[at : at + DIGEST_BYTES] for at in range(0, len(packed), DIGEST_BYTES)]
        self.add(digests, times, state.gathering)
        self.commit()

    def link(self, directory: str) -> None:
        """Link nothing: there are no files."""

    def close(self) -> None:
        """Drop everything."""
        self._rows.clear()
        self._chunks.clear()
        self._firsts.clear()

    def _chunk_of(self, row: int) -> tuple[_Chunk, int]:
        number = bisect_right(self._firsts, row) - 1
        return self._chunks[number], row - self._firsts[number]
