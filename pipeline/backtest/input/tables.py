"""Files and frames as tables with the columns of the wire contract."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.backtest.input import wire
from pipeline.backtest.input.acceptance import LABEL_FIELDS, SEQUENCE, STAMP
from pipeline.history.files import (
    NO_TRUTH,
    ColumnMapping,
    UnusableSource,
    column_names,
    read_tables,
    resolve_mapping,
    truths,
)
from pipeline.learning.labels import FRAUD, KNOWN, LEGITIMATE
from schemas.times import US_PER_SECOND

CHUNK_ROWS: Final = 16_384
"""Rows of a table: large enough for what one costs, small enough for its features to stay near the processor."""


def file_tables(path: Path, mapping: ColumnMapping | None = None, chunk_rows: int = CHUNK_ROWS) -> Iterator[pa.Table]:
    """A file of transactions (Parquet or CSV) as tables with the columns of the wire contract.

    ``mapping`` tells the file's own names (`pipeline.history.files.resolve_mapping`); its currency holds where no
    column says one, and its ``zero_amount_type`` for amounts of zero. Columns `STAMP` and `SEQUENCE` are read where
    the file has them. Raises `UnusableSource` for a file that cannot be read.
    """
    mapping = mapping or resolve_mapping(path)
    present = column_names(path)
    names = dict(mapping.columns) | {name: name for name in (STAMP, SEQUENCE) if name in present}
    for table in read_tables(path, list(dict.fromkeys(names.values())), chunk_rows):
        columns = {name: table.column(column) for name, column in names.items()}
        if "currency" not in columns:
            columns["currency"] = pa.array([mapping.currency] * table.num_rows, pa.string())
        if mapping.zero_amount_type is not None and "transaction_type" not in columns:
            zero = pd.to_numeric(pd.Series(columns["amount"].to_pandas()), errors="coerce") == 0
            columns["transaction_type"] = pc.if_else(pa.array(zero), mapping.zero_amount_type, None)
        yield pa.table(columns)


def label_tables(path: Path, chunk_rows: int = CHUNK_ROWS) -> Iterator[pa.Table]:
    """A file of labels (Parquet or CSV), whose columns have the names of the wire contract, as tables.

    Those of `LABEL_FIELDS`, `STAMP` and `SEQUENCE`, and ``fraud_type``, where the file has them.
    Raises `UnusableSource` for a file that cannot be read.
    """
    present = column_names(path)
    read: list[str] = [name for name in (*LABEL_FIELDS, "fraud_type", STAMP, SEQUENCE) if name in present]
    yield from read_tables(path, read, chunk_rows)


def frame_tables(frame: pd.DataFrame, chunk_rows: int = CHUNK_ROWS) -> Iterator[pa.Table]:
    """A frame in tables of at most ``chunk_rows`` rows."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    for first in range(0, table.num_rows, chunk_rows):
        yield table.slice(first, chunk_rows)


def delayed_truth(
    tables: Iterable[pa.Table], delay_s: float, *, legitimate: bool = True, time_zone: str = "UTC"
) -> Iterator[pa.Table]:
    """A label for each transaction of a history that knows its frauds (column ``fraud``), ``delay_s`` after it.

    ``tables`` as of `file_tables`, in the order of event time; without ``legitimate`` only frauds are labelled;
    ``time_zone`` is of times without an offset. Raises `UnusableSource` for a truth that nobody can tell.
    """
    for table in tables:
        times_us, _ = wire.times_us(wire.column(table, "event_time"), time_zone)
        fraud = frauds(table)
        labels = pa.table(
            {
                "transaction_id": table.column("transaction_id"),
                "card_id": table.column("card_id"),
                "label": np.where(fraud, FRAUD, LEGITIMATE),
                "source": pa.array(["simulator"] * table.num_rows),
                "labelled_at": pa.array(times_us + round(delay_s * US_PER_SECOND)).cast(pa.timestamp("us", "UTC")),
            }
        )
        yield labels if legitimate else labels.filter(pa.array(fraud))


def truth_of(table: pa.Table, rows: NDArray[np.int64]) -> NDArray[np.int8]:
    """Return the final label of some rows of a table, by its column ``fraud``. Raises `UnusableSource`."""
    fraud = frauds(table.select(["fraud"]).take(pa.array(rows)))
    return np.where(fraud, KNOWN.index(FRAUD), KNOWN.index(LEGITIMATE)).astype(np.int8)


def frauds(table: pa.Table) -> NDArray[np.bool_]:
    """Parse the column ``fraud`` of a table. Raises `UnusableSource` for a value that is no truth."""
    fraud, unknown = truths(table.column("fraud"))
    if unknown.any():
        value = table.column("fraud")[int(unknown.argmax())].as_py()
        raise UnusableSource(f"the column fraud holds {value!r}, which {NO_TRUTH}")
    return fraud
