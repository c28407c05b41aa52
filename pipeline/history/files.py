"""Files of transactions, read into the canonical columns: Parquet and CSV, in bounded memory, with a column mapping."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pipeline.features.attributes import DECLARED_ATTRIBUTES
from pipeline.features.catalogue import ATTRIBUTE_FEATURES
from pipeline.history.columns import FRAUD_TYPES, canonical_frame
from pipeline.settings.files import is_url
from schemas.fields import DECLARED_FIELDS, Kind

REQUIRED: Final = ("transaction_id", "event_time", "card_id", "merchant_id", "amount")
TRUTH: Final = ("fraud", "fraud_type")
PASSED_ON: Final = tuple(
    field.name for field in DECLARED_FIELDS if field.kind in (Kind.TEXT, Kind.CLOCK) and not field.required
)
"""Optional text fields of the wire contract that a file may hold too; they follow the canonical columns."""
FIELDS: Final = (*REQUIRED, "currency", *TRUTH, *PASSED_ON, *ATTRIBUTE_FEATURES)

HANDBOOK: Final[Mapping[str, str]] = {
    "transaction_id": "TRANSACTION_ID",
    "event_time": "TX_DATETIME",
    "card_id": "CUSTOMER_ID",
    "merchant_id": "TERMINAL_ID",
    "amount": "TX_AMOUNT",
    "fraud": "TX_FRAUD",
    "fraud_type": "TX_FRAUD_SCENARIO",
}
CANONICAL: Final[Mapping[str, str]] = {name: name for name in FIELDS}
CANONICAL_ATTRIBUTES: Final[Mapping[str, str]] = {name: name for name in ATTRIBUTE_FEATURES}
PRESETS: Final[Mapping[str, Mapping[str, str]]] = {"canonical": CANONICAL, "handbook": HANDBOOK}
ZERO_AMOUNT_TYPES: Final[Mapping[str, str]] = {"handbook": "verification"}
"""The transaction type of rows with amount zero, which a purchase may not have, by preset. The Handbook's simulator
rounds small draws to zero and has no types."""

_OTHER_DECIMALS: Final = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}
_DECIMALS: Final = {code: decimals for decimals, codes in _OTHER_DECIMALS.items() for code in codes.split()}
_BATCH_ROWS: Final = 65_536
_LARGEST_AMOUNT_MINOR: Final = 2**53
"""Above this a float64 no longer holds every minor unit."""
_TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "fraud", "1.0"})
_FALSE: Final = frozenset({"0", "false", "f", "no", "n", "legitimate", "0.0"})


NO_TRUTH: Final = "is neither 0 nor 1 (false, true)"
_NUMERIC: Final = (
    pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_string, pa.types.is_large_string,
    pa.types.is_string_view, pa.types.is_null,
)  # fmt: skip
_SEPARATORS: Final = {b";": "semicolons", b"\t": "tabs", b"|": "vertical bars"}
_HEADER_BYTES: Final = 65_536
_DAY_FIRST: Final = re.compile(r"\d{1,2}[./-]\d{1,2}[./-]\d{4}\b")
_SINCE_1970: Final = re.compile(r"\d{9,19}(\.\d+)?")
NO_NUMBER: Final = "is no number; write a decimal number, or nothing"


class UnusableSource(ValueError):
    """A file that cannot be read as transactions; the text names the column or row and says what to do."""


@dataclass(frozen=True, slots=True)
class ColumnMapping:
    """The assignment of a file's columns to fields.

    ``columns`` maps names of ``FIELDS`` to the file's own; ``currency`` holds where no column is mapped to it, and
    ``time_zone`` for times without an offset (a local time that occurs twice is taken as the first of the two).
    ``zero_amount_type`` is the ``transaction_type`` of rows with amount zero, where no column is mapped to that.
    """

    columns: Mapping[str, str] = field(default_factory=lambda: dict(CANONICAL))
    currency: str = "EUR"
    time_zone: str = "UTC"
    zero_amount_type: str | None = None


def currency_decimals(currency: str) -> int:
    """Decimals of a currency's minor unit (ISO 4217); two where nothing else is known.

    >>> currency_decimals("EUR"), currency_decimals("JPY"), currency_decimals("KWD")
    (2, 0, 3)
    """
    return _DECIMALS.get(currency, 2)


def resolve_mapping(
    path: Path,
    changes: Mapping[str, str] | None = None,
    *,
    preset: str | None = None,
    currency: str = "EUR",
    time_zone: str = "UTC",
) -> ColumnMapping:
    """Find the mapping for ``path``: a preset (by its columns where none is named), with ``changes`` on top.

    Raises `UnusableSource` for an unknown field, preset or time zone, and for required columns that the file has not.
    """
    changes = changes or {}
    present = column_names(path)
    unknown = sorted(set(changes) - set(FIELDS))
    if unknown:
        raise UnusableSource(f"--map knows no field {', '.join(unknown)}; the fields are {', '.join(FIELDS)}")
    absent = sorted(column for column in changes.values() if column not in present)
    if absent:
        raise UnusableSource(f"{path} has no column {', '.join(absent)}; it has {', '.join(present)}")
    if preset is None:
        fits = [
            name
            for name, columns in PRESETS.items()
            if all(changes.get(needed, columns[needed]) in present for needed in REQUIRED)
        ]
        preset = fits[0] if fits else "canonical"
    if preset not in PRESETS:
        raise UnusableSource(f"there is no preset {preset}; there are {', '.join(PRESETS)}")
    taken = {*FIELDS, *PRESETS[preset].values(), *changes.values()}
    attributes = {
        feature: attribute.name
        for feature, attribute in zip(ATTRIBUTE_FEATURES, DECLARED_ATTRIBUTES, strict=True)
        # A column that holds another field, such as the truth, is no attribute of the same name.
        if feature not in present and attribute.name not in taken
    }
    mapped = {**CANONICAL_ATTRIBUTES, **PRESETS[preset], **attributes, **changes}
    columns = {name: column for name, column in mapped.items() if column in present}
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        needed = " ".join(f"--map {name}=COLUMN" for name in missing)
        raise UnusableSource(
            f"{path}: no column is known for {', '.join(missing)}; name one with {needed} (it has {', '.join(present)})"
        )
    _zone(time_zone)
    _check_first_time(path, columns["event_time"])
    return ColumnMapping(columns, currency, time_zone, ZERO_AMOUNT_TYPES.get(preset))


def _check_first_time(path: Path, column: str) -> None:
    """Refuse a file whose first time is written in a way that no row could be read by."""
    table = next(read_tables(path, [column], batch_rows=1), None)
    value = table.column(column)[0].as_py() if table is not None and table.num_rows else None
    text = "" if value is None else str(value)
    if _DAY_FIRST.match(text):
        way = "begins with day or month"
    elif _SINCE_1970.fullmatch(text):
        way = "counts from 1970"
    else:
        return
    raise UnusableSource(f"{path}, row 1, column {column}: {text} {way}; write it as 2018-04-01T00:00:31Z")


def read_transactions(
    path: Path,
    mapping: ColumnMapping | None = None,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    sort: bool = False,
    batch_rows: int = _BATCH_ROWS,
) -> Iterator[pd.DataFrame]:
    """Yield frames of at most ``batch_rows`` rows with `pipeline.history.columns.COLUMNS`, ordered by event time.

    Columns of ``PASSED_ON`` and of declared attributes that the mapping names follow them, ``transaction_type`` also
    where the mapping has a ``zero_amount_type``; None there is a purchase. ``fraud`` and ``fraud_type`` are there only
    if the mapping names ``fraud``. ``start`` (inclusive) and ``end`` (exclusive) are aware times. ``sort`` reads the
    whole file into memory and orders it (stable); without it a row that is earlier than the one before raises
    `UnusableSource`, as do times, amounts, truths and attributes that cannot be read. Memory otherwise is that of one
    batch.
    """
    mapping = mapping if mapping is not None else resolve_mapping(path)
    frames = _converted(path, mapping, start, end, batch_rows)
    if sort:
        ordered = _ordered(frames)
        if ordered is not None:
            for first in range(0, len(ordered), batch_rows):
                yield ordered.iloc[first : first + batch_rows].reset_index(drop=True)
        return
    newest: pd.Timestamp | None = None
    for frame in frames:
        times = frame["event_time"]
        if not times.is_monotonic_increasing or (newest is not None and times.iloc[0] < newest):
            raise UnusableSource(
                f"{path}: column {mapping.columns['event_time']} is not in order of time; pass --sort "
                "(which reads the whole file into memory), or sort the file first"
            )
        newest = times.iloc[-1]
        yield frame


def load_transactions(
    path: Path,
    mapping: ColumnMapping | None = None,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    sort: bool = True,
) -> pd.DataFrame:
    """Read a whole file into one frame; see `read_transactions`. Raises `UnusableSource` when no row is left."""
    mapping = mapping if mapping is not None else resolve_mapping(path)
    if sort:
        whole = _ordered(_converted(path, mapping, start, end))
    else:
        frames = list(read_transactions(path, mapping, start=start, end=end))
        whole = pd.concat(frames, ignore_index=True) if frames else None
    if whole is None:
        raise UnusableSource(f"{path} holds no transaction in the chosen time; widen --from and --to")
    return whole


def _ordered(frames: Iterator[pd.DataFrame]) -> pd.DataFrame | None:
    """Return frames as one, in the order of event time; None where there is none."""
    parts = list(frames)
    if not parts:
        return None
    whole = pd.concat(parts, ignore_index=True)
    if whole["event_time"].is_monotonic_increasing:
        return whole
    return whole.sort_values("event_time", kind="stable", ignore_index=True)


def in_zone(naive: "pd.Series[pd.Timestamp]", time_zone: str) -> "pd.Series[pd.Timestamp]":
    """Times without an offset as times in UTC; one that occurs twice is the first, one that does not, the next."""
    first = np.ones(len(naive), np.bool_)
    return naive.dt.tz_localize(_zone(time_zone), ambiguous=first, nonexistent="shift_forward").dt.tz_convert("UTC")


def whole_units(scaled: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """(nearest whole numbers, whether a value is none): amounts that are floats in minor units; shape (n,).

    A float64 that was a decimal with so many digits is off by a rounding error, not by a part of a unit.
    """
    whole = np.rint(scaled)
    return whole, np.abs(scaled - whole) > 1e-6 + np.abs(scaled) * 1e-12


def truths(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Parse a column of truths: (is it fraud, is it unknown); shape (n,)."""
    values, codes = _distinct(column)
    texts = [str(value).strip().lower() for value in values]
    true = np.array([text in _TRUE for text in texts], np.bool_)
    unknown = ~true & np.array([text not in _FALSE for text in texts], np.bool_)
    return true[codes], unknown[codes]


def numbers(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Parse a column of numbers: (values, NaN for a missing one; is it none); shape (n,).

    Truths and times are no numbers.
    """
    if not any(is_kind(column.type) for is_kind in _NUMERIC):
        return np.full(len(column), np.nan), ~column.is_null().to_numpy()
    values = pd.to_numeric(pd.Series(column.to_pandas()), errors="coerce").to_numpy(np.float64, na_value=np.nan)
    missing = pc.is_null(column, nan_is_null=True).to_numpy()
    return values, ~np.isfinite(values) & ~missing


def _distinct(column: pa.ChunkedArray) -> tuple[list[object], npt.NDArray[np.intp]]:
    """Return the distinct values of a column, None among them, and the number of the one that each row holds."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = pc.dictionary_encode(column, null_encoding="encode").combine_chunks()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.intp)


def refuse_url(path: Path) -> None:
    """Raise `UnusableSource` for a path that was a URL, such as ``s3://``."""
    if is_url(path):
        raise UnusableSource(f"{path} is a URL: copy it to a disk of this machine, and name its path there")


def _kind(path: Path) -> str:
    refuse_url(path)
    if not path.is_file():
        raise UnusableSource(f"there is no file {path}")
    name = path.name.lower()
    if name.endswith((".parquet", ".pq")):
        return "parquet"
    if name.endswith((".csv", ".csv.gz")):
        return "csv"
    raise UnusableSource(f"{path}: unknown file type; use .parquet, .pq, .csv or .csv.gz")


def column_names(path: Path) -> list[str]:
    """The columns of a file; raises `UnusableSource` for one that cannot be read."""
    kind = _kind(path)
    try:
        if kind == "parquet":
            return list(pq.read_schema(path).names)
        # Before a parser divides the rows at commas, which may stand in amounts.
        with pa.input_stream(path) as stream:
            header = stream.read(_HEADER_BYTES).partition(b"\n")[0]
        if not header:
            raise UnusableSource(f"{path} is empty: write a line of column names, then a transaction a line")
        for separator, word in _SEPARATORS.items():
            if b"," not in header and separator in header:
                raise UnusableSource(
                    f"{path}: its columns stand between {word}: write commas between columns, and points in amounts"
                )
        with pacsv.open_csv(path) as reader:
            return list(reader.schema.names)
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        raise _unreadable(path, kind, error) from error


def _unreadable(path: Path, kind: str, error: Exception) -> UnusableSource:
    advice = "; save it as UTF-8" if re.search("utf-?8", str(error), re.IGNORECASE) else ""
    return UnusableSource(f"{path} cannot be read as {kind}: {error}{advice}")


def read_tables(path: Path, columns: list[str], batch_rows: int) -> Iterator[pa.Table]:
    """Yield the ``columns`` of a file in tables of at most ``batch_rows`` rows; a CSV's are text, empty ones null.

    Raises `UnusableSource` for a file that cannot be read.
    """
    kind = _kind(path)
    try:
        if kind == "parquet":
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=batch_rows, columns=columns):
                    yield pa.Table.from_batches([batch])
            return
        # All is read as text: a type guessed from the first block fails in a later one, and identifiers lose zeros.
        convert = pacsv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
        )
        with pacsv.open_csv(path, convert_options=convert) as reader:
            for batch in reader:
                for first in range(0, batch.num_rows, batch_rows):
                    yield pa.Table.from_batches([batch.slice(first, batch_rows)])
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, kind, error) from error


def _converted(
    path: Path,
    mapping: ColumnMapping,
    start: datetime | None,
    end: datetime | None,
    batch_rows: int = _BATCH_ROWS,
) -> Iterator[pd.DataFrame]:
    for bound in (start, end):
        if bound is not None and bound.tzinfo is None:
            raise UnusableSource(f"{bound} has no time zone; give --from and --to with an offset")
    row = 0
    for table in read_tables(path, list(dict.fromkeys(mapping.columns.values())), batch_rows):
        frame = _FileBatch(path, mapping, table, row).frame()
        row += table.num_rows
        if start is not None:
            frame = frame[frame["event_time"] >= start]
        if end is not None:
            frame = frame[frame["event_time"] < end]
        if len(frame):
            yield frame.reset_index(drop=True)


@dataclass(frozen=True, slots=True)
class _FileBatch:
    """A table of a file, with the context that names the row of an error."""

    path: Path
    mapping: ColumnMapping
    table: pa.Table
    first_row: int

    def frame(self) -> pd.DataFrame:
        columns = self.mapping.columns
        currency = (
            self._text("currency")
            if "currency" in columns
            else np.full(self.table.num_rows, self.mapping.currency, dtype=object)
        )
        amount, amount_minor = self._amounts(currency)
        known = "fraud" in columns
        fraud = self._truth() if known else np.zeros(self.table.num_rows, np.bool_)
        frame = canonical_frame(
            transaction_id=self._text("transaction_id"),
            event_time_us=self._times_us(),
            card_id=self._text("card_id"),
            merchant_id=self._text("merchant_id"),
            amount=amount,
            amount_minor=amount_minor,
            currency=currency,
            fraud=fraud,
            fraud_type=self._fraud_types(fraud),
        )
        if not known:
            frame = frame.drop(columns=list(TRUTH))
        for name in PASSED_ON:
            if name in columns:
                frame[name] = pd.Series(self._optional_text(name), dtype=object)
        for name in ATTRIBUTE_FEATURES:
            if name in columns:
                frame[name] = self._numbers(name)
        if self.mapping.zero_amount_type is not None and "transaction_type" not in columns:
            types: npt.NDArray[np.object_] = np.full(len(frame), None, dtype=object)
            types[amount_minor == 0] = self.mapping.zero_amount_type
            frame["transaction_type"] = pd.Series(types, dtype=object)
        return frame

    def _column(self, name: str) -> pa.ChunkedArray:
        return self.table.column(self.mapping.columns[name])

    def _fail(self, name: str, rows: npt.NDArray[np.intp], why: str) -> UnusableSource:
        row = int(rows[0])
        value = self._column(name)[row].as_py()
        return UnusableSource(
            f"{self.path}, row {self.first_row + row + 1}, column {self.mapping.columns[name]}: {value!r} {why}"
        )

    def _optional_text(self, name: str) -> npt.NDArray[np.object_]:
        """Return a column as texts; rows of one value share its text."""
        values, codes = _distinct(self._column(name).cast(pa.string()))
        return _objects(values)[codes]

    def _text(self, name: str) -> npt.NDArray[np.object_]:
        values = self._optional_text(name)
        empty = np.flatnonzero((values == None) | (values == ""))  # noqa: E711 (element by element)
        if len(empty):
            raise self._fail(name, empty, f"is empty; every transaction needs its {name}")
        return values

    def _times_us(self) -> npt.NDArray[np.int64]:
        column = self._column("event_time")
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            raise UnusableSource(
                f"{self.path}: column {self.mapping.columns['event_time']} holds numbers; write times as "
                "2018-04-01T00:00:31Z, so that their unit and zone are known"
            )
        naive_or_aware = pd.Series(column.to_pandas())
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            times = pd.to_datetime(naive_or_aware.astype(object), format="ISO8601", errors="coerce", utc=True)
            self._refuse_missing_times(times)
            if self.mapping.time_zone != "UTC":
                without_offset = ~naive_or_aware.str.contains(r"(?:Z|z|[+-]\d{2}:?\d{2})$", regex=True)
                times = times.where(~without_offset, in_zone(times.dt.tz_localize(None), self.mapping.time_zone))
        else:
            times = pd.to_datetime(naive_or_aware, errors="coerce")
            self._refuse_missing_times(times)
            times = in_zone(times, self.mapping.time_zone) if times.dt.tz is None else times.dt.tz_convert("UTC")
        moments: npt.NDArray[np.int64] = times.dt.tz_localize(None).to_numpy("datetime64[us]").astype(np.int64)
        return moments

    def _refuse_missing_times(self, times: "pd.Series[pd.Timestamp]") -> None:
        missing = np.flatnonzero(times.isna().to_numpy())
        if len(missing):
            raise self._fail("event_time", missing, "is no time; write it as 2018-04-01T00:00:31Z")

    def _amounts(self, currency: npt.NDArray[np.object_]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        numbers = pd.to_numeric(pd.Series(self._column("amount").to_pandas()), errors="coerce")
        amount = numbers.to_numpy(np.float64, na_value=np.nan)
        wrong = np.flatnonzero(~np.isfinite(amount))
        if len(wrong):
            raise self._fail("amount", wrong, "is no amount; write a decimal number in the currency's major unit")
        positions, codes = pd.factorize(currency)
        unit = np.array([10.0 ** currency_decimals(code) for code in codes])[positions]
        scaled = amount * unit
        minor, inexact = whole_units(scaled)
        large = np.flatnonzero(np.abs(minor) > _LARGEST_AMOUNT_MINOR)
        if len(large):
            raise self._fail("amount", large, "is too large to be exact")
        fractions = np.flatnonzero(inexact)
        if len(fractions):
            code = currency[fractions[0]]
            raise self._fail(
                "amount", fractions, f"has more than the {currency_decimals(code)} decimals of {code}; round it first"
            )
        return minor / unit, minor.astype(np.int64)

    def _numbers(self, name: str) -> npt.NDArray[np.float64]:
        values, wrong = numbers(self._column(name))
        if wrong.any():
            raise self._fail(name, np.flatnonzero(wrong), NO_NUMBER)
        return values

    def _truth(self) -> npt.NDArray[np.bool_]:
        true, unknown = truths(self._column("fraud"))
        if unknown.any():
            raise self._fail("fraud", np.flatnonzero(unknown), NO_TRUTH)
        return true

    def _fraud_types(self, fraud: npt.NDArray[np.bool_]) -> npt.NDArray[np.object_]:
        if "fraud_type" not in self.mapping.columns:
            return np.full(len(fraud), None, dtype=object)
        names = {str(number): name for number, name in enumerate(FRAUD_TYPES)}
        values, codes = _distinct(self._column("fraud_type").cast(pa.string()))
        types = _objects([names.get(str(text), text) if text else None for text in values])[codes]
        types[~fraud] = None
        return types


def _objects(values: Sequence[object]) -> npt.NDArray[np.object_]:
    found: npt.NDArray[np.object_] = np.array(values, dtype=object)
    return found


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise UnusableSource(f"there is no time zone {name}; use an IANA name such as Europe/Brussels") from error
