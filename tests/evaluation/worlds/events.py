"""Transactions of a world, as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SECONDS_PER_DAY: Final = 86_400
LEGITIMATE: Final = 0
"""Kind of an event that is no fraud."""


@dataclass(frozen=True, slots=True)
class Events:
    """Transactions in any order; arrays of one length."""

    second: Ints
    """Since midnight of day 0."""
    card: Ints
    merchant: Ints
    minor: Ints
    """Amount in cents."""
    kind: Ints
    """`LEGITIMATE`, or the number of a kind of fraud."""

    @classmethod
    def of(cls, second: ArrayLike, card: Ints, merchant: Ints, amount: ArrayLike, kind: int) -> Self:
        """Return events of one kind, with amounts in the major unit, of which none is below a cent."""
        minor = np.maximum(np.rint(np.asarray(amount, np.float64) * 100), 1).astype(np.int64)
        return cls(np.asarray(second, np.float64).astype(np.int64), card, merchant, minor, np.full(len(card), kind))

    def __len__(self) -> int:
        return len(self.second)

    def __getitem__(self, chosen: NDArray[np.bool_] | NDArray[np.intp] | slice) -> "Events":
        return Events(*(getattr(self, field.name)[chosen] for field in fields(self)))


def joined(parts: Sequence[Events]) -> Events:
    """Return the events of all parts."""
    return Events(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Events)))
