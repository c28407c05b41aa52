"""Matches what comes out of the pipeline with what went in. Pure: records and clock readings are arguments."""

import threading
from typing import Final

import msgspec

from pipeline.demo.figures import RunFigures
from schemas.errors import UNREADABLE
from schemas.messages import Alert

FRAUD: Final = "fraud"
LEGITIMATE: Final = "legitimate"
ALERT: Final = "alert"


class Head(msgspec.Struct, frozen=True):
    """The parts of records that the ledger needs; reading only these keeps the monitor out of the workers' way."""

    transaction_id: str = ""
    action: str = ""
    label: str | None = None
    name: str = ""
    """Name of a model; empty for a control record."""
    version: str = ""


class Ledger:
    """Keeps `RunFigures` from the records of one run.

    The alerts of the warm-up are not counted: the first model has learned from those very transactions.

    `sent` may be called by another thread than the rest. Memory grows with the transactions in flight and the alerts.
    """

    def __init__(self, figures: RunFigures) -> None:
        self._figures = figures
        self._lock = threading.Lock()
        self._sent_s: dict[str, float | None] = {}
        """Transactions without a decision: when they were sent (None in the warm-up, which is not timed)."""
        self._alerted: set[str] = set()
        """Transactions with an alert whose label has not come."""
        self._early_labels: dict[str, str] = {}
        """Labels that were read before the decision on their transaction."""
        self.alerts_decided = 0
        """Decisions read whose action is an alert: so many alerts there must be."""
        self._head = msgspec.json.Decoder(Head)
        self._alert = msgspec.json.Decoder(Alert)

    def sent(self, transaction_id: str, now_s: float, *, warm_up: bool = False) -> None:
        """Enter a transaction that is about to be sent at ``now_s``."""
        with self._lock:
            self._sent_s[transaction_id] = None if warm_up else now_s
        self._figures.transactions += 1
        self._figures.warm_up_transactions += warm_up

    def decision(self, value: bytes, now_s: float) -> None:
        """Enter a decision that was read at ``now_s`` (the clock of `sent`)."""
        head = self._head.decode(value)
        self._figures.decisions += 1
        with self._lock:
            known = head.transaction_id in self._sent_s
            sent_s = self._sent_s.pop(head.transaction_id, None)
        if not known:
            self._figures.repeated_decisions += 1
            return
        if sent_s is not None:
            self._figures.latencies.add((now_s - sent_s) * 1_000)
        label = self._early_labels.pop(head.transaction_id, None)
        self.alerts_decided += head.action == ALERT
        if head.action == ALERT and sent_s is not None:
            self._alerted.add(head.transaction_id)
            if label is not None:
                self._judge(head.transaction_id, label)

    def label(self, value: bytes) -> None:
        """Enter a label, whatever its source; anybody may write one that is none."""
        self._figures.labels += 1
        try:
            head = self._head.decode(value)
        except UNREADABLE:
            return
        if head.transaction_id in self._alerted:
            self._judge(head.transaction_id, head.label or "")
        elif head.transaction_id in self._sent_s:
            self._early_labels[head.transaction_id] = head.label or ""

    def alert(self, value: bytes) -> None:
        """Enter an alert."""
        self._figures.alerts += 1
        self._figures.latest_alerts.append(self._alert.decode(value))

    def dead_letter(self, value: bytes) -> None:
        """Count a dead letter; ``value`` is that of the record that was quarantined: no decision will come on it."""
        self._figures.dead_letters += 1
        try:
            head = self._head.decode(value)
        except UNREADABLE:
            # Not JSON, or not a message: none of the transactions that were sent here.
            return
        if head.label is not None:
            return
        with self._lock:
            known = head.transaction_id in self._sent_s
            self._sent_s.pop(head.transaction_id, None)
        self._figures.refused += known

    def model(self, value: bytes) -> None:
        """Enter a published model version."""
        head = self._head.decode(value)
        if head.name == "river":
            self._figures.river_versions += self._figures.river_version is not None
            self._figures.river_version = head.version

    def missing(self, limit: int) -> list[str]:
        """At most ``limit`` transactions that were sent and have no decision, oldest first."""
        with self._lock:
            return [transaction_id for transaction_id, _ in zip(self._sent_s, range(limit), strict=False)]

    def _judge(self, transaction_id: str, label: str) -> None:
        if label not in {FRAUD, LEGITIMATE}:
            return
        self._alerted.discard(transaction_id)
        self._figures.labelled_alerts += 1
        self._figures.confirmed_alerts += label == FRAUD
