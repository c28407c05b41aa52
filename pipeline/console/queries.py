"""Reads of the console's database as values of the pages, without what an account must not see of a blind case.

A blind case shows neither score, severity, threshold, reason, rule, label of a rule nor versions, here already: in the
queue, the case, the timelines of other cases and the search alike. No filter finds one by what is hidden.
"""

import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import structs

from pipeline.console.case_events import CaseState, ReplayedEvent
from pipeline.console.cases import AUDIT, decode_label, events_in, json_text, labels_in
from pipeline.console.tables import open_for_reading
from pipeline.console.views import (
    AlertView,
    CaseStatus,
    CaseView,
    LabelView,
    LinkedCase,
    QueueFilter,
    QueuePage,
    QueueRow,
    StoreFigures,
    TimelineEntry,
)
from pipeline.learning.labels import FRAUD, SOURCE_RANK, holding_label, source_rank
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
        "any": ["is_open IN (0, 1)"],
    }[wanted.status]
    if wanted.holder == "-":
        conditions.append("(holder IS NULL OR holder_until_us <= :now)")
    elif wanted.holder:
        conditions.append("holder = :holder AND holder_until_us > :now")
    if wanted.least_loss > 0:
        conditions.append("(blind = 1 OR loss >= :loss)")
    if wanted.text:
        conditions.append(
            "case_id IN (SELECT case_id FROM identifiers WHERE value >= :text AND value < :behind "
            "UNION ALL SELECT case_id FROM decisions WHERE transaction_id = :text)"
        )
    parameters: Parameters = {
        "now": now_us, "holder": wanted.holder, "loss": wanted.least_loss, "text": wanted.text,
        "behind": wanted.text + _BEHIND,
    }  # fmt: skip
    return " AND ".join(conditions), parameters


def _of_kind(rows: int, blind: int, counts: Sequence[int]) -> int:
    """Return how many of the first rows of a queue are blind (1), or not (0).

    >>> [_of_kind(rows, 1, (8, 2)) for rows in (4, 5, 9, 10)], _of_kind(3, 1, (1, 2))
    ([0, 1, 1, 2], 2)
    """
    of_blind = max(min(counts[1], rows // BLIND_EVERY), rows - counts[0])
    return of_blind if blind else rows - of_blind


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


def _row_of(connection: sqlite3.Connection, case_id: str) -> sqlite3.Row:
    """Return the row of a case; raises KeyError."""
    row: sqlite3.Row | None = connection.execute("SELECT * FROM cases WHERE case_id = ?", (case_id,)).fetchone()
    if row is None:
        raise KeyError(case_id)
    return row


def _alert_view(connection: sqlite3.Connection, row: sqlite3.Row, state: CaseState, *, blind: int) -> AlertView:
    alert, decision = _decode_alert(row["body"]), None
    if blind:
        alert = structs.replace(alert, **_HIDDEN)
    else:
        # Of repeated decisions the last one counts.
        query = "SELECT body FROM decision_bodies WHERE source = ? ORDER BY id DESC LIMIT 1"
        bodies = connection.execute(query, (row["source"],))
        decision = next((_decode_decision(body) for (body,) in bodies), None)
    labels = _labels_of(connection, row["transaction_id"], row["card_id"])
    if blind:
        # A rule's label tells which rule was hit; it never holds.
        labels = [view for view in labels if source_rank(view.label.source) != SOURCE_RANK["rule"]]
    return AlertView(alert, decision, row["alert_id"] in state.closed_alerts, labels, _contradiction(labels))


def _labels_of(connection: sqlite3.Connection, transaction_id: str, card_id: str) -> list[LabelView]:
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


# --- Reading -----------------------------------------------------------------------------------------------------


class CaseSummary(NamedTuple):
    """The facts of a case that actions need."""

    row: QueueRow
    open_alerts: dict[str, str]
    """Transactions of its open alerts, by ``alert_id``."""
    closed_alerts: frozenset[str]
    history: Sequence[ReplayedEvent]


class KnownTransaction(NamedTuple):
    """The facts of a transaction that actions need."""

    alert_id: str | None
    audited: bool
    labels: Sequence[LabelView]
    """The oldest first."""


class UnlinkedAlert(NamedTuple):
    """An alert whose transaction has not been looked up on ``profiled``."""

    number: int
    """Id of its row."""
    partition: int
    offset: int
    row: int


class CaseReader:
    """Reads of the database, for any threads; each is of one state of it.

    Args:
        path: File of the database, which is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local, self._opening = threading.local(), threading.Lock()
        self._readers: list[sqlite3.Connection] = []

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = open_for_reading(self.path)
            with self._opening:
                self._readers.append(connection)
        connection.execute("BEGIN")
        try:
            yield connection
        finally:
            connection.execute("COMMIT")

    def queue(self, wanted: QueueFilter, now_us: int, most: int = -1) -> QueuePage:
        """Return a part of the queue; of each kind of cases, blind or not, ``most`` are counted, or all."""
        condition, parameters = _condition(wanted, now_us)
        with self._reading() as connection:
            counts = []
            for blind in (0, 1):
                query = f"SELECT 1 FROM cases WHERE blind = {blind} AND {condition} LIMIT {most}"  # noqa: S608
                counts.append(connection.execute(f"SELECT count(*) FROM ({query})", parameters).fetchone()[0])  # noqa: S608
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
        kinds = (_of_kind(at + 1, 1, counts) - _of_kind(at, 1, counts) for at in range(first, last))
        return QueuePage([queue_row(next(parts[is_blind]), now_us) for is_blind in kinds], total)

    def next_case(self, wanted: QueueFilter, now_us: int, passed: Collection[str] = ()) -> str | None:
        """Return the first case of a queue that nobody holds and that is not to be passed over."""
        first = wanted._replace(after=0, limit=len(passed) + 1, holder="-")
        rows = self.queue(first, now_us, first.limit).rows
        return next((row.case_id for row in rows if row.case_id not in passed), None)

    def case(self, case_id: str, now_us: int, most: int = ALERTS_SHOWN) -> CaseView:
        """Return a case with all that its page shows, ``most`` alerts among it; raises KeyError."""
        with self._reading() as connection:
            row, state = _row_of(connection, case_id), events_in(connection, case_id)
            # Without their bodies: of thousands, these take the time.
            query = "SELECT id, alert_id, merchant_id FROM alerts WHERE case_id = ? ORDER BY event_us DESC, id DESC"
            known = connection.execute(query, (case_id,)).fetchall()
            known.sort(key=lambda alert: alert["alert_id"] in state.closed_alerts)
            query = "SELECT * FROM alerts WHERE id IN (SELECT value FROM json_each(?)) ORDER BY event_us, id"
            found = connection.execute(query, (json_text(alert["id"] for alert in known[:most]),)).fetchall()
            merchants = sorted({alert["merchant_id"] for alert in known})
            return CaseView(
                row=queue_row(row, now_us),
                alerts=[_alert_view(connection, alert, state, blind=row["blind"]) for alert in found],
                alerts_of_all=len(known),
                card=_timeline(connection, "card_id", [row["card_id"]], blind=row["blind"]),
                merchants=_timeline(connection, "merchant_id", merchants, blind=row["blind"]),
                links=_links(connection, case_id, now_us),
                history=list(state.history),
            )

    def event(self, event_id: str) -> ReplayedEvent | None:
        """Return an action with what came of it, once it has been read back: the first record with its id."""
        query = "SELECT case_id FROM events WHERE event_id = ? ORDER BY id LIMIT 1"
        with self._reading() as connection:
            row = connection.execute(query, (event_id,)).fetchone()
            return None if row is None else events_in(connection, row["case_id"]).entry(event_id)

    def has_events(self, event_ids: Collection[str]) -> bool:
        """Return whether all of some actions have been read back."""
        query = "SELECT 1 FROM events WHERE event_id = ? LIMIT 1"
        with self._reading() as connection:
            return all(connection.execute(query, (event_id,)).fetchone() for event_id in event_ids)

    def summary(self, case_id: str, now_us: int) -> CaseSummary:
        """Return what actions need of a case; raises KeyError."""
        query = "SELECT alert_id, transaction_id FROM alerts WHERE case_id = ? ORDER BY event_us, id"
        with self._reading() as connection:
            row, state = _row_of(connection, case_id), events_in(connection, case_id)
            alerts: dict[str, str] = dict(map(tuple, connection.execute(query, (case_id,))))
        opened = {alert: transaction for alert, transaction in alerts.items() if alert not in state.closed_alerts}
        return CaseSummary(queue_row(row, now_us), opened, frozenset(alerts.keys() - opened.keys()), state.history)

    def transaction(self, transaction_id: str, card_id: str) -> KnownTransaction | None:
        """Return what is known of a transaction; None where the card has none of this name."""
        key = (transaction_id, card_id)
        query = "SELECT alert_id, selection FROM alerts WHERE transaction_id = ? AND card_id = ? ORDER BY id"
        decided = "SELECT 1 FROM decisions WHERE transaction_id = ? AND card_id = ? LIMIT 1"
        with self._reading() as connection:
            alerts = connection.execute(query, key).fetchall()
            if not alerts and connection.execute(decided, key).fetchone() is None:
                return None
            audited = any(alert["selection"] == AUDIT for alert in alerts)
            return KnownTransaction(alerts[0]["alert_id"] if alerts else None, audited, _labels_of(connection, *key))

    def labels_of(self, transaction_id: str, card_id: str) -> list[LabelView]:
        """Return the labels of a transaction, the oldest first."""
        with self._reading() as connection:
            return _labels_of(connection, transaction_id, card_id)

    def labels_by_id(self, card_id: str, label_ids: Collection[str]) -> dict[str, Label]:
        """Return labels of a card by their identifiers, as far as they have been read; the first of each counts."""
        found: dict[str, Label] = {}
        query = "SELECT body FROM labels WHERE label_id = ? AND card_id = ? ORDER BY topic, partition, position LIMIT 1"
        with self._reading() as connection:
            for label_id in label_ids:
                for (body,) in connection.execute(query, (label_id, card_id)):
                    found[label_id] = decode_label(body)
        return found

    def unlinked_alerts(self, limit: int) -> list[UnlinkedAlert]:
        """Return alerts whose transactions have not been looked up, in the order of ``profiled``."""
        query = (
            "SELECT id, log_partition, log_offset, log_row FROM alerts WHERE linked = 0 "
            "ORDER BY log_partition, log_offset LIMIT ?"
        )
        with self._reading() as connection:
            return [UnlinkedAlert(*row) for row in connection.execute(query, (limit,))]

    def positions(self) -> dict[tuple[str, int], int]:
        """Return the offsets behind what has been read, by partition: a topic without prefix, and a number."""
        with self._reading() as connection:
            rows = connection.execute("SELECT topic, partition, behind FROM positions").fetchall()
        return {(topic, partition): behind for topic, partition, behind in rows}

    def figures(self) -> StoreFigures:
        """Return figures of the whole, but for what only a reader of topics counts."""

        def number(query: str, *parameters: object) -> int:
            ((found,),) = connection.execute(query, parameters).fetchall()
            return int(found)

        alerts = "SELECT count(*) FROM alerts WHERE known IS NOT NULL AND event_us >= ?"
        with self._reading() as connection:
            stream_us = number("SELECT coalesce(max(value), 0) FROM meta WHERE name = 'stream_us'")
            since_us = stream_us - WINDOW_DAYS * US_PER_DAY
            return StoreFigures(
                decisions=0,
                alerts_last_day=number("SELECT count(*) FROM cases WHERE first_event_us > ?", stream_us - US_PER_DAY),
                labelled_alerts=number(alerts, since_us),
                confirmed_alerts=number(f"{alerts} AND known = ?", since_us, FRAUD),
                source_ends=dict(connection.execute("SELECT partition, behind FROM source_ends")),
            )
