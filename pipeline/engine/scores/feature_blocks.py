"""Blocks on ``features``: the features of every decision as the models saw them."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.encoding import row_columns as col
from pipeline.engine.encoding.block_writing import RowColumns, encode_blocks
from pipeline.engine.encoding.blocks import (
    FEATURES_MAGIC,
    MOST_IDENTIFIER_BYTES,
    Block,
    BlockError,
    Layout,
    Sources,
    parse_block,
)
from pipeline.engine.records.block_columns import wrong_number
from pipeline.engine.records.partitioner import partitions_of
from pipeline.engine.records.subjects import Subjects
from pipeline.engine.scores.decision_messages import NOT_READ, DecisionBatch
from pipeline.features.catalogue import FEATURES
from pipeline.scoring.kinds import KINDS, WITH_LOG_ODDS
from schemas.codec import LATEST_US
from schemas.messages import Versions
from schemas.records import Output, Record
from schemas.topics import DECISION_FEATURES, PROFILED

LAYOUT: Final = Layout(
    FEATURES_MAGIC,
    wide=("event_time_us", "amount_base_minor", "source_offset"),
    narrow=("producer_offset_min", "source_partition", "log_row"),
    texts=col.TEXTS[: col.MERCHANT + 1],
    codes=("source_topic", *(kind.name for kind in KINDS), "policy", "rates"),
)
SOURCE_TOPIC, LIGHTGBM, POLICY, RATES_VERSION = map(LAYOUT.codes.index, ("source_topic", "lightgbm", "policy", "rates"))
NAMED_VERSIONS: Final = LAYOUT.codes[LIGHTGBM:]
"""Fields of `Versions` that codes name."""
NUMBERS: Final = (*(kind.log_odds.encode() for _, kind in WITH_LOG_ODDS), b"score")
"""Names of the first columns of numbers; those of the features follow, and then what codes name."""
LOGIT, RIVER_LOGIT, SCORE = map(NUMBERS.index, (b"logit", b"river_logit", b"score"))
OWN_FEATURES: Final = tuple(name.encode() for name in FEATURES)
"""Names of this kernel's features, as blocks have them."""
WAIT: Final = b"wait_clock_us"
"""Name of the column behind the features: what the card agent's wait clock showed. Releases before had none."""
_NAMED: Final = (*NUMBERS, *OWN_FEATURES, WAIT, PROFILED.name.encode())
_WIDE, _NARROW = ([col.WHOLES.index(name) for name in names] for names in (LAYOUT.wide, LAYOUT.narrow))
"""Numbers of a block's columns of integers."""
_LOG_ODDS: Final = [column for column, _ in WITH_LOG_ODDS]
_MOST_NAMES: Final = 256
_MOST_COLUMNS: Final = 512
_MOST_NAMED_BYTES: Final = 16 * 1024
"""Bytes of all names of a block: each row is stored with them, where its features are not this kernel's."""
_MOST_KERNEL_BYTES: Final = 256


def encode_features(batch: DecisionBatch, cards: Sequence[bytes], partitions: int) -> list[Output]:
    """Return the blocks of ``features`` for a batch of decisions.

    Args:
        batch: The decisions.
        cards: The card of each, which also is the key of the decision.
        partitions: Number of partitions of ``decisions`` and ``features``.
    """
    subjects, decided, n = batch.subjects, batch.decided, batch.subjects.rows
    names, codes = _names(batch)
    if len(names) > _MOST_NAMES:
        # Rate tables of which only a forged record can name so many.
        return [
            output
            for rows in np.array_split(np.arange(n), 2)
            for output in encode_features(batch.take(rows), [cards[row] for row in rows], partitions)
        ]
    spans = subjects.spans[: len(LAYOUT.texts)]
    lengths = (spans[:, :, 1] - spans[:, :, 0]).astype(np.int32)
    partition = partitions_of(pa.array(cards, pa.binary()), partitions)
    wholes = subjects.wholes
    numbers = np.empty((n, len(NUMBERS) + batch.features.shape[1] + 1))
    numbers[:, : len(NUMBERS)] = first_numbers(decided.logits, decided.score)
    numbers[:, len(NUMBERS) : -1] = batch.features
    numbers[:, -1] = wholes[col.KNOWN_AT_US]
    sources = Sources(
        wholes[col.LOG_OFFSET], wholes[col.LOG_PARTITION].astype(np.int32), np.full(n, len(_NAMED) - 1, np.uint8)
    )
    columns = (col.EVENT_US, col.PRODUCER_OFFSET, col.AMOUNT_BASE, col.SOURCE_PARTITION, col.SOURCE_OFFSET, col.LOG_ROW)
    wide, narrow = LAYOUT.integers(n, {column: wholes[column] for column in columns})
    rows = RowColumns(LAYOUT, partition, sources, wide, numbers, narrow, codes, subjects.text, spans[:, :, 0], lengths)
    return encode_blocks(DECISION_FEATURES, names, rows)


def first_numbers(logits: NDArray[np.float64], score: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the columns of `NUMBERS`.

    Args:
        logits: Shape (n, len(KINDS)).
        score: Shape (n,).
    """
    return np.column_stack([logits[:, _LOG_ODDS], score])


def _names(batch: DecisionBatch) -> tuple[list[bytes], NDArray[np.uint8]]:
    """Return the names of a batch, and the numbers of those that each row has."""
    subjects = batch.subjects
    versions = batch.models.versions("")
    names = [*_NAMED, *(getattr(versions, name).encode() for name in LAYOUT.codes[LIGHTGBM:RATES_VERSION])]
    codes = np.empty((len(LAYOUT.codes), subjects.rows), np.int64)
    for code in range(LIGHTGBM, RATES_VERSION):
        codes[code] = len(_NAMED) + code - LIGHTGBM
    for code, column in ((SOURCE_TOPIC, col.SOURCE), (RATES_VERSION, col.RATES)):
        found: dict[bytes, int] = {}
        numbers = [found.setdefault(text, len(names) + len(found)) for text in _texts(subjects, column)]
        codes[code] = numbers
        names += found
    return names, codes.astype(np.uint8)


def _texts(subjects: Subjects, column: int) -> list[bytes]:
    """Return the texts of a column: one for all rows, where all have the same place."""
    spans = subjects.spans[column]
    if (spans == spans[:1]).all():
        return subjects.take(np.zeros(1, np.intp)).texts(column)
    return subjects.texts(column)


class FeatureRows(NamedTuple):
    """Some rows of a block, n of them."""

    block: Block
    rows: NDArray[np.intp]
    """Shape (n,): their numbers in the block."""

    @property
    def columns(self) -> int:
        """Number of the columns of `NUMBERS` and of the features."""
        return int(self.block.features.shape[1]) - _has_wait(self.block)

    @property
    def names(self) -> tuple[bytes, ...]:
        """Names of the features, in order."""
        return tuple(self.block.names[len(NUMBERS) : self.columns])

    def numbers(self) -> NDArray[np.float64]:
        """Return the columns of `NUMBERS` and of the features; shape (n, columns)."""
        numbers: NDArray[np.float64] = self.block.features[self.rows, : self.columns]
        return numbers

    def wait_us(self) -> NDArray[np.int64]:
        """Return what the card agent's wait clock showed with each row, 0 where that is not known; shape (n,)."""
        if not _has_wait(self.block):
            return np.zeros(len(self.rows), np.int64)
        return np.asarray(self.block.features[self.rows, -1], np.float64).astype(np.int64)

    def own_features(self) -> NDArray[np.float64]:
        """Return the features of this kernel, found by their names.

        Returns:
            Shape (n, len(FEATURES)); NaN for no value, and for features that the block does not have.
        """
        values, names = self.numbers()[:, len(NUMBERS) :], self.names
        if names == OWN_FEATURES:
            return values
        columns = {name: column for column, name in enumerate(names)}
        found = np.full((len(values), len(OWN_FEATURES)), np.nan)
        for column, name in enumerate(OWN_FEATURES):
            if name in columns:
                found[:, column] = values[:, columns[name]]
        return found

    def texts(self) -> list[list[bytes]]:
        """Return transaction, card and merchant of each row."""
        return self.block.texts(self.rows)

    def versions(self) -> list[Versions]:
        """Return the versions that each row names."""
        names = self.block.names
        made: dict[tuple[int, ...], Versions] = {}
        codes = self.block.codes[LIGHTGBM:][:, self.rows].T.tolist()
        for codes_of_row in map(tuple, codes):
            if codes_of_row not in made:
                versions = dict(zip(NAMED_VERSIONS, (names[code].decode() for code in codes_of_row), strict=True))
                made[codes_of_row] = Versions(**versions, kernel=self.block.kernel)
        return [made[tuple(codes_of_row)] for codes_of_row in codes]


def read_features(record: Record) -> FeatureRows:
    """Read a record of ``features``, without the rows that are to be skipped.

    Raises:
        BlockError: It is no block, or holds what no score agent writes.
    """
    block = parse_block(record.value, LAYOUT)
    if reason := _wrong(block):
        raise BlockError(f"{reason} (rows of {block.sources.text(block.names)})")
    rows = np.arange(block.rows)
    if record.skipped_rows:
        rows = np.delete(rows, [row for row in record.skipped_rows if 0 <= row < block.rows])
    return FeatureRows(block, rows)


def _has_wait(block: Block) -> bool:
    columns = int(block.features.shape[1])
    return columns > len(NUMBERS) and block.names[columns - 1] == WAIT


def _wrong(block: Block) -> str | None:
    """Return the reason for which no score agent can have written a block."""
    columns, numbers = block.features.shape[1], block.features
    if columns > _MOST_COLUMNS or sum(map(len, block.names)) > _MOST_NAMED_BYTES:
        return f"it has more than {_MOST_COLUMNS} numbers a row, or names that are too long"
    if len(block.kernel.encode()) > _MOST_KERNEL_BYTES:
        return "the version of its kernel is too long"
    if not _names_numbers(tuple(block.names[:columns]), columns):
        return f"its numbers do not begin with {', '.join(map(bytes.decode, NUMBERS))}, or two have one name"
    if not np.isfinite(numbers[:, : len(NUMBERS)]).all() or np.isinf(numbers).any():
        return "a score or a feature is infinite"
    if not _within(numbers[:, SCORE], 0, 1):
        return "a score is no probability"
    if _has_wait(block) and not _within(numbers[:, -1], 0, LATEST_US - 1):
        return "wait_clock_us is no time"
    if not _within(block.lengths, 1, MOST_IDENTIFIER_BYTES):
        return "a transaction, a card or a merchant has no name, or one that is too long"
    wholes = np.zeros((len(col.WHOLES), block.rows), np.int64)
    wholes[_WIDE], wholes[_NARROW] = block.wide, block.narrow
    if reason := wrong_number(wholes):
        return reason
    if block.sources.offset.min() < NOT_READ or block.sources.partition.min() < 0:
        return "a position on profiled is below 0"
    return None


@lru_cache(maxsize=16)
def _names_numbers(named: tuple[bytes, ...], columns: int) -> bool:
    """Return whether names are those of a block's numbers; remembered, because all blocks of a time have the same."""
    return columns >= len(NUMBERS) and named[: len(NUMBERS)] == NUMBERS and len({*named}) == columns


def _within(values: NDArray[Any], least: int, most: int) -> bool:
    """Return whether no value is outside two limits, or none at all; of one value at least."""
    return bool(values.min() >= least and values.max() <= most)


def block_texts(blocks: Sequence[Block], column: int) -> pa.Array:
    """Return a column of texts of all rows of some blocks, one block behind the other.

    Args:
        blocks: Any number of blocks of ``features``.
        column: Index in the layout's texts.
    """
    parts = []
    for block in blocks:
        first = int(block.lengths[:column].sum(dtype=np.int64))
        parts.append(block.text[first : first + int(block.lengths[column].sum(dtype=np.int64))])
    lengths = np.concatenate([block.lengths[column] for block in blocks])
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(lengths), pa.py_buffer(ends), pa.py_buffer(b"".join(parts)))
