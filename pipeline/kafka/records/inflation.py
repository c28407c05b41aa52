"""Bounded decompression of record batches: no more is inflated than its caller allows."""

import io
import struct
import zlib
from typing import Final

import pyarrow as pa

from pipeline.kafka.records.record_batches import GZIP, LZ4, NONE, SNAPPY, ZSTD

MOST_BATCH_BYTES: Final = 16 * 1024 * 1024 + 16 * 1024
"""Most bytes of a batch of ``transactions`` or labels before compression (``docs/wire-contract.md``)."""
_STREAMS: Final = {LZ4: "lz4", ZSTD: "zstd"}
_XERIAL: Final = b"\x82SNAPPY\0"
"""First bytes of a snappy stream as Java's library frames it; two versions of four bytes follow."""
_XERIAL_HEADER_BYTES: Final = 16
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
_USUAL_FACTOR, _USUAL_BYTES = 8, 65_536


class NotInflated(ValueError):
    """A batch's records cannot be decompressed."""


class TooLarge(NotInflated):
    """A batch expands beyond what it may."""


def inflate(payload: memoryview, codec: int, most: int) -> bytes:
    """Return the records of a batch, decompressed.

    Args:
        payload: The batch without its header.
        codec: Number of the compression codec, as the batch's attributes have it.
        most: Most bytes of the records; no codec is given room for more than one byte above it.

    Raises:
        TooLarge: The records are larger. Uncompressed ones never are: brokers bound them.
        NotInflated: The bytes are none of this codec's: cut short, with more behind them, or damaged.
    """
    if codec == NONE:
        return bytes(payload)
    try:
        if codec == GZIP:
            inflated = _gunzip(payload, most)
        elif codec == SNAPPY:
            inflated = _unsnap(payload, most)
        elif codec in _STREAMS:
            inflated = _read_stream(payload, _STREAMS[codec], most)
        else:
            raise NotInflated(f"codec {codec} is none of Kafka's")
    except (OSError, zlib.error, struct.error) as error:
        raise NotInflated(str(error)) from error
    if len(inflated) > most:
        raise TooLarge
    return inflated


def _read_stream(payload: memoryview, codec: str, most: int) -> bytes:
    with pa.CompressedInputStream(pa.BufferReader(pa.py_buffer(payload)), codec) as stream:
        # Room for all that is allowed costs as much as decompressing a usual batch.
        usual = min(_USUAL_FACTOR * len(payload) + _USUAL_BYTES, most + 1)
        inflated: bytes = stream.read(usual)
        return inflated if len(inflated) < usual else inflated + stream.read(most + 1 - usual)


def _gunzip(payload: memoryview, most: int) -> bytes:
    member = zlib.decompressobj(_GZIP_WINDOW)
    inflated = member.decompress(payload, most + 1)
    if len(inflated) <= most and (not member.eof or member.unused_data):
        # Other readers stop behind the first member, and skip what follows it.
        raise NotInflated("it is not one gzip member")
    return inflated


def _unsnap(payload: memoryview, most: int) -> bytes:
    if bytes(payload[: len(_XERIAL)]) != _XERIAL:
        return _unsnap_block(payload, most)
    whole, at, left = io.BytesIO(), _XERIAL_HEADER_BYTES, most
    while at < len(payload):
        (size,) = struct.unpack_from(">i", payload, at)
        at += 4
        if not 0 < size <= len(payload) - at:
            raise NotInflated("a block of its snappy stream is cut short")
        left -= whole.write(_unsnap_block(payload[at : at + size], left))
        at += size
    return whole.getvalue()


def _unsnap_block(block: memoryview, most: int) -> bytes:
    """Return a block, which begins with its size as an unsigned number of variable length."""
    size = shift = 0
    for byte in block[:5]:
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if size > most:
        raise TooLarge
    inflated: bytes = pa.Codec("snappy").decompress(pa.py_buffer(block), size, asbytes=True)
    return inflated
