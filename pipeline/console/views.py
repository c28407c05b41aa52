"""The values that the console's pages show. What an account must not see is None, so that no page can show it."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from pipeline.console.case_events import ReplayedEvent
from schemas.messages import Alert, Decision, Label

CaseStatus = Literal["open", "snoozed", "closed"]
QueueState = Literal["open", "snoozed", "closed", "any"]


class QueueFilter(NamedTuple):
    """The cases of a queue."""

    text: str = ""
    """Beginning of an identifier of the case, its card, its merchants or its alerts' transactions, or the whole one of
    another transaction of it; empty for all."""
    status: QueueState = "open"
    holder: str = ""
    """``account``'s name, ``-`` for cases that nobody holds; empty for all."""
    least_loss: float = 0.0
    """Least expected loss, in the base currency."""
    after: int = 0
    """Number of cases to skip."""
    limit: int = 100


class QueueRow(NamedTuple):
    """A case in the queue."""

    case_id: str
    card_id: str
    status: CaseStatus
    raised_us: int
    """Time at which its first open alert was raised, in microseconds since 1970, like all times here."""
    last_raised_us: int
    """Time at which its newest alert was raised."""
    alerts: int
    """Its open alerts; all of them where it is closed."""
    money_at_risk: float
    """Sum of the amounts of those of which nothing is known yet, in the base currency."""
    currency: str
    expected_loss: float | None
    """Sum of their severities, likewise; None where the case is blind."""
    reason: str | None
    """Sentence of the reason that weighs most; None where the case is blind."""
    holder: str | None
    """Account that has claimed it, while the lease lasts."""
    holder_until_us: int | None
    snoozed_until_us: int | None
    blind: bool
    """True if its scores, reasons and rules are hidden until it is answered."""


class QueuePage(NamedTuple):
    """Part of a queue, in its order."""

    rows: Sequence[QueueRow]
    total: int
    """Number of cases that the filter finds."""


class LabelView(NamedTuple):
    """A label of a transaction, with where it was read."""

    label: Label
    topic: str
    """Without prefix."""
    known_us: int
    """Time from which it counts: the later of its own and its record's."""
    holds: bool
    """True if it is the one that holds, by the rank of its source and then its time."""


class AlertView(NamedTuple):
    """An alert of a case."""

    alert: Alert
    decision: Decision | None
    """Its decision, with the features as they were scored; None while that has not been read."""
    closed: bool
    labels: Sequence[LabelView]
    """The oldest first."""
    contradiction: str | None
    """Sentence where labels of different sources or people differ."""


class TimelineEntry(NamedTuple):
    """A transaction of the case's card, or at a merchant of the case."""

    transaction_id: str
    card_id: str
    merchant_id: str
    event_us: int
    amount: str
    """Decimal, in the major unit of ``currency``."""
    currency: str
    amount_base: float
    score: float | None
    action: str | None
    label: str | None
    """The one that holds."""
    case_id: str | None
    """The case of its alert, if it has one."""


class LinkedCase(NamedTuple):
    """Another case that has a value in common."""

    field: str
    """``merchant_id``, or a declared text such as ``device_id``."""
    value: str
    case_id: str
    card_id: str
    status: CaseStatus
    alerts: int


class CaseView(NamedTuple):
    """A case with all that its page shows."""

    row: QueueRow
    alerts: Sequence[AlertView]
    """Its alerts by event time, the newest last; where it is blind, what scores and rules say is empty."""
    card: Sequence[TimelineEntry]
    """Transactions of the card, the newest first."""
    merchants: Sequence[TimelineEntry]
    """Transactions at the merchants of the case's alerts, of any card, the newest first."""
    links: Sequence[LinkedCase]
    history: Sequence[ReplayedEvent]
    """The oldest first."""
    alerts_of_all: int
    """Number of all its alerts, of which ``alerts`` has the open ones first, and then the newest."""


class StoreFigures(NamedTuple):
    """Figures of the whole."""

    decisions: int
    """Decisions that were read since the console started, which rates are taken of."""
    alerts_last_day: int
    """Cases that alerted first in the last 24 hours of event time."""
    labelled_alerts: int
    """Alerts of the last 30 days with a label that is fraud or legitimate."""
    confirmed_alerts: int
    """Those of them that are fraud."""
    source_ends: dict[int, int]
    """Offset behind the newest transaction that has a decision, by partition of ``transactions``."""


class ShareRow(NamedTuple):
    """A part of a score."""

    text: str
    """Reason in general words, such as *Amount unusual for the card*."""
    feature: str
    """Feature that weighs most in it; empty for the base and for other models."""
    value: float | None
    usual: float | None
    """The card's (or the merchant's) usual value, where there is one."""
    share: float
    """Log-odds."""


class Explanation(NamedTuple):
    """An explanation of a score."""

    rows: Sequence[ShareRow]
    """The base first, then the largest; their shares sum to ``logit`` (within 1e-9)."""
    logit: float
    """Log-odds of the score."""
    score: float
    scored_again: float | None
    """The score computed anew from the features; None where a version can no longer be read."""
    equal: bool | None
    """True if both are the same to the last bit."""
    versions: dict[str, str]
    threshold: float
    note: str | None
    """Sentence where something could not be computed."""


class LearnedView(NamedTuple):
    """The progress of a label."""

    late: str | None
    """Sentence where it comes too late to count."""
    river: str | None
    """Version of the online model that has learned it; None while none has."""
    sentence: str
    """All of it in words."""


class StatusView(NamedTuple):
    """The line at the top."""

    rate: float
    """Decisions a second."""
    lag: int | None
    """Transactions that wait for a decision."""
    alerts: int
    """Cases that alerted in the last day."""
    budget: float | None
    """Cases a day that are wanted; None where nothing says so."""
    precision: float | None
    """Share of the labelled alerts that are fraud."""
    labelled: int
    versions: dict[str, str]
    dead_letters: int | None
    failure: str | None
    """Sentence where the topics cannot be followed."""
