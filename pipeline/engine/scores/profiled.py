"""The blocks of ``profiled`` as columns of rows, transactions and labels in one order."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.encoding import blocks
from pipeline.engine.encoding import row_columns as col
from pipeline.engine.encoding.blocks import TRANSACTION, Block, BlockError, parse_block
from pipeline.engine.records.block_columns import REASONS, Columns, empty_columns, fill_columns, wrong_number
from pipeline.engine.records.columns import span_keys
from pipeline.engine.records.subjects import Subjects
from pipeline.features.catalogue import CARD_FEATURES, FEATURES, INPUT_COLUMNS
from pipeline.features.kernel import MerchantWindows
from pipeline.features.known_sets import is_known, own_card_features
from pipeline.features.xxh3 import transaction_hash
from schemas.records import Record


class MerchantLog(NamedTuple):
    """Records in log order; every column has n rows, as `MerchantWindows.profile` takes them."""

    kinds: NDArray[np.uint8]
    """0 for a transaction, 1 for a label."""
    merchants: NDArray[np.int64]
    """Shape (n, 2): `name_keys`."""
    identities: NDArray[np.uint64]
    """`transaction_hash` of what a label is about; 0 for a transaction."""
    event_time_us: NDArray[np.int64]
    amount_base_minor: NDArray[np.int64]
    counts: NDArray[np.bool_]
    outliers: NDArray[np.bool_]
    """True for a transaction whose amount is an outlier for its card."""
    known: NDArray[np.int8]
    """Known value of a label: 1 for fraud, 0 for legitimate, 2 for none."""
    known_at_us: NDArray[np.int64]
    inputs: NDArray[np.float64]
    """Shape (n, len(MERCHANT_INPUTS)): what a transaction leaves in the windows of its merchant."""

    def take(self, rows: slice | NDArray[np.intp]) -> "MerchantLog":
        """Return some records."""
        columns: list[NDArray[Any]] = [column[rows] for column in self]
        return MerchantLog(*columns)

    def profile(
        self,
        windows: MerchantWindows,
        out: NDArray[np.float64] | None = None,
        out_rows: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float64]:
        """Let the records enter the windows; return features as `MerchantWindows.profile`."""
        return windows.profile(*self, out, out_rows)


@dataclass(frozen=True, slots=True)
class ProfiledRows:
    """Rows of blocks as columns of n rows; what concerns transactions alone is undefined in other rows."""

    records: Sequence[Record]
    record: NDArray[np.intp]
    """Shape (n,): number of each row's record; ascending."""
    kinds: NDArray[np.uint8]
    """Shape (n,): `TRANSACTION` or `LABEL`."""
    subjects: Subjects
    features: NDArray[np.float64]
    """Shape (n, len(FEATURES)): those of the card; those of the merchant have room."""
    log: MerchantLog
    """Columns that the merchants' windows take."""
    follows: NDArray[np.bool_]
    """Shape (n,): whether a transaction is of the row before's batch of one input, and has a higher offset."""
    kernels: dict[int, str]
    """Unknown kernel versions that computed the features of a record, by its number."""
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
            features=self.features[rows],
            log=self.log.take(rows),
            follows=self.follows[rows] & unbroken & (rows > 0),
        )

    def rows_of(self, records: range) -> range:
        """Return the rows of some records, which follow each other."""
        return range(bisect_left(self.record, records.start), bisect_left(self.record, records.stop))

    def identity(self, row: int) -> int:
        """Return the `transaction_hash` of a row."""
        card, transaction = (self._string(column, row) for column in (col.CARD, col.ID))
        return transaction_hash(card, transaction)

    def input(self, row: int) -> tuple[str, int]:
        """Return the topic and the partition that the card agent read a transaction from."""
        return self._string(col.INPUT, row), int(self.subjects.wholes[col.INPUT_PARTITION, row])

    def _string(self, column: int, row: int) -> str:
        first, end = self.subjects.spans[column, row].tolist()
        return self.subjects.text[first:end].decode()


def read_rows(records: Sequence[Record]) -> ProfiledRows:
    """Read records of ``profiled``, of any partitions, in their order, without the rows that are to be skipped."""
    found: dict[int, Block] = {}
    refused: dict[int, BlockError] = {}
    for number, record in enumerate(records):
        try:
            found[number] = _with_features(parse_block(record.value))
        except BlockError as error:
            refused[number] = error
    while True:
        columns, names, wrong = _columns(records, found)
        if not wrong:
            return _without_skipped(_rows(records, found, refused, columns, names))
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


def _with_features(block: Block) -> Block:
    """Return a block whose transactions have this kernel's features; nothing in place of an unknown kernel's."""
    if not is_known(block.kernel):
        unknown = np.full((len(block.features), len(CARD_FEATURES)), np.nan)
        # As all arrays of blocks, so that compiled functions are compiled for one kind.
        unknown.flags.writeable = False
        return block._replace(features=unknown)
    try:
        return block._replace(features=own_card_features(block.kernel, block.features))
    except ValueError as error:
        raise BlockError(str(error)) from error


def _columns(
    records: Sequence[Record], found: Mapping[int, Block]
) -> tuple[Columns, list[bytes], dict[int, BlockError]]:
    """Return the columns of all rows, the names that they have by number, and the blocks that are refused."""
    columns = empty_columns(sum(block.rows for block in found.values()), len(FEATURES))
    names: dict[bytes, int] = {}
    wrong: dict[int, BlockError] = {}
    firsts: dict[int, int] = {}
    at = text_at = 0
    for number, block in found.items():
        own = np.array([names.setdefault(name, len(names)) for name in block.names], np.int64)
        if reason := fill_columns(block, columns, own, records[number], at, text_at):
            wrong[number] = BlockError(REASONS[reason])
        firsts[number] = at
        at += block.rows
        text_at += len(block.text)
    if wrong_number(columns.wholes):
        for number, first in firsts.items():
            if text := wrong_number(columns.wholes[:, first : first + found[number].rows]):
                wrong[number] = BlockError(text)
    return columns, list(names), wrong


def _rows(
    records: Sequence[Record],
    found: Mapping[int, Block],
    refused: dict[int, BlockError],
    columns: Columns,
    names: Sequence[bytes],
) -> ProfiledRows:
    texts = [*(block.text for block in found.values()), *names]
    name_ends = np.cumsum([sum(map(len, texts[: len(found)])), *map(len, names)])
    spans, codes, named = columns.spans, columns.codes, columns.named
    for column, numbers in zip((col.SOURCE, col.RATES, col.INPUT), named, strict=True):
        spans[column, :, 0], spans[column, :, 1] = name_ends[numbers], name_ends[numbers + 1]
    subjects = Subjects(b"".join(texts), spans, columns.wholes)
    return ProfiledRows(
        records,
        np.repeat(np.fromiter(found, np.intp, len(found)), [block.rows for block in found.values()]),
        codes[blocks.KIND],
        subjects,
        columns.features,
        _log(subjects, codes, columns.features),
        _follows(columns.wholes, codes[blocks.KIND], named[2]),
        {number: block.kernel for number, block in found.items() if not is_known(block.kernel)},
        refused,
    )


def _log(subjects: Subjects, codes: NDArray[np.uint8], features: NDArray[np.float64]) -> MerchantLog:
    n, kinds = subjects.rows, codes[blocks.KIND]
    identity = np.zeros(n, np.uint64)
    labels = np.flatnonzero(kinds)
    if len(labels):
        labelled = subjects.take(labels)
        identity[labels] = labelled.identities()
    return MerchantLog(
        kinds,
        span_keys(np.frombuffer(subjects.text, np.uint8), subjects.spans[col.MERCHANT]),
        identity,
        subjects.wholes[col.EVENT_US],
        subjects.wholes[col.AMOUNT_BASE],
        (codes[blocks.FLAGS] & blocks.COUNTED).astype(np.bool_),
        (codes[blocks.FLAGS] & blocks.OUTLIER).astype(np.bool_),
        codes[blocks.KNOWN].astype(np.int8),
        subjects.wholes[col.KNOWN_AT_US],
        features[:, INPUT_COLUMNS],
    )


def _follows(wholes: NDArray[np.int64], kinds: NDArray[np.uint8], topics: NDArray[np.intp]) -> NDArray[np.bool_]:
    follows = np.zeros(len(kinds), np.bool_)
    here, before = np.s_[1:], np.s_[:-1]
    follows[1:] = (
        (kinds[here] == TRANSACTION)
        & (kinds[before] == TRANSACTION)
        & (wholes[col.INPUT_OFFSET, here] > wholes[col.INPUT_OFFSET, before])
        & (wholes[col.INPUT_PARTITION, here] == wholes[col.INPUT_PARTITION, before])
        & (wholes[col.INGESTED_US, here] == wholes[col.INGESTED_US, before])
        & (topics[here] == topics[before])
    )
    return follows
