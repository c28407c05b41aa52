"""Files of transactions as frames of the canonical columns, for programs that send them on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from pipeline.engine.encoding.json_scanner import NO_TIME
from pipeline.engine.records.columns import Reject
from pipeline.features.attributes import COLUMNS
from pipeline.features.catalogue import ATTRIBUTE_FEATURES
from pipeline.history.canonical_columns import (
    FRAUD_TYPES,
    NO_NUMBER,
    NO_TRUTH,
    PASSED_ON,
    UnusableSource,
    canonical_frame,
    distinct,
    numbers,
    truths,
    whole_units,
)
from pipeline.history.files import ColumnMapping, currency_decimals, file_tables, resolve_mapping
from pipeline.history.mapped_files import RECORD, FileMapping, accept_mapped, mapped_tables
from pipeline.history.table_columns import column, times_us
from schemas.fields import DECLARED_FIELDS, Kind
from schemas.mapping import TRUTH

_BATCH_ROWS: Final = 65_536
_LARGEST_AMOUNT_MINOR: Final = 2**53
"""Above this a float64 no longer holds every minor unit."""
MAPPED: Final = ("event_time", "transaction_id", "card_id", RECORD)
"""Columns of frames of a file that follows a mapping of its own."""
_NUMBERS: Final = {field.name for field in DECLARED_FIELDS if field.kind is Kind.NUMBER}


def read_transactions(
    path: Path,
    mapping: ColumnMapping | FileMapping | None = None,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    sort: bool = False,
    batch_rows: int = _BATCH_ROWS,
    rejects: list[Reject] | None = None,
) -> Iterator[pd.DataFrame]:
    """Yield frames of transactions with `pipeline.history.canonical_columns.COLUMNS`, ordered by event time.

    Columns of ``PASSED_ON`` and of declared attributes that the mapping names follow them, ``transaction_type`` also
    where the mapping has a ``zero_amount_type``; None there is a purchase. ``fraud`` and ``fraud_type`` are there only
    if the mapping names ``fraud``. Memory is that of one batch, unless the rows are sorted here.

    A file that follows a mapping of its own gives frames of `MAPPED`, and the truth likewise.

    Args:
        path: A file of transactions.
        mapping: The file's own names (`resolve_mapping`), or its mapping; None: it is found by the file's columns.
        start: Aware time; earlier rows are left out. None: there is no such bound.
        end: Aware time; rows at it or later are left out. None: there is no such bound.
        sort: Read the whole file into memory and order it (stable); else the file must be sorted by event time.
        batch_rows: Most rows of a frame.
        rejects: Rows that a mapping or the contract refuses are appended; None: nobody asks for them.

    Raises:
        UnusableSource: The file or a time, amount, truth or attribute in it cannot be read, a row is earlier than the
            one before and ``sort`` is false, or a bound has no time zone.
    """
    mapping = mapping if mapping is not None else resolve_mapping(path)
    frames = _within(_frames(path, mapping, batch_rows, [] if rejects is None else rejects), start, end)
    if sort and (parts := list(frames)):
        whole = pd.concat(parts, ignore_index=True).sort_values("event_time", kind="stable", ignore_index=True)
        frames = (whole.iloc[first : first + batch_rows] for first in range(0, len(whole), batch_rows))
    newest: pd.Timestamp | None = None
    for frame in frames:
        times = frame["event_time"]
        if not times.is_monotonic_increasing or (newest is not None and times.iloc[0] < newest):
            raise UnusableSource(
                f"{path}: column {mapping.columns['event_time']} is not in order of time; pass --sort "
                "(which reads the whole file into memory), or sort the file first"
            )
        newest = times.iloc[-1]
        yield frame.reset_index(drop=True)


def _within(frames: Iterator[pd.DataFrame], start: datetime | None, end: datetime | None) -> Iterator[pd.DataFrame]:
    for bound in (start, end):
        if bound is not None and bound.tzinfo is None:
            raise UnusableSource(f"{bound} has no time zone; give --from and --to with an offset")
    for whole in frames:
        frame = whole if start is None else whole[whole["event_time"] >= start]
        frame = frame if end is None else frame[frame["event_time"] < end]
        if len(frame):
            yield frame


def _frames(
    path: Path, mapping: ColumnMapping | FileMapping, batch_rows: int, rejects: list[Reject]
) -> Iterator[pd.DataFrame]:
    row = 0
    if isinstance(mapping, FileMapping):
        for table in mapped_tables(path, mapping, batch_rows):
            rows, refused = accept_mapped(table, mapping.rates, row)
            rejects += refused
            taken = table.take(pa.array(rows.row - row))
            batch = _FileBatch(path, mapping.columns, mapping.time_zone, taken, rows.row)
            texts = (column.to_pylist() for column in (rows.transaction_id, rows.card_id, taken.column(RECORD)))
            times = pd.Series(rows.event_time_us.astype("datetime64[us]")).dt.tz_localize("UTC")
            yield pd.DataFrame(dict(zip(MAPPED, (times, *texts), strict=True)) | batch.truth())
            row += table.num_rows
        return
    for table in file_tables(path, mapping, batch_rows):
        numbers = np.arange(row, row + table.num_rows)
        yield _FileBatch(path, mapping.columns, mapping.time_zone, table, numbers).frame()
        row += table.num_rows


@dataclass(frozen=True, slots=True)
class _FileBatch:
    """A table of a file, with the context that names the row of an error."""

    path: Path
    columns: Mapping[str, str]
    """Names in the file, by field."""
    time_zone: str
    table: pa.Table
    rows: npt.NDArray[np.int64]
    """Number of each row in the file, from 0; shape (n,)."""

    def frame(self) -> pd.DataFrame:
        table, present = self.table, self.table.column_names
        columns: dict[str, npt.NDArray[Any]] = {"currency": self._text("currency")}
        columns["amount"], columns["amount_minor"] = self._amounts(columns["currency"])
        truth = self.truth()
        columns |= {"transaction_id": self._text("transaction_id")}
        event_us, _ = times_us(column(table, "event_time"), self.time_zone)
        self._fail("event_time", event_us == NO_TIME, "is no time; write it as 2018-04-01T00:00:31Z")
        columns |= {name: self._text(name) for name in ("card_id", "merchant_id")}
        frame = canonical_frame(event_us, columns | truth)
        for name in (*PASSED_ON, *COLUMNS):
            if name in present and (name in _NUMBERS or name in ATTRIBUTE_FEATURES):
                frame[name], wrong = numbers(table.column(name))
                self._fail(name, wrong, NO_NUMBER)
            elif name in present:
                frame[name] = pd.Series(self._optional_text(name), dtype=object)
        return frame

    def truth(self) -> dict[str, npt.NDArray[Any]]:
        """Return the columns of `TRUTH`; none where the table has no truth."""
        if "fraud" not in self.table.column_names:
            return {}
        fraud, unknown = truths(self.table.column("fraud"))
        self._fail("fraud", unknown, NO_TRUTH)
        return dict(zip(TRUTH, (fraud, self._fraud_types(fraud)), strict=True))

    def _fail(self, name: str, wrong: npt.NDArray[np.bool_], why: str) -> None:
        """Raise `UnusableSource` for the first row that is wrong, if any is."""
        if wrong.any():
            row = int(wrong.argmax())
            value = self.table.column(name)[row].as_py()
            column = self.columns.get(name, name)
            raise UnusableSource(f"{self.path}, row {self.rows[row] + 1}, column {column}: {value!r} {why}")

    def _optional_text(self, name: str) -> npt.NDArray[np.object_]:
        """Return a column as texts; rows of one value share its text."""
        values, codes = distinct(self.table.column(name).cast(pa.string()))
        return np.array(values, dtype=object)[codes]

    def _text(self, name: str) -> npt.NDArray[np.object_]:
        values = self._optional_text(name)
        empty = (values == None) | (values == "")  # noqa: E711 (element by element)
        self._fail(name, empty, f"is empty; every transaction needs its {name}")
        return values

    def _amounts(self, currency: npt.NDArray[np.object_]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        amount, _ = numbers(self.table.column("amount"))
        why = "is no amount; write a decimal number in the currency's major unit"
        self._fail("amount", ~np.isfinite(amount), why)
        positions, codes = pd.factorize(currency)
        unit = np.array([10.0 ** currency_decimals(code) for code in codes])[positions]
        minor, inexact = whole_units(amount * unit)
        self._fail("amount", np.abs(minor) > _LARGEST_AMOUNT_MINOR, "is too large to be exact")
        code = currency[int(inexact.argmax())] if len(currency) else ""
        why = f"has more than the {currency_decimals(code)} decimals of {code}; round it first"
        self._fail("amount", inexact, why)
        return minor / unit, minor.astype(np.int64)

    def _fraud_types(self, fraud: npt.NDArray[np.bool_]) -> npt.NDArray[np.object_]:
        if "fraud_type" not in self.table.column_names:
            return np.full(len(fraud), None, dtype=object)
        names = {str(number): name for number, name in enumerate(FRAUD_TYPES)}
        values, codes = distinct(self.table.column("fraud_type").cast(pa.string()))
        types = np.array([names.get(str(text), text) if text else None for text in values], dtype=object)[codes]
        types[~fraud] = None
        return types
