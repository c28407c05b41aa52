"""Labels between the agents: the label agent's kernel, and how card and feedback agents read what it accepted."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from pipeline.decision.online_gate import LabelReport
from pipeline.engine.records.accept import accept_labels, arrivals_us
from pipeline.engine.records.columns import Labels, no_labels
from pipeline.engine.records.forwarding import NotForwarded, forward, origin
from pipeline.engine.records.partitioner import partitions_of
from pipeline.engine.records.results import Result
from pipeline.learning.label_sources import EVERY_SOURCE, LabelSources
from schemas.codec import MAX_VALUE_BYTES
from schemas.messages import Label
from schemas.records import Record
from schemas.topics import ACCEPTED_LABELS

_STAGE: Final = "label"


class LabelOptions(NamedTuple):
    """Options of the label kernel."""

    future_tolerance_us: int
    partitions: int
    """Number of partitions of ``accepted-labels``."""
    sources: LabelSources = EVERY_SOURCE
    topic_prefix: str = ""


def accept(records: Sequence[Record], options: LabelOptions) -> Result:
    """Check labels, stamp when each is known, and place it by its card.

    The records are of any partitions of topics of labels, in order. The result has a record of ``accepted-labels`` for
    each accepted label and a dead letter for each refused one, in order.
    """
    result = Result()

    def check(row: int, label: Label) -> None:
        options.sources.check(records[row].topic.removeprefix(options.topic_prefix), label.source)

    values = [record.value for record in records]
    rows, rejects = accept_labels(values, arrivals_us(records), options.future_tolerance_us, check)
    for reject in rejects:
        result.dead_letter(records[reject.row], _STAGE, reject.code, reject.text)
    homes = partitions_of(rows.card_id, options.partitions)
    columns = zip(rows.row.tolist(), rows.card_id.to_pylist(), homes.tolist(), rows.known_at_us.tolist(), strict=True)
    for row, card_id, home, known_at_us in columns:
        result.outputs.append(forward(records[row], ACCEPTED_LABELS, card_id, home, known_at_us))
    result.counts["label", "accepted"] += len(rows)
    return result


class AcceptedLabels(NamedTuple):
    """m labels of ``accepted-labels``."""

    labels: Labels
    records: Sequence[Record] = ()
    """m records of topics of labels, as the label agent read them."""
    refused: Sequence[tuple[Record, Exception]] = ()
    """Records that no label agent wrote, and why they cannot be read."""


_NONE: Final = AcceptedLabels(no_labels())


def read_accepted(records: Sequence[Record], topic_prefix: str) -> AcceptedLabels:
    """Read records of ``accepted-labels``.

    Which topics hold labels, and may claim what, was decided by the label agent: other settings of today change
    nothing of what was accepted.
    """
    if not records:
        return _NONE
    found: list[Record] = []
    known_at_us: list[int] = []
    refused: list[tuple[Record, Exception]] = []
    for record in records:
        try:
            label = origin(record, ACCEPTED_LABELS, topic_prefix)
        except NotForwarded as error:
            refused.append((record, error))
            continue
        found.append(label.record)
        known_at_us.append(label.known_at_us or 0)
    # The stamp is never before the label's own time, and releases before accepted longer ones, so that no label of a
    # label agent is refused here.
    rows, rejects = accept_labels(
        [label.value for label in found], np.array(known_at_us, np.int64), 0, most_bytes=MAX_VALUE_BYTES
    )
    refused += [(found[reject.row], ValueError(reject.text)) for reject in rejects]
    return AcceptedLabels(rows, [found[row] for row in rows.row.tolist()], refused)


def reports_of(labels: Labels) -> Iterator[LabelReport]:
    """Yield labels as the gate of the online model reads them, in their order."""
    columns = (labels.rank, labels.known, labels.labelled_at_us, labels.known_at_us)
    names = zip(labels.card_id.to_pylist(), labels.transaction_id.to_pylist(), strict=True)
    for name, row in zip(names, zip(*(column.tolist() for column in columns), strict=True), strict=True):
        yield LabelReport(name, *row)
