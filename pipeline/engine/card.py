"""The card agent's kernel: validates transactions, profiles them by card, and lets labels follow them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.engine.accept import accept_transactions, record_columns
from pipeline.engine.accepted_labels import LabelOptions, accept, read_accepted
from pipeline.engine.columns import Transactions, content_keys, digest_keys, name_keys, text_values
from pipeline.engine.forwarding import Batch, NotForwarded, forward, origin
from pipeline.engine.joins import (
    COUNTS,
    NO_TRANSACTION,
    REPEAT_DIFFERS,
    SAME,
    Clock,
    Horizons,
    contradicts,
    not_joined,
)
from pipeline.engine.layout import LAYOUT, OtherLayout, decode_values, forgotten_with
from pipeline.engine.pending import LabelBatch, StorePending
from pipeline.engine.placement import partition_of, partitions_of
from pipeline.engine.profiled_blocks import RowColumns, encode_blocks, following_labels, profiled_columns
from pipeline.engine.profiling import Arrivals, CardJoin, Joined
from pipeline.engine.results import Result
from pipeline.engine.state import LoadedState, MemoryStore, StateDump, Store, state_digest
from pipeline.engine.transaction_index import IndexState, StoreIndex
from pipeline.engine.waiting import WaitingRoom, WaitingState
from pipeline.features.catalogue import CARD_FEATURES
from pipeline.features.columns import Storage
from pipeline.features.kernel import CardProfile, CardWindows
from schemas.messages import CardRules, Label, Transaction
from schemas.money import RateTable
from schemas.records import Record
from schemas.topics import ACCEPTED_LABELS, LABELS, REROUTED, TRANSACTIONS

NO_PROFILE: Final = CardProfile(np.empty((0, len(CARD_FEATURES))), np.empty(0, np.int64), np.empty(0, np.int64))
_encode = msgspec.json.Encoder(decimal_format="number").encode
_OFFSETS: Final = 1 << 48
"""More offsets than a partition has."""


class CardOptions(NamedTuple):
    """What the card kernel must be told."""

    rates: RateTable
    future_tolerance_us: int
    dedup_horizon_us: int
    label_horizon_us: int
    partitions: int
    """How many partitions ``transactions`` has, and so ``accepted-labels`` and ``rerouted``."""
    topic_prefix: str = ""
    merchant_partitions: int = 1
    """How many partitions ``profiled`` has."""

    @property
    def rules(self) -> CardRules:
        """What of it decides how a record is judged; a fold must judge alike."""
        return CardRules(
            rates_version=self.rates.version,
            rates_digest=self.rates.digest,
            future_tolerance_us=self.future_tolerance_us,
            dedup_horizon_us=self.dedup_horizon_us,
            label_horizon_us=self.label_horizon_us,
        )

    def under(self, rules: CardRules, rates: RateTable) -> Self:
        """As it was under other ``rules``, whose table is ``rates``."""
        return self._replace(
            rates=rates,
            future_tolerance_us=rules.future_tolerance_us,
            dedup_horizon_us=rules.dedup_horizon_us,
            label_horizon_us=rules.label_horizon_us,
        )


class _Values(msgspec.Struct):
    layout: int
    windows: bytes
    newest_us: int
    index: IndexState
    waiting: WaitingState
    first_day: int = 0


_DECODER: Final = msgspec.msgpack.Decoder(_Values)


class CardPartition:
    """State of one partition of ``transactions``, and of the same of ``accepted-labels`` and ``rerouted``."""

    def __init__(
        self, options: CardOptions, storage: Storage | None, store: Store, loaded: LoadedState | None = None
    ) -> None:
        """Start empty, or from a dump; then ``store`` holds what the dumped partition's store held.

        Raises `OtherLayout` where another release has made the dump.
        """
        # Those in force, and those of the batch that is being worked on.
        self._options = self._rules = options
        self._store = store
        self._windows = CardWindows(storage)
        self._transactions, self._labels, self._rerouted, self._accepted = (
            options.topic_prefix + topic.name for topic in (TRANSACTIONS, LABELS, REROUTED, ACCEPTED_LABELS)
        )
        values = None if loaded is None else decode_values(loaded.values, _DECODER)
        if values is not None and values.layout != LAYOUT:
            raise OtherLayout(f"the saved state has layout {values.layout}, not {LAYOUT}; fold it from the log")
        if loaded is not None and values is not None:
            self._windows.load(values.windows, loaded.columns)
        self._index = StoreIndex(store, values.index if values else None)
        self._waiting = WaitingRoom(store, values.waiting if values else None)
        clock = Clock() if values is None else Clock(values.newest_us, values.first_day)
        self._join = CardJoin(self._index, StorePending(self._waiting), clock)

    def process(self, records: Sequence[Record], now: datetime | None, options: CardOptions | None = None) -> Result:
        """Profile one partition's records: transactions, rerouted ones and labels, each in offset order.

        Transactions come before labels, whatever the order of the records.

        Args:
            records: The batch.
            now: Stamped as ``ingested_at``; None only updates the state (a replay) and emits nothing.
            options: Take the place of the kernel's own for this batch: a replay hands over those of the live batch.

        Returns:
            What is to be written, and counts.
        """
        result, columns = self.work(records, now, options)
        result.outputs += encode_blocks([] if columns is None else [columns])
        return result

    def work(
        self, records: Sequence[Record], now: datetime | None, options: CardOptions | None = None
    ) -> tuple[Result, RowColumns | None]:
        """As `process`, with what is for ``profiled`` as columns: blocks hold rows of several partitions of cards."""
        self._rules = self._options if options is None else options
        result = Result()
        bought = self._bought(records, result)
        transactions = self._take_transactions(bought, result)
        labels = self._take_labels([record for record in records if record.topic == self._accepted], result)
        n, m = len(transactions), len(labels.labels)
        horizons = Horizons(self._rules.dedup_horizon_us, self._rules.label_horizon_us)
        arrivals = Arrivals(
            digest_keys(transactions.card_id, transactions.transaction_id),
            transactions.event_time_us,
            np.arange(n),
            content_keys(transactions),
            _sources(bought, transactions.row),
            text_values(transactions.merchant_id),
            labels,
            np.arange(n, n + m),
        )
        joined = self._join.join(horizons, arrivals)
        self._join.forget(forgotten_with(len(records)))
        accepted = int(np.count_nonzero(joined.accepted))
        self._refuse_contradictions(joined, transactions, bought, result)
        _count(joined, accepted, result)
        taken = transactions if accepted == n else transactions.take(joined.accepted)
        profile = self._profile(taken) if accepted else None
        self._give_up(joined.given_up, result)
        if now is None:
            result.outputs.clear()
            return result, None
        return result, self._columns(taken, profile, bought, joined, now)

    def settle(self) -> None:
        """Commit the batch."""
        self._windows.settle()
        self._store.settle()
        self._join.settle()

    def undo(self) -> None:
        """Roll the batch back."""
        self._windows.undo()
        self._store.undo()
        self._join.undo()

    def dump(self, *, full: bool = False) -> StateDump:
        """Copy the settled state."""
        windows, columns = self._windows.dump(full=full)
        clock = self._join.clock
        values = _Values(LAYOUT, windows, clock.newest_us, self._index.state, self._waiting.state, clock.first_day)
        return StateDump(msgspec.msgpack.encode(values), columns, self._store.freeze())

    def digest(self) -> str:
        """Return the digest of the settled state."""
        states = self._index.state, self._waiting.state
        return state_digest(*self._join.clock, *states, self._windows.contents(), self._store)

    def close(self) -> None:
        """Let go of the state."""
        self._windows.close()
        self._store.close()

    def _bought(self, records: Sequence[Record], result: Result) -> Batch:
        """Return the transactions of a batch, those that were rerouted as they lay."""
        reads = [record for record in records if record.topic != self._accepted]
        if all(record.topic == self._transactions for record in reads):
            return Batch(reads, reads)
        found = Batch([], [])
        for read in reads:
            record = read
            if read.topic == self._rerouted:
                try:
                    record, _ = origin(read, REROUTED, self._transactions)
                except NotForwarded as error:
                    result.dead_letter(read, "card", "rerouted_headers", str(error))
                    continue
            found.records.append(record)
            found.reads.append(read)
        return found

    def _take_transactions(self, batch: Batch, result: Result) -> Transactions:
        """Accept transactions; ``row`` is a record's number in ``batch``."""
        rules = self._rules
        values, arrived_us = record_columns(batch.records)
        rows, rejects = accept_transactions(values, arrived_us, rules.rates, rules.future_tolerance_us, stated=True)
        for reject in rejects:
            result.dead_letter(batch.records[reject.row], "card", reject.code, reject.text)
        staying = self._staying(rows, batch, result)
        return rows if staying is None else rows.take(staying)

    def _take_labels(self, records: Sequence[Record], result: Result) -> LabelBatch:
        """Read accepted labels."""
        labels, originals, refused = read_accepted(records, self._labels)
        for record, error in refused:
            result.unreadable(record, "card", error)
        return LabelBatch.of(labels, originals)

    def _staying(self, rows: Transactions, batch: Batch, result: Result) -> NDArray[np.bool_] | None:
        """Reroute the rows whose cards are not this partition's; shape (n,), which are its own, or None for all."""
        if self._rules.partitions == 1 or not len(rows):
            return None
        homes = partitions_of(rows.card_id, self._rules.partitions)
        staying: NDArray[np.bool_] = homes == batch.reads[0].partition
        if staying.all():
            return None
        for row in np.flatnonzero(~staying).tolist():
            number = int(rows.row[row])
            result.outputs.append(forward(batch.records[number], REROUTED, rows.card_id[row].as_py(), int(homes[row])))
            result.counts["rerouted", batch.reads[number].topic.removeprefix(self._rules.topic_prefix)] += 1
        return staying

    def _refuse_contradictions(
        self, joined: Joined[list[bytes]], transactions: Transactions, batch: Batch, result: Result
    ) -> None:
        """Refuse repeats that say something else than the transaction that was accepted."""
        for row in np.flatnonzero(joined.differs != SAME).tolist():
            text = contradicts(transactions.transaction_id[row].as_py(), transactions.card_id[row].as_py())
            first = divmod(int(joined.differs[row]), _OFFSETS)
            record = batch.records[int(transactions.row[row])]
            result.dead_letter(record, "card", REPEAT_DIFFERS, text, first=first)

    def _profile(self, taken: Transactions) -> CardProfile:
        return self._windows.profile(
            name_keys(taken.card_id), name_keys(taken.merchant_id), taken.event_time_us, taken.amount_base_minor,
            taken.counts, taken.hour, taken.weekday,
        )  # fmt: skip

    def _columns(
        self, taken: Transactions, profile: CardProfile | None, batch: Batch, joined: Joined[list[bytes]], now: datetime
    ) -> RowColumns | None:
        """Accepted transactions, which say where they lay in ``batch``, and the labels that follow them."""
        labels = following_labels(joined, len(taken))
        if profile is None and labels is None:
            return None
        rules = self._rules
        return profiled_columns(
            taken,
            NO_PROFILE if profile is None else profile,
            batch,
            labels,
            rules.merchant_partitions,
            rules.rates.version,
            now,
        )

    def _give_up(self, batch: LabelBatch, result: Result) -> None:
        """Refuse labels that have waited in vain."""
        if not batch.records:
            return
        labels = batch.labels
        rows = zip(batch.records, labels.transaction_id.to_pylist(), labels.card_id.to_pylist(), strict=True)
        for record, transaction_id, card_id in rows:
            why = not_joined(transaction_id, card_id, self._rules.label_horizon_us)
            result.dead_letter(record, "card", NO_TRANSACTION, why)


def compile_kernels(options: CardOptions) -> None:
    """Compile what a batch needs, or load it from Numba's cache, so that the first batch does not wait for it.

    A transaction and its label pass through a partition in memory.
    """
    when, name, card = datetime(2020, 1, 1, tzinfo=UTC), "t", "c"
    bought = Transaction(
        transaction_id=name, event_time=when, card_id=card, merchant_id="m", amount=Decimal("1.50"),
        currency=options.rates.base,
    )  # fmt: skip
    said = Label(transaction_id=name, card_id=card, label="fraud", source="chargeback", labelled_at=when)
    home, stamp_ms = partition_of(card, options.partitions), round(when.timestamp() * 1_000)
    transaction, label = (
        Record(options.topic_prefix + topic.name, home, 0, stamp_ms, card.encode(), _encode(message))
        for topic, message in ((TRANSACTIONS, bought), (LABELS, said))
    )
    (forwarded,) = accept([label], LabelOptions(options.future_tolerance_us, options.partitions)).outputs
    accepted = Record(
        options.topic_prefix + ACCEPTED_LABELS.name, home, 0, stamp_ms, forwarded.key, forwarded.value,
        forwarded.headers,
    )  # fmt: skip
    partition = CardPartition(options, None, MemoryStore())
    try:
        partition.process([transaction, accepted], when)
        partition.settle()
    finally:
        partition.close()


def _sources(batch: Batch, row: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return partition and offset of n records as one number; shape (n,)."""
    records = [batch.records[number] for number in row.tolist()]
    return np.array([record.partition * _OFFSETS + record.offset for record in records], np.int64)


def _count(joined: Joined[list[bytes]], accepted: int, result: Result) -> None:
    repeats = len(joined.accepted) - accepted - int(np.count_nonzero(joined.differs != SAME))
    if accepted:
        result.counts["accepted", ""] += accepted
    if repeats:
        result.counts["duplicate", ""] += repeats
    for outcome in np.flatnonzero(joined.counts).tolist():
        result.counts["label", COUNTS[outcome]] += int(joined.counts[outcome])
