"""The windows of cards and of merchants: the one place where features are computed.

Live agents, replays, training sets and benchmarks all call `CardWindows.profile` and
`MerchantWindows.profile`. A call reads each row's features off the state and then lets the row enter it, in the order
of the rows; splitting the rows over several calls changes nothing.
"""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import CARD_FEATURES, MERCHANT_FEATURES
from pipeline.features.compiled import (
    BLOCK,
    SIZE_CLASSES,
    Directory,
    EventBases,
    Events,
    LabelBases,
    Labels,
    profile_cards,
    profile_merchants,
)

Arena = TypeVar("Arena", Events, Labels)
Bases = TypeVar("Bases", EventBases, LabelBases)

_INITIAL_SLOTS = 1024
_INITIAL_ARENA = 1024 * BLOCK


class _Slots(dict[str, int]):
    """Names to consecutive integers, in order of appearance."""

    def __missing__(self, name: str) -> int:
        slot = len(self)
        self[name] = slot
        return slot

    def of(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Slots of ``names``, new ones included; shape (n,)."""
        return np.fromiter(map(self.__getitem__, names), np.int64, len(names))


def _resized(column: NDArray[Any], size: int) -> NDArray[Any]:
    grown = np.zeros(size, column.dtype)
    grown[: column.shape[0]] = column
    return grown


class _Timelines(Generic[Arena, Bases]):
    """Slots, directory, arena and bases of one kind of timeline; grows by doubling."""

    def __init__(self, arena: type[Arena], bases: type[Bases]) -> None:
        self.directory = Directory(
            start=np.zeros(_INITIAL_SLOTS, np.int64),
            length=np.zeros(_INITIAL_SLOTS, np.int64),
            capacity=np.zeros(_INITIAL_SLOTS, np.int64),
            free=np.full(SIZE_CLASSES, -1, np.int64),
            meta=np.zeros(1, np.int64),
        )
        self.arena: Arena = arena(
            **{name: np.zeros(_arena_length(name, _INITIAL_ARENA), _dtype(name)) for name in arena._fields}
        )
        self.bases: Bases = bases(**{name: np.zeros(_INITIAL_SLOTS, _dtype(name)) for name in bases._fields})

    def hold_slots(self, slots: int) -> None:
        """Make sure that the directory has ``slots`` entries."""
        size = self.directory.start.shape[0]
        if slots <= size:
            return
        while size < slots:
            size *= 2
        directory = self.directory
        self.directory = directory._replace(
            start=_resized(directory.start, size),
            length=_resized(directory.length, size),
            capacity=_resized(directory.capacity, size),
        )
        self.bases = type(self.bases)._make(_resized(column, size) for column in self.bases)

    def grow_arena(self) -> None:
        """Double the arena."""
        self.arena = type(self.arena)._make(_resized(column, 2 * column.shape[0]) for column in self.arena)

    @property
    def entries(self) -> int:
        """Number of entries in all timelines."""
        return int(self.directory.length.sum())

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(column.nbytes for column in (*self.directory, *self.arena, *self.bases))


_DTYPES: dict[str, type[np.generic]] = {
    "square_high": np.uint64,
    "square_low": np.uint64,
    "identity": np.uint64,
    "flags": np.int32,
    "other": np.int32,
    "known": np.int32,
    "frauds": np.int32,
    "corrected": np.int32,
    "value": np.int8,
}


def _dtype(name: str) -> type[np.generic]:
    return _DTYPES.get(name, np.int64)


def _arena_length(name: str, size: int) -> int:
    return size // BLOCK if name.startswith("block_") else size


class CardWindows:
    """Windows of all cards of one partition."""

    def __init__(self) -> None:
        self._cards = _Slots()
        self._merchants = _Slots()
        self._events = _Timelines(Events, EventBases)

    def profile(
        self,
        cards: Sequence[str],
        merchants: Sequence[str],
        event_time_us: NDArray[np.int64],
        amount_minor: NDArray[np.int64],
        counts: NDArray[np.bool_],
        hour: NDArray[np.float64],
        weekday: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Features of n transactions in log order, which then enter the windows.

        Amounts are minor units of the base currency, 0 <= amount < 2**53. Returns shape (n, len(CARD_FEATURES)).
        """
        slots = self._cards.of(cards)
        others = self._merchants.of(merchants)
        self._events.hold_slots(len(self._cards))
        out = np.empty((len(slots), len(CARD_FEATURES)))
        done = 0
        while True:
            events = self._events
            done = profile_cards(
                events.directory, events.arena, events.bases, done,
                slots, others, event_time_us, amount_minor, counts, hour, weekday, out,
            )  # fmt: skip
            if done == len(slots):
                return out
            events.grow_arena()

    @property
    def nbytes(self) -> int:
        """Bytes held by the windows' arrays."""
        return self._events.nbytes


class MerchantWindows:
    """Windows and known labels of all merchants of one partition of ``profiled``."""

    def __init__(self) -> None:
        self._merchants = _Slots()
        self._events = _Timelines(Events, EventBases)
        self._labels = _Timelines(Labels, LabelBases)

    def profile(
        self,
        kinds: NDArray[np.uint8],
        merchants: Sequence[str],
        transaction_hash: NDArray[np.uint64],
        event_time_us: NDArray[np.int64],
        amount_minor: NDArray[np.int64],
        counts: NDArray[np.bool_],
        known: NDArray[np.int8],
        known_at_us: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Features of n records in log order: transactions (kind 0) and labels (kind 1).

        A label's ``event_time_us`` and ``transaction_hash`` are its transaction's; ``known`` is 1 for fraud, 0 for
        legitimate, 2 for none. Returns shape (n, len(MERCHANT_FEATURES)), NaN in the rows of labels.
        """
        slots = self._merchants.of(merchants)
        events, labels = self._events, self._labels
        events.hold_slots(len(self._merchants))
        labels.hold_slots(len(self._merchants))
        out = np.empty((len(slots), len(MERCHANT_FEATURES)))
        done = 0
        while True:
            done = profile_merchants(
                events.directory, events.arena, events.bases, labels.directory, labels.arena, labels.bases, done,
                kinds, slots, transaction_hash, event_time_us, amount_minor, counts, known, known_at_us, out,
            )  # fmt: skip
            if done == len(slots):
                return out
            (labels if kinds[done] == 1 else events).grow_arena()

    @property
    def nbytes(self) -> int:
        """Bytes held by the windows' arrays."""
        return self._events.nbytes + self._labels.nbytes
