"""The windows of cards and of merchants: the one place where features are computed.

Live agents, replays, training sets and benchmarks all call `CardWindows.profile` and
`MerchantWindows.profile`. A call reads each row's features off the state and then lets the row enter it, in the order
of the rows; splitting the rows over several calls changes nothing, and neither does where `commit` stands between them.

Cards and merchants are distinguished by 128 bits of their names' hash; the names themselves are not kept.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.features.card_kernel import profile_cards
from pipeline.features.catalogue import ATTRIBUTE_FEATURES, CARD_FEATURES, FIELD_NUMBER, FIELD_TEXT, MERCHANT_FEATURES
from pipeline.features.columns import Storage
from pipeline.features.digest import window_contents
from pipeline.features.merchant_kernel import profile_merchants
from pipeline.features.tables import Tables
from pipeline.features.timelines.layout import CARD_EVENT_WORDS, MERCHANT_EVENT_WORDS


class FieldColumns(NamedTuple):
    """The fields of n transactions that are declared for kernels (`schemas.fields.KERNEL_FIELDS`)."""

    numbers: NDArray[np.float64]
    """Shape (n, len(FIELD_NUMBER)), NaN for no value."""
    texts: NDArray[np.int64]
    """Shape (n, len(FIELD_TEXT)): 64 bits of each text's hash, 0 for none."""

    def take(self, rows: slice | NDArray[Any]) -> "FieldColumns":
        """Return some rows."""
        return FieldColumns(self.numbers[rows], self.texts[rows])


class CardProfile(NamedTuple):
    """The profiles of n transactions by their cards."""

    features: NDArray[np.float64]
    """Shape (n, len(CARD_FEATURES))."""
    case_start_us: NDArray[np.int64]
    """Shape (n,): event time of the transaction that opened the case."""
    case_sequence: NDArray[np.int64]
    """Shape (n,): 1 for the first transaction of a case."""
    outlier: NDArray[np.bool_]
    """Shape (n,): whether the amount is an outlier for the card."""

    @classmethod
    def of_rows(cls, n: int, columns: int = len(CARD_FEATURES)) -> "CardProfile":
        """Return room for ``n`` transactions, and for other features in columns behind the cards'."""
        return cls(np.empty((n, columns)), np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.bool_))


class _Windows(Tables):
    """The common part of the cards' and the merchants' windows."""

    event_words: int
    """Words of an event's row."""

    def _work(self, kernel: Callable[..., int], n: int, *columns: NDArray[Any]) -> None:
        """Have ``kernel`` work on n rows: where a table is full it ends early, and goes on once that has grown."""
        self.begin(n)
        done = 0
        while done < n:
            done = kernel(self.state, done, *columns)
            if done < n:
                self.grow()

    def contents(self) -> list[tuple[bytes, ...]]:
        """Return what the committed state can still show, in canonical order; see `window_contents`."""
        return window_contents(self.state, self.event_words)


class CardWindows(_Windows):
    """Windows and cases of all cards of one partition."""

    event_words = int(CARD_EVENT_WORDS)

    def __init__(self, storage: Storage | None = None) -> None:
        super().__init__(storage, self.event_words, labelled=False)

    def profile(
        self,
        cards: NDArray[np.int64],
        merchants: NDArray[np.int64],
        event_time_us: NDArray[np.int64],
        amount_minor: NDArray[np.int64],
        counts: NDArray[np.bool_],
        hour: NDArray[np.float64],
        weekday: NDArray[np.float64],
        attributes: NDArray[np.float64] | None = None,
        fields: FieldColumns | None = None,
    ) -> CardProfile:
        """Let n transactions enter the windows in log order; return their features and cases.

        Args:
            cards: Keys of their cards, 128 bits each; shape (n, 2).
            merchants: Keys of their merchants, likewise.
            event_time_us: Shape (n,), like the columns behind it.
            amount_minor: Minor units of the base currency, 0 <= amount < 2**53.
            counts: Whether each enters the windows.
            hour: Hours since midnight, with fraction.
            weekday: 0 (Monday) to 6.
            attributes: Shape (n, len(ATTRIBUTE_FEATURES)), NaN for no value; None for no values.
            fields: What kernels read besides; None for no values.
        """
        n = len(cards)
        keys, others = np.ascontiguousarray(cards), np.ascontiguousarray(merchants[:, 0])
        time_us, amount, enters, hours, weekdays = _columns(
            n, (event_time_us, np.int64), (amount_minor, np.int64), (counts, np.bool_), (hour, np.float64),
            (weekday, np.float64),
        )  # fmt: skip
        if fields is None:
            fields = FieldColumns(np.full((n, len(FIELD_NUMBER)), np.nan), np.zeros((n, len(FIELD_TEXT)), np.int64))
        named = map(np.ascontiguousarray, fields)
        profile = CardProfile.of_rows(n)
        self._work(profile_cards, n, keys, others, time_us, amount, enters, hours, weekdays, *named, *profile)
        if ATTRIBUTE_FEATURES:
            profile.features[:, -len(ATTRIBUTE_FEATURES) :] = np.nan if attributes is None else attributes
        return profile


class MerchantWindows(_Windows):
    """Windows and known labels of all merchants of one partition of ``profiled``."""

    event_words = int(MERCHANT_EVENT_WORDS)

    def __init__(self, storage: Storage | None = None) -> None:
        super().__init__(storage, self.event_words, labelled=True)

    def profile(
        self,
        kinds: NDArray[np.uint8],
        merchants: NDArray[np.int64],
        transaction_hash: NDArray[np.uint64],
        event_time_us: NDArray[np.int64],
        amount_minor: NDArray[np.int64],
        counts: NDArray[np.bool_],
        outliers: NDArray[np.bool_],
        known: NDArray[np.int8],
        known_at_us: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Let n transactions (kind 0) and labels (kind 1) enter the windows in log order; return their features.

        Args:
            kinds: Shape (n,), like the other columns.
            merchants: Keys of their merchants, 128 bits each; shape (n, 2).
            transaction_hash: What a label is about.
            event_time_us: Of a label, its transaction's.
            amount_minor: Minor units of the base currency, 0 <= amount < 2**53.
            counts: Whether each transaction enters the windows.
            outliers: Whether its amount is an outlier for its card, as `CardProfile` says.
            known: What a label says: 1 for fraud, 0 for legitimate, 2 for none.
            known_at_us: From when on a label counts.

        Returns:
            Shape (n, len(MERCHANT_FEATURES)), NaN in the rows of labels.
        """
        n = len(merchants)
        kind, identity, time_us, amount, enters, outlier, value, since_us = _columns(
            n, (kinds, np.uint8), (transaction_hash, np.uint64), (event_time_us, np.int64), (amount_minor, np.int64),
            (counts, np.bool_), (outliers, np.bool_), (known, np.int8), (known_at_us, np.int64),
        )  # fmt: skip
        keys, identities = np.ascontiguousarray(merchants), identity.view(np.int64)
        out = np.empty((n, len(MERCHANT_FEATURES)))
        self._work(profile_merchants, n, kind, keys, identities, time_us, amount, enters, outlier, value, since_us, out)
        return out


def _columns(n: int, *columns: tuple[NDArray[Any], type[np.generic]]) -> list[NDArray[Any]]:
    """Columns as the compiled functions were compiled for; they do not check lengths themselves."""
    # Nearly all are so already, which `np.require` takes a microsecond each to see.
    arranged = [
        column if column.dtype == dtype and column.flags.carray else np.require(column, dtype, ("C", "W"))
        for column, dtype in columns
    ]
    if any(column.shape != (n,) for column in arranged):
        raise ValueError(f"every column must have {n} rows; the shapes are {[c.shape for c in arranged]}")
    return arranged
