"""The windows of cards and of merchants: the one place where features are computed.

Live agents, replays, training sets and benchmarks all call `CardWindows.profile` and
`MerchantWindows.profile`. A call reads each row's features off the state and then lets the row enter it, in the order
of the rows; splitting the rows over several calls changes nothing, and neither does where `commit` stands between them.

Cards and merchants are distinguished by 128 bits of their names' hash; the names themselves are not kept.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.features.card_kernel import profile_cards
from pipeline.features.catalogue import ATTRIBUTE_FEATURES, CARD_FEATURES, FIELD_NUMBER, FIELD_TEXT, MERCHANT_FEATURES
from pipeline.features.merchant_kernel import profile_merchants
from pipeline.features.state_columns import Storage
from pipeline.features.timelines.layout import CARD_EVENT_WORDS, MERCHANT_EVENT_WORDS
from pipeline.features.window_tables import Tables


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


class CardWindows(Tables):
    """Windows and cases of all cards of one partition."""

    def __init__(self, storage: Storage | None = None) -> None:
        super().__init__(storage, int(CARD_EVENT_WORDS), labelled=False)

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
        columns: int = len(CARD_FEATURES),
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
            columns: Columns of the features to make; those behind the cards' have room for other features.
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
        profile = CardProfile.of_rows(n, columns)
        self.work(profile_cards, n, keys, others, time_us, amount, enters, hours, weekdays, *named, *profile)
        if ATTRIBUTE_FEATURES:
            given = profile.features[:, len(CARD_FEATURES) - len(ATTRIBUTE_FEATURES) : len(CARD_FEATURES)]
            given[:] = np.nan if attributes is None else attributes
        return profile


class MerchantWindows(Tables):
    """Windows and known labels of all merchants of one partition of ``profiled``."""

    def __init__(self, storage: Storage | None = None) -> None:
        super().__init__(storage, int(MERCHANT_EVENT_WORDS), labelled=True)

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
        out: NDArray[np.float64] | None = None,
        out_rows: NDArray[np.int64] | None = None,
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
            out: Rows whose last columns get the features, of another number if there are ``out_rows``; None: new ones
                of shape (n, len(MERCHANT_FEATURES)).
            out_rows: The row of ``out`` for each, or -1 for none, which labels may have; None: in their order.

        Returns:
            ``out``, NaN in the rows of labels.
        """
        n = len(merchants)
        kind, identity, time_us, amount, enters, outlier, value, since_us = _columns(
            n, (kinds, np.uint8), (transaction_hash, np.uint64), (event_time_us, np.int64), (amount_minor, np.int64),
            (counts, np.bool_), (outliers, np.bool_), (known, np.int8), (known_at_us, np.int64),
        )  # fmt: skip
        keys, identities = np.ascontiguousarray(merchants), identity.view(np.int64)
        out = np.empty((n, len(MERCHANT_FEATURES))) if out is None else out
        (rows,) = _columns(n, (np.arange(n) if out_rows is None else out_rows, np.int64))
        self.work(
            profile_merchants, n, kind, keys, identities, time_us, amount, enters, outlier, value, since_us, out, rows
        )
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
