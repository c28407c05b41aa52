"""Decisions and labels for the audit's figures, from a cluster's topics or from exported files."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from pipeline.engine.records.accepted_labels import read_accepted
from pipeline.exports.intended_contents import export_batches, require_export
from pipeline.kafka.readers.topic_reader import read_batches, read_topic
from pipeline.kafka.records.internal import not_counted, readable, refuse
from pipeline.monitoring.outcomes import Outcomes
from pipeline.settings import Settings
from schemas.codec import timestamp_us
from schemas.messages import Label
from schemas.topics import ACCEPTED_LABELS, DECISIONS


class _Decision(msgspec.Struct):
    """Fields of a decision that are read."""

    card_id: str
    transaction_id: str
    event_time: datetime
    selection: str | None = None
    selection_probability: float = 1.0


_decode_decision: Final = msgspec.json.Decoder(_Decision).decode
_decode_label: Final = msgspec.json.Decoder(Label).decode


def outcomes_of_topics(bootstrap: str, settings: Settings) -> Outcomes:
    """Read ``accepted-labels`` and ``decisions`` of a cluster, without a group.

    Raises:
        TopicError: A topic is missing, or a part of it cannot be read.
        KafkaException: The brokers report an error that does not pass.
    """
    outcomes = Outcomes()
    for batch in read_batches(bootstrap, settings.topic(ACCEPTED_LABELS.name), settings=settings):
        accepted = read_accepted(batch, settings.topic_prefix)
        for record, error in accepted.refused:
            refuse(record, error, not_counted)
        for record, known_at_us in zip(accepted.records, accepted.labels.known_at_us.tolist(), strict=True):
            label = _decode_label(record.value or b"")
            key = (label.card_id, label.transaction_id)
            outcomes.add_label(key, label.label, label.source, timestamp_us(label.labelled_at), known_at_us)
    records = read_topic(bootstrap, settings.topic(DECISIONS.name), settings=settings)
    for _, decision in readable(records, _decode_decision, not_counted):
        key = (decision.card_id, decision.transaction_id)
        outcomes.add_decision(
            key, timestamp_us(decision.event_time), decision.selection, decision.selection_probability
        )
    return outcomes


def outcomes_of_files(directory: Path, settings: Settings) -> Outcomes:
    """Read what ``fraud-pipeline export DIRECTORY decisions labels`` wrote, with all topics of labels.

    Raises:
        ExportError: A topic is not there, or files of the export are missing or damaged.
    """
    topics = [*settings.label_topics, DECISIONS.name]
    require_export(directory, topics, sorted(topics))
    outcomes = Outcomes()
    names = ["card_id", "transaction_id", "label", "source", "labelled_at", "timestamp"]
    for topic in settings.label_topics:
        for card, transaction, label, source, labelled_at, timestamp in _rows(directory, topic, names):
            if settings.label_sources.allows(topic, source):
                at_us = timestamp_us(labelled_at)
                outcomes.add_label((card, transaction), label, source, at_us, max(at_us, timestamp_us(timestamp)))
    names = ["card_id", "transaction_id", "event_time", "selection", "selection_probability"]
    for card, transaction, event_time, selection, probability in _rows(directory, DECISIONS.name, names):
        outcomes.add_decision((card, transaction), timestamp_us(event_time), selection, probability)
    return outcomes


def _rows(directory: Path, topic: str, names: list[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the named columns of each row that was decoded."""
    for batch in export_batches(directory, topic, names):
        columns: Iterable[list[Any]] = (batch.column(name).to_pylist() for name in names)
        yield from (row for row in zip(*columns, strict=True) if row[1] is not None)
