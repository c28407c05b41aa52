"""Columns of state: arrays that grow, wherever they are kept, and what of them changed since they were last saved."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

PAGE_ITEMS: Final = 8_192
"""Items of one page, the unit in which changes are noted and saved: small enough to copy, large enough to be few."""


class Pages(NamedTuple):
    """What must be saved of one column: its length, and copies of the pages that changed since the last time."""

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
    """Where the columns of one partition's state live."""

    def column(self, name: str, dtype: str, items: int) -> NDArray[Any]:
        """The column ``name`` with at least ``items`` items; what it held is kept, and new items are zero.

        An array returned earlier for the same name must not be used any more.
        """

    def close(self) -> None:
        """Let go of all columns; nothing of them is kept."""


class MemoryStorage:
    """Columns in memory."""

    def __init__(self) -> None:
        self._columns: dict[str, NDArray[Any]] = {}

    def column(self, name: str, dtype: str, items: int) -> NDArray[Any]:
        """The column, grown by copying to twice the room: what nothing has touched yet takes no memory."""
        held = self._columns.get(name)
        if held is None:
            held = self._columns[name] = np.zeros(items, np.dtype(dtype))
        elif len(held) < items:
            grown = np.zeros(2 * items, held.dtype)
            grown[: len(held)] = held
            held = self._columns[name] = grown
        return held

    def close(self) -> None:
        """Drop the columns."""
        self._columns.clear()


class MemoryColumn(NamedTuple):
    """A saved column put together from the pages of dumps; what tests and folds in memory load from."""

    dtype: str
    items: int
    pages: Mapping[int, bytes]

    def read_into(self, array: NDArray[Any]) -> None:
        """Fill ``array`` from the pages."""
        for number, page in self.pages.items():
            values = np.frombuffer(page, np.dtype(self.dtype))
            start = number * PAGE_ITEMS
            stop = min(start + len(values), self.items)
            array[start:stop] = values[: stop - start]
