"""Decision records: the part of a decision that a training example takes over, as the feedback agent stores it."""

import struct
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.engine.encoding.row_columns import AMOUNT_BASE, EVENT_US, LOG_ROW, PRODUCER_OFFSET
from pipeline.engine.scores.feature_blocks import (
    LOGIT,
    NUMBERS,
    OWN_FEATURES,
    RIVER_LOGIT,
    SCORE,
    FeatureRows,
    named_features,
    zoned_time,
)
from pipeline.features.catalogue import FEATURES
from schemas.messages import LogPosition, Versions


class DecisionRecord(NamedTuple):
    """Fields that a training example takes over from a decision."""

    transaction_id: str
    card_id: str
    merchant_id: str
    event_time: datetime
    amount_base: float
    score: float
    logit: float
    river_logit: float
    features: dict[str, float | None]
    versions: Versions
    log: LogPosition


class _RecordNames(msgspec.Struct, frozen=True, array_like=True):
    """The end of a packed record."""

    versions: Versions
    features: list[str] | None = None
    """None where they are `FEATURES` in their order."""


_HEAD: Final = struct.Struct("<5I3q3i")
"""Count of the numbers; bytes of transaction, card, merchant and names; times and positions."""
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_RecordNames).decode


def pack_records(rows: FeatureRows, texts: Sequence[Sequence[bytes]]) -> list[bytes]:
    """Return the packed record of each row.

    Args:
        rows: The rows, n of them.
        texts: Transaction, card and merchant of each, as `FeatureRows.texts` returns them.
    """
    block, numbers = rows.block, rows.numbers()
    names = None if rows.names == OWN_FEATURES else [name.decode() for name in rows.names]
    ends: dict[Versions, bytes] = {}
    versions = rows.versions()
    for version in versions:
        if version not in ends:
            ends[version] = _encode(_RecordNames(version, names))
    tails = [ends[version] for version in versions]
    lengths = [np.fromiter(map(len, column), "<u4", len(rows.rows)) for column in (*texts, tails)]
    heads = (
        _bytes_of("<u4", [np.full(len(rows.rows), numbers.shape[1]), *lengths]),
        _bytes_of(
            "<i8",
            [block.whole(EVENT_US)[rows.rows], block.whole(AMOUNT_BASE)[rows.rows], block.sources.offset[rows.rows]],
        ),
        _bytes_of(
            "<i4",
            [
                block.whole(PRODUCER_OFFSET)[rows.rows],
                block.sources.partition[rows.rows],
                block.whole(LOG_ROW)[rows.rows],
            ],
        ),
        numbers.astype("<f8", order="C").view(np.uint8),
    )
    fixed = np.concatenate(heads, axis=1)
    size, data = fixed.shape[1], fixed.tobytes()
    parts = zip(range(0, len(data), size), *texts, tails, strict=True)
    return [b"".join((data[at : at + size], *version)) for at, *version in parts]


def _bytes_of(dtype: str, columns: Sequence[NDArray[Any]]) -> NDArray[np.uint8]:
    """Return the bytes of columns, a row behind the other; shape (n, bytes of a row)."""
    return np.stack(columns, axis=1).astype(dtype, order="C").view(np.uint8)


def unpack_record(packed: bytes) -> DecisionRecord:
    """Return what `pack_records` has packed."""
    (count, *lengths, time_us, amount_minor, log_offset, offset_min, log_partition, log_row) = _HEAD.unpack_from(packed)
    numbers = np.frombuffer(packed, "<f8", count, _HEAD.size).tolist()
    at, parts = _HEAD.size + 8 * count, []
    for length in lengths:
        parts.append(packed[at : at + length])
        at += length
    transaction, card, merchant = (part.decode() for part in parts[:3])
    names = _decode(parts[3])
    return DecisionRecord(
        transaction_id=transaction,
        card_id=card,
        merchant_id=merchant,
        event_time=zoned_time(time_us, offset_min),
        amount_base=amount_minor / 100,
        logit=numbers[LOGIT],
        river_logit=numbers[RIVER_LOGIT],
        score=numbers[SCORE],
        features=named_features(FEATURES if names.features is None else names.features, numbers[len(NUMBERS) :]),
        versions=names.versions,
        log=LogPosition(partition=log_partition, offset=log_offset, row=log_row),
    )
