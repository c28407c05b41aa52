"""A history in a file."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from pipeline.backtest.input.acceptance import (
    Acceptance,
    accept_each,
    accept_labels,
    accept_transactions,
    fraud_types,
)
from pipeline.backtest.input.label_book import LabelBook
from pipeline.backtest.input.order import Order, checked
from pipeline.backtest.input.sources import OpenedHistory
from pipeline.backtest.input.span import SeenTimes, Span
from pipeline.backtest.input.wire_tables import label_tables, truth_of
from pipeline.engine.records.columns import Reject, Transactions
from pipeline.history.files import ColumnMapping, file_tables
from pipeline.history.mapped_files import FileMapping, mapped_tables
from pipeline.learning.label_sources import SIMULATOR
from schemas.times import US_PER_SECOND


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file of transactions, in the order of event time, with labels of its own or in a second file."""

    path: Path
    mapping: ColumnMapping | FileMapping
    label_file: Path | None = None
    label_delay_s: float = 7 * 86_400.0
    """Delay from a transaction to the label that the file's truth becomes."""
    partitions: int = 1

    @property
    def time_zone(self) -> str:
        """The mapping's."""
        return self.mapping.time_zone

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def bears_truth(self) -> bool:
        """A column for it, where there is no file of labels."""
        return self.label_file is None and "fraud" in self.mapping.columns

    @property
    def has_labels(self) -> bool:
        """A file of them."""
        return self.label_file is not None

    def open(self, span: Span, acceptance: Acceptance, rejects: list[Reject], book: LabelBook) -> OpenedHistory:
        """Open like `Source`."""
        seen = SeenTimes()
        tables = () if self.label_file is None else label_tables(self.label_file)
        labels = map(book.add_labels, accept_each(tables, accept_labels, acceptance, rejects))
        transactions = self._until_end(span, acceptance, rejects, book, seen)
        return OpenedHistory(
            checked(transactions, "transaction", Order.EVENT_TIME, f"{self.path}: "),
            checked(labels, "label", Order.EVENT_TIME, f"{self.label_file}: "),
            seen,
        )

    def _until_end(
        self, span: Span, acceptance: Acceptance, rejects: list[Reject], book: LabelBook, seen: SeenTimes
    ) -> Iterator[Transactions]:
        first, path, mapping = 0, self.path, self.mapping
        tables = mapped_tables(path, mapping) if isinstance(mapping, FileMapping) else file_tables(path, mapping)
        for table in tables:
            rows, refused = accept_transactions(table, acceptance, first)
            rejects += refused
            rows = seen.within(span, rows)
            if self.bears_truth:
                numbers = rows.row - first
                rows = replace(rows, truth=truth_of(table, numbers))
                sources, delay_us = pa.repeat(SIMULATOR, len(rows)), round(self.label_delay_s * US_PER_SECOND)
                book.add_truth(rows, delay_us, sources, fraud_types(table).take(pa.array(numbers)))
            yield rows
            # In order: behind the end there is nothing more.
            if seen.last_us >= span.to_us:
                return
            first += table.num_rows
