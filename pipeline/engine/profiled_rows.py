"""Profiled transactions as JSON, a batch at once from columns: the bytes that msgspec writes of the messages."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from itertools import accumulate
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.columns import Transactions, text_buffers
from pipeline.engine.forwarding import Batch
from pipeline.engine.json_rows import Rows, RowWriter, base64, encoded, one_of, same, text, whole
from pipeline.features.catalogue import KERNEL_VERSION, US_PER_SECOND
from pipeline.features.kernel import CardProfile
from schemas.messages import ProfiledTransaction, RecordPosition
from schemas.topics import REROUTED, TRANSACTIONS

_encode = msgspec.json.Encoder(decimal_format="number").encode

_ID, _CARD, _MERCHANT, _VALUE, _READ = range(5)
_EVENT_US, _AMOUNT_BASE, _COUNTS, _CASE_START_S, _CASE_SEQUENCE, _PARTITION, _OFFSET = range(7)
_FALSE, _TRUE, _RATES, _NOW = range(4)
_COLUMNS: Final = {
    "transaction_id": text(_ID),
    "card_id": text(_CARD),
    "merchant_id": text(_MERCHANT),
    "event_time_us": whole(_EVENT_US),
    "amount_base_minor": whole(_AMOUNT_BASE),
    "rates_version": same(_RATES),
    "counts": one_of(_COUNTS),
    "card_features": base64(),
    "kernel": _encode(KERNEL_VERSION),
    "case_id": (text(_CARD), b"-", whole(_CASE_START_S)),
    "case_sequence": whole(_CASE_SEQUENCE),
    "source": {"topic": _encode(TRANSACTIONS.name), "partition": whole(_PARTITION), "offset": whole(_OFFSET)},
    "ingested_at": same(_NOW),
    "transaction": encoded(_VALUE),
    "read": encoded(_READ),
}
_NULL: Final = b"null"


def encode_profiled(
    taken: Transactions, profile: CardProfile, batch: Batch, rates_version: str, now: datetime
) -> list[bytes]:
    """Return the JSON of a `ProfiledTransaction` for each of n transactions.

    Args:
        taken: The transactions; ``row`` is a record's number in ``batch``.
        profile: What is known of them from their cards.
        batch: The records.
        rates_version: Version of the rate table that converted the amounts.
        now: When they were read.

    Returns:
        n values for ``profiled``.
    """
    numbers = taken.row.tolist()
    records = [batch.records[number] for number in numbers]
    reads = [_NULL] if batch.reads is batch.records else [_read(batch, number) for number in numbers]
    known = (taken.transaction_id, taken.card_id, taken.merchant_id)
    words, spans = _texts(known, [record.value or b"" for record in records], reads)
    wholes = np.empty((7, len(taken)), np.int64)
    wholes[_EVENT_US] = taken.event_time_us
    wholes[_AMOUNT_BASE] = taken.amount_base_minor
    wholes[_COUNTS] = np.where(taken.counts, _TRUE, _FALSE)
    wholes[_CASE_START_S] = profile.case_start_us // US_PER_SECOND
    wholes[_CASE_SEQUENCE] = profile.case_sequence
    wholes[_PARTITION] = [record.partition for record in records]
    wholes[_OFFSET] = [record.offset for record in records]
    constants = [b"false", b"true", _encode(rates_version), _encode(now)]
    return list(_writer().write(Rows(words, spans, wholes, profile.features, constants)))


@cache
def _writer() -> RowWriter:
    config = ProfiledTransaction.__struct_config__
    shape: dict[str, Any] = {str(config.tag_field): _encode(config.tag)}
    for field in msgspec.structs.fields(ProfiledTransaction):
        shape[field.name] = _COLUMNS[field.name] if field.name in _COLUMNS else _encode(field.default)
    return RowWriter(shape)


def _read(batch: Batch, number: int) -> bytes:
    """JSON of where a record was read that had been passed on."""
    read = batch.reads[number]
    if read is batch.records[number]:
        return _NULL
    return _encode(RecordPosition(topic=REROUTED.name, partition=read.partition, offset=read.offset))


def _texts(known: Sequence[pa.Array], *encoded: Sequence[bytes]) -> tuple[bytes, NDArray[np.int64]]:
    """Lay columns of texts behind each other: their bytes, and the spans of each, shape (columns, n, 2)."""
    parts: list[Any] = []
    spans = np.empty((len(known) + len(encoded), len(known[0]), 2), np.int64)
    end = 0
    for column, texts in enumerate(known):
        data, offsets = text_buffers(texts)
        parts.append(data[offsets[0] : offsets[-1]])
        spans[column, :, 0], spans[column, :, 1] = offsets[:-1], offsets[1:]
        spans[column] += end - int(offsets[0])
        end += len(parts[-1])
    for column, values in enumerate(encoded, len(known)):
        ends = np.fromiter(accumulate(map(len, values), initial=end), np.int64, len(values) + 1)
        parts += values
        # One value is that of all rows.
        spans[column, :, 0], spans[column, :, 1] = ends[:-1], ends[1:]
        end = int(ends[-1])
    return b"".join(parts), spans
