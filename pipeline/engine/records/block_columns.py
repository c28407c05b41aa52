"""The rows of blocks, copied into columns by compiled code, a block at once, and checks of their values.

`encoding.blocks.parse_block` has checked all lengths before: the arrays of a block have as many rows as it says,
and its texts fill the text.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.encoding import blocks
from pipeline.engine.encoding import row_columns as col
from pipeline.engine.encoding.blocks import Block, Sources
from pipeline.features.compiled import compiled
from schemas.codec import EARLIEST_US, LATEST_US, MAX_AMOUNT_BASE_MINOR
from schemas.records import Record

REASONS: Final = (
    "",
    "a transaction, a card or a merchant has no name",
    "an amount is no number",
    "a feature is infinite",
    "the name of a transaction, a card or a merchant is too long",
)
"""Reasons for which texts and features refuse a block, by their numbers; the first is none."""
_NONE, _NO_NAME, _AMOUNT, _FEATURE, _LONG_NAME = range(len(REASONS))
_LARGEST: Final = 2**62
"""So that no sum of two times leaves 64 bits."""
_DAY_MIN: Final = 24 * 60
_POSITIONS: Final = (col.SOURCE_OFFSET, col.SOURCE_PARTITION, col.INPUT_OFFSET, col.INPUT_PARTITION, col.LOG_ROW)
_LIMITS: Final = {
    col.EVENT_US: (EARLIEST_US, LATEST_US - 1, "event_time_us is not between 1990 and 2100"),
    col.AMOUNT_BASE: (0, MAX_AMOUNT_BASE_MINOR, "amount_base_minor is no amount"),
    col.INGESTED_US: (0, LATEST_US - 1, "ingested_at is no time"),
    col.KNOWN_AT_US: (-_LARGEST, _LARGEST, "known_at_us is no time"),
    col.CASE_SEQUENCE: (0, _LARGEST, "case_sequence is too large"),
    col.PRODUCER_OFFSET: (1 - _DAY_MIN, _DAY_MIN - 1, "a UTC offset is a day or more"),
    **dict.fromkeys(_POSITIONS, (0, 2**63 - 1, "a partition or an offset is below 0")),
}
"""Least and most of what an agent writes, by the number of the column, and the reason to refuse a block of others."""
_LIMITED: Final = np.array([*_LIMITS])
_LEAST: Final = np.array([[least] for least, _, _ in _LIMITS.values()])
_MOST: Final = np.array([[most] for _, most, _ in _LIMITS.values()])
_TRANSACTION: Final = blocks.TRANSACTION
_WIDE: Final = np.array([col.WHOLES.index(name) for name in blocks.PROFILED_LAYOUT.wide])
_NARROW: Final = np.array([col.WHOLES.index(name) for name in blocks.PROFILED_LAYOUT.narrow])
"""Numbers of a block's columns of integers."""
_ZERO, _NINE, _POINT, _MINUS, _PLUS = b"09.-+"
_CASE: Final = np.uint8(0x20)
_E: Final = np.uint8(ord("e"))


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


def empty_columns(n: int, features: int) -> Columns:
    """Return columns of n rows that hold anything."""
    return Columns(
        np.empty((len(col.TEXTS), n, 2), np.int64),
        np.zeros((len(col.WHOLES), n), np.int64),
        np.empty((n, features)),
        np.empty((len(blocks.CODES), n), np.uint8),
        np.empty((3, n), np.int64),
    )


def fill_columns(
    block: Block, columns: Columns, names: NDArray[np.int64], record: Record, first: int, text_at: int
) -> int:
    """Copy the rows of a block of ``profiled`` into columns, and check texts and features.

    Args:
        block: The block, as `parse_block` returns it.
        columns: Columns of the rows of all blocks, changed.
        names: Number across blocks of each of its names, shape (len(block.names),).
        record: The record that the block is of.
        first: Row of ``columns`` for its first row.
        text_at: Position of its text in that of all blocks, in bytes.

    Returns:
        Number of the reason to refuse it, in `REASONS`; 0: none.
    """
    text = np.frombuffer(block.text or b"\0", np.uint8)
    arrays = _Arrays(block.sources, block.wide, block.features, block.narrow, block.lengths, block.codes, text, names)
    reason: int = _fill_rows(arrays, columns, first, text_at, record.partition, record.offset)
    return reason


@compiled
def _fill_rows(block: Any, out: Any, first: int, text_at: int, log_partition: int, log_offset: int) -> Any:
    reason = _NONE
    codes, wholes = block.codes, out.wholes
    at: Any = np.int64(0)
    for column in range(block.lengths.shape[0]):
        for row in range(block.lengths.shape[1]):
            end = at + np.int64(block.lengths[column, row])
            span = out.spans[column, first + row]
            span[0], span[1] = text_at + at, text_at + end
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
        to = first + row
        for column in range(len(_WIDE)):
            wholes[_WIDE[column], to] = block.wide[column, row]
        for column in range(len(_NARROW)):
            wholes[_NARROW[column], to] = block.narrow[column, row]
        wholes[col.SOURCE_OFFSET, to] = block.sources.offset[row]
        wholes[col.SOURCE_PARTITION, to] = block.sources.partition[row]
        wholes[col.LOG_PARTITION, to], wholes[col.LOG_OFFSET, to] = log_partition, log_offset
        wholes[col.LOG_ROW, to] = row
        wholes[col.COUNTS, to] = codes[blocks.FLAGS, row] & blocks.COUNTED
        for column in range(codes.shape[0]):
            out.codes[column, to] = codes[column, row]
        out.named[0, to] = block.names[block.sources.topic[row]]
        out.named[1, to] = wholes[col.SAME_RATES, to] = block.names[codes[blocks.RATES_NAME, row]]
        out.named[2, to] = block.names[codes[blocks.INPUT_NAME, row]]
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


def wrong_number(wholes: NDArray[np.int64]) -> str | None:
    """Return the reason for which no agent can have written the numbers of n rows, shape (len(WHOLES), n)."""
    numbers = wholes[_LIMITED]
    wrong = ((numbers < _LEAST) | (numbers > _MOST)).any(axis=1)
    return _LIMITS[int(_LIMITED[np.argmax(wrong)])][2] if wrong.any() else None


@compiled
def is_number(text: Any, at: Any, end: Any) -> Any:
    """Return whether the text from ``at`` to ``end`` is a JSON number: it is copied into messages as it stands."""
    if at < end and text[at] == _MINUS:
        at += 1
    first = at
    at = _past_digits(text, at, end)
    if at == first or (text[first] == _ZERO and at > first + 1):
        return False
    if at < end and text[at] == _POINT:
        first = at + 1
        at = _past_digits(text, first, end)
        if at == first:
            return False
    if at < end and text[at] | _CASE == _E:
        at += 1
        if at < end and (text[at] == _MINUS or text[at] == _PLUS):
            at += 1
        first = at
        at = _past_digits(text, first, end)
        if at == first:
            return False
    return at == end


@compiled
def _past_digits(text: Any, at: Any, end: Any) -> Any:
    while at < end and _ZERO <= text[at] <= _NINE:
        at += 1
    return at
