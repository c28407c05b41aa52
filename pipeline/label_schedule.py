"""When each label of a replay is due: a fixed delay after its transaction, or sooner for a reviewed one."""

import heapq
from collections import deque
from dataclasses import dataclass
from typing import Final

NEVER_US: Final = 2**63 - 1


@dataclass(slots=True, eq=False)
class Truth:
    """What is known to the simulation about a transaction."""

    transaction_id: str
    card_id: str
    event_time_us: int
    fraud: bool
    fraud_type: str | None
    reported: bool
    """Whether a label still comes without a review."""
    reviewed: bool = False
    """Whether its label comes from a review; it is held on, so that a repeat is recognised."""


@dataclass(frozen=True, slots=True)
class DueLabel:
    """A label to send at ``due_us``; ``alert_id`` is that of the reviewed alert, if a review made it."""

    due_us: int
    truth: Truth
    alert_id: str | None = None


class LabelSchedule:
    """Holds the truth about transactions until their label is due; gives one label at most for each.

    Transactions are added in event-time order. Memory grows with the transactions of one ``delay_us``: all of them with
    ``reviews``, only the reported ones without.
    """

    def __init__(self, delay_us: int, *, reviews: bool) -> None:
        self._delay_us = delay_us
        self._reviews = reviews
        self._reports: deque[Truth] = deque()
        self._reviewed: list[tuple[int, int, Truth, str]] = []
        self._by_transaction: dict[tuple[str, str], Truth] = {}
        self._sequence = 0
        self.next_due_us = NEVER_US
        """When `pop` has something to do; ``NEVER_US`` when nothing is held."""
        self.pending = 0
        """Labels that are still to be sent, as far as is known now."""
        self.unmatched_alerts = 0
        """Alerts about transactions that are not held: not sent by this replay, or settled before."""

    def add(self, truth: Truth) -> None:
        """Hold what is true of a transaction until its label is due; a repeat of a held one is not held again."""
        identity = (truth.card_id, truth.transaction_id)
        if not (truth.reported or self._reviews) or identity in self._by_transaction:
            return
        self._reports.append(truth)
        self._by_transaction[identity] = truth
        self.pending += truth.reported
        self.next_due_us = min(self.next_due_us, truth.event_time_us + self._delay_us)

    def review(self, card_id: str, transaction_id: str, alert_id: str, due_us: int) -> None:
        """Bring forward the label of an alerted transaction to ``due_us``, if it is then not due before."""
        truth = self._by_transaction.get((card_id, transaction_id))
        if truth is None or truth.reviewed:
            self.unmatched_alerts += 1
            return
        if truth.reported and truth.event_time_us + self._delay_us <= due_us:
            return
        self.pending += not truth.reported
        # The report no longer holds; the review sends in its place.
        truth.reported, truth.reviewed = False, True
        heapq.heappush(self._reviewed, (due_us, self._sequence, truth, alert_id))
        self._sequence += 1
        self.next_due_us = min(self.next_due_us, due_us)

    def pop(self, until_us: int) -> DueLabel | None:
        """The earliest label that is due at ``until_us`` or before, or ``None``; drops what will never have one."""
        label = None
        while label is None and self.next_due_us <= until_us:
            report_us = self._reports[0].event_time_us + self._delay_us if self._reports else NEVER_US
            if self._reviewed and self._reviewed[0][0] <= report_us:
                due_us, _, truth, alert_id = heapq.heappop(self._reviewed)
                label = DueLabel(due_us, truth, alert_id)
            else:
                truth = self._reports.popleft()
                self._by_transaction.pop((truth.card_id, truth.transaction_id), None)
                label = DueLabel(report_us, truth) if truth.reported else None
            self._find_next()
        self.pending -= label is not None
        return label

    def _find_next(self) -> None:
        report_us = self._reports[0].event_time_us + self._delay_us if self._reports else NEVER_US
        self.next_due_us = min(report_us, self._reviewed[0][0] if self._reviewed else NEVER_US)
