"""Writes records of the topics into the database, as far as the console needs them."""

import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final

import msgspec

from pipeline.console.case_events import EARLIEST_US, FORGOTTEN, LATEST_US
from pipeline.console.cases import choose_companion, cutoff_us, decode_event, note_known
from pipeline.console.tables import row_id
from pipeline.settings import Settings
from schemas.codec import decode_label, timestamp_us
from schemas.errors import UNREADABLE, InvalidMessage
from schemas.messages import Alert, Decision, RecordPosition, Timestamp
from schemas.records import Record
from schemas.times import US_PER_SECOND
from schemas.topics import ALERTS, CASE_EVENTS, DECISIONS, TRANSACTIONS

log = logging.getLogger(__name__)

_MOST_AMOUNT: Final = 1e15
_MOST_WHOLE: Final = 2**31
"""Partitions and rows from here on are no position of a log."""


class _DecisionHead(msgspec.Struct, frozen=True, gc=False):
    """The fields of a decision that a timeline shows."""

    transaction_id: str
    card_id: str
    merchant_id: str
    event_time: Timestamp
    amount: Decimal
    currency: str
    amount_base: float
    score: float
    action: str
    source: RecordPosition
    case_id: str
    selection: str | None = None


_LONGEST: Final = {"case_id": 300, "card_id": 256, "transaction_id": 256, "alert_id": 256}
"""Most characters of what identifies an alert, as `CaseEvent` and `Label` have it."""
_INSERT_ALERT: Final = "INSERT OR IGNORE INTO alerts VALUES (" + ", ".join("?" * 21) + ")"  # noqa: S608
_decode_head: Final = msgspec.json.Decoder(_DecisionHead).decode
_decode_decision: Final = msgspec.json.Decoder(Decision).decode
_decode_alert: Final = msgspec.json.Decoder(Alert).decode


def _checked_us(time: datetime) -> int:
    """Return a time in microseconds since 1970; raises InvalidMessage where no page could show it."""
    time_us = timestamp_us(time)
    if not EARLIEST_US <= time_us < LATEST_US:
        raise InvalidMessage("event_time_impossible", "A time is not between 1970 and 2200.")
    return time_us


def _bounded(amount: float) -> float:
    """Return an amount within bounds, so that no sum is infinite: a case with an absurd one is shown like others."""
    return min(max(amount, -_MOST_AMOUNT), _MOST_AMOUNT)


def _check_identifiers(alert: Alert) -> None:
    """Raise InvalidMessage where no event could name an alert's case, or no label its transaction."""
    for name, longest in _LONGEST.items():
        if not 0 < len(getattr(alert, name)) <= longest:
            raise InvalidMessage(f"{name}_length", f"{name} is empty, or has more than {longest} characters.")


def position_text(position: RecordPosition) -> str:
    """Return a position as text, which identifies a decision."""
    return f"{position.topic}/{position.partition}/{position.offset}/{position.row or 0}"


class BatchWriter:
    """Inserts records through one connection, within the transaction that the caller began.

    Args:
        connection: Writes to the database.
        settings: Say what the topics of labels speak for, and how far a label may be ahead.
        blind_key: Key that chooses blind cases.
    """

    def __init__(self, connection: sqlite3.Connection, settings: Settings, blind_key: bytes) -> None:
        self._connection, self._key, self._prefix = connection, blind_key, settings.topic_prefix
        self._sources, self._tolerance_us = settings.label_sources, round(settings.future_tolerance_s * US_PER_SECOND)
        self.refused: Counter[str] = Counter()
        """Records that could not be read, by topic without prefix."""
        self.decisions = 0
        """Decisions that were read."""
        self.stream_us = 0
        """Newest event time of a decision or alert."""
        self.broker_us = 0
        """Newest time of an event's record."""
        self.oldest_label_us = 2**63 - 1
        """Least ``known_us`` of the labels of the last batch."""
        self.forgotten = {card_id for (card_id,) in connection.execute("SELECT card_id FROM forgotten")}
        """Cards of which nothing may stay."""
        self.to_delete: set[str] = set()
        """Those of them of which something was inserted, or was there before."""

    def write(self, records: Iterable[Record]) -> set[str]:
        """Insert records, in the order of their logs.

        Returns:
            The cases to which something was added.
        """
        by_topic: dict[str, list[Record]] = {}
        for record in records:
            by_topic.setdefault(record.topic.removeprefix(self._prefix), []).append(record)
        self.oldest_label_us = 2**63 - 1
        touched: set[str] = set()
        if found := by_topic.pop(DECISIONS.name, None):
            touched |= self._decisions(found)
        for name, insert in ((ALERTS.name, self._alert), (CASE_EVENTS.name, self._event)):
            touched |= self._each(name, by_topic.pop(name, []), insert)
        for name, found in by_topic.items():
            touched |= self._each(name, found, self._label)
        return touched

    def _each(self, topic: str, records: Sequence[Record], insert: Callable[[Record], Iterable[str]]) -> set[str]:
        touched: set[str] = set()
        for record in records:
            try:
                touched.update(insert(record))
            except (*UNREADABLE, InvalidMessage, OverflowError) as error:
                self._refuse(topic, record, error)
        return touched

    def _refuse(self, topic: str, record: Record, error: Exception) -> None:
        self.refused[topic] += 1
        if self.refused[topic] == 1:
            log.warning(
                "%s partition %d: offset %d cannot be read and is passed over, as are later ones (%s)",
                record.topic, record.partition, record.offset, type(error).__name__,
            )  # fmt: skip

    def _check_forgotten(self, card_id: str) -> None:
        """Note a card to delete; its alerts are inserted first: the choice of blind cases depends on all."""
        if card_id in self.forgotten:
            self.to_delete.add(card_id)

    def _event_us(self, record: Record, event_time: datetime) -> int:
        """Return an event time, which no record can be far ahead of: everything older than the newest one is dropped.

        Raises:
            InvalidMessage: It is impossible, or later than its record by more than is tolerated. Under a simulated
                clock the record, which whoever decided stamped with its own clock, is far later.
        """
        event_us = _checked_us(event_time)
        if event_us > record.arrived_us + self._tolerance_us:
            raise InvalidMessage("event_time_in_future", "The event time is later than the record.")
        return event_us

    def _decisions(self, records: Sequence[Record]) -> set[str]:
        rows: list[tuple[int, str, str, str, int, str, str, float, float, str, str]] = []
        bodies: list[tuple[object, ...]] = []
        touched: set[str] = set()
        ends: dict[int, int] = {}
        for record in records:
            try:
                head = _decode_head(record.value or b"")
                event_us, body = self._event_us(record, head.event_time), None
                if head.selection is not None:
                    body = _decode_decision(record.value or b"")
                    _checked_us(body.ingested_at), _checked_us(body.decided_at)
            except (*UNREADABLE, InvalidMessage) as error:
                self._refuse(DECISIONS.name, record, error)
                continue
            number, source = row_id(record.partition, record.offset), head.source
            rows.append((
                number, head.transaction_id, head.card_id, head.merchant_id, event_us, str(head.amount), head.currency,
                _bounded(head.amount_base), head.score, head.action, head.case_id,
            ))  # fmt: skip
            self.stream_us = max(self.stream_us, event_us)
            self._check_forgotten(head.card_id)
            if source.topic == TRANSACTIONS.name and source.partition < _MOST_WHOLE:
                ends[source.partition] = max(ends.get(source.partition, 0), source.offset)
            if body is not None:
                bodies.append((number, head.case_id, position_text(source), event_us, record.value))
                touched.add(head.case_id)
        self.decisions += len(rows)
        oldest_us = cutoff_us(self.stream_us)
        self._connection.executemany(
            "INSERT OR IGNORE INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [row for row in rows if row[4] >= oldest_us],
        )
        self._connection.executemany("INSERT OR IGNORE INTO decision_bodies VALUES (?, ?, ?, ?, ?)", bodies)
        self._connection.executemany(
            "INSERT INTO source_ends VALUES (?, ?) "
            "ON CONFLICT (partition) DO UPDATE SET behind = max(behind, excluded.behind)",
            [(partition, min(last + 1, 2**63 - 1)) for partition, last in ends.items()],
        )
        return touched

    def _alert(self, record: Record) -> Iterable[str]:
        alert = _decode_alert(record.value or b"")
        _check_identifiers(alert)
        event_us, raised_us = self._event_us(record, alert.event_time), _checked_us(alert.raised_at)
        on_log = (alert.log.partition, alert.log.offset, alert.log.row)
        if min(on_log) < 0 or max(alert.log.partition, alert.log.row) >= _MOST_WHOLE:
            on_log = (-1, -1, -1)
        self.stream_us = max(self.stream_us, event_us)
        self._check_forgotten(alert.card_id)
        reason = max(alert.reasons, key=lambda reason: reason.contribution, default=None)
        number, case_id = row_id(record.partition, record.offset), alert.case_id
        choose_companion(self._connection, self._key, record.partition, case_id, alert.selection)
        self._connection.execute(
            _INSERT_ALERT,
            (
                number, alert.alert_id, case_id, alert.card_id, alert.transaction_id, alert.merchant_id,
                event_us, raised_us, _bounded(alert.amount_base), alert.base_currency,
                _bounded(alert.severity), alert.selection, reason.sentence if reason else "",
                reason.contribution if reason else 0.0, position_text(alert.source), *on_log, on_log[1] < 0, None,
                record.value,
            ),
        )  # fmt: skip
        note_known(self._connection, alert.transaction_id, alert.card_id)
        named = {
            "case": case_id,
            "card": alert.card_id,
            "merchant_id": alert.merchant_id,
            "transaction": alert.transaction_id,
        }
        self._connection.executemany(
            "INSERT OR IGNORE INTO identifiers VALUES (?, ?, ?)",
            [(value, field, case_id) for field, value in named.items()],
        )
        return (case_id,)

    def _event(self, record: Record) -> Iterable[str]:
        event = decode_event(record.value or b"")
        for time in (event.at, event.until):
            if time is not None:
                _checked_us(time)
        if record.arrived_us >= LATEST_US:
            raise InvalidMessage("event_time_impossible", "The record's time is not between 1970 and 2200.")
        self.broker_us = max(self.broker_us, record.arrived_us)
        if event.kind == FORGOTTEN:
            self._connection.execute("INSERT OR IGNORE INTO forgotten VALUES (?)", (event.card_id,))
            self.forgotten.add(event.card_id)
            self.to_delete.add(event.card_id)
            return ()
        self._check_forgotten(event.card_id)
        number = row_id(record.partition, record.offset)
        self._connection.execute(
            "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?)",
            (number, event.event_id, event.case_id, event.card_id, record.arrived_us, record.value),
        )
        return (event.case_id,)

    def _label(self, record: Record) -> Iterable[str]:
        topic = record.topic.removeprefix(self._prefix)
        label = decode_label(
            record.value, record_timestamp_us=record.arrived_us, future_tolerance_us=self._tolerance_us
        )
        self._sources.check(topic, label.source)
        self._check_forgotten(label.card_id)
        known_us = max(timestamp_us(label.labelled_at), record.arrived_us)
        self.oldest_label_us = min(self.oldest_label_us, known_us)
        self._connection.execute(
            "INSERT OR IGNORE INTO labels VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                topic, record.partition, record.offset, label.card_id, label.transaction_id, label.label_id, known_us,
                record.value,
            ),
        )  # fmt: skip
        return note_known(self._connection, label.transaction_id, label.card_id)
