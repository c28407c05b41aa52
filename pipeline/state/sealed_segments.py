"""Sealed segments: pairs of files that do not change any more, ``<number>.segment`` and ``<number>.index``."""

import os
import shutil
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.partition_state.decision_segments import DecisionReference, SealedSegment, keys_of
from pipeline.state.mapped import MappedStorage
from pipeline.state.segment_groups import GROUP_ROWS, unpack_group
from pipeline.state.segment_index import SegmentIndex, digests_of, read_index
from pipeline.state.segment_tables import NONE, fill_filter, next_candidates

SEGMENT_SUFFIX: Final = ".segment"
INDEX_SUFFIX: Final = ".index"
_OPEN_FILES: Final = 32
_FILTERS: Final = "filters"
_LEAST_WORDS: Final = 1 << 16


class SealedSegments:
    """Sealed segments in ``directory``, in the order of their rows. Failures of the disk are OSError or ValueError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.segments: list[SealedSegment] = []
        self._indexes: list[SegmentIndex] = []
        self._files: OrderedDict[Path, int] = OrderedDict()
        self._storage = MappedStorage(directory / "filters")
        self._filters = np.empty(0, np.uint64)
        self._starts = np.zeros(1, np.int64)
        """Offset of each segment's filter, and the end of the last."""
        # Compiled here, not while the first batch waits.
        fill_filter(np.zeros(1, np.uint64), np.empty((0, 2), np.int64))
        next_candidates(self._filters, self._starts, keys_of([]), np.empty(0, np.int64))

    def paths(self, number: int) -> tuple[Path, Path]:
        """Return the files of a segment: its decisions and its index."""
        stem = f"{number:08d}"
        return self._directory / (stem + SEGMENT_SUFFIX), self._directory / (stem + INDEX_SUFFIX)

    def append(self, segment: SealedSegment) -> None:
        """Take on a segment whose files are there."""
        _, path = self.paths(segment.number)
        index = read_index(path)
        start, end = int(self._starts[-1]), int(self._starts[-1]) + index.filter_words
        if end > len(self._filters):
            self._filters = self._storage.column(_FILTERS, "<u8", max(2 * end, _LEAST_WORDS))
        self._filters[start:end] = index.filter(self._file(path))
        self._starts = np.append(self._starts, end)
        self.segments.append(segment)
        self._indexes.append(index)

    def drop(self, count: int) -> None:
        """Remove the first ``count`` segments."""
        for segment in self.segments[:count]:
            for path in self.paths(segment.number):
                self._close(path)
                path.unlink(missing_ok=True)
        del self.segments[:count], self._indexes[:count]
        start, end = int(self._starts[count]), int(self._starts[-1])
        self._filters[: end - start] = self._filters[start:end].copy()
        self._starts = self._starts[count:] - start

    def find(self, digests: Sequence[bytes]) -> Iterator[tuple[bytes, DecisionReference]]:
        """Yield those of ``digests`` that a segment has, each with its entry in the last one that has it."""
        left = list(digests)
        before = np.full(len(left), len(self.segments), np.int64)
        while left:
            next_candidates(self._filters, self._starts, keys_of(left), before)
            missed = []
            for number, segment in enumerate(before.tolist()):
                if segment != NONE:
                    entry = self._entry(segment, left[number])
                    if entry is None:
                        missed.append(number)
                    else:
                        yield left[number], entry
            left, before = [left[number] for number in missed], before[missed]

    def read(self, row: int) -> tuple[int, list[bytes]]:
        """Read the group of decisions that ``row`` lies in; return its first row and the decisions."""
        position = bisect_right(self.segments, row, key=lambda sealed: sealed.first_row) - 1
        segment, index = self.segments[position], self._indexes[position]
        path, index_path = self.paths(segment.number)
        number = (row - segment.first_row) // GROUP_ROWS
        start, end = index.group(self._file(index_path), number)
        content = os.pread(self._file(path), end - start, start)
        return segment.first_row + number * GROUP_ROWS, unpack_group(content)

    def entries(self) -> Iterator[tuple[list[bytes], NDArray[np.int64], NDArray[np.int64]]]:
        """Yield digests, event times and rows of the entries of each segment, in the order of rows."""
        for segment, index in zip(self.segments, self._indexes, strict=True):
            found = index.all(self._file(self.paths(segment.number)[1]))
            found = found[np.argsort(found[:, 3])]
            yield digests_of(found), found[:, 2], found[:, 3] + segment.first_row

    def link(self, directory: Path) -> None:
        """Link all files into ``directory``."""
        for segment in self.segments:
            for path in self.paths(segment.number):
                os.link(path, directory / path.name)

    def load(self, segments: Sequence[SealedSegment], saved: Path) -> None:
        """Take on segments whose files are in ``saved``, and are moved."""
        for segment in segments:
            for path in self.paths(segment.number):
                shutil.move(saved / path.name, path)
            self.append(segment)

    def size_bytes(self) -> int:
        """Return how large the files are."""
        return sum(path.stat().st_size for segment in self.segments for path in self.paths(segment.number))

    def close(self) -> None:
        """Close all files."""
        for path in list(self._files):
            self._close(path)
        self._storage.close()

    def _entry(self, position: int, digest: bytes) -> DecisionReference | None:
        segment = self.segments[position]
        found = self._indexes[position].find(self._file(self.paths(segment.number)[1]), digest)
        return None if found is None else DecisionReference(found[0], segment.first_row + found[1])

    def _file(self, path: Path) -> int:
        file = self._files.get(path)
        if file is None:
            if len(self._files) == _OPEN_FILES:
                self._close(next(iter(self._files)))
            file = self._files[path] = os.open(path, os.O_RDONLY)
        self._files.move_to_end(path)
        return file

    def _close(self, path: Path) -> None:
        file = self._files.pop(path, None)
        if file is not None:
            os.close(file)
