"""Rows of canonical frames as messages of the wire contract."""

from collections.abc import Iterable, Iterator
from datetime import UTC
from decimal import Decimal
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from pipeline.engine.records.columns import identities
from pipeline.features.attributes import COLUMNS
from pipeline.history.canonical_columns import PASSED_ON
from pipeline.history.files import currency_decimals
from schemas.messages import Transaction

ENCODER: Final = msgspec.json.Encoder(decimal_format="number")
"""Amounts become JSON numbers with the currency's own decimals."""


def event_times_us(frame: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Event times of a canonical frame in microseconds since 1970-01-01T00:00:00Z: shape (rows,)."""
    times: npt.NDArray[np.int64] = (
        frame["event_time"].dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[us]").astype(np.int64)
    )
    return times


def identities_of(frame: pd.DataFrame) -> npt.NDArray[np.uint64]:
    """Return the `transaction_hash` of each row; shape (rows,)."""
    card, transaction = (pa.array(frame[name].tolist(), pa.large_string()) for name in ("card_id", "transaction_id"))
    return identities(card, transaction)


def transaction_messages(frame: pd.DataFrame, times_us: npt.NDArray[np.int64]) -> Iterator[Transaction]:
    """Yield each row as a message, its amount exact to the minor unit; ``times_us`` are the rows' event times.

    Declared attributes and columns of ``pipeline.history.canonical_columns.PASSED_ON`` go along where the frame has
    them and they are not missing.
    """
    currencies: list[str] = frame["currency"].tolist()
    scales = {code: -currency_decimals(code) for code in set(currencies)}
    # A column without a value costs as much as one with them.
    extras = [name for name in PASSED_ON if name in frame.columns and frame[name].notna().any()]
    optional: Iterable[dict[str, Any]] = (
        (
            {str(key): value for key, value in row.items() if not pd.isna(value)}
            for row in frame[extras].to_dict("records")
        )
        if extras
        else ({} for _ in range(len(frame)))
    )
    columns = zip(
        _attributes(frame),
        frame["transaction_id"].tolist(),
        times_us.astype("datetime64[us]").tolist(),
        frame["card_id"].tolist(),
        frame["merchant_id"].tolist(),
        frame["amount_minor"].tolist(),
        currencies,
        optional,
        strict=True,
    )
    for attributes, transaction_id, event_time, card_id, merchant_id, amount_minor, currency, extra in columns:
        yield Transaction(
            transaction_id=transaction_id,
            event_time=event_time.replace(tzinfo=UTC),
            card_id=card_id,
            merchant_id=merchant_id,
            amount=Decimal(amount_minor).scaleb(scales[currency]),
            currency=currency,
            attributes=attributes,
            **extra,
        )


def _attributes(frame: pd.DataFrame) -> list[dict[str, str | float | None] | None]:
    """Return the declared attributes of each row; None for a row without any."""
    columns = {name: frame[column].tolist() for column, name in COLUMNS.items() if column in frame.columns}
    if not columns:
        return [None] * len(frame)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [{name: value for name, value in row.items() if not pd.isna(value)} or None for row in rows]
