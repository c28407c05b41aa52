"""Segments of decisions in files of one directory: a cache of what the log says, which begins empty.

The open segment takes decisions. Once it has `SEALED_BYTES`, or its decisions span `SEALED_SPAN_US`, a commit seals it.
A snapshot links sealed segments, and copies of the open one what was added since the snapshot before.
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from pipeline.engine.partition_state.decision_segments import (
    NO_TIME_US,
    DecisionReference,
    SealedSegment,
    SegmentsDump,
    SegmentsState,
    checksum_bytes,
    row_checksum,
)
from pipeline.features.state_columns import SavedColumn
from pipeline.state.errors import SnapshotError, check_present
from pipeline.state.open_segment import OpenSegment
from pipeline.state.sealed_segments import SealedSegments
from pipeline.state.store import store_errors
from schemas.times import US_PER_DAY

SEALED_BYTES: Final = 64 << 20
SEALED_SPAN_US: Final = 16 * US_PER_DAY
"""Bounds how much longer than they are needed decisions are on disk."""
_OPEN: Final = "open"
_CHECKED_AT_ONCE: Final = 1_024


class FileSegments:
    """Segments in ``directory``. Implements `pipeline.engine.partition_state.decision_segments.DecisionSegments`.

    Args:
        directory: Emptied; removed on close.
        saved: Where `load` finds the files of sealed segments, which it moves.
        sealed_bytes: Size at which a segment is sealed.

    Raises StoreError where the disk fails, StateRemoved where somebody removed the directory.
    """

    def __init__(self, directory: Path, saved: Path | None = None, *, sealed_bytes: int = SEALED_BYTES) -> None:
        self._directory, self._saved, self._sealed_bytes = directory, saved, sealed_bytes
        self._limit_us = NO_TIME_US
        if directory.exists():
            shutil.rmtree(directory)
        with store_errors(directory):
            directory.mkdir(parents=True)
            self._sealed = SealedSegments(directory)
            self._open = OpenSegment(directory / _OPEN, 0, 0)

    def add(self, digests: Sequence[bytes], event_time_us: Sequence[int], decisions: Sequence[bytes]) -> int:
        """Append packed decisions, in order; return the row of the first, which the others follow.

        Args:
            digests: Digest of each transaction, shape ``(n,)``; may be empty.
            event_time_us: Its event time in microseconds since 1970, shape ``(n,)``.
            decisions: Its packed decision, shape ``(n,)``.
        """
        first = self._open.next_row
        if digests:
            with store_errors(self._directory):
                self._open.add(digests, event_time_us, decisions)
        return first

    def find(self, digests: Sequence[bytes]) -> dict[bytes, DecisionReference]:
        """Look in the open segment, then in the sealed ones from the last to the first."""
        if not digests:
            return {}
        found = self._open.find(digests)
        if self._sealed.segments and len(found) < len(digests):
            with store_errors(self._directory):
                found.update(self._sealed.find([digest for digest in digests if digest not in found]))
        return found

    def read(self, entries: Sequence[DecisionReference]) -> list[bytes]:
        """Read packed decisions, each group of them once."""
        found = [b""] * len(entries)
        first, group = 0, list[bytes]()
        with store_errors(self._directory):
            for number in sorted(range(len(entries)), key=lambda at: entries[at].row):
                row = entries[number].row
                if not first <= row < first + len(group):
                    first, group = (self._open if row >= self._open.first_row else self._sealed).read(row)
                found[number] = group[row - first]
        return found

    def forget_before(self, day: int) -> None:
        """Forget with the commit."""
        self._limit_us = day * US_PER_DAY

    def checksum(self, day: int) -> bytes:
        """Add up the checksums of rows, some at a time."""
        total = 0
        for digests, entries in self._held():
            for first in range(0, len(digests), _CHECKED_AT_ONCE):
                part = slice(first, first + _CHECKED_AT_ONCE)
                last = self.find(digests[part])
                held = [
                    (digest, entry)
                    for digest, entry in zip(digests[part], entries[part], strict=True)
                    # Of several decisions of a transaction the last one counts.
                    if last[digest] == entry and entry.event_time_us >= day * US_PER_DAY
                ]
                for (digest, entry), decision in zip(held, self.read([entry for _, entry in held]), strict=True):
                    total += row_checksum(digest, entry.event_time_us, decision)
        return checksum_bytes(total)

    def commit(self) -> None:
        """Commit the batch; then remove segments that are forgotten, and seal the open one where it is time."""
        opened, segments = self._open, self._sealed.segments
        opened.commit()
        gone = 0
        while gone < len(segments) and segments[gone].max_event_time_us < self._limit_us:
            gone += 1
        if gone:
            with store_errors(self._directory):
                self._sealed.drop(gone)
        full = opened.stored_bytes >= self._sealed_bytes
        if full or (opened.span_us > SEALED_SPAN_US and opened.stored_rows):
            with store_errors(self._directory):
                self._seal()

    def rollback(self) -> None:
        """Roll the batch back."""
        self._limit_us = NO_TIME_US
        with store_errors(self._directory):
            self._open.rollback()

    def dump(self, *, full: bool) -> SegmentsDump:
        """Copy what is committed of the open segment."""
        with store_errors(self._directory):
            columns = self._open.dump(full=full)
        state = SegmentsState(
            list(self._sealed.segments),
            self._open.number,
            self._open.first_row,
            self._open.started_us,
            self._open.stored_bytes,
            self._open.gathering,
        )
        return SegmentsDump(state, columns)

    def load(self, state: SegmentsState, columns: Mapping[str, SavedColumn]) -> None:
        """Begin with a dump, and files in the directory that was given for them."""
        with store_errors(self._directory):
            if state.sealed and self._saved is not None:
                self._sealed.load(state.sealed, self._saved)
            self._open.close()
            self._open = OpenSegment(self._directory / _OPEN, state.number, state.first_row, state.started_us)
            self._open.load(state, columns)

    def link(self, directory: str) -> None:
        """Link the files of the sealed segments.

        Raises:
            SnapshotError: They could not be linked; the segments go on.
        """
        check_present(self._directory)
        try:
            self._sealed.link(Path(directory))
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise SnapshotError(
                f"the files of {self._directory} could not be linked to {directory} ({error}): see to the room and the "
                "rights there; the next snapshot is a full one"
            ) from error

    def rows(self) -> int:
        """Return the number of decisions on disk, repeated and forgotten ones included."""
        first = self._sealed.segments[0].first_row if self._sealed.segments else self._open.first_row
        return self._open.next_row - first

    def size_bytes(self) -> int:
        """Return how large the files are."""
        check_present(self._directory)
        return self._sealed.size_bytes() + self._open.stored_bytes

    def close(self) -> None:
        """Close and remove the files."""
        self._open.close()
        self._sealed.close()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._directory)

    def _seal(self) -> None:
        opened = self._open
        opened.seal(*self._sealed.paths(opened.number))
        segment = SealedSegment(opened.number, opened.first_row, opened.stored_rows, opened.max_event_time_us)
        self._sealed.append(segment)
        self._open = OpenSegment(
            self._directory / _OPEN, opened.number + 1, opened.first_row + opened.stored_rows, opened.max_event_time_us
        )
        digests, times, decisions = opened.rest()
        if digests:
            self._open.add(digests, times, decisions)
        self._open.commit()
        opened.close()

    def _held(self) -> Iterator[tuple[list[bytes], list[DecisionReference]]]:
        """Yield digests and entries of each segment."""
        for digests, times, rows in self._sealed.entries():
            yield digests, list(map(DecisionReference, times.tolist(), rows.tolist()))
        opened = self._open
        yield opened.digests(), list(map(DecisionReference, opened.times(), range(opened.first_row, opened.next_row)))
