"""The windows of cards and of merchants: the one place where features are computed.

Live agents, replays, training sets and benchmarks all call `CardWindows.profile` and
`MerchantWindows.profile`. A call reads each row's features off the state and then lets the row enter it, in the order
of the rows; splitting the rows over several calls changes nothing, and neither does where `commit` stands between them.

Cards and merchants are distinguished by 128 bits of their names' hash; the names themselves are not kept.
"""

from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.features.built_in import CARD, MERCHANT
from pipeline.features.card_kernel import profile_cards
from pipeline.features.catalogue import (
    CARD_FEATURES,
    CARD_PLAN,
    HORIZON_US,
    MERCHANT_FEATURES,
    MERCHANT_PLAN,
)
from pipeline.features.declared_windows import Declared, distinct_table, whole_values
from pipeline.features.feature_set import Plan
from pipeline.features.merchant_kernel import profile_merchants
from pipeline.features.state_columns import Storage
from pipeline.features.timelines.layout import CARD_EVENT_WORDS, MERCHANT_EVENT_WORDS
from pipeline.features.window_tables import Tables


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
    """Windows of one kind of entity, and what its features are made by.

    Attributes:
        plan: The features.
        width: Number of columns of the entity's features.
    """

    def __init__(
        self,
        storage: Storage | None,
        own_words: int,
        plan: Plan,
        width: int,
        horizon_us: int,
        built_in: int,
        *,
        labelled: bool,
    ) -> None:
        super().__init__(storage, own_words, values=len(plan.scales), labelled=labelled, horizon_us=horizon_us)
        written = _written(plan)
        if len(written) and max(written) >= width:
            raise ValueError(f"the plan writes column {max(written)}, and there are {width}")
        self.plan, self.width = plan, width
        self._row = np.empty(built_in)
        self._distinct = distinct_table() if len(plan.groups) or len(plan.ratios) or len(plan.scales) else None
        self._unwritten = np.setdiff1d(np.arange(width), written)

    def _declared(self, inputs: NDArray[np.float64] | None, n: int) -> Declared | None:
        if self._distinct is None:
            return None
        _, groups, windows_us, ratios, scales = self.plan
        return Declared(groups, windows_us, ratios, scales, whole_values(inputs, n, scales), self._distinct)


class CardWindows(_Windows):
    """Windows and cases of all cards of one partition.

    Args:
        storage: Holds the tables; None: memory.
        plan: The features.
        width: Number of columns of cards' features: those that the plan writes, and those that the caller fills.
        horizon_us: Time behind the partition's newest event after which an event is forgotten.
    """

    def __init__(
        self,
        storage: Storage | None = None,
        plan: Plan = CARD_PLAN,
        width: int = len(CARD_FEATURES),
        horizon_us: int = HORIZON_US,
    ) -> None:
        super().__init__(storage, int(CARD_EVENT_WORDS), plan, width, horizon_us, len(CARD), labelled=False)

    def profile(
        self,
        cards: NDArray[np.int64],
        merchants: NDArray[np.int64],
        event_time_us: NDArray[np.int64],
        amount_minor: NDArray[np.int64],
        counts: NDArray[np.bool_],
        hour: NDArray[np.float64],
        weekday: NDArray[np.float64],
        inputs: NDArray[np.float64] | None = None,
        columns: int | None = None,
    ) -> CardProfile:
        """Let n transactions enter the windows in log order; return their features and cases.

        Columns of cards' features that the plan does not write are NaN: those of attributes, which the caller knows.

        Args:
            cards: Keys of their cards, 128 bits each; shape (n, 2).
            merchants: Keys of their merchants, likewise.
            event_time_us: Shape (n,), like the columns behind it.
            amount_minor: Minor units of the base currency, 0 <= amount < 2**53.
            counts: Whether each enters the windows.
            hour: Hours since midnight, with fraction.
            weekday: 0 (Monday) to 6.
            inputs: Values that declared windows read, shape (n, len(CARD_INPUTS)), NaN for no value; None for none.
            columns: Columns of the features to make; those behind the cards' have room for other features. None:
                the cards' alone.
        """
        n = len(cards)
        keys, others = np.ascontiguousarray(cards), np.ascontiguousarray(merchants[:, 0])
        time_us, amount, enters, hours, weekdays = _columns(
            n, (event_time_us, np.int64), (amount_minor, np.int64), (counts, np.bool_), (hour, np.float64),
            (weekday, np.float64),
        )  # fmt: skip
        columns = self.width if columns is None else columns
        if columns < self.width:
            raise ValueError(f"the cards' features have {self.width} columns, more than {columns}")
        profile = CardProfile.of_rows(n, columns)
        if len(self._unwritten):
            profile.features[:, self._unwritten] = np.nan
        self.work(
            profile_cards, n, keys, others, time_us, amount, enters, hours, weekdays, self.plan.built_in, self._row,
            self._declared(inputs, n), *profile,
        )  # fmt: skip
        return profile


class MerchantWindows(_Windows):
    """Windows and known labels of all merchants of one partition of ``profiled``.

    Args:
        storage: Holds the tables; None: memory.
        plan: The features.
        width: Number of columns of merchants' features, all of which the plan writes.
        horizon_us: Time behind the partition's newest event after which an event or label is forgotten.
    """

    def __init__(
        self,
        storage: Storage | None = None,
        plan: Plan = MERCHANT_PLAN,
        width: int = len(MERCHANT_FEATURES),
        horizon_us: int = HORIZON_US,
    ) -> None:
        super().__init__(storage, int(MERCHANT_EVENT_WORDS), plan, width, horizon_us, len(MERCHANT), labelled=True)
        if len(self._unwritten):
            raise ValueError(f"the plan does not write the columns {self._unwritten.tolist()}")

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
        inputs: NDArray[np.float64] | None = None,
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
            inputs: Values that declared windows read, shape (n, len(MERCHANT_INPUTS)), NaN for no value; None for
                none. Those of labels are not read.
            out: Rows whose last columns get the features, of another number if there are ``out_rows``; None: new ones
                of shape (n, width).
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
        out = np.empty((n, self.width)) if out is None else out
        if out.shape[1] < self.width:
            raise ValueError(f"the merchants' features have {self.width} columns, more than {out.shape[1]}")
        (rows,) = _columns(n, (np.arange(n) if out_rows is None else out_rows, np.int64))
        self.work(
            profile_merchants, n, kind, keys, identities, time_us, amount, enters, outlier, value, since_us,
            self.plan.built_in, self._row, self._declared(inputs, n), out, rows, out.shape[1] - self.width,
        )  # fmt: skip
        return out


def _written(plan: Plan) -> list[int]:
    """Return the columns that a plan writes."""
    groups = (range(first, first + end - start) for _, _, first, start, end in plan.groups.tolist())
    return [*plan.built_in[:, 1].tolist(), *chain.from_iterable(groups), *plan.ratios[:, 0].tolist()]


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
