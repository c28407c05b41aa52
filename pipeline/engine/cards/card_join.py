"""The join of one partition of cards: repeats, and labels that follow their transactions; live and in backtests."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.cards.joins import (
    DUPLICATE,
    EVENT_US,
    F_ENTRY,
    F_KNOWN,
    F_LABEL,
    F_POSITION,
    UNKNOWN,
    WAIT_US,
    Arrivals,
    Clock,
    Retention,
    join,
)
from pipeline.engine.cards.pending import LabelBatch, MemoryPending, StorePending
from pipeline.engine.cards.transaction_index import MemoryIndex, StoreIndex
from pipeline.engine.partition_state.wait_clock import EARLY_LABEL_GRACE_US, WaitClock
from schemas.records import Record


class Following(NamedTuple):
    """k labels that change what is known, those of a partition in the order in which they follow their transactions."""

    position: NDArray[np.int64]
    """Shape (k,): position of the record behind which each stands, its own or its transaction's."""
    labels: LabelBatch
    event_time_us: NDArray[np.int64]
    """Shape (k,): event time of its transaction."""
    merchants: NDArray[Any]
    known: NDArray[np.int64]
    """Shape (k,): what is known now, an index of `pipeline.learning.labels.KNOWN`."""


class Joined(NamedTuple):
    """Outcome of the arrivals."""

    accepted: NDArray[np.bool_]
    """Shape (n,): which transactions are no repeats."""
    differs: NDArray[np.int64]
    """Shape (n,): of a repeat with other content, ``source`` of the one that was accepted; else -1."""
    wait_us: NDArray[np.int64]
    """Shape (a,): what the wait clock showed with each accepted transaction."""
    following: Following
    given_up: LabelBatch
    """Labels that have waited in vain."""
    no_room: Sequence[tuple[Record, str]]
    """Labels that cannot wait, each with the reason."""
    counts: NDArray[np.int64]
    """Shape (len(COUNTS),): what became of labels."""


class CardJoin:
    """Accepted transactions and pending labels of one partition, and how far its event time has come.

    Args:
        index: The accepted transactions, as of ``clock``.
        pending: The labels that wait, as of ``clock``.
        clock: Progress to go on from.
        wait: The wait clock to go on from; None: no transaction has come.
    """

    def __init__(
        self,
        index: MemoryIndex | StoreIndex,
        pending: MemoryPending | StorePending,
        clock: Clock = Clock(),  # noqa: B008
        wait: WaitClock | None = None,
    ) -> None:
        self._index, self._pending = index, pending
        self.wait = wait or WaitClock()
        self.clock = self._committed_clock = clock

    def join(self, retention: Retention, given: Arrivals) -> Joined:
        """Accept what is no repeat, and let labels find their transactions; a batch has a retention of its own."""
        waiting = self._pending.awaiting(given.digest)
        batch = waiting + given.labels
        entries = self._index.fetch(given.digest, batch.digest)
        wait_us = self.wait.advance(given.home, given.feed, given.event_time_us)
        found = join(retention, self.clock, entries, given, wait_us, batch)
        self._index.update(entries, found, given.merchants)
        no_room = self._pending.update(batch, len(waiting.labels), found.waits) if len(batch.labels) else []
        self.clock = found.clock
        given_up = self._pending.give_up(found.clock.waited_us - EARLY_LABEL_GRACE_US)
        found.counts[UNKNOWN] += len(given_up.labels)
        entry, accepted = found.follows[:, F_ENTRY], found.fate != DUPLICATE
        accepted_us = entries.rows[entries.count - np.count_nonzero(accepted) : entries.count, WAIT_US].copy()
        following = Following(
            found.follows[:, F_POSITION],
            batch.take(found.follows[:, F_LABEL]),
            entries.rows[entry, EVENT_US],
            self._index.merchants(entry),
            found.follows[:, F_KNOWN],
        )
        return Joined(accepted, found.differs, accepted_us, following, given_up, no_room, found.counts)

    def forget(self, at_least: int) -> None:
        """Forget what lies behind the retention: at least so many transactions, if there are."""
        self._index.forget_before(self.clock.first_day, at_least)

    def commit(self) -> None:
        """Commit the batch."""
        self._index.commit()
        self._pending.commit()
        self.wait.commit()
        self._committed_clock = self.clock

    def rollback(self) -> None:
        """Roll the batch back."""
        self._index.rollback()
        self._pending.rollback()
        self.wait.rollback()
        self.clock = self._committed_clock
