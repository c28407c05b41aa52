"""Cases made by hand, and a console's store, actions and answers that hold them in memory."""

import threading
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from pipeline.console.action_records import ActionRefused
from pipeline.console.case_events import ReplayedEvent
from pipeline.console.views import (
    AlertView,
    CaseView,
    Explanation,
    LabelView,
    LearnedView,
    LinkedCase,
    QueueFilter,
    QueuePage,
    QueueRow,
    ShareRow,
    StatusView,
    TimelineEntry,
)
from pipeline.kafka.writers.producer import DeliveryFailed
from schemas.messages import (
    Alert,
    CaseEvent,
    Decision,
    Label,
    LogPosition,
    ModelScores,
    Reason,
    RecordPosition,
    Versions,
)
from tests.helpers.waiting import TIMEOUT_S

NOW = datetime.now(UTC).replace(microsecond=0)
VERSIONS = Versions(
    lightgbm="lgbm-2026-11-30", river="river-48211", policy="policy-7", kernel="k3-5f2a", rates="ecb-11"
)
HOSTILE = (
    '<img src=x onerror="document.title=1">',
    "\"'><script>document.title=1</script>",
    '=HYPERLINK("http://x")',
    "card\u202egpj.exe",
    "line\nbreak\tand tab",
    "W" * 256,
    "a/../b?c=d#e&f=%2e%2e%2f",
    "{{ 7 * 7 }}",
)
FEATURES = {
    "amount": 812.4,
    "hour": 3.0,
    "card_count_1d": 4.0,
    "card_count_30d": 31.0,
    "card_seconds_since_last": 312.0,
    "card_outlier_count_7d": 2.0,
    "card_merchant_count": 0.0,
    "card_regular_mean_30d": 46.2,
    "card_amount_to_regular": 17.58,
    "card_seconds_since_outlier": None,
    "merchant_count_1d": 210.0,
    "merchant_surge": 2.4,
    "merchant_fraud_run_seconds": 86400.0,
}
SHARES = (
    ShareRow("Base: how often any transaction is fraud", "", None, None, -4.1),
    ShareRow("Amount unusual for the card", "card_amount_to_regular", 17.58, 1.1, 3.02),
    ShareRow("Amount by itself", "amount", 812.4, 46.2, 1.44),
    ShareRow("Many transactions of the card within a day", "card_count_1d", 4.0, 1.0, 1.13),
    ShareRow("First time at this merchant", "card_merchant_count", 0.0, None, 0.61),
    ShareRow("Merchant has more traffic than usual", "merchant_surge", 2.4, 1.0, 0.4),
    ShareRow("Time of day", "hour", 3.0, 14.0, 0.22),
    ShareRow("Online model", "", None, None, -0.42),
)
LOGIT = sum(row.share for row in SHARES)


def us(time: datetime) -> int:
    return round(time.timestamp() * 1_000_000)


def alert_view(
    case_id: str, card_id: str, number: int, *, blind: bool = False, labels: Sequence[LabelView] = ()
) -> AlertView:
    time, amount = NOW - timedelta(minutes=40 - 9 * number), Decimal("812.40") - 190 * number
    source = RecordPosition(topic="transactions", partition=0, offset=4711 + number)
    log = LogPosition(partition=0, offset=12)
    common: dict[str, Any] = {
        "transaction_id": f"{card_id}-t{number}"[:256],
        "card_id": card_id,
        "merchant_id": "electronics-outlet-771",
        "event_time": time,
        "amount": amount,
        "currency": "EUR",
        "amount_base": float(amount),
        "base_currency": "EUR",
        "score": 0.0 if blind else 0.9089,
        "model_scores": ModelScores(lightgbm=0.0 if blind else 0.93, river=0.0 if blind else 0.88),
        "threshold": 0.62,
        "selection": "" if blind else "score",
        "versions": VERSIONS,
        "source": source,
        "log": log,
        "case_id": case_id,
        "case_sequence": number,
    }
    reason = Reason(
        code="AMOUNT_UNUSUAL_FOR_CARD",
        feature="card_amount_to_regular",
        value=17.58,
        usual=1.1,
        contribution=3.02,
        sentence="The amount is 17.6 times what the card usually spends.",
    )
    severity = 0.0 if blind else 0.9089 * float(amount)
    alert = Alert(
        alert_id=f"alert-{number}-{card_id}",
        severity=severity,
        raised_at=time,
        reasons=[] if blind else [reason],
        **common,
    )
    decision = Decision(
        logit=3.1,
        river_logit=-0.42,
        action="alert",
        features=None if blind else FEATURES,
        ingested_at=time,
        decided_at=time,
        **common,
    )
    return AlertView(alert, None if blind else decision, False, list(labels), None)


def label_view(
    view: AlertView, outcome: str, by: str, *, source: str = "analyst", label_id: str | None = None, holds: bool = True
) -> LabelView:
    label = Label(
        transaction_id=view.alert.transaction_id,
        card_id=view.alert.card_id,
        label=outcome,
        source=source,
        labelled_at=NOW,
        analyst=by,
        label_id=label_id,
    )
    return LabelView(label, "labels-analyst", us(NOW), holds)


def timeline(card_id: str, merchants: Sequence[str], count: int, labels: Sequence[str | None]) -> list[TimelineEntry]:
    amounts = (12.9, 46.2, 8.5, 101.0, 33.3, 52.75, 19.99, 61.4)
    return [
        TimelineEntry(
            f"{card_id}-old{at}"[:256],
            card_id,
            merchants[at % len(merchants)],
            us(NOW - timedelta(hours=7 + 9 * at)),
            f"{amounts[at % 8]:.2f}",
            "EUR",
            amounts[at % 8],
            0.02,
            "allow",
            labels[at % len(labels)],
            None,
        )
        for at in range(count)
    ]


def case_view(case_id: str, card_id: str, *, alerts: int = 2, blind: bool = False, others: int = 24) -> CaseView:
    views = [alert_view(case_id, card_id, number, blind=blind) for number in range(alerts)]
    at_risk = sum(view.alert.amount_base for view in views)
    row = QueueRow(
        case_id,
        card_id,
        "open",
        us(NOW - timedelta(minutes=40)),
        us(NOW - timedelta(minutes=31)),
        alerts,
        at_risk,
        "EUR",
        None if blind else 0.9089 * at_risk,
        None if blind else views[0].alert.reasons[0].sentence,
        None,
        None,
        None,
        blind,
    )
    of_alerts = [
        TimelineEntry(
            view.alert.transaction_id,
            card_id,
            view.alert.merchant_id,
            us(view.alert.event_time),
            str(view.alert.amount),
            "EUR",
            view.alert.amount_base,
            None if blind else 0.9089,
            None if blind else "alert",
            None,
            case_id,
        )
        for view in views
    ]
    card = [*reversed(of_alerts), *timeline(card_id, ("grocer-12", "railway-tickets", "cafe-9"), others, (None,))]
    merchants = [
        *of_alerts,
        *timeline("card-of-another", ("electronics-outlet-771",), 18, ("fraud", None, "legitimate", None, None)),
    ]
    links = [
        LinkedCase("merchant_id", "electronics-outlet-771", "card-202-1", "card-202", "open", 1),
        LinkedCase("device_id", "d-93f1c0", "card-303-1", "card-303", "closed", 3),
        LinkedCase("ip", "203.0.113.40", "card-303-1", "card-303", "closed", 3),
    ]
    return CaseView(row, views, card, merchants, links, [], alerts)


class CasesInMemory:
    """A console's store and actions on a dict: what stands for them while only pages are looked at."""

    def __init__(self, cases: Sequence[CaseView]) -> None:
        self.cases = {case.row.case_id: case for case in cases}
        self.calls: list[tuple[str, str]] = []
        self.filters: list[QueueFilter] = []
        self.failure: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    # --- Store -----------------------------------------------------------------------------------------------------

    def queue(self, wanted: QueueFilter, now_us: int) -> QueuePage:
        self.filters.append(wanted)
        rows = [
            case.row
            for case in self.cases.values()
            if wanted.status in ("any", case.row.status)
            and wanted.text in case.row.card_id
            and wanted.holder in ("", case.row.holder or "-")
            and (case.row.expected_loss or 0) >= wanted.least_loss
        ]
        rows.sort(key=lambda row: -(row.expected_loss if row.expected_loss is not None else 1e6))
        return QueuePage(rows[wanted.after : wanted.after + wanted.limit], len(rows))

    def case(self, case_id: str, now_us: int, most: int = 0) -> CaseView:
        return self.cases[case_id]

    def labels_of(self, transaction_id: str, card_id: str) -> list[LabelView]:
        return []

    def event(self, event_id: str) -> ReplayedEvent | None:
        entries = (entry for case in self.cases.values() for entry in case.history)
        return next((entry for entry in entries if entry.event.event_id == event_id), None)

    # --- Actions ---------------------------------------------------------------------------------------------------

    def change(self, case_id: str, **changes: Any) -> None:
        case = self.cases[case_id]
        self.cases[case_id] = case._replace(row=case.row._replace(**changes))

    def _act(self, kind: str, case_id: str, by: str, event_id: str, **more: Any) -> CaseView | None:
        """Add an event; None where it is a repeat."""
        assert self.gate.wait(TIMEOUT_S)
        self.calls.append((kind, event_id))
        if self.failure is not None:
            raise self.failure
        case = self.cases[case_id]
        if any(entry.event.event_id == event_id for entry in case.history):
            return None
        event = CaseEvent(
            event_id=event_id, case_id=case_id, card_id=case.row.card_id, kind=kind, by=by, at=NOW, **more
        )
        case = case._replace(history=[*case.history, ReplayedEvent(event, us(datetime.now(UTC)), True, False, False)])
        self.cases[case_id] = case
        return case

    def claim(self, case_id: str, by: str, event_id: str) -> None:
        row = self.cases[case_id].row
        if row.holder not in (None, by):
            raise ActionRefused(f"{row.holder} holds this case: take another one.")
        self._act("claimed", case_id, by, event_id)
        self.change(case_id, holder=by, holder_until_us=us(datetime.now(UTC) + timedelta(minutes=10)))

    def claim_next(self, wanted: QueueFilter, by: str, event_id: str, passed: Collection[str] = ()) -> str | None:
        if self.failure is not None:
            raise self.failure
        for row in self.queue(wanted, 0).rows:
            if row.holder is None:
                self.claim(row.case_id, by, event_id)
                return row.case_id
        return None

    def label(
        self,
        case_id: str,
        by: str,
        event_id: str,
        outcome: str,
        transactions: Sequence[str],
        note: str = "",
        alerts: Sequence[str] = (),
    ) -> None:
        ids = [f"label-{event_id}-{at}" for at in range(len(transactions))]
        case = self._act("closed", case_id, by, event_id, labels=ids, note=note or None)
        if case is None:
            return
        if case.row.holder not in (None, by):
            raise ActionRefused(f"{case.row.holder} holds this case: wait until that has ended, or ask.")
        named = dict(zip(transactions, ids, strict=True))
        alerts = []
        for view in case.alerts:
            own = named.get(view.alert.transaction_id)
            labels = [*view.labels, label_view(view, outcome, by, label_id=own)] if own else view.labels
            alerts.append(view._replace(closed=True, labels=labels))
        self.cases[case_id] = case._replace(alerts=alerts)
        self.change(case_id, status="closed", holder=None, holder_until_us=None)

    def snooze(self, case_id: str, by: str, event_id: str, until: datetime, note: str = "") -> None:
        if self._act("snoozed", case_id, by, event_id, until=until, note=note or None):
            self.change(case_id, status="snoozed", snoozed_until_us=us(until))

    def note(self, case_id: str, by: str, event_id: str, text: str) -> None:
        self._act("noted", case_id, by, event_id, note=text)

    def reopen(self, case_id: str, by: str, event_id: str) -> None:
        if self._act("reopened", case_id, by, event_id):
            self.change(case_id, status="open", snoozed_until_us=None)

    def close(self, case_ids: Sequence[str], by: str, event_id: str, reason: str, *_shown: Any) -> Sequence[str]:
        for case_id in case_ids:
            self._act("closed", case_id, by, f"{event_id}-{case_id}", note=reason)
            self.change(case_id, status="closed")
        return case_ids

    def withdraw(self, case_id: str, by: str, event_id: str, undoes: str) -> None:
        case = self._act("undone", case_id, by, event_id, undoes=undoes)
        if case is None:
            return
        history = [entry._replace(undone=entry.undone or entry.event.event_id == undoes) for entry in case.history]
        alerts = [view._replace(closed=False, labels=[]) for view in case.alerts]
        self.cases[case_id] = case._replace(history=history, alerts=alerts)
        self.change(case_id, status="open", snoozed_until_us=None)


class Answers:
    """Explanations, what became of labels, and the line at the top."""

    def __init__(self) -> None:
        self.river: str | None = None
        self.asked = 0

    def explain(self, decision: Decision) -> Explanation:
        return Explanation(
            SHARES,
            LOGIT,
            0.9089,
            0.9089,
            True,
            {"lightgbm": "lgbm-2026-11-30", "river": "river-48211", "policy": "policy-7"},
            0.62,
            None,
        )

    def learned(self, label: LabelView, decision: Decision | None) -> LearnedView:
        self.asked += 1
        text = (
            f"The online model has learned it (version {self.river})."
            if self.river
            else "The online model has not learned it yet."
        )
        counts = f"Counts since {NOW:%Y-%m-%d %H:%M} UTC."
        return LearnedView(None, self.river, f"{counts} {text} LightGBM learns it with its next version.")

    def figures(self) -> StatusView:
        return StatusView(
            1_284.0, 12, 87, 100.0, 0.853, 412, {"LightGBM": "lgbm-2026-11-30", "River": "river-48211"}, 3, None
        )


UNCONFIRMED = DeliveryFailed("the brokers do not answer")
