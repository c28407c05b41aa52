"""The feedback agent's kernel: joins what a transaction turned out to be to the features that it was scored with."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, Self

import msgspec
import numpy as np

from pipeline.engine.kept import DecisionPacker, read_decision, unpack_decision
from pipeline.engine.layout import LAYOUT, OtherLayout, day_of, decode_values, transaction_digest
from pipeline.engine.placement import partition_of
from pipeline.engine.rerouting import NotRerouted, original
from pipeline.engine.results import Result
from pipeline.engine.served import Known, Served, ServedDecisions, ServedState
from pipeline.engine.state import LoadedState, StateDump, Store
from pipeline.engine.waiting import WaitingRoom, WaitingState
from pipeline.features.catalogue import US_PER_DAY
from pipeline.features.identity import transaction_hash
from pipeline.learning.labels import LEGITIMATE, NOTHING, resolve
from pipeline.learning.sampling import keep_negative, keep_negatives
from schemas.codec import EARLIEST_US, LATEST_US, decode_label, timestamp_us
from schemas.errors import UNREADABLE, InvalidMessage
from schemas.messages import Example, FeedbackRules, Label
from schemas.records import Output, Record
from schemas.topics import DECISIONS, EXAMPLES, LABELS, REROUTED, TRANSACTIONS

_encode = msgspec.json.Encoder().encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PATIENCE_US: Final = 7 * US_PER_DAY
"""How long, in event time, a label waits for its decision; the card agent is who sets it aside."""
PRESUME_AT_MOST: Final = 5_000
"""Transactions that one batch presumes legitimate; more of them are left to the batches that follow."""
GIVE_UP_AT_MOST: Final = 5_000
"""Labels that one batch gives up; likewise."""
_FORGET_AT_LEAST: Final = 64


class FeedbackOptions(NamedTuple):
    """What the feedback kernel must be told."""

    future_tolerance_us: int
    label_horizon_us: int
    maturity_us: int
    negative_sample_rate: float
    partitions: int
    """How many partitions ``labels`` has, and so ``rerouted`` and ``decisions``."""
    topic_prefix: str = ""

    @property
    def rules(self) -> FeedbackRules:
        """What of it decides how a record is judged; a fold must judge alike."""
        return FeedbackRules(
            future_tolerance_us=self.future_tolerance_us,
            label_horizon_us=self.label_horizon_us,
            maturity_us=self.maturity_us,
            negative_sample_rate=self.negative_sample_rate,
        )

    def under(self, rules: FeedbackRules) -> Self:
        """As it was under other ``rules``."""
        return self._replace(
            future_tolerance_us=rules.future_tolerance_us,
            label_horizon_us=rules.label_horizon_us,
            maturity_us=rules.maturity_us,
            negative_sample_rate=rules.negative_sample_rate,
        )


class _Values(msgspec.Struct):
    layout: int
    newest_us: int
    served: ServedState
    waiting: WaitingState
    first_day: int = 0


_DECODER: Final = msgspec.msgpack.Decoder(_Values)


_decode_kept_label = msgspec.json.Decoder(Label).decode


class FeedbackPartition:
    """State of one partition of ``decisions`` and of the same partition of ``labels`` and ``rerouted``."""

    def __init__(self, options: FeedbackOptions, store: Store, loaded: LoadedState | None = None) -> None:
        """Start empty, or from a dump; then ``store`` holds what the dumped partition's store held.

        Raises `OtherLayout` where another release has made the dump.
        """
        # Those in force, and those of the batch that is being worked on.
        self._options = self._rules = options
        self._store = store
        self._decisions = options.topic_prefix + DECISIONS.name
        self._labels = options.topic_prefix + LABELS.name
        self._rerouted = options.topic_prefix + REROUTED.name
        self._transactions = options.topic_prefix + TRANSACTIONS.name
        values = None if loaded is None else decode_values(loaded.values, _DECODER)
        if values is not None and values.layout != LAYOUT:
            raise OtherLayout(f"the saved state has layout {values.layout}, not {LAYOUT}; fold it from the log")
        self._newest_us = self._settled_newest_us = 0 if values is None else values.newest_us
        # Only grows, whatever the rules become: what was forgotten under a short horizon stays forgotten under a longer
        # one, and nothing is filed where deleting has passed by.
        self._first_day = self._settled_first_day = 0 if values is None else values.first_day
        self._served = ServedDecisions(store, values.served if values else None)
        self._waiting = WaitingRoom(store, values.waiting if values else None)
        self._packer = DecisionPacker()

    def process(
        self, records: Sequence[Record], now: datetime | None, options: FeedbackOptions | None = None
    ) -> Result:
        """File decisions, join labels, and presume what has matured; examples are the outputs.

        ``records`` are one partition's, of ``labels``, ``rerouted`` and ``decisions``, each in offset order; decisions
        come before labels, whatever the order. ``now`` None only updates the state (a fold) and emits nothing.
        ``options``, if given, take the place of the kernel's own for this batch: a fold hands over those under which it
        was judged live.
        """
        self._rules = self._options if options is None else options
        result = Result()
        emit = now is not None
        self._file([record for record in records if record.topic == self._decisions], result, emit)
        self._take_labels([record for record in records if record.topic != self._decisions], result, emit)
        self._presume_matured(result, emit)
        given_up = self._waiting.take_older(self._newest_us - PATIENCE_US, GIVE_UP_AT_MOST)
        if given_up:
            result.counts["label", "unknown_transaction"] += len(given_up)
        self._first_day = self._forgotten_day()
        self._served.forget_before(self._first_day, 2 * len(records) + _FORGET_AT_LEAST)
        return result

    def settle(self) -> None:
        """The batch is committed."""
        self._store.settle()
        self._served.settle()
        self._waiting.settle()
        self._settled_newest_us, self._settled_first_day = self._newest_us, self._first_day

    def undo(self) -> None:
        """The batch is not committed: take it back."""
        self._store.undo()
        self._served.undo()
        self._waiting.undo()
        self._newest_us, self._first_day = self._settled_newest_us, self._settled_first_day

    def dump(self, *, full: bool = False) -> StateDump:
        """Copy the settled state: all of it is small, or in the store."""
        del full
        values = _Values(LAYOUT, self._newest_us, self._served.state, self._waiting.state, self._first_day)
        return StateDump(msgspec.msgpack.encode(values), {}, self._store.freeze())

    def close(self) -> None:
        """Let go of the state."""
        self._store.close()

    def _file(self, records: Sequence[Record], result: Result, emit: bool) -> None:
        rate, maturity_us = self._rules.negative_sample_rate, self._rules.maturity_us
        digests, times_us, identities, kept = [], [], [], []
        for record in records:
            try:
                decision = read_decision(record.value or b"")
                event_time_us = timestamp_us(decision.event_time)
                if not EARLIEST_US <= event_time_us < LATEST_US:
                    raise ValueError(f"event_time is {decision.event_time}, which is not between 1990 and 2100")
            except (*UNREADABLE, ValueError) as error:
                result.unreadable(record, "feedback", error)
                continue
            if event_time_us > self._newest_us:
                self._newest_us = event_time_us
            # Most are the newest of all, and not forgotten for that.
            elif day_of(event_time_us) < self._forgotten_day():
                continue
            digests.append(transaction_digest(decision.card_id, decision.transaction_id))
            times_us.append(event_time_us)
            identities.append(transaction_hash(decision.card_id, decision.transaction_id))
            kept.append(decision)
        for digest, event_time_us, packed in zip(digests, times_us, self._packer.pack(kept), strict=True):
            self._served.file(digest, event_time_us, packed)
        for i in np.flatnonzero(keep_negatives(np.array(identities, np.uint64), rate)).tolist():
            self._served.let_mature(digests[i], times_us[i] + maturity_us, rate)
        awaited = list(dict.fromkeys(self._waiting.awaited(digests)))
        for digest, served in zip(awaited, self._find(awaited), strict=True):
            if served is None:
                continue
            for item in self._waiting.items(digest):
                self._waiting.remove(item)
                self._join(digest, served, _decode_kept_label(item.payload), item.at_us, result, emit)

    def _take_labels(self, records: Sequence[Record], result: Result, emit: bool) -> None:
        taken: list[tuple[bytes, Label, int, bytes]] = []
        for read in records:
            try:
                record = self._original(read)
                if record is None:
                    continue
                label = decode_label(
                    record.value,
                    record_timestamp_us=record.timestamp_ms * 1_000,
                    future_tolerance_us=self._rules.future_tolerance_us,
                )
            except (InvalidMessage, NotRerouted):
                # The card agent reads the same topics and sets the record aside with its reason.
                result.counts["label", "invalid"] += 1
                continue
            if partition_of(label.card_id, self._rules.partitions) != read.partition:
                # The card agent passes it on, and it is read again where its decision lies.
                result.counts["label", "rerouted"] += 1
                continue
            known_at_us = max(timestamp_us(label.labelled_at), record.timestamp_ms * 1_000)
            digest = transaction_digest(label.card_id, label.transaction_id)
            taken.append((digest, label, known_at_us, record.value or b""))
        digests = list(dict.fromkeys(digest for digest, _, _, _ in taken))
        found = dict(zip(digests, self._find(digests), strict=True))
        for digest, label, known_at_us, value in taken:
            served = found[digest]
            if served is None:
                self._waiting.add(digest, known_at_us, value)
                result.counts["label", "early"] += 1
            else:
                self._join(digest, served, label, known_at_us, result, emit)

    def _original(self, read: Record) -> Record | None:
        """The label as its producer wrote it; None for a transaction that was passed on."""
        if read.topic != self._rerouted:
            return read
        record = original(read, (self._transactions, self._labels))
        return record if record.topic == self._labels else None

    def _find(self, digests: Sequence[bytes]) -> list[Served | None]:
        first = self._forgotten_day()
        return [
            None if served is None or day_of(served.event_time_us) < first else served
            for served in self._served.find(digests)
        ]

    def _join(self, digest: bytes, served: Served, label: Label, known_at_us: int, result: Result, emit: bool) -> None:
        event_time_us = served.event_time_us
        if known_at_us - event_time_us > self._rules.label_horizon_us:
            result.counts["label", "too_late"] += 1
            return
        known = self._served.known(digest)
        rate = self._rules.negative_sample_rate
        sampled = keep_negative(transaction_hash(label.card_id, label.transaction_id), rate)
        if known.told == 0 and sampled and known_at_us > event_time_us + self._rules.maturity_us:
            # By the times alone it had been presumed legitimate before: the same on every fold.
            known.told = 1
        before = NOTHING if known.state is None else known.state.known
        known.state, outcome = resolve(known.state, label)
        result.counts["label", outcome] += 1
        now_known = known.state.known
        if now_known not in (before, NOTHING):
            if now_known == LEGITIMATE and known.told == 0 and not sampled:
                result.counts["label", "not_sampled"] += 1
            else:
                # A correction replaces an example that is there for certain; a first one stands for 1 / rate.
                weight = 1.0 / rate if now_known == LEGITIMATE and sampled else 1.0
                self._tell(served, known, now_known, label.source, known_at_us, weight, result, emit)
        self._served.learn(digest, known)

    def _presume_matured(self, result: Result, emit: bool) -> None:
        matured = self._served.take_matured(self._newest_us, PRESUME_AT_MOST)
        for one, served in zip(matured, self._find([one.digest for one in matured]), strict=True):
            if served is None:
                continue
            known = self._served.known(one.digest)
            if known.told or (known.state is not None and known.state.known != NOTHING):
                continue
            self._tell(served, known, "presumed_legitimate", None, one.at_us, 1.0 / one.rate, result, emit)
            self._served.learn(one.digest, known)

    def _tell(
        self,
        served: Served,
        known: Known,
        label: str,
        source: str | None,
        known_at_us: int,
        weight: float,
        result: Result,
        emit: bool,
    ) -> None:
        known.told += 1
        result.counts["example", label] += 1
        if not emit:
            return
        try:
            taken = unpack_decision(served.decision)
            named = taken.named_features()
        except (*UNREADABLE, ValueError):
            # A decision that no score agent wrote; which it was is no longer known.
            result.counts["example", label] -= 1
            result.counts["label", "unreadable_decision"] += 1
            return
        example = Example(
            transaction_id=taken.transaction_id,
            card_id=taken.card_id,
            merchant_id=taken.merchant_id,
            event_time=taken.event_time,
            amount_base=taken.amount_base,
            label=label,
            label_source=source,
            known_at=_EPOCH + timedelta(microseconds=known_at_us),
            weight=weight,
            revision=known.told - 1,
            features=named,
            logit=taken.logit,
            score=taken.score,
            versions=taken.versions,
            log=taken.log,
        )
        result.outputs.append(Output(EXAMPLES, taken.card_id.encode(), _encode(example)))

    def _forgotten_day(self) -> int:
        """The first day of event time that is remembered; what lies before is as if it were not there."""
        horizon_us = max(self._rules.label_horizon_us, self._rules.maturity_us)
        return max(self._first_day, day_of(self._newest_us - horizon_us - PATIENCE_US))
