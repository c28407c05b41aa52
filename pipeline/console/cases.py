"""The facts of a case beyond single records: its sums, whether it is blind, and when it is dropped."""

import hashlib
import hmac
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from pipeline.console.case_events import CLOSED, CaseState, RecordedEvent, replay
from pipeline.console.tables import open_database, partition_range
from pipeline.learning.labels import NOTHING, holding_label, known_value
from pipeline.protection.tokens import CARD_ID
from schemas.messages import CaseEvent, Label
from schemas.times import US_PER_DAY

KEPT_US: Final = 30 * US_PER_DAY
"""Event time for which decisions and closed cases stay."""
AUDIT: Final = "audit"
_RANK_BYTES: Final = 7
"""Bytes of the keyed hash that order blind cases: a whole number for SQLite."""
_INSERT_CASE: Final = "INSERT OR REPLACE INTO cases VALUES (" + ", ".join("?" * 18) + ")"  # noqa: S608
decode_event: Final = msgspec.json.Decoder(CaseEvent).decode
decode_label: Final = msgspec.json.Decoder(Label).decode


def cutoff_us(stream_us: int) -> int:
    """Return the time before which nothing is kept but open cases; it advances by whole days."""
    return stream_us // US_PER_DAY * US_PER_DAY - KEPT_US


def blind_rank(key: bytes, case_id: str) -> int:
    """Return the keyed hash of a case, which orders blind cases and chooses their companions."""
    return int.from_bytes(hmac.digest(key, case_id.encode(), hashlib.sha256)[:_RANK_BYTES])


def json_text(values: Iterable[object]) -> str:
    """Return values as text for SQLite's ``json_each``."""
    return msgspec.json.encode(list(values)).decode()


def labels_in(connection: sqlite3.Connection, transaction_id: str, card_id: str) -> list[sqlite3.Row]:
    """Return topic, ``known_us`` and body of a transaction's labels, the oldest first."""
    return connection.execute(
        "SELECT topic, known_us, body FROM labels WHERE transaction_id = ? AND card_id = ? "
        "ORDER BY known_us, topic, partition, position",
        (transaction_id, card_id),
    ).fetchall()


def events_in(connection: sqlite3.Connection, case_id: str) -> CaseState:
    """Return the state of a case after its events."""
    rows = connection.execute("SELECT body, broker_us FROM events WHERE case_id = ? ORDER BY id", (case_id,))
    return replay(RecordedEvent(decode_event(body), broker_us) for body, broker_us in rows)


def choose_companion(connection: sqlite3.Connection, key: bytes, partition: int, case_id: str, selection: str) -> None:
    """Choose the cases that are blind beside those of audits, as many of them; called before an alert is inserted.

    In the log of its partition, the first audit of a case lets one later case be blind that begins without an audit:
    the next one whose keyed hash is even. So it depends on the log and the key alone, and stays as it is when more
    alerts come.
    """
    lower, upper = partition_range(partition)
    owed = connection.execute("SELECT owed FROM owed_companions WHERE partition = ?", (partition,)).fetchone()
    if selection != AUDIT and (owed is None or not owed[0]):
        return
    which = "AND selection = ?" if selection == AUDIT else ""
    seen = connection.execute(
        f"SELECT 1 FROM alerts WHERE case_id = ? AND id >= ? AND id < ? {which}",  # noqa: S608
        (case_id, lower, upper, *([AUDIT] if which else [])),
    ).fetchone()
    if seen is not None or (selection != AUDIT and blind_rank(key, case_id) % 2):
        return
    change = 1 if selection == AUDIT else -1
    connection.execute(
        "INSERT INTO owed_companions VALUES (?, ?) ON CONFLICT (partition) DO UPDATE SET owed = owed + ?",
        (partition, change, change),
    )
    if change < 0:
        connection.execute("INSERT OR IGNORE INTO companions VALUES (?)", (case_id,))


def note_known(connection: sqlite3.Connection, transaction_id: str, card_id: str) -> list[str]:
    """Note on the alerts of a transaction what its labels say; return their cases."""
    key = (transaction_id, card_id)
    held = holding_label(decode_label(body) for _, _, body in labels_in(connection, *key))
    known = None if held is None or known_value(held.label) == NOTHING else held.label
    query = "UPDATE alerts SET known = ? WHERE transaction_id = ? AND card_id = ? RETURNING case_id"
    return [case_id for (case_id,) in connection.execute(query, (known, *key))]


def refresh(connection: sqlite3.Connection, case_ids: Collection[str], key: bytes) -> None:
    """Compute anew the rows of cases to which something was added; the index ``alerts_of_case`` has all it reads."""
    for case_id in case_ids:
        _refresh_case(connection, case_id, key)


def _refresh_case(connection: sqlite3.Connection, case_id: str, key: bytes) -> None:
    state = events_in(connection, case_id)
    values = {"case": case_id, "closed": json_text(state.closed_alerts)}
    is_open = "alert_id NOT IN (SELECT value FROM json_each(:closed))" if state.closed_alerts else "1"
    of_case = "FROM alerts WHERE case_id = :case"
    sums = f"sum({is_open}), max(selection = '{AUDIT}' AND {is_open}), min(id), min(event_us), max(event_us)"
    query = f"SELECT {sums} {of_case}"
    opened, audited, first, *event_times = connection.execute(query, values).fetchone()
    if first is None:
        return
    shown = f"{of_case} AND {is_open}" if opened else of_case
    # Of what is known already nothing can be saved.
    query = (
        "SELECT min(raised_us), max(raised_us), count(*), total(amount_base) FILTER (WHERE known IS NULL), "
        f"total(severity) FILTER (WHERE known IS NULL) {shown}"
    )
    raised_us, last_raised_us, number, money, loss = connection.execute(query, values).fetchone()
    query = "SELECT card_id, currency FROM alerts WHERE id = ?"
    card_id, currency = connection.execute(query, (first,)).fetchone()
    query = f"SELECT reason FROM alerts WHERE id = (SELECT id {shown} ORDER BY reason_weight DESC, id LIMIT 1)"  # noqa: S608
    (reason,) = connection.execute(query, values).fetchone()
    # Whoever has answered has seen the score since, whatever became of the answer.
    is_seen = any(entry.event.kind == CLOSED and entry.counted for entry in state.history)
    query = "SELECT 1 FROM companions WHERE case_id = ?"
    blind = bool(opened and not is_seen and (audited or connection.execute(query, (case_id,)).fetchone()))
    snoozed_us = None if state.snooze is None else state.snooze.until_us
    if state.snooze is not None and state.snooze.alerts:
        # An alert that has come since wakes the case.
        asleep = "alert_id NOT IN (SELECT value FROM json_each(:asleep))"
        query = f"SELECT 1 {of_case} AND {is_open} AND {asleep} LIMIT 1"
        woken = connection.execute(query, values | {"asleep": json_text(state.snooze.alerts)}).fetchone()
        snoozed_us = None if woken else snoozed_us
    connection.execute(
        _INSERT_CASE,
        (
            case_id, card_id, bool(opened), blind, blind_rank(key, case_id), raised_us, last_raised_us, number, money,
            currency, loss, reason, state.holder, state.holder_until_us, snoozed_us, *event_times,
            max((entry.broker_us for entry in state.history), default=0),
        ),
    )  # fmt: skip


def prune_decisions(connection: sqlite3.Connection, before_us: int) -> None:
    """Delete decisions of transactions before a time."""
    connection.execute("DELETE FROM decisions WHERE event_us < ?", (before_us,))
    connection.execute(
        "DELETE FROM decision_bodies WHERE event_us < ? AND case_id NOT IN (SELECT case_id FROM cases)", (before_us,)
    )


def prune_labels(connection: sqlite3.Connection, before_us: int) -> None:
    """Delete labels from before a time of transactions that no alert is of."""
    connection.execute(
        "DELETE FROM labels WHERE known_us < ? AND NOT EXISTS (SELECT 1 FROM alerts WHERE "
        "alerts.transaction_id = labels.transaction_id AND alerts.card_id = labels.card_id)",
        (before_us,),
    )


def prune_events(connection: sqlite3.Connection, before_us: int) -> None:
    """Delete events from before a time, by the broker's clock, of cases that are not there."""
    connection.execute(
        "DELETE FROM events WHERE broker_us < ? AND case_id NOT IN (SELECT case_id FROM cases)", (before_us,)
    )


def prune_cases(connection: sqlite3.Connection, before_us: int, acted_before_us: int) -> list[str]:
    """Delete closed cases; return their ids.

    Args:
        connection: Writes to the database.
        before_us: Event time of their newest alerts, at most.
        acted_before_us: Time of what people did last, at most, by the broker's clock.
    """
    query = "SELECT case_id FROM cases WHERE is_open = 0 AND newest_event_us < ? AND acted_us < ?"
    case_ids: list[str] = [case_id for (case_id,) in connection.execute(query, (before_us, acted_before_us))]
    delete_cases(connection, case_ids)
    return case_ids


def delete_cases(connection: sqlite3.Connection, case_ids: Sequence[str]) -> None:
    """Delete cases with their alerts, the decisions behind these and their identifiers; events stay."""
    ids = [(case_id,) for case_id in case_ids]
    connection.executemany(
        "DELETE FROM decision_bodies WHERE source IN (SELECT source FROM alerts WHERE case_id = ?)", ids
    )
    for table in ("alerts", "identifiers", "companions", "cases"):
        connection.executemany(f"DELETE FROM {table} WHERE case_id = ?", ids)  # noqa: S608


def forget_cards(connection: sqlite3.Connection, card_ids: Collection[str]) -> list[str]:
    """Delete everything of cards; return the cases that are gone."""
    cards = [(card_id,) for card_id in card_ids]
    query = "SELECT case_id FROM alerts WHERE card_id = :card UNION SELECT case_id FROM decisions WHERE card_id = :card"
    case_ids: list[str] = [case_id for (card,) in cards for (case_id,) in connection.execute(query, {"card": card})]
    delete_cases(connection, case_ids)
    for table in ("decision_bodies", "events"):
        connection.executemany(f"DELETE FROM {table} WHERE case_id = ?", [(case_id,) for case_id in case_ids])  # noqa: S608
    for table in ("decisions", "labels", "events"):
        connection.executemany(f"DELETE FROM {table} WHERE card_id = ?", cards)  # noqa: S608
    return case_ids


def forget_value(path: Path, field: str, value: str) -> int:
    """Delete what a console's database holds of a card, or of a text that links cases; return the number of cases."""
    with closing(open_database(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            if field == CARD_ID:
                found = len(forget_cards(connection, [value]))
            else:
                query = "DELETE FROM identifiers WHERE value = ? AND field = ?"
                found = connection.execute(query, (value, field)).rowcount
        # Else a copy would stay in the log of the database for a while.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return found
