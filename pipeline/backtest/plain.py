"""Transactions as most producers write them, as Arrow's columns."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.backtest.wire import rate_terms
from pipeline.engine.accepted import plain_money
from pipeline.engine.scanned import CURRENCY, TEXTS, scan
from pipeline.features.compiled import compiled
from schemas.money import RateTable

IntArray = NDArray[np.integer[Any]]


class PlainTransactions(NamedTuple):
    """Of the m plain records among those that were given; as `pipeline.engine.columns.Transactions` has them."""

    plain: NDArray[np.bool_]
    """Shape (n,): which are."""
    transaction_id: pa.Array
    card_id: pa.Array
    merchant_id: pa.Array
    currency: pa.Array
    transaction_type: pa.Array
    event_time_us: NDArray[np.int64]
    clock_us: NDArray[np.int64]
    """Shape (m,): what the clock on the wall showed, as if it were UTC."""
    amount_minor: NDArray[np.int64]
    amount_base_minor: NDArray[np.int64]


def read_plain(values: Sequence[bytes | None], rates: RateTable) -> PlainTransactions:
    """The plain ones among n records' ``values``. That a time lies in its record's future is left to the caller."""
    found = scan(values)
    text, plain = np.frombuffer(found.text, np.uint8), found.plain
    currency = _texts(text, found.spans[CURRENCY], plain)
    terms, known = rate_terms(currency, rates)
    minor, base, told = plain_money(found.amount[plain], found.decimals[plain], terms)
    known &= told
    if not known.all():
        plain[np.flatnonzero(plain)[~known]] = False
        currency = currency.filter(pa.array(known))
        minor, base = minor[known], base[known]
    texts = {name: _texts(text, found.spans[column], plain) for column, name in enumerate(TEXTS) if column != CURRENCY}
    return PlainTransactions(
        plain=plain, currency=currency, event_time_us=found.event_time_us[plain], clock_us=found.clock_us[plain],
        amount_minor=minor, amount_base_minor=base, **texts,
    )  # fmt: skip


def _texts(text: NDArray[np.uint8], spans: IntArray, plain: NDArray[np.bool_]) -> pa.Array:
    of = spans[plain]
    offsets = np.zeros(len(of) + 1, np.int32)
    np.cumsum(of[:, 1] - of[:, 0], out=offsets[1:])
    data = np.empty(int(offsets[-1]), np.uint8)
    _copy(text, of, data)
    return pa.StringArray.from_buffers(len(of), pa.py_buffer(offsets), pa.py_buffer(data))


@compiled
def _copy(text: IntArray, spans: IntArray, data: IntArray) -> None:
    at = 0
    for row in range(len(spans)):
        for place in range(spans[row, 0], spans[row, 1]):
            data[at] = text[place]
            at += 1
