"""Due times of a replay's labels: with the report of the transaction, or sooner for a reviewed one."""

import heapq
import itertools
from dataclasses import dataclass

from pipeline.learning.regimes import NEVER_US


@dataclass(slots=True, eq=False)
class Truth:
    """The simulation's knowledge about a transaction."""

    transaction_id: str
    card_id: str
    event_time_us: int
    fraud: bool
    fraud_type: str | None
    report_us: int
    """Time of the label that comes without a review; ``NEVER_US`` if none does."""
    corrected_us: int = NEVER_US
    """Time of a second label, where the first says the opposite; ``NEVER_US`` where it is right."""
    reviewed: bool = False
    """True if its label comes from a review; it is held on, so that a repeat is recognised."""


@dataclass(frozen=True, slots=True)
class DueLabel:
    """A label to send at ``due_us``; ``alert_id`` is that of the reviewed alert, if a review made it."""

    due_us: int
    truth: Truth
    fraud: bool
    """True if the label says fraud."""
    alert_id: str | None = None


class LabelSchedule:
    """Holds the truth about transactions until their label is due; gives one for each, and one more to correct it.

    Transactions are added in event-time order. Memory grows with the transactions whose reports are still to come, and
    with ``reviews`` with all of the last ``hold_us``.

    Args:
        hold_us: How long a transaction that nobody reports is held, in case it is reviewed.
        reviews: Whether there are reviews.
    """

    def __init__(self, hold_us: int, *, reviews: bool) -> None:
        self._hold_us = hold_us
        self._reviews = reviews
        self._due: list[tuple[int, bool, int, Truth, str | None]] = []
        """Heap of reports, and of reviews with their alerts, which come first of the same time."""
        self._numbers = itertools.count()
        self._by_transaction: dict[tuple[str, str], Truth] = {}
        self.next_due_us = NEVER_US
        """When `pop` has something to do; ``NEVER_US`` when nothing is held."""
        self.pending = 0
        """Labels that are still to be sent, as far as is known now."""
        self.unmatched_alerts = 0
        """Alerts about transactions that are not held: not sent by this replay, or final before."""

    def add(self, truth: Truth) -> None:
        """Hold what is true of a transaction until its label is due; a repeat of a held one is not held again."""
        identity = (truth.card_id, truth.transaction_id)
        reported = truth.report_us < NEVER_US
        if not (reported or self._reviews) or identity in self._by_transaction:
            return
        until_us = truth.report_us if reported else truth.event_time_us + self._hold_us
        self._push(until_us, truth)
        self._by_transaction[identity] = truth
        self.pending += reported

    def review(self, card_id: str, transaction_id: str, alert_id: str, due_us: int) -> None:
        """Bring forward the label of an alerted transaction, if it is not due by then.

        Args:
            card_id: Identifier of its card.
            transaction_id: Identifier of the transaction; one that is not held, or was reviewed before, is counted in
                ``unmatched_alerts``.
            alert_id: Identifier of the alert, for the label.
            due_us: Time of the review, in microseconds since 1970 of the simulated clock.
        """
        truth = self._by_transaction.get((card_id, transaction_id))
        if truth is None or truth.reviewed:
            self.unmatched_alerts += 1
            return
        if truth.report_us <= due_us:
            return
        self.pending += truth.report_us == NEVER_US
        # The report no longer holds; the review sends in its place.
        truth.report_us, truth.reviewed = NEVER_US, True
        self._push(due_us, truth, alert_id)

    def pop(self, until_us: int) -> DueLabel | None:
        """The earliest label that is due at ``until_us`` or before, or ``None``; drops what will never have one."""
        label = None
        while label is None and self.next_due_us <= until_us:
            due_us, is_report, _, truth, alert_id = heapq.heappop(self._due)
            label = self._report(due_us, truth) if is_report else DueLabel(due_us, truth, truth.fraud, alert_id)
            self.next_due_us = self._due[0][0] if self._due else NEVER_US
        self.pending -= label is not None
        return label

    def _report(self, report_us: int, truth: Truth) -> DueLabel | None:
        """Return what a report says, which a later one may correct; None where it no longer holds."""
        corrects = truth.report_us < NEVER_US and truth.corrected_us < NEVER_US
        label = DueLabel(report_us, truth, truth.fraud != corrects) if truth.report_us < NEVER_US else None
        if corrects:
            truth.report_us, truth.corrected_us = truth.corrected_us, NEVER_US
            self._push(truth.report_us, truth)
            self.pending += 1
        else:
            self._by_transaction.pop((truth.card_id, truth.transaction_id), None)
        return label

    def _push(self, due_us: int, truth: Truth, alert_id: str | None = None) -> None:
        heapq.heappush(self._due, (due_us, alert_id is None, next(self._numbers), truth, alert_id))
        self.next_due_us = self._due[0][0]
