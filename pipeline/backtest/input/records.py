"""Records of transactions and labels of topics as the columns of a replay."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.input.acceptance import Acceptance
from pipeline.backtest.input.merge import LogPart
from pipeline.engine.records.accept import accept_labels, accept_transactions
from pipeline.engine.records.columns import Labels, Reject, Transactions
from pipeline.kafka.readers.replay_reader import RecordColumns
from schemas.messages import Label

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


def transactions_of(
    read: RecordColumns, acceptance: Acceptance, numbering: Numbering, rejects: list[Reject]
) -> LogPart[Transactions]:
    """Accepted transactions; what is refused goes to ``rejects``, as its dead letter tells it."""
    arrived_us = read.arrived_us
    rows, refused = accept_transactions(read.values, arrived_us, acceptance.rates, acceptance.future_tolerance_us)
    return _part(read, rows, arrived_us, numbering, refused, rejects)


def labels_of(
    read: RecordColumns,
    acceptance: Acceptance,
    numbering: Numbering,
    rejects: list[Reject],
    note: Callable[[Sequence[Label], Sequence[int]], None],
    topic: str,
) -> LogPart[Labels]:
    """Accepted labels of a topic (without prefix).

    ``note`` is given them, each with when it became known, in microseconds since 1970.
    """
    arrived_us = read.arrived_us
    rows, refused, messages = accept_labels(
        read.values,
        arrived_us,
        acceptance.future_tolerance_us,
        lambda _, label: acceptance.sources.check(topic, label.source),
    )
    note(messages, rows.known_at_us.tolist())
    return _part(read, rows, arrived_us, numbering, refused, rejects)


def _part(
    read: RecordColumns,
    rows: Rows,
    arrived_us: NDArray[np.int64],
    numbering: Numbering,
    refused: Sequence[Reject],
    rejects: list[Reject],
) -> LogPart[Rows]:
    """Number rows and rejects as records of a topic."""
    number = read.offset * numbering.partitions + read.partition
    rejects += [reject._replace(row=int(number[reject.row])) for reject in refused]
    return LogPart(replace(rows, row=number[rows.row]), arrived_us[rows.row])
