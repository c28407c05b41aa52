"""The card agent's kernel: validates transactions, profiles them by card, and lets labels follow them."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import repeat
from typing import Any, Final, NamedTuple, Self, TypeVar

import msgspec
import numpy as np

from pipeline.engine.accepted import FEW, accepted_at_once
from pipeline.engine.layout import LAYOUT, OtherLayout, day_of, decode_values, transaction_digest
from pipeline.engine.placed import IndexState, Placed, PlacedIndex
from pipeline.engine.placement import partitions_of
from pipeline.engine.rerouting import NotRerouted, original, rerouted
from pipeline.engine.results import Result
from pipeline.engine.state import LoadedState, StateDump, Store
from pipeline.engine.waiting import Waiting, WaitingRoom, WaitingState
from pipeline.engine.written import encoded, positional, written
from pipeline.features.catalogue import KERNEL_VERSION, US_PER_DAY
from pipeline.features.columns import Storage
from pipeline.features.kernel import CardProfile, CardWindows
from pipeline.learning.labels import NOTHING, resolve
from schemas.codec import AcceptedTransaction, decode_label, decode_transaction, timestamp_us
from schemas.errors import InvalidMessage
from schemas.messages import CardRules, Label, ProfiledLabel, ProfiledTransaction, RecordPosition
from schemas.money import RateTable
from schemas.records import Output, Record
from schemas.topics import LABELS, PROFILED, REROUTED, TRANSACTIONS

EARLY_LABEL_PATIENCE_US: Final = 7 * US_PER_DAY
"""How long, in event time, a label waits for its transaction before it becomes a dead letter."""
NO_TRANSACTION: Final = "label_without_transaction"
"""Code of that dead letter."""
GIVE_UP_AT_MOST: Final = 5_000
"""Labels that one batch gives up; more of them are left to the batches that follow."""
_FORGET_AT_LEAST: Final = 64

T = TypeVar("T")

_encode = msgspec.json.Encoder(decimal_format="number").encode
_decode_kept_label = msgspec.json.Decoder(Label).decode
_pack_record = msgspec.msgpack.Encoder().encode
_unpack_record = msgspec.msgpack.Decoder(Record).decode


class CardOptions(NamedTuple):
    """What the card kernel must be told."""

    rates: RateTable
    future_tolerance_us: int
    dedup_horizon_us: int
    label_horizon_us: int
    partitions: int
    """How many partitions ``transactions`` has, and so ``labels`` and ``rerouted``."""
    topic_prefix: str = ""

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


class _Arrival(msgspec.Struct, gc=False):
    """A record as its producer wrote it, and as it was read: the same, but for one that was passed on."""

    record: Record
    read: Record


class _Accepted(msgspec.Struct, gc=False):
    arrival: _Arrival
    item: AcceptedTransaction
    digest: bytes
    placed: Placed


class _Known(NamedTuple):
    """A label with the time from which it counts."""

    record: Record
    label: Label
    known_at_us: int


class CardPartition:
    """State of one partition of ``transactions`` and of the same partition of ``labels`` and ``rerouted``."""

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
        self._topics = (options.topic_prefix + TRANSACTIONS.name, options.topic_prefix + LABELS.name)
        self._rerouted = options.topic_prefix + REROUTED.name
        self._bare = {options.topic_prefix + topic.name: topic.name for topic in (TRANSACTIONS, LABELS, REROUTED)}
        values = None if loaded is None else decode_values(loaded.values, _DECODER)
        if values is not None and values.layout != LAYOUT:
            raise OtherLayout(f"the saved state has layout {values.layout}, not {LAYOUT}; fold it from the log")
        if loaded is not None and values is not None:
            self._windows.load(values.windows, loaded.columns)
        self._newest_us = self._settled_newest_us = 0 if values is None else values.newest_us
        # Only grows, whatever the rules become: what was forgotten under a short horizon stays forgotten under a longer
        # one, and does not depend on how far the store has got with deleting it.
        self._first_day = self._settled_first_day = 0 if values is None else values.first_day
        self._index = PlacedIndex(store, values.index if values else None)
        self._waiting = WaitingRoom(store, values.waiting if values else None)

    def process(self, records: Sequence[Record], now: datetime | None, options: CardOptions | None = None) -> Result:
        """Profile one partition's records: of ``transactions``, ``rerouted`` and ``labels``, each in offset order.

        ``now`` is stamped as ``ingested_at``; None only updates the state (a fold) and emits nothing. Transactions
        come before labels, whatever the order of the records. ``options``, if given, take the place of the kernel's own
        for this batch: a fold hands over those under which it was judged live.
        """
        self._rules = self._options if options is None else options
        result = Result()
        transactions, labels = self._sort(records, result)
        accepted = self._accept(transactions, result)
        if accepted:
            self._profile(accepted, now, result)
        self._take_labels(labels, result)
        self._give_up_waiting(result)
        self._first_day = self._forgotten_day()
        self._index.forget_before(self._first_day, 2 * len(records) + _FORGET_AT_LEAST)
        if now is None:
            result.outputs.clear()
        return result

    def settle(self) -> None:
        """The batch is committed."""
        self._windows.settle()
        self._store.settle()
        self._index.settle()
        self._waiting.settle()
        self._settled_newest_us, self._settled_first_day = self._newest_us, self._first_day

    def undo(self) -> None:
        """The batch is not committed: take it back."""
        self._windows.undo()
        self._store.undo()
        self._index.undo()
        self._waiting.undo()
        self._newest_us, self._first_day = self._settled_newest_us, self._settled_first_day

    def dump(self, *, full: bool = False) -> StateDump:
        """Copy the settled state."""
        windows, columns = self._windows.dump(full=full)
        values = _Values(LAYOUT, windows, self._newest_us, self._index.state, self._waiting.state, self._first_day)
        return StateDump(msgspec.msgpack.encode(values), columns, self._store.freeze())

    def close(self) -> None:
        """Let go of the state."""
        self._windows.close()
        self._store.close()

    def _sort(self, records: Sequence[Record], result: Result) -> tuple[list[_Arrival], list[_Arrival]]:
        transactions: list[_Arrival] = []
        labels: list[_Arrival] = []
        for read in records:
            record = read
            if read.topic == self._rerouted:
                try:
                    record = original(read, self._topics)
                except NotRerouted as error:
                    result.dead_letter(read, "card", "rerouted_headers", str(error))
                    continue
            (transactions if record.topic == self._topics[0] else labels).append(_Arrival(record, read))
        return transactions, labels

    def _staying(
        self, decoded: Sequence[tuple[_Arrival, T]], cards: Sequence[str], result: Result
    ) -> list[tuple[_Arrival, T]]:
        """Those whose cards, ``cards``, are this partition's; the records of the others are passed on."""
        homes = partitions_of(cards, self._rules.partitions)
        staying = []
        for one, card_id, home in zip(decoded, cards, homes, strict=True):
            arrival = one[0]
            if home == arrival.read.partition:
                staying.append(one)
            else:
                result.outputs.append(rerouted(arrival.record, card_id, home))
                result.counts["rerouted", self._bare[arrival.read.topic]] += 1
        return staying

    def _accept(self, arrivals: Sequence[_Arrival], result: Result) -> list[_Accepted]:
        options = self._rules
        decoded: list[tuple[_Arrival, AcceptedTransaction]] = []
        values = [arrival.record.value for arrival in arrivals]
        plain = accepted_at_once(values, options.rates) if len(values) > FEW else repeat(None)
        for arrival, found in zip(arrivals, plain, strict=False):
            record, item = arrival.record, found
            stamp_us = record.timestamp_ms * 1_000
            if item is None or item.event_time_us > stamp_us + options.future_tolerance_us:
                try:
                    item = decode_transaction(
                        record.value,
                        record_timestamp_us=stamp_us,
                        future_tolerance_us=options.future_tolerance_us,
                        rates=options.rates,
                    )
                except InvalidMessage as error:
                    result.dead_letter(record, "card", error.code, str(error))
                    continue
            decoded.append((arrival, item))
        staying = self._staying(decoded, [item.card_id for _, item in decoded], result)
        digests = [transaction_digest(item.card_id, item.transaction_id) for _, item in staying]
        here: dict[bytes, Placed] = {}
        accepted: list[_Accepted] = []
        again: list[bytes] = []
        for (arrival, item), digest, before in zip(staying, digests, self._index.find(digests), strict=True):
            known = here.get(digest, before)
            if known is not None and self._repeats(known):
                result.counts["duplicate", ""] += 1
                continue
            self._newest_us = max(self._newest_us, item.event_time_us)
            placed = here[digest] = Placed(item.merchant_id, item.event_time_us, self._newest_us)
            accepted.append(_Accepted(arrival, item, digest, placed))
            if known is not None:
                again.append(digest)
        self._index.add([(one.digest, one.placed) for one in accepted], again)
        return accepted

    def _repeats(self, known: Placed) -> bool:
        """Whether the same transaction, now, is one that is remembered as ``known``."""
        return (
            self._newest_us - known.newest_us <= self._rules.dedup_horizon_us
            and day_of(known.newest_us) >= self._forgotten_day()
        )

    def _profile(self, accepted: Sequence[_Accepted], now: datetime | None, result: Result) -> None:
        taken = [one.item for one in accepted]
        profile = self._windows.profile(
            [item.card_id for item in taken],
            [item.merchant_id for item in taken],
            np.array([item.event_time_us for item in taken], np.int64),
            np.array([item.amount_base_minor for item in taken], np.int64),
            np.array([item.counts for item in taken], np.bool_),
            np.array([item.hour for item in taken], np.float64),
            np.array([item.weekday for item in taken], np.float64),
        )
        result.counts["accepted", ""] += len(accepted)
        awaited = set(self._waiting.awaited([one.digest for one in accepted]))
        values = None if now is None else encoded(self._written(accepted, profile, now))
        if values is None and not awaited:
            return
        for one in accepted:
            if values is not None:
                result.outputs.append(Output(PROFILED, one.item.merchant_id.encode(), next(values)))
            if one.digest in awaited:
                self._let_follow(one, result)

    def _written(self, accepted: Sequence[_Accepted], profile: CardProfile, now: datetime) -> Iterator[Any]:
        """Profiled transactions for the encoder."""
        taken = [one.item for one in accepted]
        features = profile.features.astype("<f8", copy=False)
        packed, width = features.tobytes(), 8 * features.shape[1]
        case_starts_s = (profile.case_start_us // 1_000_000).tolist()
        columns: dict[str, Iterable[Any]] = {
            "transaction_id": [item.transaction_id for item in taken],
            "card_id": [item.card_id for item in taken],
            "merchant_id": [item.merchant_id for item in taken],
            "event_time_us": [item.event_time_us for item in taken],
            "amount_base_minor": [item.amount_base_minor for item in taken],
            "rates_version": repeat(self._rules.rates.version),
            "counts": [item.counts for item in taken],
            "card_features": [packed[start : start + width] for start in range(0, len(packed), width)],
            "kernel": repeat(KERNEL_VERSION),
            "case_id": [f"{item.card_id}-{start_s}" for item, start_s in zip(taken, case_starts_s, strict=True)],
            "case_sequence": profile.case_sequence.tolist(),
            "source": [self._written_place(one.arrival.record) for one in accepted],
            "ingested_at": repeat(msgspec.Raw(_encode(now))),
            "transaction": [msgspec.Raw(one.arrival.record.value or b"") for one in accepted],
            "read": [
                None if one.arrival.read is one.arrival.record else self._written_place(one.arrival.read)
                for one in accepted
            ],
        }
        return written(ProfiledTransaction, columns)

    def _let_follow(self, one: _Accepted, result: Result) -> None:
        """Apply the labels that waited for a transaction, and that have not been given up by their times."""
        for waiting in self._waiting.items(one.digest):
            known = _kept(waiting)
            if self._finds(one.placed, known.known_at_us):
                self._waiting.remove(waiting)
                self._apply(known, one.digest, one.placed, result)

    def _take_labels(self, arrivals: Sequence[_Arrival], result: Result) -> None:
        decoded: list[tuple[_Arrival, Label]] = []
        for arrival in arrivals:
            record = arrival.record
            try:
                label = decode_label(
                    record.value,
                    record_timestamp_us=record.timestamp_ms * 1_000,
                    future_tolerance_us=self._rules.future_tolerance_us,
                )
            except InvalidMessage as error:
                result.dead_letter(record, "card", error.code, str(error))
                continue
            decoded.append((arrival, label))
        taken: list[tuple[bytes, _Known]] = []
        for arrival, label in self._staying(decoded, [label.card_id for _, label in decoded], result):
            known_at_us = max(timestamp_us(label.labelled_at), arrival.record.timestamp_ms * 1_000)
            digest = transaction_digest(label.card_id, label.transaction_id)
            taken.append((digest, _Known(arrival.record, label, known_at_us)))
        digests = list(dict.fromkeys(digest for digest, _ in taken))
        found = dict(zip(digests, self._index.find(digests), strict=True))
        for digest, known in taken:
            placed = found[digest]
            if placed is not None and self._finds(placed, known.known_at_us):
                self._apply(known, digest, placed, result)
            else:
                self._waiting.add(digest, known.known_at_us, _pack_record(known.record))
                late = placed is not None and self._remembers(placed) and self._is_late(placed, known.known_at_us)
                result.counts["label", "too_late" if late else "early"] += 1

    def _remembers(self, placed: Placed) -> bool:
        return day_of(placed.newest_us) >= self._forgotten_day()

    def _is_late(self, placed: Placed, known_at_us: int) -> bool:
        return known_at_us - placed.event_time_us > self._rules.label_horizon_us

    def _finds(self, placed: Placed, known_at_us: int) -> bool:
        """Whether a label finds its transaction: a rule on times, whichever of the two is read first.

        A label that has been set aside before a late transaction came, or that came after its transaction was
        forgotten, finds none either where a fold meets them the other way round.
        """
        return (
            self._remembers(placed)
            and placed.newest_us - EARLY_LABEL_PATIENCE_US
            <= known_at_us
            <= placed.event_time_us + self._rules.label_horizon_us + EARLY_LABEL_PATIENCE_US
        )

    def _apply(self, item: _Known, digest: bytes, placed: Placed, result: Result) -> None:
        label = item.label
        if self._is_late(placed, item.known_at_us):
            result.counts["label", "too_late"] += 1
            return
        before = NOTHING if placed.label is None else placed.label.known
        state, outcome = resolve(placed.label, label)
        result.counts["label", outcome] += 1
        if state != placed.label:
            placed.label = state
            self._index.change(digest, placed)
        if state.known == before:
            return
        message = ProfiledLabel(
            transaction_id=label.transaction_id,
            card_id=label.card_id,
            merchant_id=placed.merchant_id,
            event_time_us=placed.event_time_us,
            known=state.known,
            known_at_us=item.known_at_us,
            source=self._place(item.record),
            label=msgspec.Raw(item.record.value or b""),
        )
        result.outputs.append(Output(PROFILED, placed.merchant_id.encode(), _encode(message)))

    def _give_up_waiting(self, result: Result) -> None:
        for waiting in self._waiting.take_older(self._newest_us - EARLY_LABEL_PATIENCE_US, GIVE_UP_AT_MOST):
            item = _kept(waiting)
            result.counts["label", "unknown_transaction"] += 1
            why = not_joined(item.label.transaction_id, item.label.card_id, self._rules.label_horizon_us)
            result.dead_letter(item.record, "card", NO_TRANSACTION, why)

    def _forgotten_day(self) -> int:
        """The first day of acceptance that is remembered; what lies before is as if it were not there.

        It lies so far behind both horizons that a label which finds nothing because of it has long waited in vain.
        """
        horizon_us = max(self._rules.dedup_horizon_us, self._rules.label_horizon_us)
        return max(self._first_day, day_of(self._newest_us - horizon_us - 2 * EARLY_LABEL_PATIENCE_US))

    def _written_place(self, record: Record) -> Any:
        return positional(RecordPosition)(self._bare[record.topic], record.partition, record.offset)

    def _place(self, record: Record) -> RecordPosition:
        return RecordPosition(topic=self._bare[record.topic], partition=record.partition, offset=record.offset)


def not_joined(transaction_id: str, card_id: str, label_horizon_us: int) -> str:
    """What the dead letter of a label says that has waited in vain."""
    return (
        f"no transaction {transaction_id!r} of card {card_id!r} is known that the label can be joined to: check both "
        "identifiers and send it again, unless the transaction happened more than "
        f"{label_horizon_us / US_PER_DAY:g} days before, which is too long"
    )


def _kept(waiting: Waiting) -> _Known:
    record = _unpack_record(waiting.payload)
    return _Known(record, _decode_kept_label(record.value or b""), waiting.at_us)
