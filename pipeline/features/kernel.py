"""The windows of cards and of merchants: the one place where features are computed.

Live agents, replays, training sets and benchmarks all call `CardWindows.profile` and
`MerchantWindows.profile`. A call reads each row's features off the state and then lets the row enter it, in the order
of the rows; splitting the rows over several calls changes nothing.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import CARD_FEATURES, MERCHANT_FEATURES, US_PER_DAY
from pipeline.features.columns import PAGE_ITEMS, Pages, SavedColumn, Storage
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

EPISODE_US: Final = US_PER_DAY
"""A case gathers a card's transactions from its first one on for this long."""
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


class CardProfile(NamedTuple):
    """What a call of `CardWindows.profile` gives."""

    features: NDArray[np.float64]
    """Shape (n, len(CARD_FEATURES))."""
    case_start_us: NDArray[np.int64]
    """Shape (n,): event time of the transaction that opened the case."""
    case_sequence: NDArray[np.int64]
    """Shape (n,): 1 for the first transaction of a case."""


class _Saveable:
    """A plain stand-in for undo and saving: whole copies."""

    _fields: tuple[str, ...]

    def __init__(self) -> None:
        self.newest_us = 0
        """Largest event time of all transactions that were profiled; 0 before any."""
        self._before: dict[str, Any] | None = None

    def _remember(self) -> None:
        if self._before is None:
            self._before = copy.deepcopy({name: getattr(self, name) for name in self._fields})

    def settle(self) -> None:
        """What was profiled is committed."""
        self._before = None

    def undo(self) -> None:
        """Take back what was profiled since the last time."""
        if self._before is not None:
            for name, value in self._before.items():
                setattr(self, name, value)
        self._before = None

    def dump(self, *, full: bool = False) -> tuple[bytes, dict[str, Pages]]:
        """(values, columns) of the settled state; this stand-in saves all of it, always."""
        del full
        plain: dict[str, Any] = {}
        columns: dict[str, Pages] = {}
        for name in self._fields:
            value = getattr(self, name)
            if not isinstance(value, _Timelines):
                plain[name] = list(value.items()) if isinstance(value, dict) else value
                continue
            for part in ("directory", "arena", "bases"):
                arrays = getattr(value, part)
                for field, array in zip(arrays._fields, arrays, strict=True):
                    pages = {
                        k // PAGE_ITEMS: array[k : k + PAGE_ITEMS].tobytes() for k in range(0, len(array), PAGE_ITEMS)
                    }
                    columns[f"{name}.{part}.{field}"] = Pages(array.dtype.str, len(array), pages)
        return msgspec.msgpack.encode(plain), columns

    def load(self, values: bytes, columns: Mapping[str, SavedColumn]) -> None:
        """Take over a dumped state; only into an empty object."""
        for name, value in msgspec.msgpack.decode(values).items():
            held = getattr(self, name)
            if isinstance(held, dict):
                held.update({key: tuple(item) if isinstance(item, list) else item for key, item in value})
            else:
                setattr(self, name, value)
        for name in self._fields:
            timelines = getattr(self, name)
            if not isinstance(timelines, _Timelines):
                continue
            for part in ("directory", "arena", "bases"):
                loaded = {}
                for field in getattr(timelines, part)._fields:
                    column = columns[f"{name}.{part}.{field}"]
                    loaded[field] = np.zeros(column.items, np.dtype(column.dtype))
                    column.read_into(loaded[field])
                setattr(timelines, part, type(getattr(timelines, part))(**loaded))

    def close(self) -> None:
        """Let go of the state."""


class CardWindows(_Saveable):
    """Windows of all cards of one partition."""

    _fields = ("_cards", "_merchants", "_events", "_cases", "newest_us")

    def __init__(self, storage: Storage | None = None) -> None:
        super().__init__()
        del storage
        self._cases: dict[str, tuple[int, int]] = {}
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
    ) -> CardProfile:
        """Features and cases of n transactions in log order, which then enter the windows.

        Amounts are minor units of the base currency, 0 <= amount < 2**53.
        """
        self._remember()
        case = np.array(
            [self._case(card, time) for card, time in zip(cards, event_time_us.tolist(), strict=True)], np.int64
        ).reshape(-1, 2)
        self.newest_us = max(self.newest_us, int(event_time_us.max(initial=0)))
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
                return CardProfile(out, case[:, 0], case[:, 1])
            events.grow_arena()

    def knows(self, card: str) -> bool:
        """Whether the card has a place in the table."""
        return card in self._cards

    def _case(self, card: str, event_time_us: int) -> tuple[int, int]:
        start_us, sequence = self._cases.get(card, (event_time_us, 0))
        if event_time_us >= start_us + EPISODE_US:
            start_us, sequence = event_time_us, 0
        self._cases[card] = (start_us, sequence + 1)
        return self._cases[card]

    @property
    def nbytes(self) -> int:
        """Bytes held by the windows' arrays."""
        return self._events.nbytes


class MerchantWindows(_Saveable):
    """Windows and known labels of all merchants of one partition of ``profiled``."""

    _fields = ("_merchants", "_events", "_labels", "newest_us")

    def __init__(self, storage: Storage | None = None) -> None:
        super().__init__()
        del storage
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
        self._remember()
        self.newest_us = max(self.newest_us, int(event_time_us[kinds == 0].max(initial=0)))
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
