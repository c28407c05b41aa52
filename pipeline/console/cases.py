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
from pipeline.learning.labels import KNOWN, NOTHING, SOURCE_RANK, known_value, source_rank
from pipeline.protection.tokens import CARD_ID
from schemas.codec import timestamp_us
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


def label_order(label: Label) -> tuple[int, int, int]:
    """Return a sort key of the labels of a transaction: of those that are no rule's the largest holds."""
    return source_rank(label.source), timestamp_us(label.labelled_at), KNOWN.index(known_value(label.label))


def holding_label(labels: Iterable[Label]) -> Label | None:
    """Return the label that holds."""
    known = [label for label in labels if source_rank(label.source) != SOURCE_RANK["rule"]]
    return max(known, key=label_order, default=None)


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


def refresh(connection: sqlite3.Connection, case_ids: Collection[str], key: bytes) -> None:
    """Compute anew the rows of cases to which something was added."""
    for case_id in case_ids:
        alerts = connection.execute(
            "SELECT id, alert_id, card_id, transaction_id, event_us, raised_us, amount_base, currency, severity, "
            "selection, reason, reason_weight, known, EXISTS (SELECT 1 FROM labels WHERE "
            "labels.transaction_id = alerts.transaction_id AND labels.card_id = alerts.card_id) "
            "FROM alerts WHERE case_id = ? ORDER BY id",
            (case_id,),
        ).fetchall()
        if alerts:
            _refresh_case(connection, case_id, alerts, _refresh_known(connection, alerts), key)


def _refresh_known(connection: sqlite3.Connection, alerts: Sequence[sqlite3.Row]) -> set[str]:
    """Note the labels that hold; return the ids of the alerts that have one."""
    labelled = set()
    for alert in alerts:
        rows = labels_in(connection, alert[3], alert[2]) if alert[13] else []
        held = holding_label(decode_label(body) for _, _, body in rows)
        known = None if held is None or known_value(held.label) == NOTHING else held.label
        if known != alert[12]:
            connection.execute("UPDATE alerts SET known = ? WHERE id = ?", (known, alert[0]))
        if known is not None:
            labelled.add(alert[1])
    return labelled


def _refresh_case(
    connection: sqlite3.Connection, case_id: str, alerts: Sequence[sqlite3.Row], labelled: Collection[str], key: bytes
) -> None:
    state = events_in(connection, case_id)
    opened = [alert for alert in alerts if alert[1] not in state.closed_alerts]
    shown = opened or alerts
    # Whoever has answered has seen the score since, whatever became of the answer.
    is_seen = any(entry.event.kind == CLOSED and entry.counted for entry in state.history)
    blind = (
        bool(opened)
        and not is_seen
        and (
            any(alert[9] == AUDIT for alert in opened)
            or connection.execute("SELECT 1 FROM companions WHERE case_id = ?", (case_id,)).fetchone() is not None
        )
    )
    snooze = state.snooze
    snoozed_us = None if snooze is None or snooze.ends_by([alert[1] for alert in opened]) else snooze.until_us
    # Of what is known already nothing can be saved.
    unknown = [alert for alert in shown if alert[1] not in labelled]
    heaviest = max(shown, key=lambda alert: alert[11])
    connection.execute(
        _INSERT_CASE,
        (
            case_id, alerts[0][2], bool(opened), blind, blind_rank(key, case_id),
            min(alert[5] for alert in shown), max(alert[5] for alert in shown), len(shown),
            sum(alert[6] for alert in unknown), alerts[0][7], sum(alert[8] for alert in unknown), heaviest[10],
            state.holder, state.holder_until_us, snoozed_us,
            min(alert[4] for alert in alerts), max(alert[4] for alert in alerts),
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
