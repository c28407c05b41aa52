"""A batch of the card agent: its records become columns for the driver, and the outcome becomes records."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa

from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.cards.driver import CardKernels, CardOutcome, CardPart, CardRows, process_cards
from pipeline.engine.cards.joins import NO_ROOM
from pipeline.engine.cards.pending import LabelBatch
from pipeline.engine.cards.profiled_blocks import encode_profiled
from pipeline.engine.records.accept import accept_transactions, arrivals_us
from pipeline.engine.records.accepted_labels import read_accepted
from pipeline.engine.records.columns import Reject, Transactions, name_keys
from pipeline.engine.records.forwarding import MOST_OFFSETS, ForwardedBatch, NotForwarded, forward, origin
from pipeline.engine.records.partitioner import partitions_of
from pipeline.engine.records.results import Result
from pipeline.engine.records.whole_amounts import MOST_OF_A_BATCH, amount_counts
from schemas.errors import InvalidMessage
from schemas.records import Record
from schemas.topics import ACCEPTED_LABELS, REROUTED, TRANSACTIONS

Parts = Sequence[tuple[CardKernels, Sequence[Record]]]


def process_together(parts: Parts, now: datetime | None, options: CardOptions) -> Result:
    """Profile the records of some partitions: transactions, rerouted ones and labels, each in offset order.

    The cost of a small batch is mostly per call, so that each call serves all partitions.

    Args:
        parts: Kernels of partitions, each with its records.
        now: Stamped as ``ingested_at``; None only updates the states (a replay) and emits nothing.
        options: Those of the batch.

    Returns:
        What is to be written, and counts.
    """
    result = Result()
    if not parts:
        return result
    batch, record_ends = _transactions([records for _, records in parts], options, result)
    rows = _accepted(batch, options, result)
    records = [batch.records[number] for number in rows.row.tolist()]
    source = np.array([record.partition * MOST_OFFSETS + record.offset for record in records], np.int64)
    # Labels of a partition stand behind its last transaction, at even positions.
    columns = CardRows(
        rows, name_keys(rows.merchant_id), rows.merchant_id.view(pa.binary()).to_numpy(zero_copy_only=False),
        2 * np.arange(len(rows)) + 1, source, source // MOST_OFFSETS,
    )  # fmt: skip
    shares = _parts(parts, rows.row.searchsorted(record_ends).tolist(), options.topic_prefix, result)
    outcome = process_cards(columns, shares, options.retention)
    counts = {("accepted", ""): len(outcome.position), ("duplicate", ""): outcome.duplicates}
    result.counts += Counter(counts | {("label", name): count for name, count in outcome.label_outcomes.items()})
    _refuse(outcome, batch, options, result)
    if now is None:
        result.outputs.clear()
        return result
    if looked_at := min(len(rows), MOST_OF_A_BATCH):
        result.amounts = amount_counts(
            rows.currency[:looked_at],
            rows.amount_minor[:looked_at],
            lambda currency: options.rates.currencies[currency].digits,
        )
    if len(outcome.position) or len(outcome.following.position):
        result.outputs += encode_profiled(outcome, batch, options, now)
    return result


def _transactions(
    parts: Sequence[Sequence[Record]], options: CardOptions, result: Result
) -> tuple[ForwardedBatch, list[int]]:
    """Return the transactions of all partitions, rerouted ones as they lay, and how many the first partitions have."""
    transactions, rerouted = (options.topic_prefix + topic.name for topic in (TRANSACTIONS, REROUTED))
    found, reads, ends = list[Record](), list[Record](), list[int]()
    values = list[bytes | None]()
    for records in parts:
        for read in records:
            record, value = read, read.value
            if read.topic == rerouted:
                try:
                    record, value, _ = origin(read, REROUTED, options.topic_prefix)
                except NotForwarded as error:
                    result.dead_letter(read, "card", "rerouted_headers", str(error))
                    continue
            elif read.topic != transactions:
                continue
            elif options.mapper is not None:
                try:
                    value = options.mapper.mapped(value)
                except InvalidMessage as error:
                    text = f"{error} {options.mapper.mapping.name} cannot be followed."
                    result.dead_letter(read, "card", error.code, text)
                    continue
            found.append(record)
            reads.append(read)
            values.append(value)
        ends.append(len(found))
    is_plain = all(record is read for record, read in zip(found, reads, strict=True))
    return ForwardedBatch(found, found if is_plain else reads, values), ends


def _accepted(batch: ForwardedBatch, options: CardOptions, result: Result) -> Transactions:
    """Return accepted transactions that are their partition's own; others are rerouted, or dead letters."""
    rows, rejects = accept_transactions(
        batch.values, arrivals_us(batch.records), options.rates, options.future_tolerance_us, producer_fields=True
    )
    for reject in rejects:
        result.dead_letter(batch.records[reject.row], "card", reject.code, _explained(reject, batch, options))
    if options.partitions == 1 or not len(rows):
        return rows
    homes = partitions_of(rows.card_id, options.partitions)
    staying = homes == [batch.reads[number].partition for number in rows.row.tolist()]
    if staying.all():
        return rows
    for row in np.flatnonzero(~staying).tolist():
        number = int(rows.row[row])
        record, value = batch.records[number], batch.values[number]
        own = None if value == record.value else value
        result.outputs.append(forward(record, REROUTED, rows.card_id[row].as_py(), int(homes[row]), value=own))
        result.counts["rerouted", batch.reads[number].topic.removeprefix(options.topic_prefix)] += 1
    return rows.take(staying)


def _parts(parts: Parts, row_ends: Sequence[int], topic_prefix: str, result: Result) -> Iterator[CardPart]:
    """Yield each partition's share, with its accepted labels."""
    name, first = topic_prefix + ACCEPTED_LABELS.name, 0
    for (kernels, records), end in zip(parts, row_ends, strict=True):
        found = [record for record in records if record.topic == name]
        labels, originals, refused = read_accepted(found, topic_prefix)
        for record, error in refused:
            result.unreadable(record, "card", error)
        home = records[0].partition if records else 0
        position = np.full(len(labels), 2 * end)
        yield CardPart(
            kernels, home, slice(first, end), LabelBatch.from_labels(labels, originals), position, len(records)
        )
        first = end


def _explained(reject: Reject, batch: ForwardedBatch, options: CardOptions) -> str:
    """Return the text of a refusal, and where a mapping has made what is refused."""
    record = batch.records[reject.row]
    if batch.values[reject.row] == record.value:
        return reject.text
    # Who passed a record on has mapped it.
    own = options.mapper if batch.reads[reject.row] is record else None
    return f"{reject.text} {'A mapping' if own is None else own.mapping.name} has made this of the producer's JSON."


def _refuse(outcome: CardOutcome, batch: ForwardedBatch, options: CardOptions, result: Result) -> None:
    """Refuse repeats that contradict the accepted transaction, and labels that waited in vain or cannot wait."""
    for reject, source in outcome.contradictions:
        first = divmod(source, MOST_OFFSETS)
        text = _explained(reject, batch, options)
        result.dead_letter(batch.records[reject.row], "card", reject.code, text, first=first)
    for reject, record in outcome.given_up:
        if record is not None:
            result.dead_letter(record, "card", reject.code, reject.text)
    for record, reason in outcome.no_room:
        advice = "send it again once the transaction is there, and each label once"
        result.dead_letter(record, "card", NO_ROOM, f"{reason}: {advice}")
