"""Final labels: the last word of recorded labels about each transaction."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.backtest.input.label_book import LabelBook
from pipeline.backtest.input.sources import OpenedHistory, Source
from pipeline.backtest.input.spill import BLOCK_ROWS, NumberColumn, blocks, texts
from pipeline.engine.records.columns import Transactions, digest_keys
from pipeline.learning.labels import KNOWN_NOTHING, SOURCE_RANK, holding, known_number, source_rank

PART_ROWS: Final = BLOCK_ROWS
"""Labels that are resolved together, about."""
_MOST_BITS: Final = 8
"""Bits by which labels are parted: each part is an open file."""
_LABEL: Final = np.dtype(
    [
        ("high", np.int64), ("low", np.int64), ("at_us", np.int64), ("source", np.int32), ("fraud_type", np.int32),
        ("rank", np.int8), ("known", np.int8),
    ]
)  # fmt: skip
"""A label by its transaction's digest; words by their numbers, -1 for none."""
_WORDS: Final = ("label", "source", "fraud_type")


class FinalLabels:
    """The label that holds of each transaction, of all that ever came: on disk, sorted by digests.

    Memory is that of one part of the labels, which are parted by their digests.
    """

    def __init__(self, labels: pd.DataFrame) -> None:
        """Resolve labels as of `LabelBook.whole`; words may be any texts, and ``fraud_type`` may be missing."""
        if "fraud_type" not in labels:
            labels = labels.assign(fraud_type=None)
        # As they lie there, if they are numbered already.
        others = [name for name in _WORDS if not isinstance(labels[name].dtype, pd.CategoricalDtype)]
        labels = labels.assign(**{name: labels[name].astype("category") for name in others}) if others else labels
        self.words = {name: pa.array(labels[name].cat.categories, pa.string()) for name in ("source", "fraud_type")}
        """Words by their numbers."""
        high, held = NumberColumn(np.int64), NumberColumn(_LABEL)
        for part in _parted(labels):
            rows = part[holding([part["low"], part["high"]], part["rank"], part["at_us"], part["known"])]
            rows = rows[rows["known"] != KNOWN_NOTHING]
            high.add(rows["high"])
            held.add(rows)
        # Alone, since it is searched: of records it would be copied each time.
        self._high, self._held = high.finish(), held.finish()

    def __len__(self) -> int:
        return len(self._held)

    def with_truth(self, parts: Iterator[Transactions], delay_us: int, book: LabelBook) -> Iterator[Transactions]:
        """The transactions with their truth, known to ``book`` from ``delay_us`` after each."""
        for part in parts:
            at = self.find(digest_keys(part.card_id, part.transaction_id))
            known = at >= 0
            held = self._held[at[known]]
            rows = replace(part, truth=self.column("known", at, KNOWN_NOTHING))
            words_of = {
                name: words.take(pa.array(held[name], mask=held[name] < 0)) for name, words in self.words.items()
            }
            book.add_truth(rows.take(known), delay_us, words_of["source"], words_of["fraud_type"])
            yield rows

    def find(self, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find the label of each transaction by its digest, shape (n, 2); -1 for none, shape (n,)."""
        if not len(self):
            return np.full(len(wanted), -1)
        # Of 128 bits the first 64 do not occur twice; the others tell whether it is the one.
        at = np.searchsorted(self._high, wanted[:, 0]).clip(max=len(self) - 1)
        same = (self._high[at] == wanted[:, 0]) & (self._held["low"][at] == wanted[:, 1])
        return np.where(same, at, -1)

    def column(self, name: str, at: NDArray[np.int64], missing: int) -> NDArray[Any]:
        """Return a field of what `find` found; shape (n,).

        Args:
            name: Field of `_LABEL`.
            at: What `find` returned; shape (n,).
            missing: Value where there is no label.
        """
        values = np.full(len(at), missing, _LABEL[name])
        values[at >= 0] = self._held[name][at[at >= 0]]
        return values


def bearing_truth(
    source: Source, opened: OpenedHistory, delay_us: int, book: LabelBook
) -> tuple[Iterator[Transactions], LabelBook]:
    """Transactions that bear what they turned out to be, and where that is noted.

    Args:
        source: Says whether transactions bear a truth of their own, which is kept.
        opened: ``source`` as it is read. If a truth follows from its labels, all of them are read at once.
        delay_us: Microseconds from a transaction to when such a truth is noted as known.
        book: The book that ``source`` was opened with.

    Returns:
        The transactions in their order, and the book that holds their truth once they were read: ``book`` itself if
        they bear their own.
    """
    if source.bears_truth:
        return opened.transactions, book
    # All that was ever said is looked at first; what is measured by becomes known when it is due.
    for _ in opened.labels:
        pass
    due = LabelBook()
    return FinalLabels(book.whole()).with_truth(opened.transactions, delay_us, due), due


def _parted(labels: pd.DataFrame) -> Iterator[NDArray[Any]]:
    """The labels but those of rules, as `_LABEL`; each part in the order in which they were reported, of higher digests
    than the one before."""
    bits = min(max((len(labels) // PART_ROWS).bit_length(), 1), _MOST_BITS)
    columns = [NumberColumn(_LABEL) for _ in range(1 << bits)]
    for block in blocks(len(labels)):
        rows = _rows(labels.iloc[block])
        number = (rows["high"] >> 64 - bits) + (1 << bits - 1)
        order = np.argsort(number, kind="stable")
        ends = np.cumsum(np.bincount(number, minlength=len(columns)))
        for column, group in zip(columns, np.split(rows[order], ends[:-1]), strict=True):
            column.add(group)
    for column in columns:
        yield column.finish()


def _rows(labels: pd.DataFrame) -> NDArray[Any]:
    digests = digests_of(labels, slice(None))
    codes = {name: labels[name].cat.codes.to_numpy() for name in _WORDS}
    ranks = [source_rank(word) for word in labels["source"].cat.categories]
    known = [known_number(word) for word in labels["label"].cat.categories]
    rows = np.empty(len(labels), _LABEL)
    rows["high"], rows["low"], rows["at_us"] = digests[:, 0], digests[:, 1], microseconds(labels["labelled_at"])
    rows["source"], rows["fraud_type"] = codes["source"], codes["fraud_type"]
    rows["rank"], rows["known"] = np.array(ranks, np.int8)[codes["source"]], np.array(known, np.int8)[codes["label"]]
    kept: NDArray[Any] = rows[rows["rank"] != SOURCE_RANK["rule"]]
    return kept


def digests_of(frame: pd.DataFrame, rows: slice) -> NDArray[np.int64]:
    """Return the digests of card and transaction of some rows; shape (n, 2)."""
    return digest_keys(*(texts(frame[name], rows) for name in ("card_id", "transaction_id")))


def microseconds(times: pd.Series) -> NDArray[np.int64]:
    """Microseconds since 1970."""
    at = pd.to_datetime(times, utc=True)
    return at.dt.tz_convert(None).to_numpy("datetime64[us]").astype(np.int64)
