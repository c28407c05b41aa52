"""Saved columns in memory, for tests that load a state from its dumps."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.features.state_columns import PAGE_ITEMS


class MemoryColumn(NamedTuple):
    """A saved column put together from the pages of dumps."""

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
