"""Reads of the console's database as values of the pages, without what an account must not see of a blind case.

A blind case shows neither score, severity, threshold, reason, rule, label of a rule nor versions, here already: in the
queue, the case, the timelines of other cases and the search alike. No filter finds one by what is hidden.
"""

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import structs

from pipeline.console.case_events import CaseState, ReplayedEvent
from pipeline.console.cases import AUDIT, decode_event, decode_label, events_in, holding_label, json_text, labels_in
from pipeline.console.views import (
    AlertView,
    CaseStatus,
    CaseView,
    HistoryEntry,
    LabelView,
    LinkedCase,
    QueueFilter,
    QueueRow,
    SearchHit,
    StoreFigures,
    TimelineEntry,
)
from pipeline.learning.labels import FRAUD, SOURCE_RANK, source_rank
from pipeline.monitoring.alert_outcomes import WINDOW_DAYS
from schemas.messages import Alert, Decision, Label, ModelScores, Versions
from schemas.times import US_PER_DAY

BLIND_EVERY: Final = 5
"""Each row of this number is a blind case, from the top on, as long as there are any."""
ALERTS_SHOWN: Final = 200
"""Alerts of a case's page at most: the open ones first, then the newest."""
TIMELINE: Final = 200
"""Transactions of a timeline at most."""
_LINKS: Final = 50
"""Linked cases of one value at most."""
_BEHIND: Final = "\U0010ffff"
"""Behind every text that begins as the one before it."""
_NOTHING: Final = float("nan")
_HIDDEN: Final[dict[str, Any]] = {
    "score": _NOTHING,
    "severity": _NOTHING,
    "threshold": _NOTHING,
    "reasons": [],
    "selection": "",
    "model_scores": ModelScores(lightgbm=_NOTHING, river=_NOTHING),
    "versions": Versions(lightgbm="", river="", policy="", kernel="", rates=""),
}
"""Fields of an alert that a blind case does not show."""
_ORDER: Final = ("loss DESC, case_id", "blind_rank, case_id")
"""Order of the cases that are not blind, and of those that are."""
_decode_alert: Final = msgspec.json.Decoder(Alert).decode
_decode_decision: Final = msgspec.json.Decoder(Decision).decode
Parameters = dict[str, object]


# --- The queue ---------------------------------------------------------------------------------------------------


def _condition(wanted: QueueFilter, now_us: int) -> tuple[str, Parameters]:
    """Return the condition of a queue, besides whether a case is blind."""
    conditions = {
        "open": ["is_open = 1", "(snoozed_until_us IS NULL OR snoozed_until_us <= :now)"],
        "snoozed": ["is_open = 1", "snoozed_until_us > :now"],
        "closed": ["is_open = 0"],
    }[wanted.status]
    if wanted.holder == "-":
        conditions.append("(holder IS NULL OR holder_until_us <= :now)")
    elif wanted.holder:
        conditions.append("holder = :holder AND holder_until_us > :now")
    if wanted.least_loss > 0:
        conditions.append("(blind = 1 OR loss >= :loss)")
    if wanted.text:
        conditions.append("case_id IN (SELECT case_id FROM identifiers WHERE value >= :text AND value < :behind)")
    parameters: Parameters = {
        "now": now_us, "holder": wanted.holder, "loss": wanted.least_loss, "text": wanted.text,
        "behind": wanted.text + _BEHIND,
    }  # fmt: skip
    return " AND ".join(conditions), parameters


def queue_rows(
    connection: sqlite3.Connection, wanted: QueueFilter, now_us: int, most: int = -1
) -> tuple[list[QueueRow], int]:
    """Return a part of the queue, and the number of its cases; of each kind ``most`` are counted, or all."""
    condition, parameters = _condition(wanted, now_us)
    counts = []
    for blind in (0, 1):
        query = f"SELECT count(*) FROM (SELECT 1 FROM cases WHERE blind = {blind} AND {condition} LIMIT {most})"  # noqa: S608
        counts.append(connection.execute(query, parameters).fetchone()[0])
    total = sum(counts)
    first = min(max(wanted.after, 0), total)
    last = min(first + max(wanted.limit, 0), total)
    parts = []
    for blind in (0, 1):
        start, end = (_of_kind(at, blind, counts) for at in (first, last))
        query = (
            f"SELECT * FROM cases WHERE blind = {blind} AND {condition} ORDER BY {_ORDER[blind]} "  # noqa: S608
            f"LIMIT {end - start} OFFSET {start}"
        )
        parts.append(iter(connection.execute(query, parameters).fetchall()))
    rows = []
    for at in range(first, last):
        is_blind = _of_kind(at + 1, 1, counts) - _of_kind(at, 1, counts)
        rows.append(queue_row(next(parts[is_blind]), now_us))
    return rows, total


def _of_kind(rows: int, blind: int, counts: Sequence[int]) -> int:
    """Return how many of the first rows of a queue are blind (1), or not (0).

    >>> [_of_kind(rows, 1, (8, 2)) for rows in (4, 5, 9, 10)], _of_kind(3, 1, (1, 2))
    ([0, 1, 1, 2], 2)
    """
    of_blind = max(min(counts[1], rows // BLIND_EVERY), rows - counts[0])
    return of_blind if blind else rows - of_blind


def next_case(connection: sqlite3.Connection, wanted: QueueFilter, now_us: int, passed: Collection[str]) -> str | None:
    """Return the first case of a queue that nobody holds and that is not to be passed over."""
    first = wanted._replace(after=0, limit=len(passed) + 1, holder="-")
    rows, _ = queue_rows(connection, first, now_us, first.limit)
    return next((row.case_id for row in rows if row.case_id not in passed), None)


def queue_row(row: sqlite3.Row, now_us: int) -> QueueRow:
    """Return a case as a row of a queue."""
    held = row["holder"] is not None and row["holder_until_us"] > now_us
    snoozed_us = row["snoozed_until_us"] if (row["snoozed_until_us"] or 0) > now_us else None
    status: CaseStatus = "closed" if not row["is_open"] else "open" if snoozed_us is None else "snoozed"
    return QueueRow(
        case_id=row["case_id"],
        card_id=row["card_id"],
        status=status,
        raised_us=row["raised_us"],
        last_raised_us=row["last_raised_us"],
        alerts=row["alerts"],
        money_at_risk=row["money"],
        currency=row["currency"],
        expected_loss=None if row["blind"] else row["loss"],
        reason=None if row["blind"] else row["reason"],
        holder=row["holder"] if held else None,
        holder_until_us=row["holder_until_us"] if held else None,
        snoozed_until_us=snoozed_us,
        blind=bool(row["blind"]),
    )


def row_of(connection: sqlite3.Connection, case_id: str) -> sqlite3.Row:
    """Return the row of a case; raises KeyError."""
    row: sqlite3.Row | None = connection.execute("SELECT * FROM cases WHERE case_id = ?", (case_id,)).fetchone()
    if row is None:
        raise KeyError(case_id)
    return row


# --- A case ------------------------------------------------------------------------------------------------------


def case_view(connection: sqlite3.Connection, case_id: str, now_us: int, most: int = ALERTS_SHOWN) -> CaseView:
    """Return a case with all that its page shows, ``most`` alerts among it; raises KeyError."""
    row, state = row_of(connection, case_id), events_in(connection, case_id)
    # Without their bodies: of thousands, these take the time.
    query = "SELECT id, alert_id, merchant_id FROM alerts WHERE case_id = ? ORDER BY event_us DESC, id DESC"
    known = connection.execute(query, (case_id,)).fetchall()
    known.sort(key=lambda alert: alert["alert_id"] in state.closed_alerts)
    chosen = [alert["id"] for alert in known[:most]]
    query = "SELECT * FROM alerts WHERE id IN (SELECT value FROM json_each(?)) ORDER BY event_us, id"
    found = connection.execute(query, (json_text(chosen),)).fetchall()
    merchants = sorted({alert["merchant_id"] for alert in known})
    return CaseView(
        row=queue_row(row, now_us),
        alerts=[_alert_view(connection, alert, state, blind=row["blind"]) for alert in found],
        alerts_of_all=len(known),
        card=_timeline(connection, "card_id", [row["card_id"]], blind=row["blind"]),
        merchants=_timeline(connection, "merchant_id", merchants, blind=row["blind"]),
        links=_links(connection, case_id, now_us),
        history=history(state),
    )


def _alert_view(connection: sqlite3.Connection, row: sqlite3.Row, state: CaseState, *, blind: int) -> AlertView:
    alert, decision = _decode_alert(row["body"]), None
    if blind:
        alert = structs.replace(alert, **_HIDDEN)
    else:
        # Of repeated decisions the last one counts.
        query = "SELECT body FROM decision_bodies WHERE source = ? ORDER BY id DESC LIMIT 1"
        bodies = connection.execute(query, (row["source"],))
        decision = next((_decode_decision(body) for (body,) in bodies), None)
    labels = labels_of(connection, row["transaction_id"], row["card_id"])
    if blind:
        # A rule's label tells which rule was hit; it never holds.
        labels = [view for view in labels if source_rank(view.label.source) != SOURCE_RANK["rule"]]
    return AlertView(alert, decision, row["alert_id"] in state.closed_alerts, labels, _contradiction(labels))


def labels_of(connection: sqlite3.Connection, transaction_id: str, card_id: str) -> list[LabelView]:
    """Return the labels of a transaction, the oldest first."""
    found = labels_in(connection, transaction_id, card_id)
    labels = [decode_label(body) for _, _, body in found]
    held = holding_label(labels)
    return [
        LabelView(label, topic, known_us, label is held)
        for label, (topic, known_us, _) in zip(labels, found, strict=True)
    ]


def _contradiction(labels: Sequence[LabelView]) -> str | None:
    """Return a sentence where the newest labels of two sources or people differ."""
    newest: dict[tuple[str, str | None], LabelView] = {}
    for view in labels:
        newest[view.label.source, view.label.analyst] = view
    held = next((view.label for view in labels if view.holds), None)
    others = [view.label for view in newest.values() if held is not None and view.label.label != held.label]
    if held is None or not others:
        return None
    differing = "; ".join(f"{_author(label)} says {label.label}" for label in others)
    return f"Labels differ: {differing}, and {held.label} by {_author(held)} holds."


def _author(label: Label) -> str:
    return f"{label.source} {label.analyst}" if label.analyst else label.source


def _timeline(connection: sqlite3.Connection, column: str, values: Sequence[str], *, blind: int) -> list[TimelineEntry]:
    """Return the newest transactions with one of some values; whatever blind case they are of hides their scores."""
    query = f"SELECT event_us, id FROM decisions WHERE {column} = ? ORDER BY event_us DESC, id DESC LIMIT {TIMELINE}"  # noqa: S608
    newest = sorted(tuple(row) for value in values[:_LINKS] for row in connection.execute(query, (value,)))[-TIMELINE:]
    query = (
        "SELECT decisions.*, alerts.case_id AS alert_case, cases.blind AS is_blind, EXISTS ("
        "SELECT 1 FROM labels WHERE labels.transaction_id = decisions.transaction_id "
        "AND labels.card_id = decisions.card_id) AS is_labelled FROM decisions "
        "LEFT JOIN alerts ON alerts.transaction_id = decisions.transaction_id AND alerts.card_id = decisions.card_id "
        "AND alerts.case_id = decisions.case_id LEFT JOIN cases ON cases.case_id = alerts.case_id "
        "WHERE decisions.id IN (SELECT value FROM json_each(?)) ORDER BY decisions.event_us DESC, decisions.id DESC"
    )
    entries = []
    for row in connection.execute(query, (json_text(number for _, number in newest),)):
        hides = blind or row["is_blind"]
        labels = labels_in(connection, row["transaction_id"], row["card_id"]) if row["is_labelled"] else []
        held = holding_label(decode_label(body) for _, _, body in labels)
        entries.append(
            TimelineEntry(
                transaction_id=row["transaction_id"],
                card_id=row["card_id"],
                merchant_id=row["merchant_id"],
                event_us=row["event_us"],
                amount=row["amount"],
                currency=row["currency"],
                amount_base=row["amount_base"],
                score=None if hides else row["score"],
                action=None if hides else row["action"],
                label=None if held is None else held.label,
                case_id=row["alert_case"],
            )
        )
    return entries


def _links(connection: sqlite3.Connection, case_id: str, now_us: int) -> list[LinkedCase]:
    values = connection.execute(
        "SELECT field, value FROM identifiers WHERE case_id = ? AND field NOT IN ('case', 'card', 'transaction') "
        "ORDER BY field, value",
        (case_id,),
    ).fetchall()
    query = (
        "SELECT cases.* FROM identifiers JOIN cases USING (case_id) WHERE value = ? AND field = ? AND case_id != ? "
        "ORDER BY case_id LIMIT ?"
    )
    links = []
    for field, value in islice(values, _LINKS):
        for other in connection.execute(query, (value, field, case_id, _LINKS)):
            row = queue_row(other, now_us)
            links.append(LinkedCase(field, value, row.case_id, row.card_id, row.status, row.alerts))
    return links


def history(state: CaseState) -> list[HistoryEntry]:
    """Return what people did with a case, the oldest first."""
    return [HistoryEntry(*entry[:4]) for entry in state.history]


def has_events(connection: sqlite3.Connection, event_ids: Collection[str]) -> bool:
    """Return whether all of some actions have been read."""
    query = "SELECT 1 FROM events WHERE event_id = ? LIMIT 1"
    return all(connection.execute(query, (event_id,)).fetchone() for event_id in event_ids)


def replayed(connection: sqlite3.Connection, event_id: str) -> ReplayedEvent | None:
    """Return an action with what came of it: the first record with its id."""
    row = connection.execute("SELECT body FROM events WHERE event_id = ? ORDER BY id LIMIT 1", (event_id,)).fetchone()
    return None if row is None else events_in(connection, decode_event(row["body"]).case_id).entry(event_id)


class CaseSummary(NamedTuple):
    """The facts of a case that actions need."""

    row: QueueRow
    open_alerts: dict[str, str]
    """Transactions of its open alerts, by ``alert_id``."""
    closed_alerts: frozenset[str]
    history: Sequence[HistoryEntry]


def summary(connection: sqlite3.Connection, case_id: str, now_us: int) -> CaseSummary:
    """Return what actions need of a case; raises KeyError."""
    row, state = row_of(connection, case_id), events_in(connection, case_id)
    rows = connection.execute(
        "SELECT alert_id, transaction_id FROM alerts WHERE case_id = ? ORDER BY event_us, id", (case_id,)
    ).fetchall()
    alerts: dict[str, str] = dict(map(tuple, rows))
    opened = {alert: transaction for alert, transaction in alerts.items() if alert not in state.closed_alerts}
    return CaseSummary(queue_row(row, now_us), opened, frozenset(alerts.keys() - opened.keys()), history(state))


class KnownTransaction(NamedTuple):
    """The facts of a transaction that actions need."""

    alert_id: str | None
    audited: bool
    labels: Sequence[LabelView]
    """The oldest first."""


def transaction(connection: sqlite3.Connection, transaction_id: str, card_id: str) -> KnownTransaction | None:
    """Return what is known of a transaction; None where the card has none of this name."""
    key = (transaction_id, card_id)
    alerts = connection.execute(
        "SELECT alert_id, selection FROM alerts WHERE transaction_id = ? AND card_id = ? ORDER BY id", key
    ).fetchall()
    query = "SELECT 1 FROM decisions WHERE transaction_id = ? AND card_id = ? LIMIT 1"
    if not alerts and connection.execute(query, key).fetchone() is None:
        return None
    audited = any(alert["selection"] == AUDIT for alert in alerts)
    return KnownTransaction(alerts[0]["alert_id"] if alerts else None, audited, labels_of(connection, *key))


def labels_by_id(connection: sqlite3.Connection, card_id: str, label_ids: Collection[str]) -> dict[str, Label]:
    """Return labels of a card by their identifiers; the first of each counts."""
    found: dict[str, Label] = {}
    for label_id in label_ids:
        query = "SELECT body FROM labels WHERE label_id = ? AND card_id = ? ORDER BY topic, partition, position LIMIT 1"
        for (body,) in connection.execute(query, (label_id, card_id)):
            found[label_id] = decode_label(body)
    return found


# --- All cases ---------------------------------------------------------------------------------------------------


def search(connection: sqlite3.Connection, text: str, limit: int, now_us: int) -> list[SearchHit]:
    """Return the cases that an identifier, or its beginning, leads to; the exact ones come first."""
    if not text:
        return []
    query = (
        "SELECT field, cases.* FROM identifiers JOIN cases USING (case_id) WHERE value >= :text AND value < :behind "
        "ORDER BY value, field, case_id LIMIT :limit"
    )
    found: Iterable[sqlite3.Row] = connection.execute(query, {"text": text, "behind": text + _BEHIND, "limit": limit})
    hits = [
        SearchHit(
            row["case_id"],
            row["field"].removesuffix("_id") if row["field"] == "merchant_id" else row["field"],
            queue_row(row, now_us),
        )
        for row in found
    ]
    hits = list({hit.case_id: hit for hit in reversed(hits)}.values())[::-1]
    # Of transactions without an alert the case is known, too.
    query = (
        "SELECT DISTINCT cases.* FROM decisions JOIN cases USING (case_id) WHERE decisions.transaction_id = ? LIMIT ?"
    )
    known = {hit.case_id for hit in hits}
    rows = connection.execute(query, (text, limit)).fetchall()
    hits += [
        SearchHit(row["case_id"], "transaction", queue_row(row, now_us)) for row in rows if row["case_id"] not in known
    ]
    return hits[:limit]


def figures(connection: sqlite3.Connection, decisions: int, stream_us: int) -> StoreFigures:
    """Return what can be said of the whole.

    Args:
        connection: Reads the database.
        decisions: Decisions that were read.
        stream_us: Newest event time.
    """

    def number(query: str, *parameters: object) -> int:
        ((found,),) = connection.execute(query, parameters).fetchall()
        return int(found)

    since_us = stream_us - WINDOW_DAYS * US_PER_DAY
    alerts = "SELECT count(*) FROM alerts WHERE known IS NOT NULL AND event_us >= ?"
    return StoreFigures(
        decisions=decisions,
        alerts_last_day=number("SELECT count(*) FROM cases WHERE first_event_us > ?", stream_us - US_PER_DAY),
        labelled_alerts=number(alerts, since_us),
        confirmed_alerts=number(f"{alerts} AND known = ?", since_us, FRAUD),
        open_cases=number("SELECT count(*) FROM cases WHERE is_open = 1"),
        blind_cases=number("SELECT count(*) FROM cases WHERE is_open = 1 AND blind = 1"),
        stream_us=stream_us,
        source_ends=dict(connection.execute("SELECT partition, behind FROM source_ends")),
    )
