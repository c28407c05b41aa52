"""Transactions that rules hit, as every history gives them."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.decision.rule_program import Read
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


class DayCounts:
    """Counts of transactions by the kernel version that computed their features, and by day; in any order.

    Args:
        features: Names of the features that are read.
    """

    def __init__(self, features: Sequence[str]) -> None:
        self._features = features
        self.days: dict[tuple[int, int], NDArray[np.int64]] = {}
        """Counts by kernel and day."""
        self._computed: set[tuple[int, str]] = set()
        """Features of which a kernel has given a value."""
        self.last_event_us = 0

    def add(
        self, counted: NDArray[np.bool_], read: Read, event_time_us: NDArray[np.int64], kernel: NDArray[np.int64]
    ) -> None:
        """Count at least one transaction.

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
            self.days[key] = self.days.get(key, 0) + counts[:, number].astype(np.int64)
        for name in self._features:
            self._computed |= {(number, name) for number in np.unique(kernel[~np.isnan(read(name))]).tolist()}
        self.last_event_us = max(self.last_event_us, int(event_time_us.max()))

    def usable(self, kernels: Iterable[int], features: Iterable[str]) -> list[int]:
        """Return the kernels that have computed all of some features; what others say of these was not computed."""
        names = [*features]
        return [kernel for kernel in sorted(kernels) if all((kernel, name) in self._computed for name in names)]


def day_span(counts: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the first day among kernels and days, and the number of days to the last; None where there is none."""
    known = {day for _, day in counts}
    return (min(known), max(known) - min(known) + 1) if known else None


class Counted(Protocol):
    """Rules that count a history, part by part, in any order."""

    @property
    def texts(self) -> list[str]:
        """Names of the texts that they read."""
        ...

    @property
    def scores(self) -> list[str]:
        """Names of the scores that they read."""
        ...

    @property
    def features(self) -> list[str]:
        """Names of the features that they read."""
        ...

    @property
    def lists(self) -> bool:
        """True if they look something up in a list."""
        ...

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
        ...
