"""Columns of state: arrays that grow, wherever they are kept, and what of them changed since they were last saved."""

from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

PAGE_ITEMS: Final = 8_192
"""Items of one page, the unit in which changes are noted and saved: small enough to copy, large enough to be few."""
CACHE_LINE_BYTES: Final = 64
"""The bytes that a processor fetches at once; records of so many bytes or twice that lie in as few as can be."""


class Pages(NamedTuple):
    """The unsaved part of a column: its length, and copies of the pages that changed since the last time."""

    dtype: str
    items: int
    changed: dict[int, bytes]
    """Page number (page k holds the items from k x PAGE_ITEMS on) to its bytes; the last page may be short."""


class SavedColumn(Protocol):
    """A column as it was saved."""

    dtype: str
    items: int

    def read_into(self, array: NDArray[Any]) -> None:
        """Fill the first ``items`` items of ``array``."""


class Storage(Protocol):
    """The memory that holds the columns of one partition's state."""

    def column(self, name: str, dtype: str, items: int) -> NDArray[Any]:
        """The column ``name`` with at least ``items`` items; what it held is kept, and new items are zero.

        An array returned earlier for the same name must not be used any more.

        Args:
            name: Names the column within this storage.
            dtype: NumPy's name of the type of the items, such as ``<i8``; the same in every call for a column.
            items: Least length; the column may be longer, and never becomes shorter.
        """

    def close(self) -> None:
        """Let go of all columns; nothing of them is kept."""


def aligned_zeros(items: int, dtype: str) -> NDArray[Any]:
    """Zeros of shape (items,) that begin with a cache line, which NumPy's own do not.

    >>> int(aligned_zeros(3, "<i8").ctypes.data) % CACHE_LINE_BYTES, aligned_zeros(3, "<i8").tolist()
    (0, [0, 0, 0])
    """
    kind = np.dtype(dtype)
    size = items * kind.itemsize
    room = np.zeros(size + CACHE_LINE_BYTES, np.uint8)
    offset = -room.ctypes.data % CACHE_LINE_BYTES
    return room[offset : offset + size].view(kind)


class MemoryStorage:
    """Columns in memory."""

    def __init__(self) -> None:
        self._columns: dict[str, NDArray[Any]] = {}

    def column(self, name: str, dtype: str, items: int) -> NDArray[Any]:
        """The column, grown by copying to twice the room: what nothing has touched yet takes no memory.

        Args:
            name: Names the column within this storage.
            dtype: NumPy's name of the type of the items, such as ``<i8``; read when the column is made or grown.
            items: Least length. A new column has exactly so many items, a grown one twice as many.
        """
        held = self._columns.get(name)
        if held is None:
            held = self._columns[name] = aligned_zeros(items, dtype)
        elif len(held) < items:
            grown = aligned_zeros(2 * items, dtype)
            grown[: len(held)] = held
            held = self._columns[name] = grown
        return held

    def close(self) -> None:
        """Drop the columns."""
        self._columns.clear()
