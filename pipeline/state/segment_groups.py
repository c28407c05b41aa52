"""Groups of decisions: a checksum of what follows, the decompressed size, and rows that are compressed together."""

import struct
from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import xxhash

GROUP_ROWS: Final = 32
"""Rows of a group: what is decompressed to read one of them."""
_CODEC: Final = pa.Codec("zstd", compression_level=1)
_CHECKSUM_BYTES: Final = 8
_PLAIN_BYTES: Final = struct.Struct("<I")
_LENGTHS: Final = struct.Struct(f"<{GROUP_ROWS}I")


def pack_group(decisions: Sequence[bytes]) -> bytes:
    """Return `GROUP_ROWS` decisions as a group.

    >>> unpack_group(pack_group([bytes([row]) * row for row in range(GROUP_ROWS)]))[2:4]
    [b'\\x02\\x02', b'\\x03\\x03\\x03']
    """
    plain = b"".join((_LENGTHS.pack(*map(len, decisions)), *decisions))
    stored: bytes = _CODEC.compress(plain, asbytes=True)
    rest = _PLAIN_BYTES.pack(len(plain)) + stored
    return xxhash.xxh3_64_digest(rest) + rest


def unpack_group(content: bytes) -> list[bytes]:
    """Return the decisions of a group. Raises ValueError where it is not what was written."""
    rest = content[_CHECKSUM_BYTES:]
    if xxhash.xxh3_64_digest(rest) != content[:_CHECKSUM_BYTES]:
        raise ValueError("a group of decisions is damaged")
    plain: bytes = _CODEC.decompress(rest[_PLAIN_BYTES.size :], _PLAIN_BYTES.unpack_from(rest)[0], asbytes=True)
    decisions, start = [], _LENGTHS.size
    for length in _LENGTHS.unpack_from(plain):
        decisions.append(plain[start : start + length])
        start += length
    return decisions
