"""The feedback agent's kernel: joins what a transaction turned out to be to the features that it was scored with."""

import heapq
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol

import msgspec

from pipeline.engine.results import Result, UnreadableRecord
from pipeline.features.catalogue import US_PER_DAY, US_PER_HOUR
from pipeline.features.identity import transaction_hash
from pipeline.learning.labels import LabelState, resolve
from pipeline.learning.sampling import keep_negative
from schemas.codec import decode_label, timestamp_us
from schemas.errors import InvalidMessage
from schemas.messages import Example, Label, LogPosition, Timestamp, Versions
from schemas.records import Output, Record
from schemas.topics import EXAMPLES

_encode = msgspec.json.Encoder().encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PATIENCE_US = 7 * US_PER_DAY
"""How long, in whole hours of event time, a label waits for its decision; the card agent is who sets it aside."""

Key = tuple[str, str]


class ServedStore(Protocol):
    """Decisions as served, by card and transaction, for as long as a label may come."""

    def put(self, day: int, items: Iterable[tuple[Key, int, bytes]]) -> None:
        """Keep decisions of one day of event time, as (key, event time in microseconds, bytes)."""

    def get(self, key: Key) -> tuple[int, bytes] | None:
        """(event time in microseconds, the decision's own bytes), None where it is not known."""

    def drop_before(self, day: int) -> None:
        """Forget the days before ``day``."""


class FeedbackOptions(NamedTuple):
    """What the feedback kernel must be told."""

    future_tolerance_us: int
    label_horizon_us: int
    maturity_us: int
    negative_sample_rate: float


class _Place(msgspec.Struct, frozen=True):
    """As much of a decision as is needed to file it."""

    transaction_id: str
    card_id: str
    event_time: Timestamp


class _Served(msgspec.Struct, frozen=True):
    """What an example takes over from a decision."""

    transaction_id: str
    card_id: str
    merchant_id: str
    event_time: Timestamp
    amount_base: float
    features: dict[str, float | None]
    logit: float
    score: float
    versions: Versions
    log: LogPosition


class _Known(msgspec.Struct):
    """What is known of a transaction, and how many examples have told it."""

    state: LabelState | None = None
    told: int = 0


_decode_place = msgspec.json.Decoder(_Place).decode
_decode_served = msgspec.json.Decoder(_Served).decode


class FeedbackPartition:
    """State of one partition of ``decisions`` and of the same partition of ``labels``."""

    def __init__(self, options: FeedbackOptions, store: ServedStore) -> None:
        self._options = options
        self._store = store
        self._known: dict[Key, _Known] = {}
        self._known_by_day: dict[int, list[Key]] = {}
        self._waiting: dict[Key, list[tuple[Label, int]]] = {}
        self._maturing: list[tuple[int, Key]] = []
        self._newest_us = 0
        self._expired_hour = 0

    def process(self, decisions: Sequence[Record], labels: Sequence[Record], *, emit: bool = True) -> Result:
        """File decisions, join labels, and presume what has matured; examples are the outputs."""
        result = Result()
        for key in self._file(decisions):
            served = self._store.get(key)
            for label, known_at_us in self._waiting.pop(key, ()):
                if served is not None:
                    self._join(key, served, label, known_at_us, result, emit)
        for record in labels:
            try:
                label = decode_label(
                    record.value,
                    record_timestamp_us=record.timestamp_ms * 1_000,
                    future_tolerance_us=self._options.future_tolerance_us,
                )
            except InvalidMessage:
                # The card agent reads the same topic and sets the record aside with its reason.
                result.counts["label", "invalid"] += 1
                continue
            known_at_us = max(timestamp_us(label.labelled_at), record.timestamp_ms * 1_000)
            key = (label.card_id, label.transaction_id)
            served = self._store.get(key)
            if served is None:
                self._waiting.setdefault(key, []).append((label, known_at_us))
                result.counts["label", "early"] += 1
            else:
                self._join(key, served, label, known_at_us, result, emit)
        self._presume_matured(result, emit)
        self._expire(result)
        return result

    def _file(self, records: Sequence[Record]) -> list[Key]:
        by_day: dict[int, list[tuple[Key, int, bytes]]] = {}
        awaited: list[Key] = []
        for record in records:
            value = record.value or b""
            try:
                place = _decode_place(value)
            except msgspec.MsgspecError as error:
                raise UnreadableRecord(record, error) from error
            key = (place.card_id, place.transaction_id)
            event_time_us = timestamp_us(place.event_time)
            self._newest_us = max(self._newest_us, event_time_us)
            by_day.setdefault(event_time_us // US_PER_DAY, []).append((key, event_time_us, value))
            if keep_negative(transaction_hash(*key), self._options.negative_sample_rate):
                heapq.heappush(self._maturing, (event_time_us + self._options.maturity_us, key))
            if key in self._waiting:
                awaited.append(key)
        for day, items in by_day.items():
            self._store.put(day, items)
        return awaited

    def _join(
        self, key: Key, served: tuple[int, bytes], label: Label, known_at_us: int, result: Result, emit: bool
    ) -> None:
        event_time_us, decision = served
        if known_at_us - event_time_us > self._options.label_horizon_us:
            result.counts["label", "too_late"] += 1
            return
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _Known()
            self._known_by_day.setdefault(event_time_us // US_PER_DAY, []).append(key)
        sampled = keep_negative(transaction_hash(*key), self._options.negative_sample_rate)
        if known.told == 0 and sampled and known_at_us > event_time_us + self._options.maturity_us:
            # By the times alone it had been presumed legitimate before: the same on every fold.
            known.told = 1
        before = "none" if known.state is None else known.state.known
        known.state, outcome = resolve(known.state, label)
        result.counts["label", outcome] += 1
        now_known = known.state.known
        if now_known in (before, "none"):
            return
        if now_known == "legitimate" and known.told == 0 and not sampled:
            result.counts["label", "not_sampled"] += 1
            return
        # A correction replaces an example that is there for certain, a first legitimate one stands for 1 / rate.
        weight = 1.0 / self._options.negative_sample_rate if now_known == "legitimate" and sampled else 1.0
        self._tell(decision, known, now_known, label.source, known_at_us, weight, result, emit)

    def _presume_matured(self, result: Result, emit: bool) -> None:
        while self._maturing and self._maturing[0][0] <= self._newest_us:
            matured_us, key = heapq.heappop(self._maturing)
            known = self._known.get(key)
            if known is not None and (known.told or (known.state is not None and known.state.known != "none")):
                continue
            served = self._store.get(key)
            if served is None:
                continue
            if known is None:
                known = self._known[key] = _Known()
                day = (matured_us - self._options.maturity_us) // US_PER_DAY
                self._known_by_day.setdefault(day, []).append(key)
            weight = 1.0 / self._options.negative_sample_rate
            self._tell(served[1], known, "presumed_legitimate", None, matured_us, weight, result, emit)

    def _tell(
        self,
        decision: bytes,
        known: _Known,
        label: str,
        source: str | None,
        known_at_us: int,
        weight: float,
        result: Result,
        emit: bool,
    ) -> None:
        if emit:
            served = _decode_served(decision)
            example = Example(
                transaction_id=served.transaction_id,
                card_id=served.card_id,
                merchant_id=served.merchant_id,
                event_time=served.event_time,
                amount_base=served.amount_base,
                label=label,
                label_source=source,
                known_at=_EPOCH + timedelta(microseconds=known_at_us),
                weight=weight,
                revision=known.told,
                features=served.features,
                logit=served.logit,
                score=served.score,
                versions=served.versions,
                log=served.log,
            )
            result.outputs.append(Output(EXAMPLES, served.card_id.encode(), _encode(example)))
        result.counts["example", label] += 1
        known.told += 1

    def _expire(self, result: Result) -> None:
        hour = self._newest_us // US_PER_HOUR
        if hour == self._expired_hour:
            return
        # Once an hour of event time: behind a backlog, the labels that wait are many.
        self._expired_hour = hour
        limit_us = hour * US_PER_HOUR - PATIENCE_US
        for key, items in list(self._waiting.items()):
            patient = [item for item in items if item[1] >= limit_us]
            if len(patient) == len(items):
                continue
            result.counts["label", "unknown_transaction"] += len(items) - len(patient)
            if patient:
                self._waiting[key] = patient
            else:
                del self._waiting[key]
        limit = (self._newest_us - self._options.label_horizon_us - PATIENCE_US) // US_PER_DAY
        self._store.drop_before(limit)
        for day in [day for day in self._known_by_day if day < limit]:
            for key in self._known_by_day.pop(day):
                self._known.pop(key, None)
