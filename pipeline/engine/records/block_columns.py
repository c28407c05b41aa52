"""The rows of blocks, copied into columns and checked by compiled code, a block at once.

`encoding.blocks.parse_block` has checked all lengths before: the arrays of a block have as many rows as it says,
and its texts fill the text.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.encoding import blocks
from pipeline.engine.encoding import row_columns as col
from pipeline.engine.encoding.blocks import Block, Sources
from pipeline.engine.encoding.json_grammar import is_number
from pipeline.features.compiled import compiled
from schemas.codec import EARLIEST_US, LATEST_US, MAX_AMOUNT_BASE_MINOR

REASONS: Final = (
    "",
    "a transaction, a card or a merchant has no name",
    "event_time_us is not between 1990 and 2100",
    "amount_base_minor is no amount",
    "ingested_at is no time",
    "known_at_us is no time",
    "case_sequence is too large",
    "a UTC offset is a day or more",
    "a partition or an offset is below 0",
    "an amount is no number",
    "a feature is infinite",
    "the name of a transaction, a card or a merchant is too long",
)
"""Reasons to refuse a block, by their numbers; the first is none."""
(
    _NONE, _NO_NAME, _EVENT_TIME, _AMOUNT_BASE, _INGESTED, _KNOWN_AT, _CASE_SEQUENCE, _UTC_OFFSET, _POSITION, _AMOUNT,
    _FEATURE, _LONG_NAME,
) = range(len(REASONS))  # fmt: skip
LARGEST: Final = 2**62
"""So that no sum of two times leaves 64 bits."""
_DAY_MIN: Final = 24 * 60
_TRANSACTION: Final = blocks.TRANSACTION
_WIDE: Final = np.array([col.WHOLES.index(name) for name in blocks.PROFILED_LAYOUT.wide])
_NARROW: Final = np.array([col.WHOLES.index(name) for name in blocks.PROFILED_LAYOUT.narrow])
"""Numbers of a block's columns of integers."""


class Columns(NamedTuple):
    """Columns of n rows, which blocks fill one after the other."""

    spans: NDArray[np.int64]
    """See `Subjects`; those of names are filled in the end."""
    wholes: NDArray[np.int64]
    features: NDArray[np.float64]
    """Shape (n, k), of which the card features are filled."""
    codes: NDArray[np.uint8]
    """Shape (len(blocks.CODES), n)."""
    named: NDArray[np.int64]
    """Shape (3, n): numbers of the names of the source topic, the rate table and the input topic, across blocks."""


class _Arrays(NamedTuple):
    """The arrays of a block, as compiled code takes them."""

    sources: Sources
    wide: NDArray[np.int64]
    features: NDArray[np.float64]
    narrow: NDArray[np.int32]
    lengths: NDArray[np.int32]
    codes: NDArray[np.uint8]
    text: NDArray[np.uint8]
    names: NDArray[np.int64]


class Destination(NamedTuple):
    """Destination of the rows of a block, and their origin in the log."""

    row: int
    """Number of its first row."""
    text: int
    """Begin of its text in that of all blocks."""
    log_partition: int
    log_offset: int


def empty_columns(n: int, features: int) -> Columns:
    """Return columns of n rows that hold anything."""
    return Columns(
        np.empty((len(col.TEXTS), n, 2), np.int64),
        np.zeros((len(col.WHOLES), n), np.int64),
        np.empty((n, features)),
        np.empty((len(blocks.CODES), n), np.uint8),
        np.empty((3, n), np.int64),
    )


def fill_columns(block: Block, columns: Columns, destination: Destination, names: NDArray[np.int64]) -> int:
    """Copy the rows of a block, and check their values.

    Args:
        block: A block of ``profiled``.
        columns: Columns with room for its rows.
        destination: Where they go.
        names: Shape (len(block.names),): the number of each name across blocks.

    Returns:
        Number of the reason to refuse it, in `REASONS`.
    """
    text = np.frombuffer(block.text or b"\0", np.uint8)
    arrays = _Arrays(block.sources, block.wide, block.features, block.narrow, block.lengths, block.codes, text, names)
    reason: int = _fill(arrays, columns, destination)
    return reason


@compiled
def _fill(block: Any, out: Any, destination: Any) -> Any:
    reason = _NONE
    codes, wholes = block.codes, out.wholes
    at: Any = np.int64(0)
    for column in range(block.lengths.shape[0]):
        for row in range(block.lengths.shape[1]):
            end = at + np.int64(block.lengths[column, row])
            span = out.spans[column, destination.row + row]
            span[0], span[1] = destination.text + at, destination.text + end
            if column <= col.MERCHANT and at == end:
                reason = _NO_NAME
            elif column <= col.MERCHANT and end - at > blocks.MOST_IDENTIFIER_BYTES:
                reason = _LONG_NAME
            elif (
                column == col.AMOUNT and codes[blocks.KIND, row] == _TRANSACTION and not is_number(block.text, at, end)
            ):
                reason = _AMOUNT
            at = end
    transaction = 0
    for row in range(codes.shape[1]):
        to = destination.row + row
        for column in range(len(_WIDE)):
            wholes[_WIDE[column], to] = block.wide[column, row]
        for column in range(len(_NARROW)):
            wholes[_NARROW[column], to] = block.narrow[column, row]
        wholes[col.SOURCE_OFFSET, to] = block.sources.offset[row]
        wholes[col.SOURCE_PARTITION, to] = block.sources.partition[row]
        wholes[col.LOG_PARTITION, to], wholes[col.LOG_OFFSET, to] = destination.log_partition, destination.log_offset
        wholes[col.LOG_ROW, to] = row
        wholes[col.COUNTS, to] = codes[blocks.FLAGS, row] & blocks.COUNTED
        for column in range(codes.shape[0]):
            out.codes[column, to] = codes[column, row]
        out.named[0, to] = block.names[block.sources.topic[row]]
        out.named[1, to] = wholes[col.SAME_RATES, to] = block.names[codes[blocks.RATES_NAME, row]]
        out.named[2, to] = block.names[codes[blocks.INPUT_NAME, row]]
        wrong = _wrong(wholes, to)
        if wrong != _NONE:
            reason = wrong
        if codes[blocks.KIND, row] == _TRANSACTION:
            infinite = 0
            for column in range(block.features.shape[1]):
                value = block.features[transaction, column]
                out.features[to, column] = value
                infinite += np.isinf(value)
            if infinite:
                reason = _FEATURE
            transaction += 1
    return reason


@compiled
def _wrong(wholes: Any, row: Any) -> Any:
    """Return the reason for which no card agent can have written the numbers of a row."""
    if not EARLIEST_US <= wholes[col.EVENT_US, row] < LATEST_US:
        return _EVENT_TIME
    if not 0 <= wholes[col.AMOUNT_BASE, row] <= MAX_AMOUNT_BASE_MINOR:
        return _AMOUNT_BASE
    if not 0 <= wholes[col.INGESTED_US, row] < LATEST_US:
        return _INGESTED
    if not -LARGEST <= wholes[col.KNOWN_AT_US, row] <= LARGEST:
        return _KNOWN_AT
    if not 0 <= wholes[col.CASE_SEQUENCE, row] <= LARGEST:
        return _CASE_SEQUENCE
    if not -_DAY_MIN < wholes[col.PRODUCER_OFFSET, row] < _DAY_MIN:
        return _UTC_OFFSET
    for column in (col.SOURCE_OFFSET, col.SOURCE_PARTITION, col.INPUT_OFFSET, col.INPUT_PARTITION):
        if wholes[column, row] < 0:
            return _POSITION
    return _NONE
