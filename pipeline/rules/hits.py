"""Transactions that rules hit, as every history gives them."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.decision.rule_program import Read
from pipeline.decision.rules import SCORES, TEXTS
from pipeline.expressions.trees import Condition, fields_in, list_fields_in
from schemas.times import US_PER_DAY


class Hits(NamedTuple):
    """h transactions that a rule hits; every array has shape (h,)."""

    event_time_us: NDArray[np.int64]
    amount: NDArray[np.float64]
    """In the base currency."""
    kernel: NDArray[np.int64]
    """Number of the kernel version that computed the features."""
    card: NDArray[np.int64]
    """64 bits of the card's name."""
    selection: NDArray[np.object_]
    """Why there was an alert: ``score``, ``rule`` or ``audit``; None without an alert."""
    others: NDArray[np.object_]
    """Codes of other rules that hit, a tuple each."""
    fraud: NDArray[np.bool_]
    legitimate: NDArray[np.bool_]
    """Labels; what is neither has none."""

    def take(self, rows: NDArray[np.bool_]) -> "Hits":
        """Return some hits."""
        return Hits._make(column[rows] for column in self)


class HitHistory(NamedTuple):
    """The transactions of a history that were hit."""

    hits: Hits
    maturity_us: int
    """Age from which a hit counts as legitimate if it has no label."""
    kernels: frozenset[int]
    """Numbers of the kernel versions whose features mean what they mean here."""
    leaks: bool = False
    """True if rules have read the lists of today: what was listed since then leaks into the figures."""
    left_out: str = ""
    """A sentence about transactions of a file that workers would refuse, or that repeat others; empty for none."""


class Counted(ABC):
    """Rules that count a history, part by part, in any order.

    Args:
        conditions: What the rules are.
    """

    def __init__(self, conditions: Sequence[Condition]) -> None:
        names = frozenset().union(*map(fields_in, conditions))
        self.texts, self.scores = sorted(names & TEXTS), sorted(names & {*SCORES})
        self.features = sorted(names - TEXTS - {*SCORES})
        self.lists = list_fields_in(conditions)
        """Names of the lists that the rules read, each with the field that they look for there."""
        self._days: dict[tuple[int, int], NDArray[np.int64]] = {}
        """Counts by kernel and day."""
        self._computed: set[tuple[int, str]] = set()
        """Features of which a kernel has given a value."""
        self._last_event_us = 0

    @abstractmethod
    def take(
        self, read: Read, event_time_us: NDArray[np.int64], kernel: NDArray[np.int64], transaction_id: Any
    ) -> NDArray[np.intp]:
        """Count n transactions, and return the rows of the hits.

        Args:
            read: Returns a column by the name in `FIELDS`.
            event_time_us: Shape (n,).
            kernel: Number of the kernel version that computed each, shape (n,).
            transaction_id: Returns the name of a row's transaction.
        """

    def _count(
        self, counted: NDArray[np.bool_], read: Read, event_time_us: NDArray[np.int64], kernel: NDArray[np.int64]
    ) -> None:
        """Count at least one transaction, by the kernel version that computed its features and by day.

        Args:
            counted: What is counted: shape (counts, n); the first row is true.
            read: Returns a feature by its name.
            event_time_us: Shape (n,).
            kernel: Shape (n,).
        """
        day, first = event_time_us // US_PER_DAY, int(event_time_us.min() // US_PER_DAY)
        width = int(day.max()) - first + 1
        cell = kernel * width + day - first
        counts = np.array([np.bincount(cell[row], minlength=cell.max() + 1) for row in counted])
        for number in np.flatnonzero(counts[0]).tolist():
            key = number // width, first + number % width
            self._days[key] = self._days.get(key, 0) + counts[:, number].astype(np.int64)
        for name in self.features:
            self._computed |= {(number, name) for number in np.unique(kernel[~np.isnan(read(name))]).tolist()}
        self._last_event_us = max(self._last_event_us, int(event_time_us.max()))

    def _usable(self, kernels: frozenset[int], features: Collection[str]) -> list[int]:
        """Return the kernels that have computed all of some features; what others say of these was not computed."""
        return [kernel for kernel in sorted(kernels) if all((kernel, name) in self._computed for name in features)]


def day_span(counts: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the first day among kernels and days, and the number of days to the last; None where there is none."""
    known = {day for _, day in counts}
    return (min(known), max(known) - min(known) + 1) if known else None
