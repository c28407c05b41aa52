"""Blocks that no card agent wrote: good ones with something changed, under right checksums."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash

from pipeline.engine.encoding.blocks import CODES, Block, Sources, pack_block, parse_block
from pipeline.engine.scores.feature_blocks import LAYOUT
from schemas.codec import timestamp_us
from schemas.messages import DecisionFeatures


def features_block(rows: Sequence[DecisionFeatures]) -> bytes:
    """A block of ``features``; all rows are of one kernel, and have the same features.

    Of more than 255 names what is named behind them is wrong.
    """
    columns = list(rows[0].features)
    names = {name: number for number, name in enumerate(["logit", "river_logit", "score", *columns, "profiled"])}

    def number(name: str) -> int:
        return min(names.setdefault(name, len(names)), 255)

    texts = [[row.transaction_id for row in rows], [row.card_id for row in rows], [row.merchant_id for row in rows]]
    encoded = [[text.encode() for text in column] for column in texts]
    values = [[row.features[name] for name in columns] for row in rows]
    codes = [
        [number(name) for name in (row.source.topic, models.lightgbm, models.river, models.policy, models.rates)]
        for row in rows
        for models in [row.versions]
    ]
    wide = [[timestamp_us(row.event_time), round(row.amount_base * 100), row.source.offset] for row in rows]
    offsets = [row.event_time.utcoffset() for row in rows]
    narrow = [
        [int(offset.total_seconds() // 60) if offset else 0, row.source.partition, row.log.row]
        for row, offset in zip(rows, offsets, strict=True)
    ]
    return pack_block(
        Block(
            rows[0].versions.kernel,
            [name.encode() for name in names],
            Sources(
                np.array([row.log.offset for row in rows], np.int64),
                np.array([row.log.partition for row in rows], np.int32),
                np.full(len(rows), number("profiled"), np.uint8),
            ),
            np.array(wide, np.int64).T,
            np.array(
                [[row.logit, row.river_logit, row.score, *value] for row, value in zip(rows, values, strict=True)],
                np.float64,
            ),
            np.array(narrow, np.int32).T,
            np.array([[len(text) for text in column] for column in encoded], np.int32),
            np.array(codes, np.uint8).T,
            b"".join(text for column in encoded for text in column),
            LAYOUT,
        )
    )


def changed(value: bytes | None, **columns: Any) -> bytes:
    """A block with another value in every row of some columns; ``kernel`` and ``features`` as they are given."""
    block = parse_block(value)
    wide, narrow, codes = block.wide.copy(), block.narrow.copy(), block.codes.copy()
    sources = {name: column.copy() for name, column in block.sources._asdict().items()}
    whole: dict[str, Any] = {}
    for name, to in columns.items():
        for names, source in ((block.layout.wide, wide), (block.layout.narrow, narrow), (CODES, codes)):
            if name in names:
                source[names.index(name)] = to
        if name.startswith("source_"):
            sources[name.removeprefix("source_")][:] = to
        if name in Block._fields:
            whole[name] = to
    made = Block(
        block.kernel, block.names, Sources(**sources), wide, block.features, narrow, block.lengths, codes, block.text
    )
    return pack_block(made._replace(**whole))


def with_text(value: bytes | None, column: int, text: bytes) -> bytes:
    """A block of one row with another text."""
    block = parse_block(value)
    ends = block.ends()[:, 0].tolist()
    texts = [block.text[end - length : end] for end, length in zip(ends, block.lengths[:, 0].tolist(), strict=True)]
    texts[column] = text
    lengths = np.array([[len(text)] for text in texts], np.int32)
    return pack_block(block._replace(lengths=lengths, text=b"".join(texts)))


def sealed(value: bytes) -> bytes:
    """Bytes that begin as a block, under right checksums as far as they have room for them."""
    if len(value) < 32:
        return value
    (head_bytes,) = struct.unpack_from("<I", value, 12)
    body_sum = xxhash.xxh3_64_intdigest(value[32 + head_bytes :])
    begin = value[:16] + body_sum.to_bytes(8, "little")
    head_sum = xxhash.xxh3_64_intdigest(begin + value[32 : 32 + head_bytes])
    return begin + head_sum.to_bytes(8, "little") + value[32:]
