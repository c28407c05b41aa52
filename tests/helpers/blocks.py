"""Blocks that no card agent wrote: good ones with something changed, under right checksums."""

import struct
from typing import Any

import numpy as np
import xxhash

from pipeline.engine.blocks import CODES, NARROW, WIDE, Block, Sources, pack_block, parse_block


def changed(value: bytes | None, **columns: Any) -> bytes:
    """A block with another value in every row of some columns; ``kernel`` and ``features`` as they are given."""
    block = parse_block(value)
    wide, narrow, codes = block.wide.copy(), block.narrow.copy(), block.codes.copy()
    sources = {name: column.copy() for name, column in block.sources._asdict().items()}
    whole: dict[str, Any] = {}
    for name, to in columns.items():
        for names, of in ((WIDE, wide), (NARROW, narrow), (CODES, codes)):
            if name in names:
                of[names.index(name)] = to
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
    lengths = np.array([[len(one)] for one in texts], np.int32)
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
