"""Eligible rows of a history: those that workers accept, and each transaction once."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.backtest.input.acceptance import Acceptance, accept_each, accept_transactions
from pipeline.engine.card import CardOptions
from pipeline.engine.card_join import Arrivals, CardJoin
from pipeline.engine.columns import Reject, Transactions, content_keys, digest_keys
from pipeline.engine.joins import DUPLICATE_DIFFERS, SAME, Retention
from pipeline.engine.pending import NO_LABELS, MemoryPending
from pipeline.engine.transaction_index import MemoryIndex


class EligibleRows(NamedTuple):
    """The rows of a history that can be decided, and the reasons why the rest cannot."""

    row: NDArray[np.int64]
    """Numbers of the rows, ascending."""
    amount_base_minor: NDArray[np.int64]
    """Their amounts in the minor unit of the base currency, by the rate table."""
    refused: Counter[str]
    """Counts of rows that workers refuse, by code."""
    reasons: Mapping[str, str]
    """First reason of each code."""
    repeated: int
    """Rows that repeat others."""


def eligible_rows(tables: Iterable[pa.Table], options: CardOptions) -> EligibleRows:
    """Look through ``tables`` as of `pipeline.backtest.replay`, in order, as one partition."""
    rejects: list[Reject] = []
    retention = Retention(options.dedup_horizon_us, options.label_horizon_us)
    join = CardJoin(MemoryIndex(), MemoryPending())
    kept, accepted, contradicted = [np.empty((0, 2), np.int64)], 0, 0
    for rows in accept_each(
        tables, accept_transactions, Acceptance(options.rates, options.future_tolerance_us), rejects
    ):
        accepted += len(rows)
        joined = join.join(retention, _unlabelled(rows))
        kept.append(np.stack([rows.row, rows.amount_base_minor], axis=1)[joined.accepted])
        contradicted += int(np.count_nonzero(joined.differs != SAME))
        join.forget(0)
        join.commit()
    row, amount_base_minor = np.concatenate(kept).T
    refused = Counter(reject.code for reject in rejects)
    if contradicted:
        refused[DUPLICATE_DIFFERS] += contradicted
    return EligibleRows(row, amount_base_minor, refused, first_reasons(rejects), accepted - len(row) - contradicted)


def first_reasons(rejects: Iterable[Reject]) -> dict[str, str]:
    """Return the first reason of each code."""
    reasons: dict[str, str] = {}
    for reject in rejects:
        reasons.setdefault(reject.code, reject.text)
    return reasons


def reasons_text(reasons: Mapping[str, str]) -> str:
    """Write codes with their reasons.

    >>> reasons_text({"too_old": "It is of 1970.", "not_json": "Send JSON."})
    'too_old (It is of 1970.), not_json (Send JSON.)'
    """
    return ", ".join(f"{code} ({text})" for code, text in reasons.items())


def _unlabelled(rows: Transactions) -> Arrivals[NDArray[np.int64]]:
    """Without labels nobody asks for merchants."""
    n = len(rows)
    return Arrivals(
        digest=digest_keys(rows.card_id, rows.transaction_id),
        event_time_us=rows.event_time_us,
        position=np.arange(n),
        content=content_keys(rows),
        source=rows.row,
        home=0,
        feed=np.zeros(n, np.int64),
        merchants=np.zeros((n, 3), np.int64),
        labels=NO_LABELS,
        label_position=np.empty(0, np.int64),
    )
