"""Labels of a history, kept on disk for the metrics."""

from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.backtest.input.acceptance import LABEL_FIELDS
from pipeline.backtest.input.spill import NumberColumn, TextColumn, WordColumn, blocks, mapped_frame, texts
from pipeline.engine.records.columns import Labels, Transactions
from pipeline.learning.labels import KNOWN


class LabelBook:
    """The reported labels, kept on disk for whoever measures decisions."""

    def __init__(self) -> None:
        self._texts = {name: TextColumn() for name in ("transaction_id", "card_id")}
        self._words = {name: WordColumn() for name in ("label", "source", "fraud_type")}
        self._known_at_us = NumberColumn(np.int64)

    def add(
        self, ids: pa.Array, cards: pa.Array, labels: pa.Array, sources: pa.Array, known_at_us: NDArray[np.int64],
        fraud_types: pa.Array,
    ) -> None:  # fmt: skip
        """Note labels, with when they became known.

        Args:
            ids: Transactions, n Arrow strings without null.
            cards: Cards, likewise.
            labels: Labels as they were sent, n Arrow strings or null.
            sources: Who reported each, likewise.
            known_at_us: Microseconds since 1970, shape (n,).
            fraud_types: Types of fraud, n Arrow strings; null for none.
        """
        for column, texts_of in zip(self._texts.values(), (ids, cards), strict=True):
            column.add(texts_of)
        for words, words_of in zip(self._words.values(), (labels, sources, fraud_types), strict=True):
            words.add(words_of)
        self._known_at_us.add(known_at_us)

    def add_labels(self, rows: Labels) -> Labels:
        """Note accepted labels, and return them."""
        self.add(rows.transaction_id, rows.card_id, rows.word, rows.source, rows.known_at_us, rows.fraud_type)
        return rows

    def add_truth(self, rows: Transactions, delay_us: int, sources: pa.Array, fraud_types: pa.Array) -> None:
        """Note what transactions bear of themselves.

        Args:
            rows: n transactions with `Transactions.truth`, which may be None only if there are none.
            delay_us: Microseconds from each event time to when the label becomes known.
            sources: Sources of the labels, n Arrow strings or null.
            fraud_types: Types of fraud, n Arrow strings; null for none.
        """
        truth = np.zeros(0, np.int8) if rows.truth is None else rows.truth
        words = pa.array(KNOWN).take(pa.array(truth))
        self.add(rows.transaction_id, rows.card_id, words, sources, rows.event_time_us + delay_us, fraud_types)

    def whole(self) -> pd.DataFrame:
        """All labels, in the order in which they were reported. Nothing can be added any more."""
        return mapped_frame(self._columns)

    def labels_of(self, transaction_ids: "pd.Series[str]") -> pd.DataFrame:
        """The labels of some transactions, in the order in which they were reported. Nothing can be added any more."""
        columns = self._columns
        ids = columns["transaction_id"]
        asked = np.zeros(len(ids), np.bool_)
        for block in blocks(len(transaction_ids)):
            wanted = texts(transaction_ids, block)
            for rows in blocks(len(ids)):
                asked[rows] |= pc.is_in(ids[rows], value_set=wanted).to_numpy(zero_copy_only=False)
        if not asked.all():
            columns = {name: _picked(column, asked) for name, column in columns.items()}
        return mapped_frame(columns)

    @cached_property
    def _columns(self) -> dict[str, pa.Array]:
        columns = {name: column.finish() for name, column in (self._texts | self._words).items()}
        columns["labelled_at"] = pa.array(self._known_at_us.finish()).view(pa.timestamp("us", "UTC"))
        return {name: columns[name] for name in (*LABEL_FIELDS, "fraud_type")}


def _picked(column: pa.Array, asked: NDArray[np.bool_]) -> pa.Array:
    """Some rows of a column of labels, on disk as well."""
    picked = TextColumn() if pa.types.is_large_string(column.type) else None
    parts = []
    for rows in blocks(len(column)):
        part = column[rows].filter(pa.array(asked[rows]))
        if picked is None:
            parts.append(part)
        else:
            picked.add(part)
    return pa.concat_arrays(parts) if picked is None else picked.finish()
