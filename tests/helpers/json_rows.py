"""Rows of numbers as JSON objects."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.encoding.json_rows import Rows, RowWriter, number


def numbers(matrix: NDArray[Any]) -> Rows:
    """Columns of numbers alone."""
    n = len(matrix)
    return Rows(b"", np.empty((0, n, 2), np.int64), np.empty((0, n), np.int64), matrix)


def encode_numbers(names: Sequence[str], matrix: NDArray[Any]) -> list[bytes]:
    """One object a row, of ``names``."""
    return list(RowWriter({name: number(column) for column, name in enumerate(names)}).write(numbers(matrix)))
