"""The join of one partition of cards: repeats, and labels that follow their transactions; live and in backtests."""

from collections.abc import Sequence
from typing import Generic, NamedTuple

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
    Clock,
    PassInput,
    Retention,
    join,
)
from pipeline.engine.cards.pending import LabelBatch, PendingLabels
from pipeline.engine.cards.transaction_index import M, TransactionIndex
from pipeline.engine.partition_state.wait_clock import EARLY_LABEL_GRACE_US, WaitClock
from schemas.records import Record


class Arrivals(NamedTuple, Generic[M]):
    """n transactions and m labels of one partition, in one order by position."""

    digest: NDArray[np.int64]
    """Shape (n, 2): `pipeline.engine.records.columns.digest_keys`."""
    event_time_us: NDArray[np.int64]
    position: NDArray[np.int64]
    """Shape (n,): where each transaction stands among all records; ascending."""
    content: NDArray[np.int64]
    """Shape (n,): `pipeline.engine.records.columns.content_keys`."""
    source: NDArray[np.int64]
    """Shape (n,): a number of each transaction's record, 0 or more, by which a repeat finds it again."""
    home: int
    """Number of the partition."""
    feed: NDArray[np.int64]
    """Shape (n,): the partition of ``transactions`` that each was sent to."""
    merchants: M
    """Merchants of the transactions, as the index keeps them."""
    labels: LabelBatch
    label_position: NDArray[np.int64]
    """Shape (m,): ascending."""


class Following(NamedTuple, Generic[M]):
    """k labels that change what is known, those of a partition in the order in which they follow their transactions."""

    position: NDArray[np.int64]
    """Shape (k,): position of the record behind which each stands, its own or its transaction's."""
    labels: LabelBatch
    event_time_us: NDArray[np.int64]
    """Shape (k,): event time of its transaction."""
    merchants: M
    known: NDArray[np.int64]
    """Shape (k,): what is known now, an index of `pipeline.learning.labels.KNOWN`."""


class Joined(NamedTuple, Generic[M]):
    """Outcome of the arrivals."""

    accepted: NDArray[np.bool_]
    """Shape (n,): which transactions are no repeats."""
    differs: NDArray[np.int64]
    """Shape (n,): of a repeat with other content, ``source`` of the one that was accepted; else -1."""
    wait_us: NDArray[np.int64]
    """Shape (a,): what the wait clock showed with each accepted transaction."""
    following: Following[M]
    given_up: LabelBatch
    """Labels that have waited in vain."""
    no_room: Sequence[tuple[Record, str]]
    """Labels that cannot wait, each with the reason."""
    counts: NDArray[np.int64]
    """Shape (len(COUNTS),): what became of labels."""


class CardJoin(Generic[M]):
    """Accepted transactions and pending labels of one partition, and how far its event time has come."""

    def __init__(
        self,
        index: TransactionIndex[M],
        pending: PendingLabels,
        clock: Clock = Clock(),  # noqa: B008
        wait: WaitClock | None = None,
    ) -> None:
        self._index, self._pending = index, pending
        self.wait = wait or WaitClock()
        self.clock = self._committed_clock = clock

    def join(self, retention: Retention, given: Arrivals[M]) -> Joined[M]:
        """Accept what is no repeat, and let labels find their transactions.

        Args:
            retention: The retention of this batch.
            given: Transactions and labels.

        Returns:
            What became of them.
        """
        waiting = self._pending.awaiting(given.digest)
        held, arrived = len(waiting.labels), given.labels
        batch = waiting + arrived
        labels = batch.labels
        entries = self._index.fetch(given.digest, batch.digest)
        position = given.label_position
        if held:
            position = np.concatenate([np.full(held, -1), position])
        wait_us = self.wait.advance(given.home, given.feed, given.event_time_us)
        found = join(
            retention,
            self.clock,
            entries,
            PassInput(
                given.digest, given.event_time_us, given.position, given.content, given.source, wait_us,
                batch.digest, position, labels.rank, labels.known, labels.labelled_at_us, labels.known_at_us, held,
            ),
        )  # fmt: skip
        self._index.update(entries, found, given.merchants)
        no_room = self._pending.update(batch, held, found.waits) if len(labels) else []
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
