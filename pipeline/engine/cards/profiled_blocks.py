"""The card agent's results of a batch, as blocks for ``profiled``: columns throughout, no work by row."""

from collections.abc import Sequence, Set
from datetime import datetime
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.cards.card_join import Following
from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.cards.driver import CardOutcome
from pipeline.engine.encoding import blocks
from pipeline.engine.encoding import row_columns as col
from pipeline.engine.encoding.block_writing import RowColumns, encode_blocks
from pipeline.engine.encoding.blocks import KNOWN_CODES, LABEL, PROFILED_LAYOUT, Sources
from pipeline.engine.encoding.json_bytes import copy_bytes
from pipeline.engine.encoding.json_numbers import LONGEST_VALUE, write_whole
from pipeline.engine.records.columns import text_buffers
from pipeline.engine.records.forwarding import ForwardedBatch
from pipeline.engine.records.partitioner import partitions_of
from pipeline.features.compiled import compiled
from schemas.codec import timestamp_us
from schemas.records import Output, Record
from schemas.times import US_PER_SECOND
from schemas.topics import LABELS, PROFILED, REROUTED, TRANSACTIONS

_TOPICS: Final = tuple(topic.name.encode() for topic in (TRANSACTIONS, LABELS, REROUTED))
"""The first names of every block; that of the rate table follows, and topics of further labels."""
_TRANSACTIONS, _LABELS, _REROUTED = range(len(_TOPICS))
_RATES: Final = len(_TOPICS)
_DASH: Final = np.uint8(ord("-"))
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def encode_profiled(outcome: CardOutcome, batch: ForwardedBatch, options: CardOptions, now: datetime) -> list[Output]:
    """Return the blocks of a batch that was read at ``now``, rows as they reach the merchants of each partition.

    ``row`` of the accepted transactions, which have what their producers stated, is a number in ``batch``.
    """
    names = [*_TOPICS, options.rates.version.encode()]
    rows = _transaction_rows(outcome, batch, options, timestamp_us(now))
    if not len(outcome.following.position):
        return encode_blocks(PROFILED, names, rows)
    labels = _label_rows(outcome.following, names, rows.features.shape[1], options)
    return encode_blocks(PROFILED, names, labels.behind(rows), outcome.log_order())


def _transaction_rows(outcome: CardOutcome, batch: ForwardedBatch, options: CardOptions, now_us: int) -> RowColumns:
    taken, profile = outcome.transactions, outcome.profile
    n, numbers = len(taken), taken.row.tolist()
    is_all = n == len(batch.records)
    records = batch.records if is_all else [batch.records[number] for number in numbers]
    values = batch.values if is_all else [batch.values[number] for number in numbers]
    reads = records
    if batch.reads is not batch.records:
        reads = batch.reads if is_all else [batch.reads[number] for number in numbers]
    sources = _sources(records, _TRANSACTIONS)
    if taken.producer_offset_min is None:
        raise ValueError("these transactions were accepted without what their producers stated")
    came, codes = sources, np.zeros((len(blocks.CODES), n), np.uint8)
    codes[blocks.FLAGS] = blocks.COUNTED * taken.counts + blocks.OUTLIER * profile.outlier
    codes[blocks.RATES_NAME], codes[blocks.INPUT_NAME] = _RATES, _TRANSACTIONS
    if reads is not records:
        came = _sources(reads, _TRANSACTIONS)
        passed_on = [read is not other for read, other in zip(reads, records, strict=True)]
        codes[blocks.INPUT_NAME, passed_on] = _REROUTED
    wide, narrow = PROFILED_LAYOUT.integers(
        n,
        {
            col.EVENT_US: taken.event_time_us,
            col.AMOUNT_BASE: taken.amount_base_minor,
            col.CASE_SEQUENCE: profile.case_sequence,
            col.INGESTED_US: now_us,
            col.INPUT_OFFSET: came.offset,
            col.INPUT_PARTITION: came.partition,
            col.KNOWN_AT_US: outcome.wait_us,
            col.PRODUCER_OFFSET: taken.producer_offset_min,
        },
    )
    case_id = _case_ids(taken.card_id, profile.case_start_us // US_PER_SECOND)
    texts = (
        taken.transaction_id, taken.card_id, taken.merchant_id, case_id, taken.producer_amount, taken.currency,
        taken.transaction_type,
    )  # fmt: skip
    text, firsts, lengths = _texts(dict(enumerate(texts)), values, options.dropped_fields)
    return RowColumns(
        PROFILED_LAYOUT, partitions_of(taken.merchant_id, options.merchant_partitions), sources, wide, profile.features,
        narrow, codes, text, firsts, lengths,
    )  # fmt: skip


def _label_rows(following: Following, names: list[bytes], features: int, options: CardOptions) -> RowColumns:
    """Return the labels' rows; ``names`` gets the topics of labels besides ``labels``."""
    labels, records, m = following.labels.labels, following.labels.records, len(following.position)
    topics = [record.topic.removeprefix(options.topic_prefix) for record in records]
    numbers = {LABELS.name: _LABELS}
    for topic in dict.fromkeys(topics):
        if topic not in numbers:
            numbers[topic] = len(names)
            names.append(topic.encode())
    sources = _sources(records, _LABELS)
    sources.topic[:] = [numbers[topic] for topic in topics]
    wide, narrow = PROFILED_LAYOUT.integers(
        m, {col.EVENT_US: following.event_time_us, col.KNOWN_AT_US: labels.known_at_us}
    )
    codes = np.zeros((len(blocks.CODES), m), np.uint8)
    codes[blocks.KIND], codes[blocks.KNOWN] = LABEL, KNOWN_CODES[following.known]
    merchants = pa.array(following.merchants, pa.binary())
    texts = {col.ID: labels.transaction_id, col.CARD: labels.card_id, col.MERCHANT: merchants}
    text, firsts, lengths = _texts(texts, [record.value for record in records], options.dropped_fields)
    return RowColumns(
        PROFILED_LAYOUT, partitions_of(merchants, options.merchant_partitions), sources, wide, np.empty((0, features)),
        narrow, codes, text, firsts, lengths,
    )  # fmt: skip


def _case_ids(cards: pa.Array, started_s: NDArray[np.int64]) -> pa.Array:
    """Return the case of each of n transactions: its card, and when the case began."""
    data, offsets = text_buffers(cards)
    n = len(cards)
    ends, room = np.empty(n + 1, np.int32), int(offsets[-1] - offsets[0]) + n * LONGEST_VALUE
    out = np.empty(room, np.uint8)
    _write_cases(data, offsets, started_s, out, ends)
    return pa.StringArray.from_buffers(n, pa.py_buffer(ends), pa.py_buffer(out))


@compiled
def _write_cases(data: Any, offsets: Any, started_s: Any, out: Any, ends: Any) -> None:
    at = np.uint64(0)
    ends[0] = 0
    for row in range(len(started_s)):
        at = copy_bytes(data, np.int64(offsets[row]), np.int64(offsets[row + 1]), out, at)
        out[at] = _DASH
        at = write_whole(started_s[row], out, at + np.uint64(1))
        ends[row + 1] = at


def _sources(records: Sequence[Record], topic: int) -> Sources:
    return Sources(
        np.array([record.offset for record in records], np.int64),
        np.array([record.partition for record in records], np.int32),
        np.full(len(records), topic, np.uint8),
    )


def _texts(
    columns: dict[int, pa.Array], originals: Sequence[bytes | None], dropped: Set[str]
) -> tuple[bytes, NDArray[np.int64], NDArray[np.int32]]:
    """Lay texts behind each other, those of ``columns`` by number and the originals without ``dropped`` fields.

    Returns:
        All texts, where each begins, and its length; the latter have shape (len(layout.texts), n).
    """
    n = len(originals)
    shape = (len(PROFILED_LAYOUT.texts), n)
    firsts, lengths = np.zeros(shape, np.int64), np.zeros(shape, np.int32)
    parts: list[Any] = []
    at = 0
    for column, texts in columns.items():
        data, offsets = text_buffers(texts)
        begin = int(offsets[0])
        part = data[begin : offsets[-1]]
        firsts[column], lengths[column] = offsets[:-1], offsets[1:] - offsets[:-1]
        firsts[column] += at - begin
        at += len(part)
        parts.append(part)
    values = [value or b"" for value in originals]
    if dropped:
        values = [without_fields(value, dropped) for value in values]
    lengths[col.ORIGINAL] = sizes = np.fromiter(map(len, values), np.int64, n)
    firsts[col.ORIGINAL] = at + sizes.cumsum() - sizes
    return b"".join((*parts, *values)), firsts, lengths


def without_fields(value: bytes, dropped: Set[str]) -> bytes:
    """Return a JSON object without some of its fields; the other values stay as they are, byte for byte.

    >>> without_fields(b'{"card_id":"c","ip":"10.0.0.1","amount":12.50}', {"ip"})
    b'{"card_id":"c","amount":12.50}'
    """
    fields = _FIELDS.decode(value)
    if dropped.isdisjoint(fields):
        return value
    return msgspec.json.encode({name: content for name, content in fields.items() if name not in dropped})
