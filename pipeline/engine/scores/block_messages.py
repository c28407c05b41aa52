"""Rows of blocks as messages, and back: for programs that look at single rows, and need no speed."""

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec
import numpy as np

from pipeline.engine.encoding import blocks
from pipeline.engine.encoding import row_columns as col
from pipeline.engine.encoding.blocks import (
    KNOWN_NAMES,
    LABEL,
    PROFILED_LAYOUT,
    TRANSACTION,
    Block,
    BlockError,
    Sources,
    is_block,
    original_of,
    pack_block,
    parse_block,
)
from pipeline.engine.scores.decision_records import read_feature_messages
from pipeline.engine.scores.feature_blocks import LAYOUT as FEATURES_LAYOUT
from schemas.codec import timestamp_us
from schemas.errors import UNREADABLE
from schemas.messages import Profiled, ProfiledLabel, ProfiledTransaction, RecordPosition, Timestamp
from schemas.times import time_of

_WHOLES: Final = [col.WHOLES.index(name) for name in (*PROFILED_LAYOUT.wide, *PROFILED_LAYOUT.narrow)]
_MINUTE: Final = timedelta(minutes=1)


class ProducerFields(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Fields of a producer's transaction that a decision repeats as they were written."""

    event_time: Timestamp
    amount: Decimal
    currency: str
    transaction_type: str = "purchase"

    @property
    def amount_json(self) -> bytes:
        """The amount as a JSON number."""
        return _encode(self.amount)

    @property
    def offset_min(self) -> int:
        """Minutes of the UTC offset of the event time."""
        return (self.event_time.utcoffset() or timedelta()) // _MINUTE


_encode: Final = msgspec.json.Encoder(decimal_format="number").encode
decode_producer_fields: Final = msgspec.json.Decoder(ProducerFields).decode


def row_value(value: bytes | None, row: int) -> bytes:
    """Return what stands for a row of a block by itself: the producer's own bytes, or of ``features`` its message.

    Raises:
        BlockError: It is no block.
        IndexError: There is no such row.
    """
    if is_block(value, FEATURES_LAYOUT):
        return msgspec.json.encode(read_feature_messages(value)[row])
    return original_of(value, row)


def read_messages(value: bytes | None) -> list[Profiled]:
    """Return the rows of a record of ``profiled``.

    Raises:
        BlockError: It is no block, or a row has what no message can say.
    """
    block = parse_block(value)
    try:
        return _messages(block)
    except (OverflowError, *UNREADABLE) as error:
        raise BlockError(f"a row has what no message can say: {error}") from error


def _messages(block: Block) -> list[Profiled]:
    texts = block.texts()
    names = [name.decode() for name in block.names]
    wholes = {column: block.whole(column).tolist() for column in _WHOLES}
    codes = block.codes.tolist()
    sources = [
        RecordPosition(topic=names[topic], partition=partition, offset=offset)
        for offset, partition, topic in zip(*(column.tolist() for column in block.sources), strict=True)
    ]
    features = iter(block.features.astype("<f8", copy=False))
    found: list[Profiled] = []
    for row, source in enumerate(sources):
        shared: dict[str, Any] = {
            "transaction_id": texts[col.ID][row].decode(),
            "card_id": texts[col.CARD][row].decode(),
            "merchant_id": texts[col.MERCHANT][row].decode(),
            "event_time_us": wholes[col.EVENT_US][row],
            "source": source,
        }
        original = msgspec.Raw(texts[col.ORIGINAL][row])
        if codes[blocks.KIND][row] == LABEL:
            known = KNOWN_NAMES[codes[blocks.KNOWN][row]]
            found.append(ProfiledLabel(known=known, known_at_us=wholes[col.KNOWN_AT_US][row], label=original, **shared))
            continue
        read = RecordPosition(
            topic=names[codes[blocks.INPUT_NAME][row]],
            partition=wholes[col.INPUT_PARTITION][row],
            offset=wholes[col.INPUT_OFFSET][row],
        )
        found.append(
            ProfiledTransaction(
                amount_base_minor=wholes[col.AMOUNT_BASE][row],
                rates_version=names[codes[blocks.RATES_NAME][row]],
                counts=bool(codes[blocks.FLAGS][row] & blocks.COUNTED),
                outlier=bool(codes[blocks.FLAGS][row] & blocks.OUTLIER),
                card_features=next(features).tobytes(),
                kernel=block.kernel,
                case_id=texts[col.CASE][row].decode(),
                case_sequence=wholes[col.CASE_SEQUENCE][row],
                ingested_at=time_of(wholes[col.INGESTED_US][row]),
                transaction=original,
                read=None if read == source else read,
                **shared,
            )
        )
    return found


def write_messages(messages: Sequence[Profiled]) -> bytes:
    """Return a block of at least one row; all transactions are of one kernel."""
    n = len(messages)
    names: dict[str, int] = {}
    wholes: dict[int, list[int]] = {column: [0] * n for column in _WHOLES}
    codes = np.zeros((len(blocks.CODES), n), np.uint8)
    texts: list[list[bytes]] = [[b""] * n for _ in PROFILED_LAYOUT.texts]
    features, kernel, sources = [], "", []
    for row, message in enumerate(messages):
        source = message.source
        sources.append((source.offset, source.partition, names.setdefault(source.topic, len(names))))
        wholes[col.EVENT_US][row] = message.event_time_us
        texts[col.ID][row] = message.transaction_id.encode()
        texts[col.CARD][row], texts[col.MERCHANT][row] = message.card_id.encode(), message.merchant_id.encode()
        if isinstance(message, ProfiledLabel):
            codes[blocks.KIND, row], codes[blocks.KNOWN, row] = LABEL, KNOWN_NAMES.index(message.known)
            wholes[col.KNOWN_AT_US][row] = message.known_at_us
            texts[col.ORIGINAL][row] = bytes(message.label)
            continue
        fields, read = decode_producer_fields(message.transaction), message.read or source
        kernel = message.kernel
        features.append(np.frombuffer(message.card_features, "<f8"))
        codes[blocks.KIND, row] = TRANSACTION
        codes[blocks.FLAGS, row] = blocks.COUNTED * message.counts + blocks.OUTLIER * message.outlier
        codes[blocks.RATES_NAME, row] = names.setdefault(message.rates_version, len(names))
        codes[blocks.INPUT_NAME, row] = names.setdefault(read.topic, len(names))
        found = {
            col.AMOUNT_BASE: message.amount_base_minor,
            col.CASE_SEQUENCE: message.case_sequence,
            col.INGESTED_US: timestamp_us(message.ingested_at),
            col.INPUT_OFFSET: read.offset,
            col.INPUT_PARTITION: read.partition,
            col.PRODUCER_OFFSET: fields.offset_min,
        }
        for column, value in found.items():
            wholes[column][row] = value
        texts[col.CASE][row], texts[col.AMOUNT][row] = message.case_id.encode(), fields.amount_json
        texts[col.CURRENCY][row], texts[col.TYPE][row] = (
            fields.currency.encode(), fields.transaction_type.encode(),
        )  # fmt: skip
        texts[col.ORIGINAL][row] = bytes(message.transaction)
    columns = [
        np.array(column, dtype) for column, dtype in zip(zip(*sources, strict=True), ("i8", "i4", "u1"), strict=True)
    ]
    wide, narrow = PROFILED_LAYOUT.integers(n, wholes)
    return pack_block(
        Block(
            kernel,
            [name.encode() for name in names],
            Sources(*columns),
            wide,
            np.stack(features) if features else np.empty((0, 0)),
            narrow,
            np.array([[*map(len, column)] for column in texts], np.int32),
            codes,
            b"".join(text for column in texts for text in column),
        )
    )
