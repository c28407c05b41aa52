"""Index of a sealed segment: a file of 64-bit words, and a filter of it in memory.

Sections of the file: eight words of head; the filter; where each group of decisions begins in the segment, and its end;
where each bucket of entries begins, and its end; entries in the order of their keys' first words, of which each bucket
holds a range of equal width. An entry is a key of two words, an event time and a row of the segment.
"""

import os
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.state.segment_tables import FILTER_BITS, fill_filter

_MAGIC: Final = int.from_bytes(b"segment1", "little")
_HEAD_WORDS: Final = 8
_WORD_BYTES: Final = 8
_ENTRY_WORDS: Final = 4
_ENTRY_BYTES: Final = _ENTRY_WORDS * _WORD_BYTES
_BUCKET_ENTRIES: Final = 64
_KEY_BYTES: Final = 16


class SegmentIndex(NamedTuple):
    """The head of an index; what is behind it is read when it is asked for."""

    entries: int
    bucket_bits: int
    filter_words: int
    groups: int

    def filter(self, file: int) -> NDArray[np.uint64]:
        """Read the filter."""
        return self._words(file, _HEAD_WORDS, self.filter_words).view(np.uint64)

    def group(self, file: int, number: int) -> tuple[int, int]:
        """Read where a group of decisions begins and ends."""
        start, end = self._words(file, _HEAD_WORDS + self.filter_words + number, 2).tolist()
        return start, end

    def find(self, file: int, digest: bytes) -> tuple[int, int] | None:
        """Return event time and row of a transaction's last decision, None where the segment has none."""
        bucket = int.from_bytes(digest[:_WORD_BYTES], "little") >> (64 - self.bucket_bits)
        start, end = self._words(file, self._buckets + bucket, 2).tolist()
        packed = _read(file, (self._first_entry * _WORD_BYTES) + start * _ENTRY_BYTES, (end - start) * _ENTRY_BYTES)
        at = packed.find(digest)
        while at % _ENTRY_BYTES:
            if at < 0:
                return None
            at = packed.find(digest, at + 1)
        words = packed[at + _KEY_BYTES : at + _ENTRY_BYTES]
        return int.from_bytes(words[:_WORD_BYTES], "little", signed=True), int.from_bytes(words[_WORD_BYTES:], "little")

    def all(self, file: int) -> NDArray[np.int64]:
        """Read all entries; shape (entries, 4)."""
        return self._words(file, self._first_entry, self.entries * _ENTRY_WORDS).reshape(-1, _ENTRY_WORDS)

    @property
    def _buckets(self) -> int:
        return _HEAD_WORDS + self.filter_words + self.groups + 1

    @property
    def _first_entry(self) -> int:
        return self._buckets + (1 << self.bucket_bits) + 1

    def _words(self, file: int, first: int, count: int) -> NDArray[np.int64]:
        return np.frombuffer(_read(file, first * _WORD_BYTES, count * _WORD_BYTES), "<i8")


def write_index(
    path: Path, keys: NDArray[np.int64], times: NDArray[np.int64], rows: NDArray[np.int64], groups: list[int]
) -> None:
    """Write an index.

    Args:
        path: A file that does not exist.
        keys: Keys of the entries, shape (n, 2).
        times: Event times in microseconds, shape (n,).
        rows: Rows of the segment, shape (n,).
        groups: Where each group begins, and the end of the last.
    """
    high = keys[:, 0].view(np.uint64)
    order = np.argsort(high, kind="stable")
    bits = max(1, (len(keys) // _BUCKET_ENTRIES).bit_length())
    widths = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    buckets = np.append(np.searchsorted(high[order], widths), len(keys))
    words = np.zeros(len(keys) * FILTER_BITS // 64 + 1, np.uint64)
    fill_filter(words, keys)
    entries = np.empty((len(keys), _ENTRY_WORDS), np.int64)
    entries[:, :2], entries[:, 2], entries[:, 3] = keys[order], times[order], rows[order]
    body = np.concatenate((words.view(np.int64), groups, buckets, entries.ravel()))
    head = np.array([_MAGIC, _checksum(body), len(keys), bits, len(words), len(groups) - 1, 0, 0], np.int64)
    with path.open("xb") as file:
        file.write(head.tobytes())
        file.write(body.tobytes())


def read_index(path: Path) -> SegmentIndex:
    """Read the head of an index. Raises ValueError where the file is not what was written."""
    words = np.fromfile(path, "<i8")
    head, body = words[:_HEAD_WORDS].tolist(), words[_HEAD_WORDS:]
    if len(head) < _HEAD_WORDS or head[0] != _MAGIC or head[1] != _checksum(body):
        raise ValueError(f"{path.name} is damaged")
    return SegmentIndex(*head[2:6])


def _checksum(body: NDArray[np.int64]) -> int:
    return xxhash.xxh3_64_intdigest(body.tobytes()) >> 1


def _read(file: int, offset_bytes: int, size_bytes: int) -> bytes:
    content = os.pread(file, size_bytes, offset_bytes)
    if len(content) != size_bytes:
        raise ValueError(f"an index of a segment ends at byte {offset_bytes + len(content)}")
    return content


def digests_of(entries: NDArray[np.int64]) -> list[bytes]:
    """Return the digests of entries."""
    packed = np.ascontiguousarray(entries[:, :2]).tobytes()
    return [packed[at : at + _KEY_BYTES] for at in range(0, len(packed), _KEY_BYTES)]
