"""The card agent's kernel: validates transactions, profiles them by card, and lets labels follow them."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec
import numpy as np

from pipeline.engine.results import Result
from pipeline.features.catalogue import KERNEL_VERSION, US_PER_DAY
from pipeline.features.kernel import CardWindows
from pipeline.learning.labels import LabelState, resolve
from schemas.codec import AcceptedTransaction, decode_label, decode_transaction, timestamp_us
from schemas.errors import InvalidMessage
from schemas.messages import Label, ProfiledLabel, ProfiledTransaction, SourceRecord
from schemas.money import RateTable
from schemas.records import Output, Record
from schemas.topics import PROFILED

EPISODE_US = US_PER_DAY
"""A case gathers a card's transactions from its first one on for this long."""
EARLY_LABEL_PATIENCE_US = 7 * US_PER_DAY
"""How long, in event time, a label waits for its transaction before it becomes a dead letter."""

_encode = msgspec.json.Encoder(decimal_format="number").encode


class CardOptions(NamedTuple):
    """What the card kernel must be told."""

    rates: RateTable
    future_tolerance_us: int
    dedup_horizon_us: int
    label_horizon_us: int
    topic_prefix: str = ""


class _Placed(msgspec.Struct):
    """What is remembered of an accepted transaction within the horizons."""

    merchant_id: str
    event_time_us: int
    offset: int
    newest_us: int
    """How far the event time of its partition had come when it was accepted."""
    label: LabelState | None = None


class _Waiting(NamedTuple):
    """A label that came before its transaction."""

    record: Record
    label: Label
    known_at_us: int


class CardPartition:
    """State of one partition of ``transactions`` and of the same partition of ``labels``.

    Updates from transactions and from labels commute: no order between the two topics needs recording.
    """

    def __init__(self, options: CardOptions) -> None:
        self._options = options
        self._windows = CardWindows()
        self._placed: dict[tuple[str, str], _Placed] = {}
        self._placed_by_day: dict[int, list[tuple[str, str]]] = {}
        self._waiting: dict[tuple[str, str], list[_Waiting]] = {}
        self._episodes: dict[str, tuple[int, int]] = {}
        self._newest_us = 0

    def process(self, transactions: Sequence[Record], labels: Sequence[Record], now: datetime | None) -> Result:
        """Profile a batch; ``now`` is stamped as ``ingested_at``, None only updates the state (a fold)."""
        result = Result()
        accepted = self._accept(transactions, result)
        if accepted:
            self._profile(accepted, now, result)
        for record in labels:
            self._take_label(record, result)
        self._give_up_waiting(result)
        self._expire()
        return result

    def _accept(self, records: Sequence[Record], result: Result) -> list[tuple[Record, AcceptedTransaction]]:
        options, accepted = self._options, []
        for record in records:
            try:
                taken = decode_transaction(
                    record.value,
                    record_timestamp_us=record.timestamp_ms * 1_000,
                    future_tolerance_us=options.future_tolerance_us,
                    rates=options.rates,
                )
            except InvalidMessage as error:
                result.dead_letter(record, "card", error.code, str(error))
                continue
            transaction, event_time_us = taken.transaction, taken.event_time_us
            key = (transaction.card_id, transaction.transaction_id)
            placed = self._placed.get(key)
            if placed is not None and self._newest_us - placed.event_time_us <= options.dedup_horizon_us:
                result.counts["duplicate", ""] += 1
                continue
            self._newest_us = max(self._newest_us, event_time_us)
            self._placed[key] = _Placed(transaction.merchant_id, event_time_us, record.offset, self._newest_us)
            self._placed_by_day.setdefault(event_time_us // US_PER_DAY, []).append(key)
            accepted.append((record, taken))
        return accepted

    def _profile(
        self, accepted: Sequence[tuple[Record, AcceptedTransaction]], now: datetime | None, result: Result
    ) -> None:
        taken = [item for _, item in accepted]
        features = self._windows.profile(
            [item.transaction.card_id for item in taken],
            [item.transaction.merchant_id for item in taken],
            np.array([item.event_time_us for item in taken], np.int64),
            np.array([item.amount_base_minor for item in taken], np.int64),
            np.array([item.counts for item in taken], np.bool_),
            np.array([item.hour for item in taken], np.float64),
            np.array([item.weekday for item in taken], np.float64),
        ).features
        rates_version = self._options.rates.version
        packed, width = features.astype("<f8", copy=False).tobytes(), 8 * features.shape[1]
        for i, (record, item) in enumerate(accepted):
            transaction = item.transaction
            case_id, case_sequence = self._episode(transaction.card_id, item.event_time_us)
            if now is not None:
                message = ProfiledTransaction(
                    transaction_id=transaction.transaction_id,
                    card_id=transaction.card_id,
                    merchant_id=transaction.merchant_id,
                    event_time_us=item.event_time_us,
                    amount_base_minor=item.amount_base_minor,
                    rates_version=rates_version,
                    counts=item.counts,
                    card_features=packed[i * width : (i + 1) * width],
                    kernel=KERNEL_VERSION,
                    case_id=case_id,
                    case_sequence=case_sequence,
                    source=self._source(record),
                    ingested_at=now,
                    transaction=msgspec.Raw(record.value or b""),
                )
                result.outputs.append(Output(PROFILED, transaction.merchant_id.encode(), _encode(message)))
            if self._waiting:
                for early in self._waiting.pop((transaction.card_id, transaction.transaction_id), ()):
                    self._place_label(early, result)
        result.counts["accepted", ""] += len(accepted)

    def _episode(self, card_id: str, event_time_us: int) -> tuple[str, int]:
        start_us, sequence = self._episodes.get(card_id, (event_time_us, 0))
        if event_time_us >= start_us + EPISODE_US:
            start_us, sequence = event_time_us, 0
        self._episodes[card_id] = (start_us, sequence + 1)
        return f"{card_id}-{start_us // 1_000_000}", sequence + 1

    def _take_label(self, record: Record, result: Result) -> None:
        try:
            label = decode_label(
                record.value,
                record_timestamp_us=record.timestamp_ms * 1_000,
                future_tolerance_us=self._options.future_tolerance_us,
            )
        except InvalidMessage as error:
            result.dead_letter(record, "card", error.code, str(error))
            return
        labelled_at_us = timestamp_us(label.labelled_at)
        self._place_label(_Waiting(record, label, max(labelled_at_us, record.timestamp_ms * 1_000)), result)

    def _place_label(self, item: _Waiting, result: Result) -> None:
        """Apply a label if it finds its transaction, else let it wait.

        Whether it does is a rule on times, and does not depend on which of the two was read first: a label that live
        was set aside before a late transaction came, or came after its transaction was forgotten, finds none in a fold.
        """
        key = (item.label.card_id, item.label.transaction_id)
        placed = self._placed.get(key)
        if placed is not None and (
            placed.newest_us - EARLY_LABEL_PATIENCE_US
            <= item.known_at_us
            <= placed.event_time_us + self._options.label_horizon_us + EARLY_LABEL_PATIENCE_US
        ):
            self._apply(item, placed, result)
        else:
            self._waiting.setdefault(key, []).append(item)
            result.counts["label", "early"] += 1

    def _apply(self, item: _Waiting, placed: _Placed, result: Result) -> None:
        label = item.label
        if item.known_at_us - placed.event_time_us > self._options.label_horizon_us:
            result.counts["label", "too_late"] += 1
            return
        before = "none" if placed.label is None else placed.label.known
        placed.label, outcome = resolve(placed.label, label)
        result.counts["label", outcome] += 1
        if placed.label.known == before:
            return
        message = ProfiledLabel(
            transaction_id=label.transaction_id,
            card_id=label.card_id,
            merchant_id=placed.merchant_id,
            event_time_us=placed.event_time_us,
            known=placed.label.known,
            known_at_us=item.known_at_us,
            source=self._source(item.record),
            label=msgspec.Raw(item.record.value or b""),
        )
        result.outputs.append(Output(PROFILED, placed.merchant_id.encode(), _encode(message)))

    def _give_up_waiting(self, result: Result) -> None:
        if not self._waiting:
            return
        limit_us = self._newest_us - EARLY_LABEL_PATIENCE_US
        given_up = [item for items in self._waiting.values() for item in items if item.known_at_us < limit_us]
        for item in sorted(given_up, key=lambda item: item.record.offset):
            key = (item.label.card_id, item.label.transaction_id)
            self._waiting[key].remove(item)
            if not self._waiting[key]:
                del self._waiting[key]
            result.counts["label", "unknown_transaction"] += 1
            result.dead_letter(
                item.record,
                "card",
                "label_without_transaction",
                f"no transaction {item.label.transaction_id!r} of card {item.label.card_id!r} is known; "
                "check both identifiers and send the label again",
            )

    def _expire(self) -> None:
        """Forget transactions behind both horizons, whole days at a time."""
        horizon_us = max(self._options.dedup_horizon_us, self._options.label_horizon_us)
        # So late that a label which found one of them would be given up at once: forgetting it does not show.
        limit = (self._newest_us - horizon_us - 2 * EARLY_LABEL_PATIENCE_US) // US_PER_DAY
        for day in [day for day in self._placed_by_day if day < limit]:
            for key in self._placed_by_day.pop(day):
                placed = self._placed.get(key)
                if placed is not None and placed.event_time_us // US_PER_DAY == day:
                    del self._placed[key]

    def _source(self, record: Record) -> SourceRecord:
        return SourceRecord(
            topic=record.topic.removeprefix(self._options.topic_prefix),
            partition=record.partition,
            offset=record.offset,
        )
