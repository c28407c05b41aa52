"""The blocks of ``profiled`` as columns of rows, transactions and labels in one order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.engine import blocks
from pipeline.engine.blocks import LABEL, TRANSACTION, Block, BlockError, parse_block
from pipeline.engine.columns import span_keys
from pipeline.engine.json_grammar import are_numbers
from pipeline.engine.merchants import MerchantLog
from pipeline.engine.subjects import (
    AMOUNT,
    AMOUNT_BASE,
    CARD,
    CASE_SEQUENCE,
    COUNTS,
    EVENT_US,
    ID,
    INGESTED_OFFSET,
    INGESTED_US,
    INPUT,
    INPUT_OFFSET,
    INPUT_PARTITION,
    LOG_OFFSET,
    LOG_PARTITION,
    LOG_ROW,
    MERCHANT,
    RATES,
    SAME_RATES,
    SOURCE,
    SOURCE_OFFSET,
    SOURCE_PARTITION,
    STATED_OFFSET,
    STATED_US,
    TEXTS,
    WHOLES,
    Subjects,
)  # fmt: skip
from pipeline.features.catalogue import CARD_FEATURES, FEATURES, KERNEL_VERSION
from pipeline.features.identity import transaction_hash
from schemas.codec import EARLIEST_US, LATEST_US, MAX_AMOUNT_BASE_MINOR
from schemas.records import Record

_POSITIONS: Final = [SOURCE_PARTITION, SOURCE_OFFSET, INPUT_PARTITION, INPUT_OFFSET]
_LARGEST: Final = 2**62
"""So that no sum of two times leaves 64 bits."""
_DAY_MIN: Final = 24 * 60
_FROM_WIDE: Final = [EVENT_US, AMOUNT_BASE, CASE_SEQUENCE, INGESTED_US, INPUT_OFFSET]
"""Columns that the wide ones of a block become; the last of those is not among them."""


@dataclass(frozen=True, slots=True)
class ProfiledRows:
    """Rows of blocks as columns of n rows; what concerns transactions alone is undefined in other rows."""

    records: Sequence[Record]
    record: NDArray[np.intp]
    """Shape (n,): number of each row's record; ascending."""
    kinds: NDArray[np.uint8]
    """Shape (n,): `TRANSACTION` or `LABEL`."""
    subjects: Subjects
    originals: NDArray[np.int64]
    """Shape (n, 2): where the producer's own bytes begin and end in the text of ``subjects``."""
    features: NDArray[np.float64]
    """Shape (n, len(FEATURES)): those of the card; those of the merchant have room."""
    log: MerchantLog
    """Columns that the merchants' windows take."""
    follows: NDArray[np.bool_]
    """Shape (n,): whether a transaction is of the row before's batch of one input, and has a higher offset."""
    kernels: dict[int, str]
    """Other kernel versions that computed the features of a record, by its number."""
    refused: dict[int, BlockError]
    """Why a record was refused, by its number; it has no rows."""

    def take(self, rows: NDArray[np.intp]) -> "ProfiledRows":
        """Return some rows, in ascending order."""
        # A row that is gone follows the one before it, and is followed by the one behind it, or breaks the run.
        gone = np.setdiff1d(np.arange(len(self.kinds)), rows)
        broken = np.concatenate([[0], np.cumsum(~self.follows[gone])])
        between = broken[np.searchsorted(gone, rows)]
        unbroken = np.concatenate([[0], np.diff(between)]) == 0
        return replace(
            self,
            record=self.record[rows],
            kinds=self.kinds[rows],
            subjects=self.subjects.take(rows),
            originals=self.originals[rows],
            features=self.features[rows],
            log=self.log.take(rows),
            follows=self.follows[rows] & unbroken & (rows > 0),
        )

    def rows_of(self, records: range) -> range:
        """Return the rows of some records, which follow each other."""
        first, end = np.searchsorted(self.record, [records.start, records.stop]).tolist()
        return range(first, end)

    def identity(self, row: int) -> int:
        """Return the `transaction_hash` of a row."""
        card, transaction = (self._string(column, row) for column in (CARD, ID))
        return transaction_hash(card, transaction)

    def input(self, row: int) -> tuple[str, int]:
        """Return the topic and the partition that the card agent read a transaction from."""
        return self._string(INPUT, row), int(self.subjects.wholes[INPUT_PARTITION, row])

    def _string(self, column: int, row: int) -> str:
        first, end = self.subjects.spans[column, row].tolist()
        return self.subjects.text[first:end].decode()


def read_rows(records: Sequence[Record]) -> ProfiledRows:
    """Read records of ``profiled``, of any partitions, in their order, without the rows that are to be skipped."""
    found: dict[int, Block] = {}
    refused: dict[int, BlockError] = {}
    for number, record in enumerate(records):
        try:
            found[number] = _check_features(parse_block(record.value))
        except BlockError as error:
            refused[number] = error
    while True:
        rows = _columns(records, found, refused)
        wrong = _wrong(rows)
        if not wrong:
            return _without_skipped(rows)
        refused |= wrong
        found = {number: block for number, block in found.items() if number not in wrong}


def _without_skipped(rows: ProfiledRows) -> ProfiledRows:
    if not any(record.skipped_rows for record in rows.records):
        return rows
    keep = np.ones(len(rows.kinds), np.bool_)
    for number, record in enumerate(rows.records):
        if record.skipped_rows:
            within = rows.rows_of(range(number, number + 1))
            skipped = [within.start + row for row in record.skipped_rows if 0 <= row < len(within)]
            keep[skipped] = False
    return rows.take(np.flatnonzero(keep))


def _check_features(block: Block) -> Block:
    if block.kernel == KERNEL_VERSION and len(block.features):
        if block.features.shape[1] != len(CARD_FEATURES):
            raise BlockError(f"a transaction has {block.features.shape[1]} features, not {len(CARD_FEATURES)}")
        if np.isinf(block.features).any():
            raise BlockError("a feature is infinite")
    return block


def _columns(records: Sequence[Record], found: Mapping[int, Block], refused: dict[int, BlockError]) -> ProfiledRows:
    """Lay the columns of blocks behind each other."""
    counts = [block.rows for block in found.values()]
    n = sum(counts)
    spans, wholes = np.empty((len(TEXTS), n, 2), np.int64), np.empty((len(WHOLES), n), np.int64)
    features, originals, known_at_us = np.empty((n, len(FEATURES))), np.empty((n, 2), np.int64), np.empty(n, np.int64)
    codes, named = np.empty((len(blocks.CODES), n), np.uint8), np.empty((3, n), np.intp)
    names: dict[bytes, int] = {}
    at = text_bytes = 0
    for number, block in found.items():
        rows = slice(at, at + block.rows)
        at += block.rows
        ends = block.ends() + text_bytes
        firsts = ends - block.lengths
        text_bytes += len(block.text)
        spans[: blocks.ORIGINAL, rows, 0], spans[: blocks.ORIGINAL, rows, 1] = firsts[:-1], ends[:-1]
        originals[rows, 0], originals[rows, 1] = firsts[-1], ends[-1]
        wholes[_FROM_WIDE, rows], known_at_us[rows] = block.wide[:-1], block.wide[-1]
        wholes[STATED_OFFSET, rows], wholes[INPUT_PARTITION, rows] = block.narrow
        wholes[SOURCE_OFFSET, rows], wholes[SOURCE_PARTITION, rows] = block.sources.offset, block.sources.partition
        wholes[LOG_PARTITION, rows], wholes[LOG_OFFSET, rows] = records[number].partition, records[number].offset
        wholes[LOG_ROW, rows] = np.arange(block.rows)
        codes[:, rows] = block.codes
        own = np.array([names.setdefault(name, len(names)) for name in block.names], np.intp)
        named[0, rows], named[1:, rows] = own[block.sources.topic], own[block.codes[blocks.RATES :]]
        _take_features(block, features[rows, : len(CARD_FEATURES)])
    name_ends = text_bytes + np.cumsum([0, *map(len, names)])
    for column, of in zip((SOURCE, RATES, INPUT), named, strict=True):
        spans[column, :, 0], spans[column, :, 1] = name_ends[of], name_ends[of + 1]
    wholes[SAME_RATES], wholes[INGESTED_OFFSET] = named[1], 0
    wholes[STATED_US], wholes[COUNTS] = wholes[EVENT_US], codes[blocks.COUNTS]
    subjects = Subjects(b"".join((*(block.text for block in found.values()), *names)), spans, wholes)
    return ProfiledRows(
        records,
        np.repeat(np.fromiter(found, np.intp, len(found)), counts),
        codes[blocks.KIND],
        subjects,
        originals,
        features,
        _log(subjects, codes, known_at_us),
        _follows(wholes, codes[blocks.KIND], named[2]),
        {number: block.kernel for number, block in found.items() if block.kernel != KERNEL_VERSION},
        refused,
    )


def _take_features(block: Block, features: NDArray[np.float64]) -> None:
    """Fill the card features of the transactions, shape (rows of the block, len(CARD_FEATURES))."""
    if block.kernel != KERNEL_VERSION:
        features[:] = np.nan
    elif len(block.features) == block.rows:
        features[:] = block.features
    else:
        features[block.codes[blocks.KIND] == TRANSACTION] = block.features


def _log(subjects: Subjects, codes: NDArray[np.uint8], known_at_us: NDArray[np.int64]) -> MerchantLog:
    n, kinds = subjects.rows, codes[blocks.KIND]
    identity = np.zeros(n, np.uint64)
    labels = np.flatnonzero(kinds)
    if len(labels):
        of = subjects.take(labels)
        identity[labels] = of.identities()
    return MerchantLog(
        kinds,
        span_keys(np.frombuffer(subjects.text, np.uint8), subjects.spans[MERCHANT]),
        identity,
        subjects.wholes[EVENT_US],
        subjects.wholes[AMOUNT_BASE],
        codes[blocks.COUNTS].astype(np.bool_),
        codes[blocks.KNOWN].astype(np.int8),
        known_at_us,
    )


def _follows(wholes: NDArray[np.int64], kinds: NDArray[np.uint8], topics: NDArray[np.intp]) -> NDArray[np.bool_]:
    follows = np.zeros(len(kinds), np.bool_)
    here, before = np.s_[1:], np.s_[:-1]
    follows[1:] = (
        (kinds[here] == TRANSACTION)
        & (kinds[before] == TRANSACTION)
        & (wholes[INPUT_OFFSET, here] > wholes[INPUT_OFFSET, before])
        & (wholes[INPUT_PARTITION, here] == wholes[INPUT_PARTITION, before])
        & (wholes[INGESTED_US, here] == wholes[INGESTED_US, before])
        & (topics[here] == topics[before])
    )
    return follows


def _wrong(rows: ProfiledRows) -> dict[int, BlockError]:
    """Return the records of which a row has a value that no card agent writes, with the reason."""
    found: dict[int, BlockError] = {}
    subjects, wholes, is_label = rows.subjects, rows.subjects.wholes, rows.kinds == LABEL
    text = np.frombuffer(subjects.text, np.uint8)
    numbers = np.empty(subjects.rows, np.bool_)
    are_numbers(text, subjects.spans[AMOUNT], numbers)
    names = subjects.spans[[ID, CARD, MERCHANT]]
    checks = (
        ("a transaction, a card or a merchant has no name", (names[..., 0] == names[..., 1]).any(axis=0)),
        ("event_time_us is not between 1990 and 2100", _outside(wholes[EVENT_US], EARLIEST_US, LATEST_US - 1)),
        ("amount_base_minor is no amount", _outside(wholes[AMOUNT_BASE], 0, MAX_AMOUNT_BASE_MINOR)),
        ("ingested_at is no time", _outside(wholes[INGESTED_US], 0, LATEST_US - 1)),
        ("known_at_us is no time", _outside(rows.log.known_at_us, -_LARGEST, _LARGEST)),
        ("case_sequence is too large", _outside(wholes[CASE_SEQUENCE], 0, _LARGEST)),
        ("a UTC offset is a day or more", _outside(wholes[STATED_OFFSET], 1 - _DAY_MIN, _DAY_MIN - 1)),
        ("a partition or an offset is below 0", (wholes[_POSITIONS] < 0).any(axis=0)),
        ("an amount is no number", ~(numbers | is_label)),
    )
    for reason, wrong in checks:
        if wrong.any():
            for number in np.unique(rows.record[wrong]).tolist():
                found.setdefault(number, BlockError(reason))
    return found


def _outside(values: NDArray[np.int64], least: int, most: int) -> NDArray[np.bool_]:
    return (values < least) | (values > most)
