"""Work on long columns block by block, so that what is made of them meanwhile does not grow with them."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

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
