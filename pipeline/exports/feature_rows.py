"""Blocks of ``features`` as rows of a table: one row a decision, built column by column."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.encoding import row_columns as col
from pipeline.engine.encoding.blocks import BlockError
from pipeline.engine.scores.feature_blocks import (
    LAYOUT,
    LIGHTGBM,
    NAMED_VERSIONS,
    NUMBERS,
    OWN_FEATURES,
    RATES_VERSION,
    SCORE,
    SOURCE_TOPIC,
    FeatureRows,
    block_texts,
    read_features,
)
from pipeline.exports.rows import ERROR, FEATURE_FIELDS, RECORD_FIELDS, VALUE, feature_columns, record_columns
from pipeline.scoring.kinds import WITH_LOG_ODDS
from schemas.records import Record
from schemas.topics import PROFILED

_TIME: Final = pa.timestamp("us", "UTC")
_FIELDS: Final = (
    pa.field("row", pa.int32()),
    *(pa.field(name, pa.string()) for name in LAYOUT.texts),
    pa.field("event_time", _TIME),
    pa.field("amount_base", pa.float64()),
    pa.field("score", pa.float64()),
    *(pa.field(kind.log_odds, pa.float64()) for _, kind in WITH_LOG_ODDS),
    *FEATURE_FIELDS,
    *(pa.field(f"versions_{name}", pa.string()) for name in (*NAMED_VERSIONS[:-1], "kernel", "rates")),
    pa.field("source_topic", pa.string()),
    pa.field("source_partition", pa.int64()),
    pa.field("source_offset", pa.int64()),
    pa.field("log_partition", pa.int64()),
    pa.field("log_offset", pa.int64()),
    pa.field("log_row", pa.int64()),
)
"""Columns of a decision, named as on ``decisions``; ``row`` is its number in the block."""


class _Read(NamedTuple):
    """Contents of n records."""

    blocks: list[FeatureRows]
    rows: NDArray[np.int64]
    """Shape (n,): rows of each record; a record that is no block has one."""
    errors: list[str | None]
    """Reason for which each record is no block."""
    values: list[bytes | None]
    """Bytes of each record whose columns are not complete."""


class FeatureRowFormat:
    """Rows of ``features``. Columns are the same for every record, so that all files have one schema."""

    schema = pa.schema([*RECORD_FIELDS, *_FIELDS, pa.field(VALUE, pa.binary()), pa.field(ERROR, pa.string())])

    def rows(self, records: Sequence[Record]) -> pa.RecordBatch:
        """Return a row for each decision, in the order of the records and their rows.

        A record that is no block has one row, with its bytes and the reason. The first row of a block has the record's
        key and headers, and its bytes where the columns do not say everything, such as features of other names.
        """
        read = _read(records)
        ends = np.cumsum(read.rows)
        of_record = pa.array(np.repeat(np.arange(len(records)), read.rows))
        is_decision = np.repeat(np.array([error is None for error in read.errors], np.bool_), read.rows)
        # Nulls for what is no block.
        at = pa.array(np.cumsum(is_decision) - 1, mask=~is_decision)
        values = np.full(int(ends[-1]) if len(ends) else 0, None, object)
        values[ends - read.rows] = read.values
        is_first = np.zeros(len(values), np.bool_)
        is_first[ends - read.rows] = True
        of_first = pa.array(np.cumsum(is_first) - 1, mask=~is_first)
        *position, key, headers = record_columns(records)
        columns = [
            *(column.take(of_record) for column in position),
            key.take(of_first),
            headers.take(of_first),
            *(column.take(at) for column in _decision_columns(read.blocks)),
            pa.array(values, pa.binary()),
            pa.array(read.errors, pa.string()).take(of_record),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _read(records: Sequence[Record]) -> _Read:
    read = _Read([], np.ones(len(records), np.int64), [], [])
    for number, record in enumerate(records):
        try:
            found = read_features(record)
        except BlockError as error:
            read.errors.append(str(error))
            read.values.append(record.value)
            continue
        read.blocks.append(found)
        read.rows[number] = found.block.rows
        read.errors.append(None)
        read.values.append(None if _is_complete(found) else record.value)
    return read


def _is_complete(rows: FeatureRows) -> bool:
    logs = {rows.block.names[code] for code in np.unique(rows.block.sources.topic)}
    return set(rows.names) <= set(OWN_FEATURES) and logs == {PROFILED.name.encode()}


def _decision_columns(found: Sequence[FeatureRows]) -> list[pa.Array]:
    """Return the columns of `_FIELDS` for the rows of all blocks, each of which is whole."""
    if not found:
        return [pa.nulls(0, field.type) for field in _FIELDS]
    blocks = [rows.block for rows in found]
    counts = [block.rows for block in blocks]
    wholes = {
        column: np.concatenate([block.whole(column) for block in blocks])
        for column in (col.EVENT_US, col.AMOUNT_BASE, col.SOURCE_PARTITION, col.SOURCE_OFFSET, col.LOG_ROW)
    }
    numbers = np.concatenate([block.features[:, : len(NUMBERS)] for block in blocks])
    names = pa.array([name for block in blocks for name in block.names], pa.binary()).cast(pa.string())
    firsts = np.cumsum([0, *(len(block.names) for block in blocks[:-1])])
    codes = np.concatenate([block.codes for block in blocks], axis=1) + np.repeat(firsts, counts)
    kernels = pa.array([block.kernel for block in blocks], pa.string())
    arrays = [
        np.concatenate([np.arange(count) for count in counts]),
        *(block_texts(blocks, column) for column in range(len(LAYOUT.texts))),
        pa.array(wholes[col.EVENT_US]).cast(_TIME),
        wholes[col.AMOUNT_BASE] / 100,
        numbers[:, SCORE],
        *numbers[:, :SCORE].T,
        *feature_columns(np.concatenate([rows.own_features() for rows in found])),
        *(names.take(pa.array(codes[code])) for code in range(LIGHTGBM, RATES_VERSION)),
        kernels.take(pa.array(np.repeat(np.arange(len(blocks)), counts))),
        names.take(pa.array(codes[RATES_VERSION])),
        names.take(pa.array(codes[SOURCE_TOPIC])),
        wholes[col.SOURCE_PARTITION],
        wholes[col.SOURCE_OFFSET],
        np.concatenate([block.sources.partition for block in blocks]),
        np.concatenate([block.sources.offset for block in blocks]),
        wholes[col.LOG_ROW],
    ]
    return [pa.array(array, field.type) for array, field in zip(arrays, _FIELDS, strict=True)]
