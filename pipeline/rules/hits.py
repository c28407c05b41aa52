"""Transactions that rules hit, as every history gives them."""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.decision.rule_program import Read


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
