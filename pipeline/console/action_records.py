"""The events and labels that an action writes, made of what the console has read."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec

from pipeline.console.cases import AUDIT
from pipeline.console.queries import KnownTransaction
from pipeline.console.views import LabelView
from pipeline.kafka.writers.producer import TopicRecord
from pipeline.learning.labels import label_order
from pipeline.settings import Settings
from schemas.codec import timestamp_us
from schemas.errors import InvalidMessage
from schemas.messages import CaseEvent, Label
from schemas.times import US_PER_MS
from schemas.topics import CASE_EVENTS

ANALYST: Final = "analyst"
UNKNOWN: Final = "unknown"
_ID_DIGITS: Final = 32
_TICK: Final = timedelta(microseconds=1)


class ActionRefused(Exception):
    """An action that cannot be done; the text is a sentence for who asked for it."""


def derived_id(event_id: str, name: str) -> str:
    """Return an identifier that is the same whenever an action is repeated."""
    return hashlib.sha256(f"{event_id}\0{name}".encode()).hexdigest()[:_ID_DIGITS]


def event_record(settings: Settings, event: CaseEvent) -> TopicRecord:
    """Return an event as a record.

    Raises:
        ActionRefused: A text is longer than the message may hold.
    """
    return TopicRecord(settings.topic(CASE_EVENTS.name), event.case_id.encode(), _checked(event))


def label_record(settings: Settings, label: Label, now: datetime) -> TopicRecord:
    """Return a label as a record of the topic that speaks for its source.

    Raises:
        ActionRefused: No topic does, or the label lies further ahead than the pipeline accepts.
    """
    try:
        topic = settings.label_sources.topic_for(label.source)
    except InvalidMessage as error:
        raise ActionRefused(f"The label cannot be written: {error}") from error
    if label.labelled_at - now > timedelta(seconds=settings.future_tolerance_s):
        raise ActionRefused(
            f"An earlier label of transaction {label.transaction_id} lies in the future, at "
            f"{label.labelled_at:%Y-%m-%d %H:%M:%S} UTC: label it again after that time."
        )
    known_ms = timestamp_us(max(now, label.labelled_at)) // US_PER_MS
    return TopicRecord(settings.topic(topic), label.card_id.encode(), _checked(label), timestamp_ms=known_ms)


def _checked(message: CaseEvent | Label) -> bytes:
    try:
        value = msgspec.json.encode(message)
        msgspec.json.decode(value, type=type(message))
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise ActionRefused(f"This cannot be written: {error}.") from error
    return value


def new_labels(known: Mapping[str, KnownTransaction], outcome: str, event: CaseEvent, now: datetime) -> list[Label]:
    """Return the labels of an answer: of source ``audit`` where an audit selected the transaction's alert.

    Args:
        known: Transactions to label.
        outcome: ``fraud`` or ``legitimate``.
        event: Event that closes the case.
        now: Time of the action.
    """
    labels = []
    for transaction_id, transaction in known.items():
        source = AUDIT if transaction.audited else ANALYST
        labels.append(
            Label(
                transaction_id=transaction_id,
                card_id=event.card_id,
                label=outcome,
                source=source,
                labelled_at=_later(now, transaction.labels, source),
                label_id=derived_id(event.event_id, transaction_id),
                alert_id=transaction.alert_id,
                analyst=event.by,
                note=event.note,
            )
        )
    return labels


def _later(at: datetime, before: Sequence[LabelView], source: str) -> datetime:
    """Return a time that is later than all labels of a source, so that a new one takes their place."""
    return max([at, *(view.label.labelled_at + _TICK for view in before if view.label.source == source)])


def undoing_label(
    undone: Label, labels: Sequence[LabelView], own: Collection[str], event: CaseEvent, now: datetime
) -> Label:
    """Return the label that says again what its source said before another one; ``unknown`` where it said nothing.

    What other sources say is not written under this one's name. By the rule of `pipeline.learning.labels`, a label of
    ``unknown`` holds over those of lower sources as any other does.

    Args:
        undone: Label that is undone.
        labels: All labels of its transaction.
        own: Identifiers of the labels of the event that is undone.
        event: Event that undoes it.
        now: Time of the action.

    Raises:
        ActionRefused: A newer label of the same source has changed it meanwhile.
    """
    others = [view.label for view in labels if view.label.label_id not in own]
    same = [label for label in others if label.source == undone.source]
    if newer := [label for label in same if label_order(label) > label_order(undone)]:
        by = newer[-1].analyst or newer[-1].source
        raise ActionRefused(
            f"{by} has labelled transaction {undone.transaction_id} since then: correct that label, and not this one."
        )
    before = max(same, key=label_order, default=None)
    return msgspec.structs.replace(
        undone,
        label=before.label if before is not None else UNKNOWN,
        fraud_type=before.fraud_type if before is not None else None,
        labelled_at=_later(now, labels, undone.source),
        label_id=derived_id(event.event_id, undone.transaction_id),
        analyst=event.by,
        note=event.note,
    )
