"""Columns that grow with a range, in temporary files that are mapped into memory: on disk, and not in the way.

The files have no name, and are gone with whoever holds their columns. They lie where temporary files do (``TMPDIR``).
Work on long columns goes block by block, so that what is made of them meanwhile does not grow with them.
"""

import mmap
import tempfile
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike, NDArray

BLOCK_ROWS: Final = 1 << 18


def blocks(n: int, rows: int = BLOCK_ROWS) -> Iterator[slice]:
    """``n`` rows in slices of at most ``rows``.

    >>> list(blocks(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for first in range(0, n, rows):
        yield slice(first, min(first + rows, n))


def summed(groups: NDArray[np.int64], size: int, values: Callable[[slice], NDArray[Any]]) -> NDArray[np.float64]:
    """`numpy.bincount` with weights that are computed block by block, equal to the last bit.

    Args:
        groups: Integers from 0 on and below ``size``, shape (n,).
        size: Number of groups.
        values: Returns the weights of a slice of the n rows; shape (k,).

    Returns:
        Sum of each group; shape (size,).
    """
    total = np.zeros(size)
    for rows in blocks(len(groups)):
        # One by one onto what there is, as `bincount` does: sums of sums would be rounded otherwise.
        np.add.at(total, groups[rows], values(rows).astype(np.float64, copy=False))
    return total


def texts(column: "pd.Series[str]", rows: slice) -> pa.Array:
    """Some rows of a column of text, as one array of Arrow."""
    found = pa.array(column.iloc[rows].array, pa.large_string())
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


class NumberColumn:
    """Numbers of one kind, added part by part."""

    def __init__(self, dtype: DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._file = _temporary(self)

    def add(self, values: NDArray[Any]) -> None:
        """Put ``values``, shape (k,), behind those that are there."""
        self._file.write(np.ascontiguousarray(values, self._dtype).data)

    def so_far(self) -> NDArray[Any]:
        """Return what was added until now, shape (n,), mapped and read-only; more can be added behind it."""
        self._file.flush()
        if not self._file.tell():
            return np.empty(0, self._dtype)
        return np.frombuffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ), self._dtype)

    def finish(self, *, scratch: bool = False) -> NDArray[Any]:
        """All of them, shape (n,). Nothing can be added any more.

        What is written to the array stays in memory; to one for ``scratch``, in the file.
        """
        return np.frombuffer(_mapped(self._file, scratch=scratch), self._dtype)


class TextColumn:
    """Texts, added part by part."""

    def __init__(self) -> None:
        self._ends = NumberColumn(np.int64)
        self._ends.add(np.zeros(1, np.int64))
        self._end = 0
        self._file = _temporary(self)

    def add(self, texts: pa.Array) -> None:
        """Put ``texts`` (of strings, none null) behind those that are there."""
        if not len(texts):
            return
        lengths = pc.binary_length(texts).to_numpy()
        _, offsets, data = texts.buffers()
        kind = np.int64 if pa.types.is_large_string(texts.type) else np.int32
        first = int(np.frombuffer(offsets, kind, 1, texts.offset * np.dtype(kind).itemsize)[0])
        ends = self._end + np.cumsum(lengths, dtype=np.int64)
        if ends[-1] > self._end:
            self._file.write(data.slice(first, int(ends[-1]) - self._end))
        self._ends.add(ends)
        self._end = int(ends[-1])

    def finish(self) -> pa.Array:
        """All of them, as `pyarrow.large_string`. Nothing can be added any more."""
        ends = self._ends.finish()
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(_mapped(self._file))]
        return pa.Array.from_buffers(pa.large_string(), len(ends) - 1, buffers)


class WordColumn:
    """A few words that come again and again, or none, added part by part."""

    def __init__(self) -> None:
        self._codes = NumberColumn(np.int32)
        self._words: dict[str, int] = {}

    def add(self, words: pa.Array) -> None:
        """Put ``words`` (strings or null) behind those that are there."""
        encoded = words.dictionary_encode()
        known = [self._words.setdefault(word, len(self._words)) for word in encoded.dictionary.to_pylist()]
        codes = pc.fill_null(encoded.indices, len(known)).to_numpy()
        self._codes.add(np.array([*known, -1], np.int32)[codes])

    def finish(self) -> pa.DictionaryArray:
        """All of them. Nothing can be added any more."""
        codes = self._codes.finish()
        missing = codes < 0
        indices = pa.array(codes, mask=missing) if missing.any() else pa.array(codes)
        return pa.DictionaryArray.from_arrays(indices, pa.array(list(self._words), pa.string()))


def in_blocks(n: int, dtype: DTypeLike, values: Callable[[slice], NDArray[Any]]) -> NDArray[Any]:
    """A mapped column, made block by block; it may be written to, or sorted in its place.

    Args:
        n: Number of rows.
        dtype: Type of the column.
        values: Returns the values of a slice of the n rows; shape (k,).

    Returns:
        Shape (n,).
    """
    column = NumberColumn(dtype)
    for rows in blocks(n):
        column.add(values(rows))
    return column.finish(scratch=True)


def mapped_frame(columns: dict[str, pa.Array]) -> pd.DataFrame:
    """Finished columns as a frame, whose texts are backed by Arrow; what is mapped stays where it is."""
    frame: pd.DataFrame = pa.table(columns).to_pandas(types_mapper=_TYPES.get, split_blocks=True)
    return frame


_TYPES: Final = {pa.large_string(): pd.ArrowDtype(pa.large_string())}


def _temporary(column: object) -> Any:
    """A file that is closed with its column, if nobody finished that."""
    file = tempfile.TemporaryFile(prefix="fraud-pipeline-")  # noqa: SIM115
    weakref.finalize(column, file.close)
    return file


def _mapped(file: Any, *, scratch: bool = False) -> Any:
    """The content of a file, whose name nobody needs any more."""
    with file:
        file.flush()
        # Nothing cannot be mapped.
        if not file.tell():
            return bytearray()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE if scratch else mmap.ACCESS_COPY)
