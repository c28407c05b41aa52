"""Columns of the wire contract in the form that the kernels take, as far as it is plain what the decoder would say.

Most functions return values and a mask of the rows whose value is plain: written in the ordinary way, and within
limits that are narrower than the decoder's. What is not plain need not be wrong; the decoder itself is asked about it.
"""

import math
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.engine.encoding.amounts import NOT_CONVERTED, RateTerms, convert, rate_terms
from pipeline.engine.encoding.json_scanner import FAST_PATH_TIMES_US, NO_TIME
from pipeline.engine.records.accept import transaction_columns
from pipeline.engine.records.columns import Transactions
from pipeline.features.attributes import READ, AttributeColumns, attribute_columns, decode_attributes, no_attributes
from pipeline.features.catalogue import ATTRIBUTE_FEATURES
from pipeline.history.canonical_columns import NO_NUMBER, UnusableSource, in_zone, numbers, whole_units
from schemas.codec import MAX_AMOUNT_BASE_MINOR, timestamp_us
from schemas.fields import READ_FIELDS, TEXT_COLUMNS
from schemas.messages import Timestamp
from schemas.money import RateTable
from schemas.times import time_of

Mask = NDArray[np.bool_]
_SHOWN: Final = 80
"""Characters of a wrong value that an error shows."""

encode: Final = msgspec.json.Encoder(decimal_format="number").encode
_PLAIN_MINOR: Final = 10.0**15
"""Below it the nearest float of a decimal tells the decimal."""
_MOST_DECIMALS: Final = 4
_CLOCK: Final = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?"
_PLAIN_LOCAL: Final = rf"^\d{{4}}-\d\d-\d\d[T ]{_CLOCK}$"
_PLAIN_ZONED: Final = rf"^\d{{4}}-\d\d-\d\dT{_CLOCK}(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)$"
_PLAIN_AMOUNT: Final = r"^(?:0|[1-9]\d{0,10})(?:\.\d{1,4})?$"
_FIRST_US, _LAST_US = (timestamp_us(at) for at in (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)))


def column(table: pa.Table, name: str) -> pa.Array:
    """A column as one array; all null where the table lacks it, dictionaries decoded, texts `string`."""
    if name not in table.column_names:
        return pa.nulls(table.num_rows, pa.string())
    values = table.column(name).combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks)
    if pa.types.is_dictionary(values.type):
        return values.dictionary_decode()
    fast = not any(
        is_type(values.type) for is_type in (pa.types.is_null, pa.types.is_large_string, pa.types.is_string_view)
    )
    return values if fast else values.cast(pa.string())


def texts(values: pa.Array) -> tuple[pa.Array, Mask]:
    """Strings, from text or from whole numbers; plain where there is one."""
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_integer(kind):
        return values.cast(pa.string()), _mask(values.is_valid())
    return pa.nulls(len(values), pa.string()), np.zeros(len(values), np.bool_)


def missing(values: pa.Array) -> Mask:
    """Mark missing values."""
    return _mask(values.is_null())


def texts_within(values: pa.Array, least: float, most: float) -> tuple[pa.Array, Mask]:
    """Return strings of a length, and which rows have one.

    Args:
        values: Texts or whole numbers, shape ``(n,)``; no row of another type is plain.
        least: Fewest characters.
        most: Most characters; infinite: any number.

    Returns:
        The strings, and a mask of the rows that are plain, each of shape ``(n,)``.
    """
    names, fast = texts(values)
    if least > 0 or math.isfinite(most):
        length = pc.fill_null(pc.utf8_length(names), 0).to_numpy()
        fast &= (length >= least) & (length <= most)
    return names, fast


_TEXTS: Final = {field.name for field in TEXT_COLUMNS}


class TransactionTable(NamedTuple):
    """The transactions of a table, read as far as they are plain."""

    raw: dict[str, pa.Array]
    """Columns of `READ_FIELDS` as the table has them."""
    fields: dict[str, pa.Array]
    """Columns of `TEXT_COLUMNS`."""
    read: Transactions
    plain: Mask
    """Shape (n,): rows that were read."""

    def record(self, row: int, rates: RateTable) -> bytes:
        """Write a row as a producer would: whole numbers that stand for a text as that, what is missing absent.

        In the contract's order of fields: of several that are wrong the decoder tells the first.
        """
        cells: dict[str, Any] = {}
        currency = self.fields["currency"][row].as_py()
        for name, column in self.raw.items():
            value = time_cell(column, self.read.event_time_us, row) if name == "event_time" else column[row].as_py()
            if name == "amount":
                rate = rates.currencies.get(currency)
                value = amount_cell(value, None if rate is None else rate.digits)
            elif type(value) is int and name in _TEXTS:
                value = str(value)
            if isinstance(value, float) and not math.isfinite(value):
                # As text, since JSON has no such number.
                value = str(value)
            if value is not None:
                cells[name] = value
        return encode(cells)


def read_table(table: pa.Table, rates: RateTable, time_zone: str, first_row: int) -> TransactionTable:
    """Read the transactions of a table.

    Args:
        table: Columns of `READ_FIELDS`, and attributes; others decide nothing.
        rates: Table that converts the amounts.
        time_zone: Zone of times without an offset.
        first_row: Number of its first row.
    """
    raw = {field.name: column(table, field.name) for field in READ_FIELDS}
    plain, fields = np.ones(table.num_rows, np.bool_), {}
    for field in TEXT_COLUMNS:
        found, fast = texts_within(raw[field.name], field.least, field.most)
        fields[field.name] = found if field.default is None else pc.fill_null(found, field.default)
        plain &= fast if field.required else fast | missing(raw[field.name])
    event_us, fast_times = times_us(raw["event_time"], time_zone)
    minor, base, fast_amounts = amounts(raw["amount"], fields["currency"], rates)
    local_us, fast_clocks = wall_clock_us(raw["local_time"])
    without_clock = missing(raw["local_time"])
    plain &= fast_times & fast_amounts & (minor > 0) & (fast_clocks | without_clock)
    clock_us = np.where(without_clock, event_us, local_us)
    row = np.arange(first_row, first_row + table.num_rows)
    return TransactionTable(
        raw, fields, transaction_columns(row, fields, event_us, clock_us, (minor, base), attributes(table)), plain
    )


def times_us(values: pa.Array, time_zone: str) -> tuple[NDArray[np.int64], Mask]:
    """Microseconds since 1970 of timestamps, or of text as the decoder reads it; without an offset of ``time_zone``.

    `NO_TIME` where there is none.
    """
    n = len(values)
    if pa.types.is_timestamp(values.type):
        found = values.cast(pa.timestamp("us", values.type.tz), safe=False)
        if values.type.tz is None:
            return _microseconds(in_zone(pd.Series(found.to_pandas()), time_zone))
        # The zone of a column with one is how it is shown: its instants stand for themselves.
        return _plain_times(np.array(found.cast(pa.int64()).fill_null(NO_TIME)))
    if not pa.types.is_string(values.type):
        return np.full(n, NO_TIME), np.zeros(n, np.bool_)
    moments, fast = np.full(n, NO_TIME), np.zeros(n, np.bool_)
    for pattern in (_PLAIN_ZONED, _PLAIN_LOCAL):
        rows = np.flatnonzero(_mask(pc.fill_null(pc.match_substring_regex(values, pattern), False)))
        if len(rows):
            texts = pd.Series(values.take(pa.array(rows)).to_pandas())
            zoned = pattern is _PLAIN_ZONED
            times = pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=zoned)
            moments[rows], fast[rows] = _microseconds(times if zoned else in_zone(times, time_zone))
    for row in np.flatnonzero((moments == NO_TIME) & _mask(values.is_valid())).tolist():
        try:
            moments[row] = timestamp_us(msgspec.convert(values[row].as_py(), Timestamp))
        except msgspec.ValidationError:
            continue
    return moments, fast


def wall_clock_us(values: pa.Array) -> tuple[NDArray[np.int64], Mask]:
    """Return the time that ``local_time`` shows, in microseconds since 1970 on that clock."""
    if values.null_count == len(values) or not pa.types.is_string(values.type):
        return np.zeros(len(values), np.int64), np.zeros(len(values), np.bool_)
    fast = pc.fill_null(pc.match_substring_regex(values, _PLAIN_LOCAL), False)
    times = pd.to_datetime(
        pd.Series(pc.if_else(fast, values, None).to_pandas()), format="ISO8601", errors="coerce", utc=True
    )
    return _microseconds(times)


def amounts(
    values: pa.Array, currency: pa.Array, rates: RateTable
) -> tuple[NDArray[np.int64], NDArray[np.int64], Mask]:
    """Convert amounts to minor units.

    A float stands for the decimal of the currency's digits that it is nearest to
    (`pipeline.history.canonical_columns.whole_units`).

    Args:
        values: Amounts in major units, shape ``(n,)``.
        currency: ISO 4217 codes, shape ``(n,)``.
        rates: Rates into the base currency.

    Returns:
        Minor units of the currency, minor units of the base currency, and a mask of the rows that are plain, each of
        shape ``(n,)``.
    """
    terms = rate_terms(rates)
    row = _rate_rows(currency, terms)
    fast = row >= 0
    major, fast_majors = _majors(values)
    fast &= fast_majors
    scaled: NDArray[np.float64] = np.where(fast, major, 0.0) * 10 ** np.append(terms.digits, 0)[row]
    whole, inexact = whole_units(scaled)
    fast &= ~inexact & (whole >= 0) & (whole < _PLAIN_MINOR)
    minor = np.where(fast, whole, 0).astype(np.int64)
    base = np.empty(len(minor), np.int64)
    convert(minor, row, terms, base)
    return minor, base, fast & (base != NOT_CONVERTED) & (base <= MAX_AMOUNT_BASE_MINOR)


def _rate_rows(currency: pa.Array, terms: RateTerms) -> NDArray[np.int64]:
    """The row of each currency code among ``terms``; -1 where there is none."""
    encoded = currency.dictionary_encode()
    row_of_code = {code.to_bytes(3, "big").decode(): row for row, code in enumerate(terms.code.tolist())}
    rows = [row_of_code.get(code, -1) for code in encoded.dictionary.to_pylist()]
    found: NDArray[np.int64] = np.array([*rows, -1], np.int64)[pc.fill_null(encoded.indices, len(rows)).to_numpy()]
    return found


def _majors(values: pa.Array) -> tuple[NDArray[np.float64], Mask]:
    kind = values.type
    if pa.types.is_string(kind):
        fast = pc.fill_null(pc.match_substring_regex(values, _PLAIN_AMOUNT), False)
        values = pc.if_else(fast, values, None).cast(pa.float64())
    elif pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale <= _MOST_DECIMALS):
        values = values.cast(pa.float64(), safe=False)
    elif not pa.types.is_floating(kind):
        return np.zeros(len(values)), np.zeros(len(values), np.bool_)
    major = values.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
    return major, np.isfinite(major)


def _microseconds(times: "pd.Series[pd.Timestamp]") -> tuple[NDArray[np.int64], Mask]:
    return _plain_times(times.dt.tz_localize(None).to_numpy("datetime64[us]").astype(np.int64))


def _plain_times(moments: NDArray[np.int64]) -> tuple[NDArray[np.int64], Mask]:
    return moments, (moments >= FAST_PATH_TIMES_US[0]) & (moments < FAST_PATH_TIMES_US[1])


def _mask(values: pa.Array) -> Mask:
    return np.asarray(values.to_numpy(zero_copy_only=False), np.bool_)


def attributes(table: pa.Table) -> AttributeColumns:
    """Return the declared attributes of the rows.

    They are columns named as in `pipeline.features.attributes.COLUMNS`, or members of the JSON in ``attributes``.
    Raises `UnusableSource` for a number that is none, and for JSON of another kind.
    """
    if not READ:
        return no_attributes(table.num_rows)
    try:
        given = [None if text is None else decode_attributes(text) for text in column(table, "attributes").to_pylist()]
    except (msgspec.MsgspecError, TypeError) as error:
        raise UnusableSource(
            f"the column attributes holds something else than a flat JSON object of numbers, texts and nulls ({error})"
        ) from error
    found = attribute_columns(given)
    for number, name in enumerate(ATTRIBUTE_FEATURES):
        if found.numbers is not None and name in table.column_names:
            found.numbers[:, number], wrong = numbers(table.column(name))
            if wrong.any():
                value = repr(table.column(name)[int(wrong.argmax())].as_py())[:_SHOWN]
                raise UnusableSource(f"the column for {name} holds {value}, which {NO_NUMBER}")
    for name in found.texts:
        if f"attribute_{name}" in table.column_names:
            found.texts[name] = column(table, f"attribute_{name}").cast(pa.string())
    return found


def time_cell(values: pa.Array, moments_us: NDArray[np.int64], row: int) -> Any:
    """A time as a producer would write it: text as it is, but for such as only ``time_zone`` made a moment.

    Args:
        values: The column as it was read, shape ``(n,)``.
        moments_us: Its times in microseconds since 1970, `NO_TIME` where there is none; shape ``(n,)``.
        row: Number of the row.

    Returns:
        Text, an aware time, or another value as it is; None where the row has none.
    """
    value = values[row]
    if not value.is_valid:
        return None
    text = pa.types.is_string(values.type)
    if text and (moments_us[row] == NO_TIME or re.match(_PLAIN_LOCAL, value.as_py()) is None):
        return value.as_py()
    if text or pa.types.is_timestamp(values.type):
        return time_of(min(max(int(moments_us[row]), _FIRST_US), _LAST_US))
    return value.as_py()


def amount_cell(value: Any, decimals: int | None) -> Any:
    """An amount as a producer would write it: a float as the decimal that it stands for, in the currency's digits."""
    if not isinstance(value, float):
        return value
    exact = Decimal(repr(value))
    if not exact.is_finite():
        # As text, since JSON has no such number.
        return str(exact)
    if decimals is not None and abs(value) < _PLAIN_MINOR:
        whole, inexact = whole_units(np.array([value]) * 10.0**decimals)
        if not inexact[0]:
            return Decimal(int(whole[0])).scaleb(-decimals)
    return exact
