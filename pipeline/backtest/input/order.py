"""Transactions and labels in one order, chunk by chunk."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.records.columns import Labels, Transactions, no_labels, no_transactions

Rows = TypeVar("Rows", Transactions, Labels)


class Order(StrEnum):
    """In which order records are worked on; within it, those of one kind keep the order of their rows."""

    EVENT_TIME = "event-time"
    """Transactions by event time, labels by ``known_at``; at one instant labels come first, for they are known then."""
    RECORDED = "recorded"
    """Order by the column ``sequence``; of one number transactions come first, as in a live batch."""


class OutOfOrder(ValueError):
    """Rows that do not stand in the order that was asked for."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of transactions and labels, one behind the other by ``position``."""

    transactions: Transactions
    position: NDArray[np.int64]
    """Shape (n,): ascending; no two records share one."""
    labels: Labels
    label_position: NDArray[np.int64]
    """Shape (m,): ascending."""

    def __len__(self) -> int:
        return len(self.position) + len(self.label_position)

    @property
    def first(self) -> int:
        """Position of the first record; 0 if there is none."""
        return min(
            (int(positions[0]) for positions in (self.position, self.label_position) if len(positions)), default=0
        )

    @property
    def end(self) -> int:
        """Position behind the last record."""
        return max(
            (int(positions[-1]) + 1 for positions in (self.position, self.label_position) if len(positions)), default=0
        )

    def between(self, first: int, end: int) -> "Chunk":
        """The records that stand at ``first`` or behind, and before ``end``."""
        rows = slice(*np.searchsorted(self.position, (first, end)).tolist())
        labels = slice(*np.searchsorted(self.label_position, (first, end)).tolist())
        return Chunk(
            self.transactions.take(rows), self.position[rows], self.labels.take(labels), self.label_position[labels]
        )


NOTHING: Final = Chunk(no_transactions(), np.empty(0, np.int64), no_labels(), np.empty(0, np.int64))
"""A chunk without a record."""


def in_order(transactions: Iterator[Transactions], labels: Iterator[Labels], order: Order) -> Iterator[Chunk]:
    """Merge two streams into chunks of the transactions' size; the last labels come alone.

    Memory is that of a chunk of each, and of the labels that lie between two transactions.

    Args:
        transactions: Parts of any size, sorted by ``key`` within and between them.
        labels: Likewise.
        order: Order that the keys stand for; it says which kind comes first where keys are equal.

    Returns:
        Chunks whose positions begin with 0 each.
    """
    labels_ = filter(len, labels)
    waiting: list[Labels] = []
    more = True
    for part in filter(len, transactions):
        last = int(part.key[-1])
        while more and (not waiting or waiting[-1].key[-1] <= last):
            following = next(labels_, None)
            more = following is not None
            if following is not None:
                waiting.append(following)
        known = Labels.concat(waiting) if waiting else no_labels()
        chunk = merged(part, known, order)
        yield chunk
        taken = len(chunk.labels)
        waiting = [known.take(slice(taken, None))] if taken < len(known) else []
    waiting += labels_
    for rest in waiting:
        yield alone(rest)


def merged(part: Transactions, known: Labels, order: Order) -> Chunk:
    """Transactions with those labels that stand before the last of them.

    Args:
        part: At least one transaction, sorted by ``key``.
        known: Labels that are in no chunk yet, sorted by ``key``; the first of them are taken.
        order: Says which kind comes first where keys are equal.

    Returns:
        A chunk whose positions begin with 0.
    """
    # Whoever is at the transaction's own key: first by time, last in a batch.
    before = np.searchsorted(part.key, known.key, side="left" if order is Order.EVENT_TIME else "right")
    taken = int(np.searchsorted(before, len(part)))
    position = np.arange(len(part)) + np.searchsorted(before[:taken], np.arange(len(part)), side="right")
    return Chunk(part, position, known.take(slice(0, taken)), before[:taken] + np.arange(taken))


def alone(labels: Labels) -> Chunk:
    """Labels behind the last transaction."""
    return Chunk(no_transactions(), np.empty(0, np.int64), labels, np.arange(len(labels)))


def checked(parts: Iterator[Rows], kind: str, order: Order, where: str = "") -> Iterator[Rows]:
    """The parts that are not empty, once their order was checked.

    Args:
        parts: Rows in the order of the input.
        kind: ``transaction`` or ``label``, for the error.
        order: Order that the keys stand for; the error names the column to sort by.
        where: Begin of the error, before the row's number; such as a file's name.

    Raises:
        OutOfOrder: A row's ``key`` is lower than that of the row before.
    """
    last = -(2**63)
    for part in parts:
        if not len(part):
            continue
        keys = np.concatenate([[last], part.key])
        behind = np.flatnonzero(keys[1:] < keys[:-1])
        if len(behind):
            row = int(part.row[behind[0]]) + 1
            by = {
                Order.EVENT_TIME: "event_time" if kind == "transaction" else "the time from which it counts",
                Order.RECORDED: "sequence",
            }[order]
            raise OutOfOrder(f"{where}the {kind} of row {row} stands behind a later one: sort the input by {by}")
        last = int(part.key[-1])
        yield part
