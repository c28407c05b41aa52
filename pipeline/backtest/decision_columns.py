"""Decisions of a backtest as the feedback kernel keeps them: references into the columns of their chunks."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.columns import Transactions
from pipeline.engine.decision_store import Entry
from schemas.messages import Versions


class DecisionColumns(NamedTuple):
    """Columns of a chunk's decisions that examples are made of; arrays have shape (n,)."""

    transactions: Transactions
    features: NDArray[np.float64]
    """Shape (n, features kept)."""
    logit: NDArray[np.float64]
    score: NDArray[np.float64]
    versions: Versions


class ColumnSegments:
    """Segments of one partition: one a chunk, in memory until every day of it is forgotten."""

    def __init__(self) -> None:
        self._columns: dict[int, DecisionColumns] = {}
        self._days: defaultdict[int, list[tuple[int, list[bytes]]]] = defaultdict(list)
        self._days_left: Counter[int] = Counter()
        """One for each segment."""
        self._segments = 0
        self._added: list[int] = []
        """Days to which the open batch has added, in order."""
        self._removed: dict[int, list[tuple[int, list[bytes]]]] = {}

    def begin(self, columns: DecisionColumns) -> None:
        """Let rows that are added be those of ``columns``."""
        self._segments += 1
        self._columns[self._segments] = columns

    def add(self, days: Sequence[int], digests: Sequence[bytes], decisions: Sequence[int]) -> list[tuple[int, int]]:
        """Append rows of the columns that came last."""
        of_days: defaultdict[int, list[bytes]] = defaultdict(list)
        for day, digest in zip(days, digests, strict=True):
            of_days[day].append(digest)
        for day, of in of_days.items():
            self._days[day].append((self._segments, of))
            self._days_left[self._segments] += 1
            self._added.append(day)
        return [(self._segments, row) for row in decisions]

    def read(self, entries: Sequence[Entry]) -> list[tuple[DecisionColumns, int]]:
        """Return the columns and the row of each."""
        return [(self._columns[entry.segment], entry.row) for entry in entries]

    def take_before(self, day: int, at_least: int) -> Iterator[tuple[int, bytes]]:
        """Remove all before ``day``; its columns go when the batch is committed."""
        del at_least
        for one in [one for one in self._days if one < day]:
            self._removed.setdefault(one, []).extend(removed := self._days.pop(one))
            for _, digests in removed:
                yield from ((one, digest) for digest in digests)

    def settle(self) -> None:
        """The batch is committed."""
        for groups in self._removed.values():
            self._days_left.subtract(segment for segment, _ in groups)
        for segment in [segment for segment in self._columns if self._days_left[segment] <= 0]:
            del self._columns[segment], self._days_left[segment]
        self._removed.clear()
        self._added.clear()

    def undo(self) -> None:
        """The batch is not committed."""
        for day, groups in self._removed.items():
            self._days[day] = groups + self._days[day]
        for day in reversed(self._added):
            segment, _ = self._days[day].pop()
            self._days_left[segment] -= 1
        self._removed.clear()
        self._added.clear()
