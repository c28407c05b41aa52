"""Decisions of a backtest as the feedback kernel keeps them: rows of the columns of their chunks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.columns import Transactions
from pipeline.engine.segments import MemorySegments
from schemas.messages import Versions


class DecisionColumns(NamedTuple):
    """Columns of a chunk's decisions that examples are made of; arrays have shape (n,)."""

    transactions: Transactions
    features: NDArray[np.float64]
    """Shape (n, features kept)."""
    logit: NDArray[np.float64]
    river_logit: NDArray[np.float64]
    score: NDArray[np.float64]
    versions: Versions


class _Rows(Sequence[Any]):
    """Some rows of columns, each read as (columns, row)."""

    def __init__(self, columns: DecisionColumns, rows: Sequence[int]) -> None:
        self._columns, self._rows = columns, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> tuple[DecisionColumns, int]:
        return self._columns, self._rows[number]


class ColumnSegments(MemorySegments):
    """Segments of one partition; the columns of a chunk are in memory until all of its decisions are forgotten."""

    def begin(self, columns: DecisionColumns) -> None:
        """Let rows that are added be those of ``columns``."""
        self._columns = columns

    def add(self, digests: Sequence[bytes], event_time_us: Sequence[int], decisions: Sequence[int]) -> int:
        """Append rows of the columns that came last."""
        return super().add(digests, event_time_us, _Rows(self._columns, decisions))
