"""The open segment: decisions are appended to a file in groups, and rolled back by truncating it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from pipeline.engine.partition_state.decision_segments import (
    KEY_WORDS,
    KEYS,
    NO_TIME_US,
    TIMES,
    DecisionReference,
    SegmentsState,
    changed_pages,
    keys_of,
    loaded_column,
)
from pipeline.features.state_columns import PAGE_ITEMS, Pages, SavedColumn
from pipeline.state.segment_groups import GROUP_ROWS, pack_group, unpack_group
from pipeline.state.segment_index import write_index
from pipeline.state.segment_tables import NONE, OpenIndex

_CONTENT: Final = "segment-content"
_GROUPS: Final = "segment-groups"
_WORD_BYTES: Final = 8
_PAGE_BYTES: Final = PAGE_ITEMS * _WORD_BYTES


class _Extent(NamedTuple):
    """The extent of a segment."""

    rows: int
    groups: int
    stored_bytes: int
    gathering: list[bytes]
    """Decisions that are in no group."""
    started_us: int
    """Stream time at which the segment began."""
    max_event_time_us: int


_NOTHING: Final = _Extent(0, 0, 0, [], NO_TIME_US, NO_TIME_US)


class OpenSegment:
    """A segment in the file ``path``, whose rows begin at ``first_row``.

    Decisions gather in memory until they fill a group, so that the file does not depend on how the log is cut into
    batches. Failures of the disk are OSError or ValueError.
    """

    def __init__(self, path: Path, number: int, first_row: int, started_us: int = NO_TIME_US) -> None:
        self.number, self.first_row = number, first_row
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._index = OpenIndex()
        self._offsets = [0]
        """Offset of each group, and the end of the last."""
        self.gathering: list[bytes] = []
        self.started_us, self.max_event_time_us = started_us, NO_TIME_US
        self._dumped = _NOTHING
        self._committed = self._extent()

    @property
    def next_row(self) -> int:
        """Row of the next decision."""
        return self.first_row + self._index.rows

    @property
    def stored_bytes(self) -> int:
        """Bytes of the file."""
        return self._offsets[-1]

    @property
    def span_us(self) -> int:
        """Event time that passed since the segment began."""
        return self.max_event_time_us - self.started_us

    @property
    def stored_rows(self) -> int:
        """Rows in the file."""
        return (len(self._offsets) - 1) * GROUP_ROWS

    def add(self, digests: Sequence[bytes], event_time_us: Sequence[int], decisions: Sequence[bytes]) -> None:
        """Append decisions, in order.

        Args:
            digests: Digest of each transaction, shape ``(n,)``.
            event_time_us: Its event time in microseconds since 1970, shape ``(n,)``.
            decisions: Its packed decision, shape ``(n,)``.
        """
        times = np.array(event_time_us, np.int64)
        self._index.add(keys_of(digests), times)
        self._advance(event_time_us)
        gathering = [*self.gathering, *decisions]
        whole = len(gathering) // GROUP_ROWS * GROUP_ROWS
        groups = [pack_group(gathering[first : first + GROUP_ROWS]) for first in range(0, whole, GROUP_ROWS)]
        if groups:
            self._write(b"".join(groups), self.stored_bytes)
            for group in groups:
                self._offsets.append(self._offsets[-1] + len(group))
        self.gathering = gathering[whole:]

    def find(self, digests: Sequence[bytes]) -> dict[bytes, DecisionReference]:
        """Return the entries of those of ``digests`` that are here."""
        rows = self._index.find(keys_of(digests)).tolist()
        times = self._index.times
        return {
            digest: DecisionReference(int(times[row]), self.first_row + row)
            for digest, row in zip(digests, rows, strict=True)
            if row != NONE
        }

    def read(self, row: int) -> tuple[int, list[bytes]]:
        """Read the group of decisions that ``row`` lies in; return its first row and the decisions."""
        group = (row - self.first_row) // GROUP_ROWS
        first_row = self.first_row + group * GROUP_ROWS
        if group == len(self._offsets) - 1:
            return first_row, self.gathering
        start, end = self._offsets[group : group + 2]
        return first_row, unpack_group(os.pread(self._file, end - start, start))

    def commit(self) -> None:
        """Commit the batch."""
        self._committed = self._extent()

    def rollback(self) -> None:
        """Roll the batch back."""
        committed = self._committed
        self._index.take_back(committed.rows)
        if self.stored_bytes != committed.stored_bytes:
            del self._offsets[committed.groups + 1 :]
            os.ftruncate(self._file, committed.stored_bytes)
        self.gathering, self.started_us, self.max_event_time_us = committed[3:]

    def seal(self, path: Path, index_path: Path) -> None:
        """Write the index of the groups in the file, and rename the file. `rest` is what a next segment begins with."""
        rows = self._index.last_rows(self.stored_rows)
        write_index(index_path, self._index.keys[rows], self._index.times[rows], rows, self._offsets)
        os.rename(self._path, path)

    def rest(self) -> tuple[list[bytes], list[int], list[bytes]]:
        """Return digests, event times and decisions of the rows that are in no group."""
        return self.digests(self.stored_rows), self._index.times[self.stored_rows :].tolist(), self.gathering

    def digests(self, first: int = 0) -> list[bytes]:
        """Return the digests of rows, ``first`` counted from the first of the segment."""
        return [key.tobytes() for key in self._index.keys[first:]]

    def times(self) -> list[int]:
        """Return the event times of all rows."""
        times: list[int] = self._index.times.tolist()
        return times

    def dump(self, *, full: bool) -> dict[str, Pages]:
        """Return the columns: what was added since the last dump, or all of them when ``full``."""
        before = _NOTHING if full else self._dumped
        self._dumped = self._extent()
        return {
            KEYS: changed_pages(self._index.keys.ravel(), before.rows * KEY_WORDS),
            TIMES: changed_pages(self._index.times, before.rows),
            _GROUPS: changed_pages(np.array(self._offsets[1:], np.int64), before.groups),
            _CONTENT: self._content(before.stored_bytes // _PAGE_BYTES),
        }

    def load(self, state: SegmentsState, columns: Mapping[str, SavedColumn]) -> None:
        """Begin with what was dumped."""
        keys, times = loaded_column(columns[KEYS]).reshape(-1, KEY_WORDS), loaded_column(columns[TIMES])
        self._offsets += loaded_column(columns[_GROUPS]).tolist()
        content = loaded_column(columns[_CONTENT]).tobytes()[: state.stored_bytes]
        if self.stored_bytes != len(content) or len(keys) != self.stored_rows + len(state.gathering):
            raise ValueError("the open segment of a snapshot is not whole")
        self._write(content, 0)
        self.gathering = state.gathering
        if len(keys):
            self._index.add(keys, times)
            self._advance(times.tolist())
        self._dumped = self._extent()
        self.commit()

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _advance(self, event_time_us: Sequence[int]) -> None:
        if self.started_us == NO_TIME_US:
            self.started_us = event_time_us[0]
        self.max_event_time_us = max(self.max_event_time_us, *event_time_us)

    def _extent(self) -> _Extent:
        return _Extent(
            self._index.rows,
            len(self._offsets) - 1,
            self._offsets[-1],
            self.gathering,
            self.started_us,
            self.max_event_time_us,
        )

    def _content(self, first_page: int) -> Pages:
        """Return the pages of the file from ``first_page`` on, as words."""
        pages = {}
        for start in range(first_page * _PAGE_BYTES, self.stored_bytes, _PAGE_BYTES):
            page = os.pread(self._file, min(_PAGE_BYTES, self.stored_bytes - start), start)
            pages[start // _PAGE_BYTES] = page + bytes(-len(page) % _WORD_BYTES)
        return Pages("<i8", -(-self.stored_bytes // _WORD_BYTES), pages)

    def _write(self, content: bytes, offset_bytes: int) -> None:
        left = memoryview(content)
        while left:
            written = os.pwrite(self._file, left, offset_bytes)
            left, offset_bytes = left[written:], offset_bytes + written
