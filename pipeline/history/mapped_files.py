"""Files in a shape of their own: each row is mapped as the record that its producer would have sent."""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from pipeline.decision.reason_texts import count
from pipeline.engine.records.accept import accept_transactions
from pipeline.engine.records.columns import Reject, Transactions
from pipeline.history.canonical_columns import PASSED_ON
from pipeline.history.files import CHUNK_ROWS, column_names, is_json, read_tables, reading
from schemas.errors import InvalidMessage
from schemas.mapping import TRUTH, FieldMapping, Mapper, names_of
from schemas.money import RateTable

RECORD: Final = "record"
"""Column of the contract's JSON that the mapping made of a row; null where it made none."""
REFUSED: Final = "refused"
"""Column of why it made none: a code and a text."""
_REASON: Final = pa.struct([("code", pa.string()), ("text", pa.string())])
_TEXTS: Final = ("event_time", *PASSED_ON, *TRUTH)
_NO_ARRIVAL_US: Final = 2**62
"""A row of a file has no time at which it arrived: no event is in the future."""
# `str` is for timestamps of nanoseconds.
_encode: Final = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode


@dataclass(frozen=True, slots=True)
class FileMapping:
    """A mapping as files follow it."""

    mapping: FieldMapping
    rates: RateTable
    time_zone: str = "UTC"
    """Times without an offset are refused, or have the mapping's own zone."""

    @property
    def columns(self) -> dict[str, str]:
        """Columns of a file that fields are read from, by field; of those that are nested, the outermost."""
        paths = {name: source.path for name, source in self.mapping.fields.items()} | self.mapping.attributes
        return {name: names_of(path)[0] for name, path in paths.items() if path is not None}


def file_records(path: Path, columns: Sequence[str], batch_rows: int = CHUNK_ROWS) -> Iterator[list[bytes]]:
    """Yield the rows of a file as records: lines of JSON as they are, others as the object of their columns.

    Args:
        path: A file of JSON lines, Parquet or CSV. Lines without any text are passed over.
        columns: Names of the columns that are wanted; those that the file lacks are left out.
        batch_rows: Most records of a batch.

    Raises:
        UnusableSource: The file cannot be read.
    """
    if not is_json(path):
        present = set(column_names(path))
        for table in read_tables(path, [name for name in dict.fromkeys(columns) if name in present], batch_rows):
            yield list(map(_encode, table.to_pylist()))
        return
    with reading(path), pa.input_stream(path) as stream:
        batch = list[bytes]()
        for line in io.BufferedReader(stream):
            if line.strip():
                batch.append(line)
            if len(batch) == batch_rows:
                yield batch
                batch = []
        yield batch


def mapped_tables(path: Path, mapping: FileMapping, chunk_rows: int = CHUNK_ROWS) -> Iterator[pa.Table]:
    """Yield a file as tables of `RECORD` and `REFUSED`, with the event time, optional fields and the truth as text.

    Raises:
        UnusableSource: The file cannot be read.
    """
    mapper = Mapper(mapping.mapping, mapping.rates, truth=True)
    texts = [name for name in _TEXTS if name in mapping.mapping.fields]
    for records in file_records(path, list(mapping.columns.values()), chunk_rows):
        values, reasons, fields = list[bytes | None](), list[dict[str, str] | None](), list[dict[str, Any]]()
        for record in records:
            try:
                value, found = mapper.row(record)
            except InvalidMessage as error:
                values.append(None)
                reasons.append({"code": error.code, "text": str(error)})
                fields.append({})
            else:
                values.append(value)
                reasons.append(None)
                fields.append(found)
        columns = {name: pa.array([_text(row.get(name)) for row in fields], pa.string()) for name in texts}
        yield pa.table({RECORD: pa.array(values, pa.binary()), REFUSED: pa.array(reasons, _REASON), **columns})


def accept_mapped(table: pa.Table, rates: RateTable, first_row: int = 0) -> tuple[Transactions, list[Reject]]:
    """Accept the rows of a table of `mapped_tables` as the card agent accepts their records.

    Args:
        table: The table.
        rates: Table that converts the amounts.
        first_row: Number of its first row in the file.

    Returns:
        The accepted transactions in order, and the refused ones, with what the mapping says of those that it refused.
    """
    arrived_us = np.full(table.num_rows, _NO_ARRIVAL_US)
    rows, rejects = accept_transactions(table.column(RECORD).to_pylist(), arrived_us, rates, future_tolerance_us=0)
    reasons = table.column(REFUSED)
    found = [reject._replace(row=first_row + reject.row, **(reasons[reject.row].as_py() or {})) for reject in rejects]
    return replace(rows, row=first_row + rows.row), found


def refusal_text(path: Path, codes: Counter[str], first: Reject) -> str:
    """Return the sentence about rows that were left out of a file.

    Args:
        path: The file.
        codes: Numbers of rows, by code.
        first: The first of them.
    """
    named = ", ".join(f"{code} {count:,}" for code, count in codes.most_common())
    return (
        f"{path}: left out {count(codes.total(), 'transaction')} that workers refuse ({named}); the first is row "
        f"{first.row + 1:,}: {first.text}"
    )


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return value.isoformat() if isinstance(value, datetime) else str(value)
