"""The rows of blocks, copied into columns and checked by compiled code, a block at once.

`encoding.blocks.parse_block` has checked all lengths before: the arrays of a block have as many rows as it says,
and its texts fill the text.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.encoding import blocks
from pipeline.engine.encoding.blocks import Block
from pipeline.engine.encoding.json_grammar import is_number
from pipeline.engine.records import subjects
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


class Columns(NamedTuple):
    """Columns of n rows, which blocks fill one after the other."""

    spans: NDArray[np.int64]
    """See `Subjects`; those of names are filled in the end."""
    wholes: NDArray[np.int64]
    features: NDArray[np.float64]
    """Shape (n, k), of which the card features are filled."""
    originals: NDArray[np.int64]
    """Shape (n, 2): where the producer's own bytes begin and end."""
    known_at_us: NDArray[np.int64]
    codes: NDArray[np.uint8]
    """Shape (len(blocks.CODES), n)."""
    named: NDArray[np.int64]
    """Shape (3, n): numbers of the names of the source topic, the rate table and the input topic, across blocks."""


def empty_columns(n: int, features: int) -> Columns:
    """Return columns of n rows that hold anything."""
    return Columns(
        np.empty((len(subjects.TEXTS), n, 2), np.int64),
        np.empty((len(subjects.WHOLES), n), np.int64),
        np.empty((n, features)),
        np.empty((n, 2), np.int64),
        np.empty(n, np.int64),
        np.empty((len(blocks.CODES), n), np.uint8),
        np.empty((3, n), np.int64),
    )


def fill_columns(
    block: Block, columns: Columns, first: int, text_at: int, log: tuple[int, int], names: NDArray[np.int64]
) -> int:
    """Copy the rows of a block, and check their values.

    Args:
        block: The block.
        columns: Columns with room for its rows.
        first: Number of its first row.
        text_at: Where its text begins in that of all blocks.
        log: Its partition and offset.
        names: Shape (len(block.names),): the number of each name across blocks.

    Returns:
        Number of the reason to refuse it, in `REASONS`.
    """
    text = np.frombuffer(block.text or b"\0", np.uint8)
    reason: int = _fill(
        *block.sources, block.wide, block.features, block.narrow, block.lengths, block.codes, text, *columns, first,
        text_at, *log, names,
    )  # fmt: skip
    return reason


@compiled
def _fill(
    source_offset: Any, source_partition: Any, source_topic: Any, wide: Any, card_features: Any, narrow: Any,
    lengths: Any, codes: Any, text: Any, spans: Any, wholes: Any, features: Any, originals: Any, known_at_us: Any,
    codes_out: Any, named: Any, first: Any, text_at: Any, log_partition: Any, log_offset: Any, names: Any,
) -> Any:  # fmt: skip
    reason = _NONE
    at: Any = np.int64(0)
    for column in range(lengths.shape[0]):
        for row in range(lengths.shape[1]):
            end = at + np.int64(lengths[column, row])
            if column < blocks.ORIGINAL:
                spans[column, first + row, 0], spans[column, first + row, 1] = text_at + at, text_at + end
            else:
                originals[first + row, 0], originals[first + row, 1] = text_at + at, text_at + end
            if column <= blocks.MERCHANT and at == end:
                reason = _NO_NAME
            elif column <= blocks.MERCHANT and end - at > blocks.MOST_IDENTIFIER_BYTES:
                reason = _LONG_NAME
            elif column == blocks.AMOUNT and codes[blocks.KIND, row] == _TRANSACTION and not is_number(text, at, end):
                reason = _AMOUNT
            at = end
    transaction = 0
    for row in range(wide.shape[1]):
        out = first + row
        wrong = _wrong(wide, narrow, source_offset, source_partition, row)
        if wrong != _NONE:
            reason = wrong
        wholes[subjects.EVENT_US, out] = wholes[subjects.PRODUCER_US, out] = wide[blocks.EVENT_US, row]
        wholes[subjects.AMOUNT_BASE, out] = wide[blocks.AMOUNT_BASE, row]
        wholes[subjects.CASE_SEQUENCE, out] = wide[blocks.CASE_SEQUENCE, row]
        wholes[subjects.INGESTED_US, out] = wide[blocks.INGESTED_US, row]
        wholes[subjects.INPUT_OFFSET, out] = wide[blocks.INPUT_OFFSET, row]
        known_at_us[out] = wholes[subjects.WAIT_US, out] = wide[blocks.KNOWN_AT_US, row]
        wholes[subjects.PRODUCER_OFFSET, out] = narrow[blocks.PRODUCER_OFFSET, row]
        wholes[subjects.INPUT_PARTITION, out] = narrow[blocks.INPUT_PARTITION, row]
        wholes[subjects.SOURCE_OFFSET, out] = source_offset[row]
        wholes[subjects.SOURCE_PARTITION, out] = source_partition[row]
        wholes[subjects.LOG_PARTITION, out], wholes[subjects.LOG_OFFSET, out] = log_partition, log_offset
        wholes[subjects.LOG_ROW, out], wholes[subjects.INGESTED_OFFSET, out] = row, 0
        wholes[subjects.COUNTS, out] = codes[blocks.COUNTS, row] & blocks.COUNTED
        for column in range(codes.shape[0]):
            codes_out[column, out] = codes[column, row]
        named[0, out] = names[source_topic[row]]
        named[1, out] = wholes[subjects.SAME_RATES, out] = names[codes[blocks.RATES, row]]
        named[2, out] = names[codes[blocks.INPUT_TOPIC, row]]
        if codes[blocks.KIND, row] == _TRANSACTION:
            infinite = 0
            for column in range(card_features.shape[1]):
                value = card_features[transaction, column]
                features[out, column] = value
                infinite += np.isinf(value)
            if infinite:
                reason = _FEATURE
            transaction += 1
    return reason


@compiled
def _wrong(wide: Any, narrow: Any, source_offset: Any, source_partition: Any, row: Any) -> Any:
    """Return the reason for which no card agent can have written the numbers of a row."""
    if not EARLIEST_US <= wide[blocks.EVENT_US, row] < LATEST_US:
        return _EVENT_TIME
    if not 0 <= wide[blocks.AMOUNT_BASE, row] <= MAX_AMOUNT_BASE_MINOR:
        return _AMOUNT_BASE
    if not 0 <= wide[blocks.INGESTED_US, row] < LATEST_US:
        return _INGESTED
    if not -LARGEST <= wide[blocks.KNOWN_AT_US, row] <= LARGEST:
        return _KNOWN_AT
    if not 0 <= wide[blocks.CASE_SEQUENCE, row] <= LARGEST:
        return _CASE_SEQUENCE
    if not -_DAY_MIN < narrow[blocks.PRODUCER_OFFSET, row] < _DAY_MIN:
        return _UTC_OFFSET
    if (
        source_offset[row] < 0
        or source_partition[row] < 0
        or wide[blocks.INPUT_OFFSET, row] < 0
        or narrow[blocks.INPUT_PARTITION, row] < 0
    ):
        return _POSITION
    return _NONE
