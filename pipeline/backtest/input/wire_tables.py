"""Files and frames as tables with the columns of the wire contract."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.backtest.input.acceptance import LABEL_FIELDS
from pipeline.history.canonical_columns import NO_TRUTH, UnusableSource, truths
from pipeline.history.files import CHUNK_ROWS, SEQUENCE, STAMP, column_names, read_tables
from pipeline.history.table_columns import column, times_us
from pipeline.learning.labels import FRAUD, KNOWN_FRAUD, KNOWN_LEGITIMATE, LEGITIMATE
from schemas.times import US_PER_SECOND


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
    """A label for each transaction of a history that knows its frauds.

    Args:
        tables: Tables as of `file_tables` in the order of event time, with the column ``fraud``.
        delay_s: Seconds from a transaction to its label.
        legitimate: Label all transactions; without, only the frauds.
        time_zone: Time zone of times without an offset.

    Returns:
        A table of labels for each table, in its order.

    Raises:
        UnusableSource: A truth that nobody can tell.
    """
    for table in tables:
        event_us, _ = times_us(column(table, "event_time"), time_zone)
        fraud = frauds(table)
        labels = pa.table(
            {
                "transaction_id": table.column("transaction_id"),
                "card_id": table.column("card_id"),
                "label": np.where(fraud, FRAUD, LEGITIMATE),
                "source": pa.array(["simulator"] * table.num_rows),
                "labelled_at": pa.array(event_us + round(delay_s * US_PER_SECOND)).cast(pa.timestamp("us", "UTC")),
            }
        )
        yield labels if legitimate else labels.filter(pa.array(fraud))


def truth_of(table: pa.Table, rows: NDArray[np.int64]) -> NDArray[np.int8]:
    """Return the final label of some rows of a table, by its column ``fraud``. Raises `UnusableSource`."""
    fraud = frauds(table.select(["fraud"]).take(pa.array(rows)))
    return np.where(fraud, KNOWN_FRAUD, KNOWN_LEGITIMATE).astype(np.int8)


def frauds(table: pa.Table) -> NDArray[np.bool_]:
    """Parse the column ``fraud`` of a table. Raises `UnusableSource` for a value that is no truth."""
    fraud, unknown = truths(table.column("fraud"))
    if unknown.any():
        value = table.column("fraud")[int(unknown.argmax())].as_py()
        shown = "no value in a row" if value is None else repr(value)
        raise UnusableSource(f"the column fraud holds {shown}, which {NO_TRUTH}")
    return fraud
