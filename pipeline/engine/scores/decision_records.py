"""Decision records: the part of a decision that a training example takes over, as the feedback agent stores it.

Programs that look at single rows of ``features`` read them as records too.
"""

import struct
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from pipeline.engine.encoding.row_columns import (
    AMOUNT_BASE,
    EVENT_US,
    LOG_ROW,
    PRODUCER_OFFSET,
    SOURCE_OFFSET,
    SOURCE_PARTITION,
)
from pipeline.engine.scores.feature_blocks import (
    LOGIT,
    NUMBERS,
    OWN_FEATURES,
    RIVER_LOGIT,
    SCORE,
    SOURCE_TOPIC,
    FeatureRows,
    read_features,
)
from pipeline.features.catalogue import FEATURES
from schemas.messages import DecisionFeatures, LogPosition, RecordPosition, Versions
from schemas.records import Record
from schemas.times import time_of


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
"""The same but for the numbers, of which the count comes first."""
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
    fixed = np.empty(len(rows.rows), _fixed_part(numbers.shape[1]))
    fixed["count"], fixed["numbers"] = numbers.shape[1], numbers
    for column, items in enumerate((*texts, tails)):
        fixed["bytes"][:, column] = np.fromiter(map(len, items), np.uint32, len(items))
    for name, values in (
        ("event_time_us", block.whole(EVENT_US)),
        ("amount_minor", block.whole(AMOUNT_BASE)),
        ("log_offset", block.sources.offset),
        ("offset_min", block.whole(PRODUCER_OFFSET)),
        ("log_partition", block.sources.partition),
        ("log_row", block.whole(LOG_ROW)),
    ):
        fixed[name] = values[rows.rows]
    size, data = fixed.itemsize, fixed.tobytes()
    parts = zip(range(0, len(data), size), *texts, tails, strict=True)
    return [b"".join((data[at : at + size], *version)) for at, *version in parts]


@lru_cache(maxsize=16)
def _fixed_part(numbers: int) -> Any:
    """The layout of a packed record before its texts; ``bytes`` are those of transaction, card, merchant and names."""
    wholes = [(name, "<i8") for name in ("event_time_us", "amount_minor", "log_offset")]
    positions = [(name, "<i4") for name in ("offset_min", "log_partition", "log_row")]
    return np.dtype([("count", "<u4"), ("bytes", "<u4", 4), *wholes, *positions, ("numbers", "<f8", numbers)])


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


def read_feature_messages(value: bytes | None) -> list[DecisionFeatures]:
    """Return the rows of a record of ``features`` as messages.

    Raises:
        BlockError: As `read_features`.
    """
    rows = read_features(Record("", 0, 0, 0, None, value))
    block = rows.block
    columns = block.codes[SOURCE_TOPIC], block.whole(SOURCE_PARTITION), block.whole(SOURCE_OFFSET)
    sources = zip(*(column.tolist() for column in columns), strict=True)
    return [
        DecisionFeatures(
            **unpack_record(packed)._asdict(),
            source=RecordPosition(topic=block.names[topic].decode(), partition=partition, offset=offset),
        )
        for packed, (topic, partition, offset) in zip(pack_records(rows, rows.texts()), sources, strict=True)
    ]


def zoned_time(time_us: int, offset_min: int) -> datetime:
    """Return a time as its producer wrote it.

    >>> zoned_time(0, 60).isoformat()
    '1970-01-01T01:00:00+01:00'
    """
    moment = time_of(time_us)
    return moment.astimezone(timezone(timedelta(minutes=offset_min))) if offset_min else moment


def named_features(names: Sequence[str], values: Sequence[float]) -> dict[str, float | None]:
    """Return features by name, None for NaN."""
    return {name: None if value != value else value for name, value in zip(names, values, strict=True)}  # noqa: PLR0124
