"""The canonical columns of a frame of transactions, and the values of columns of files."""

from collections.abc import Mapping
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from schemas.fields import DECLARED_FIELDS, Kind

COLUMNS: Final = (
    "transaction_id",
    "event_time",
    "card_id",
    "merchant_id",
    "amount",
    "amount_minor",
    "currency",
    "fraud",
    "fraud_type",
)
"""The canonical columns of a frame of transactions, in order."""

PASSED_ON: Final = tuple(
    field.name for field in DECLARED_FIELDS if field.kind in (Kind.TEXT, Kind.NUMBER, Kind.CLOCK) and not field.required
)
"""Optional fields of the wire contract, texts and numbers, that may follow the canonical columns."""

FRAUD_TYPES: Final = (None, "amount", "merchant", "card")
"""Fraud types by the Handbook's scenario number; 0 is legitimate."""

NO_TRUTH: Final = "is neither 0 nor 1 (false, true): write one of them in every row, or map words to them in --mapping"
NO_NUMBER: Final = "is no number; write a decimal number, or nothing"
_NUMERIC: Final = (
    pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_string, pa.types.is_large_string,
    pa.types.is_string_view, pa.types.is_null,
)  # fmt: skip
_TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "fraud", "1.0"})
_FALSE: Final = frozenset({"0", "false", "f", "no", "n", "legitimate", "0.0"})


class UnusableSource(ValueError):
    """A file that cannot be read as transactions; the text names the column or row and says what to do."""


def canonical_frame(event_time_us: npt.NDArray[np.int64], columns: Mapping[str, npt.NDArray[Any]]) -> pd.DataFrame:
    """Build a frame with `COLUMNS`, as far as they are given, from arrays of one length.

    ``event_time_us`` counts from 1970-01-01T00:00:00Z.

    Text columns keep the ``object`` type: their strings are shared between rows, and reading them back costs no
    conversion.
    """
    times = pd.Series(event_time_us.astype("datetime64[us]")).dt.tz_localize("UTC")
    found = {name: pd.Series(values, dtype=values.dtype) for name, values in columns.items()}
    frame = pd.DataFrame({"event_time": times, **found})
    return frame[[name for name in COLUMNS if name in frame]]


def in_zone(naive: "pd.Series[pd.Timestamp]", time_zone: str) -> "pd.Series[pd.Timestamp]":
    """Times without an offset as times in UTC; one that occurs twice is the first, one that does not, the next."""
    first = np.ones(len(naive), np.bool_)
    return naive.dt.tz_localize(zone_of(time_zone), ambiguous=first, nonexistent="shift_forward").dt.tz_convert("UTC")


def whole_units(scaled: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """(nearest whole numbers, whether a value is none): amounts that are floats in minor units; shape (n,).

    A float64 that was a decimal with so many digits is off by a rounding error, not by a part of a unit.
    """
    whole = np.rint(scaled)
    return whole, np.abs(scaled - whole) > 1e-6 + np.abs(scaled) * 1e-12


def truths(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Parse a column of truths: (is it fraud, is it unknown); shape (n,)."""
    values, codes = distinct(column)
    found = [truth_of(value) for value in values]
    true, unknown = (np.array([truth is which for truth in found], np.bool_) for which in (True, None))
    return true[codes], unknown[codes]


def truth_of(value: object) -> bool | None:
    """Return whether a value says that a transaction is a fraud; None if it says neither."""
    text = str(value).strip().lower()
    return True if text in _TRUE else False if text in _FALSE else None


def numbers(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Parse a column of numbers: (values, NaN for a missing one; is it none); shape (n,).

    Truths and times are no numbers.
    """
    if not any(is_kind(column.type) for is_kind in _NUMERIC):
        return np.full(len(column), np.nan), ~column.is_null().to_numpy()
    values = pd.to_numeric(pd.Series(column.to_pandas()), errors="coerce").to_numpy(np.float64, na_value=np.nan)
    missing = pc.is_null(column, nan_is_null=True).to_numpy()
    return values, ~np.isfinite(values) & ~missing


def distinct(column: pa.ChunkedArray) -> tuple[list[object], npt.NDArray[np.intp]]:
    """Return the distinct values of a column, None among them, and the number of the one that each row holds."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = pc.dictionary_encode(column, null_encoding="encode").combine_chunks()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.intp)


def zone_of(name: str) -> ZoneInfo:
    """Return a time zone; raises `UnusableSource` where there is none of this name."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise UnusableSource(f"there is no time zone {name}; use an IANA name such as Europe/Brussels") from error
