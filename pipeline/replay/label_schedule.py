"""Due times of a replay's labels: with the report of the transaction, or sooner for a reviewed one."""

import heapq
from dataclasses import dataclass
from typing import Final

NEVER_US: Final = 2**63 - 1


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
        self._reports: list[tuple[int, int, Truth]] = []
        self._reviewed: list[tuple[int, int, Truth, str]] = []
        self._by_transaction: dict[tuple[str, str], Truth] = {}
        self._sequence = 0
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
        heapq.heappush(self._reports, (until_us, self._next(), truth))
        self._by_transaction[identity] = truth
        self.pending += reported
        self.next_due_us = min(self.next_due_us, until_us)

    def review(self, card_id: str, transaction_id: str, alert_id: str, due_us: int) -> None:
        """Bring forward the label of an alerted transaction to ``due_us``, if it is then not due before."""
        truth = self._by_transaction.get((card_id, transaction_id))
        if truth is None or truth.reviewed:
            self.unmatched_alerts += 1
            return
        if truth.report_us <= due_us:
            return
        self.pending += truth.report_us == NEVER_US
        # The report no longer holds; the review sends in its place.
        truth.report_us, truth.reviewed = NEVER_US, True
        heapq.heappush(self._reviewed, (due_us, self._next(), truth, alert_id))
        self.next_due_us = min(self.next_due_us, due_us)

    def pop(self, until_us: int) -> DueLabel | None:
        """The earliest label that is due at ``until_us`` or before, or ``None``; drops what will never have one."""
        label = None
        while label is None and self.next_due_us <= until_us:
            report_us = self._reports[0][0] if self._reports else NEVER_US
            if self._reviewed and self._reviewed[0][0] <= report_us:
                due_us, _, truth, alert_id = heapq.heappop(self._reviewed)
                label = DueLabel(due_us, truth, truth.fraud, alert_id)
            else:
                label = self._report(report_us, heapq.heappop(self._reports)[-1])
            report_us = self._reports[0][0] if self._reports else NEVER_US
            self.next_due_us = min(report_us, self._reviewed[0][0] if self._reviewed else NEVER_US)
        self.pending -= label is not None
        return label

    def _report(self, report_us: int, truth: Truth) -> DueLabel | None:
        """Return what a report says, which a later one may correct; None where it no longer holds."""
        corrects = truth.report_us < NEVER_US and truth.corrected_us < NEVER_US
        label = DueLabel(report_us, truth, truth.fraud != corrects) if truth.report_us < NEVER_US else None
        if corrects:
            truth.report_us, truth.corrected_us = truth.corrected_us, NEVER_US
            heapq.heappush(self._reports, (truth.report_us, self._next(), truth))
            self.pending += 1
        else:
            self._by_transaction.pop((truth.card_id, truth.transaction_id), None)
        return label

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence
