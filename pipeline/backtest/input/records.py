"""Records of transactions and labels of topics as the columns of a replay."""

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.input.acceptance import Acceptance
from pipeline.backtest.input.label_book import LabelBook
from pipeline.backtest.input.merge import LogPart
from pipeline.engine.records.accept import accept_labels, accept_transactions
from pipeline.engine.records.columns import Labels, Reject, Transactions
from pipeline.kafka.readers.replay_reader import RecordColumns

Rows = TypeVar("Rows", Transactions, Labels)


class Numbering(NamedTuple):
    """Names a record of a topic by one number, so that rows of all partitions can stand in one column."""

    partitions: int

    def row(self, partition: int, offset: int) -> int:
        """The number of a record."""
        return offset * self.partitions + partition

    def position(self, row: int) -> tuple[int, int]:
        """(partition, offset) of a row."""
        offset, partition = divmod(row, self.partitions)
        return partition, offset

    def part(
        self, rows: Rows, partition: int, offset: NDArray[np.int64], arrived_us: NDArray[np.int64]
    ) -> LogPart[Rows]:
        """Number rows, whose ``row`` is that of a record among ``offset`` and ``arrived_us`` of shape (n,)."""
        return LogPart(replace(rows, row=(offset * self.partitions + partition)[rows.row]), arrived_us[rows.row])

    def rejects(self, refused: Iterable[Reject], read: RecordColumns) -> list[Reject]:
        """Number refused records."""
        return [reject._replace(row=self.row(read.partition, int(read.offset[reject.row]))) for reject in refused]


def transactions_of(
    read: RecordColumns, acceptance: Acceptance, numbering: Numbering, rejects: list[Reject]
) -> LogPart[Transactions]:
    """Accepted transactions; what is refused goes to ``rejects``, as its dead letter tells it."""
    arrived_us = read.arrived_us
    rows, refused = accept_transactions(read.values, arrived_us, acceptance.rates, acceptance.future_tolerance_us)
    rejects += numbering.rejects(refused, read)
    return numbering.part(rows, read.partition, read.offset, arrived_us)


def labels_of(
    read: RecordColumns,
    acceptance: Acceptance,
    numbering: Numbering,
    rejects: list[Reject],
    book: LabelBook,
    topic: str,
) -> LogPart[Labels]:
    """Accepted labels of a topic (without prefix), which ``book`` notes."""
    arrived_us = read.arrived_us
    rows, refused = accept_labels(
        read.values,
        arrived_us,
        acceptance.future_tolerance_us,
        lambda _, label: acceptance.sources.check(topic, label.source),
    )
    rejects += numbering.rejects(refused, read)
    return numbering.part(book.add_labels(rows), read.partition, read.offset, arrived_us)
