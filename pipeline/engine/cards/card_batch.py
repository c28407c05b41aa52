"""A batch of the card agent: what depends on no state is done once, for the rows of all partitions."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.cards.card_join import Arrivals, Joined
from pipeline.engine.cards.joins import (
    COUNTS,
    DUPLICATE_DIFFERS,
    NO_ROOM,
    NO_TRANSACTION,
    SAME,
    contradicts,
    not_joined,
)
from pipeline.engine.cards.pending import LabelBatch
from pipeline.engine.cards.profiled_blocks import (
    ProfiledLabels,
    encode_blocks,
    following_labels,
    joined_labels,
    profiled_columns,
)
from pipeline.engine.records.accept import accept_transactions, record_columns
from pipeline.engine.records.accepted_labels import read_accepted
from pipeline.engine.records.columns import Transactions, content_keys, digest_keys, name_keys, text_values
from pipeline.engine.records.forwarding import MOST_OFFSETS, ForwardedBatch, NotForwarded, forward, origin
from pipeline.engine.records.partitioner import partitions_of
from pipeline.engine.records.results import Result
from pipeline.engine.records.whole_amounts import MOST_OF_A_BATCH, amount_counts
from pipeline.features.kernel import CardProfile
from schemas.records import Record
from schemas.topics import ACCEPTED_LABELS, REROUTED, TRANSACTIONS

if TYPE_CHECKING:
    from pipeline.engine.cards.card import CardOptions, CardPartition

NO_PROFILE: Final = CardProfile.of_rows(0)


class CardKeys(NamedTuple):
    """Hashes of names of n transactions; shape (n, 2) each."""

    card: NDArray[np.int64]
    merchant: NDArray[np.int64]


class _Accepted(NamedTuple):
    """Transactions of all partitions, one partition behind the other."""

    batch: ForwardedBatch
    record_ends: list[int]
    """Records of the first partition, of the first two, and so on."""
    rows: Transactions
    """Accepted ones that are their partition's own; ``row`` is a record's number in ``batch``."""

    def row_ends(self) -> list[int]:
        """Return the same of ``rows``."""
        ends: list[int] = np.searchsorted(self.rows.row, self.record_ends).tolist()
        return ends


def process_together(
    parts: Sequence[tuple["CardPartition", Sequence[Record]]], now: datetime | None, options: "CardOptions"
) -> Result:
    """Profile the records of some partitions: transactions, rerouted ones and labels, each in offset order.

    The cost of a small batch is mostly per call, so that each call serves all partitions.

    Args:
        parts: Partitions, each with its records.
        now: Stamped as ``ingested_at``; None only updates the states (a replay) and emits nothing.
        options: Those of the batch.

    Returns:
        What is to be written, and counts.
    """
    work = _Work(options)
    batch_rows = work.transactions([records for _, records in parts])
    rows, row_ends = batch_rows.rows, batch_rows.row_ends()
    digest, content, merchants = (
        digest_keys(rows.card_id, rows.transaction_id), content_keys(rows), text_values(rows.merchant_id),
    )  # fmt: skip
    sources = _sources(batch_rows.batch, rows.row)
    keys = CardKeys(name_keys(rows.card_id), name_keys(rows.merchant_id))
    accepted = np.zeros(len(rows), np.bool_)
    wait_us: list[NDArray[np.int64]] = []
    profiles: list[CardProfile] = []
    following: list[ProfiledLabels] = []
    first = before = 0
    for (state, records), end in zip(parts, row_ends, strict=True):
        labels = work.labels(records)
        n, m = end - first, len(labels.labels)
        joined = state.join(
            Arrivals(
                digest[first:end],
                rows.event_time_us[first:end],
                np.arange(n),
                content[first:end],
                sources[first:end],
                records[0].partition if records else 0,
                sources[first:end] // MOST_OFFSETS,
                merchants[first:end],
                labels,
                np.arange(n, n + m),
            ),
            options,
            len(records),
        )
        accepted[first:end] = joined.accepted
        wait_us.append(joined.wait_us)
        taken = first + np.flatnonzero(joined.accepted)
        work.count(joined, len(taken))
        work.refuse_contradictions(joined, batch_rows, first)
        if len(taken):
            profiles.append(state.profile(keys, taken, rows))
        if now is not None and (found := following_labels(joined, len(taken))) is not None:
            following.append(found._replace(behind=found.behind + before))
        work.give_up(joined.given_up)
        for number, reason in joined.no_room:
            advice = "send it again once the transaction is there, and each label once"
            work.result.dead_letter(joined.labels.records[number], "card", NO_ROOM, f"{reason}: {advice}")
        first, before = end, before + len(taken)
    if now is None:
        work.result.outputs.clear()
        return work.result
    if looked_at := min(len(rows), MOST_OF_A_BATCH):
        work.result.amounts = amount_counts(
            rows.currency[:looked_at],
            rows.amount_minor[:looked_at],
            lambda currency: options.rates.currencies[currency].digits,
        )
    if profiles or following:
        columns = profiled_columns(
            rows if accepted.all() else rows.take(accepted),
            _concatenated(profiles),
            np.concatenate(wait_us),
            batch_rows.batch,
            joined_labels(following),
            options.merchant_partitions,
            options.rates.version,
            now,
            options.topic_prefix,
            options.dropped_fields,
        )
        work.result.outputs += encode_blocks(columns)
    return work.result


class _Work:
    """Options of a batch, and its result so far."""

    def __init__(self, options: "CardOptions") -> None:
        self._options, self.result = options, Result()
        self._transactions, self._rerouted, self._accepted = (
            options.topic_prefix + topic.name for topic in (TRANSACTIONS, REROUTED, ACCEPTED_LABELS)
        )

    def transactions(self, parts: Sequence[Sequence[Record]]) -> _Accepted:
        """Accept the transactions of some partitions."""
        batch, ends = ForwardedBatch([], []), []
        for records in parts:
            self._add(records, batch)
            ends.append(len(batch.records))
        if all(record is read for record, read in zip(*batch, strict=True)):
            batch = ForwardedBatch(batch.records, batch.records)
        options = self._options
        values, arrived_us = record_columns(batch.records)
        rows, rejects = accept_transactions(
            values, arrived_us, options.rates, options.future_tolerance_us, producer_fields=True
        )
        for reject in rejects:
            self.result.dead_letter(batch.records[reject.row], "card", reject.code, reject.text)
        staying = self._staying(rows, batch)
        return _Accepted(batch, ends, rows if staying is None else rows.take(staying))

    def labels(self, records: Sequence[Record]) -> LabelBatch:
        """Read the accepted labels of a partition."""
        found = [record for record in records if record.topic == self._accepted]
        labels, originals, refused = read_accepted(found, self._options.topic_prefix)
        for record, error in refused:
            self.result.unreadable(record, "card", error)
        return LabelBatch.from_labels(labels, originals)

    def count(self, joined: Joined[list[bytes]], accepted: int) -> None:
        """Count what became of a partition's transactions and labels."""
        counts = self.result.counts
        duplicates = len(joined.accepted) - accepted - int(np.count_nonzero(joined.differs != SAME))
        if accepted:
            counts["accepted", ""] += accepted
        if duplicates:
            counts["duplicate", ""] += duplicates
        for outcome in np.flatnonzero(joined.counts).tolist():
            counts["label", COUNTS[outcome]] += int(joined.counts[outcome])

    def refuse_contradictions(self, joined: Joined[list[bytes]], batch_rows: _Accepted, first: int) -> None:
        """Refuse repeats that say something else than the transaction that was accepted.

        Args:
            joined: What became of a partition's transactions.
            batch_rows: Transactions of all partitions.
            first: Number of the partition's first one among them.
        """
        rows = batch_rows.rows
        for number in np.flatnonzero(joined.differs != SAME).tolist():
            row = first + number
            text = contradicts(rows.transaction_id[row].as_py(), rows.card_id[row].as_py())
            record = batch_rows.batch.records[int(rows.row[row])]
            self.result.dead_letter(
                record, "card", DUPLICATE_DIFFERS, text, first=divmod(int(joined.differs[number]), MOST_OFFSETS)
            )

    def give_up(self, batch: LabelBatch) -> None:
        """Refuse labels that have waited in vain."""
        if not batch.records:
            return
        labels = batch.labels
        rows = zip(batch.records, labels.transaction_id.to_pylist(), labels.card_id.to_pylist(), strict=True)
        for record, transaction_id, card_id in rows:
            why = not_joined(transaction_id, card_id, self._options.label_horizon_us)
            self.result.dead_letter(record, "card", NO_TRANSACTION, why)

    def _add(self, records: Sequence[Record], batch: ForwardedBatch) -> None:
        """Add the transactions of a partition, those that were rerouted as they lay."""
        for read in records:
            record = read
            if read.topic == self._rerouted:
                try:
                    record, _ = origin(read, REROUTED, self._options.topic_prefix)
                except NotForwarded as error:
                    self.result.dead_letter(read, "card", "rerouted_headers", str(error))
                    continue
            elif read.topic != self._transactions:
                continue
            batch.records.append(record)
            batch.reads.append(read)

    def _staying(self, rows: Transactions, batch: ForwardedBatch) -> NDArray[np.bool_] | None:
        """Reroute the rows whose cards are not their partition's; shape (n,), which stay, or None for all."""
        if self._options.partitions == 1 or not len(rows):
            return None
        homes = partitions_of(rows.card_id, self._options.partitions)
        staying: NDArray[np.bool_] = homes == [batch.reads[number].partition for number in rows.row.tolist()]
        if staying.all():
            return None
        for row in np.flatnonzero(~staying).tolist():
            number = int(rows.row[row])
            forwarded = forward(batch.records[number], REROUTED, rows.card_id[row].as_py(), int(homes[row]))
            self.result.outputs.append(forwarded)
            topic = batch.reads[number].topic.removeprefix(self._options.topic_prefix)
            self.result.counts["rerouted", topic] += 1
        return staying


def _sources(batch: ForwardedBatch, row: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return partition and offset of n records as one number; shape (n,)."""
    records = [batch.records[number] for number in row.tolist()]
    return np.array([record.partition * MOST_OFFSETS + record.offset for record in records], np.int64)


def _concatenated(profiles: Sequence[CardProfile]) -> CardProfile:
    if len(profiles) < 2:
        return profiles[0] if profiles else NO_PROFILE
    return CardProfile(*(np.concatenate(columns) for columns in zip(*profiles, strict=True)))
