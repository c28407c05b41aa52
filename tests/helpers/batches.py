"""Record batches made by hand, and written to a broker as they are: bombs, and what no client would send.

The format is Kafka's message format v2: a header of 61 bytes, then the records, compressed together.
"""

import gzip
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import xxhash
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from tests.helpers.waiting import TIMEOUT_S

_CODECS: Final = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
_HEADER_BYTES: Final = 61
_CRC_AT: Final = 17
_ATTRIBUTES_AT: Final = 21
_LZ4_BLOCK_BYTES: Final = 4 * 1024 * 1024
_SNAPPY_BLOCK_BYTES: Final = 32 * 1024
_PRODUCE: Final = 0
_PRODUCE_VERSION: Final = 7
"""The last version but one before requests have tagged fields."""


def record_batch(
    values: Sequence[bytes],
    compression: str = "none",
    *,
    key: bytes | None = None,
    timestamp_ms: int = 0,
    headers: Sequence[tuple[str, bytes | None]] = (),
) -> bytes:
    """Return one record batch with a record for each of ``values``.

    Args:
        values: The records' values, in order.
        compression: A key of `COMPRESSIONS`.
        key: Key of every record.
        timestamp_ms: Timestamp of every record, milliseconds since 1970.
        headers: Headers of every record.
    """
    room = 1024 + sum(len(value) + len(key or b"") + 64 for value in values)
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=room + len(values) * sum(len(name) + len(value or b"") + 10 for name, value in headers),
    )
    for number, value in enumerate(values):
        builder.append(number, timestamp_ms, key, value, list(headers))
    batch = bytes(builder.build())
    return with_payload(batch, COMPRESSIONS[compression](batch[_HEADER_BYTES:]), compression)


def odd_batch(values: Sequence[bytes], deltas: Sequence[int], *, key: bytes = b"", timestamp_ms: int = 0) -> bytes:
    """Return an uncompressed batch whose n-th record claims to be ``deltas[n]`` behind the batch's first offset."""
    records = b""
    for value, delta in zip(values, deltas, strict=True):
        record = b"\0" + _varint(0) + _varint(delta) + _varint(len(key)) + key + _varint(len(value)) + value + b"\0"
        records += _varint(len(record)) + record
    return with_payload(record_batch(values, key=key, timestamp_ms=timestamp_ms), records, "none")


def _varint(number: int) -> bytes:
    zigzag = number << 1 if number >= 0 else (-number << 1) - 1
    encoded = b""
    while zigzag > 127:
        encoded += bytes([zigzag & 127 | 128])
        zigzag >>= 7
    return encoded + bytes([zigzag])


def with_payload(batch: bytes, payload: bytes, compression: str) -> bytes:
    """Return ``batch`` with its records replaced by ``payload``, compressed as named; length and CRC are right."""
    codec = _CODECS[compression.partition("_")[0]]
    behind_attributes = batch[_ATTRIBUTES_AT + 2 : _HEADER_BYTES]
    checked = struct.pack(">h", codec) + behind_attributes + payload
    length = _HEADER_BYTES - 12 + len(payload)
    front = batch[:8] + struct.pack(">i", length) + batch[12:_CRC_AT]
    return front + struct.pack(">I", calc_crc32c(checked)) + checked


def produce_batch(bootstrap: str, topic: str, partition: int, batch: bytes) -> int:
    """Write ``batch`` to the broker at ``bootstrap``, which must lead the partition; return its base offset.

    Raises:
        ValueError: The broker refuses it; the number is Kafka's error code.
    """
    header = struct.pack(">hhi", _PRODUCE, _PRODUCE_VERSION, 1) + _text("tests")
    body = struct.pack(">hhi", -1, -1, int(TIMEOUT_S * 1000)) + struct.pack(">i", 1) + _text(topic)
    body += struct.pack(">iii", 1, partition, len(batch)) + batch
    host, port = bootstrap.split(",", maxsplit=1)[0].rsplit(":", 1)
    with socket.create_connection((host, int(port)), TIMEOUT_S) as connection, connection.makefile("rb") as answers:
        connection.sendall(struct.pack(">i", len(header) + len(body)) + header + body)
        (size,) = struct.unpack(">i", answers.read(4))
        answer = answers.read(size)
    # Correlation id, number of topics, the topic's name, number of partitions, then the partition.
    at = 8 + 2 + len(topic.encode()) + 4
    _, error, base_offset = struct.unpack_from(">ihq", answer, at)
    if error:
        raise ValueError(f"the broker refuses the batch with error {error}")
    return int(base_offset)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack(">h", len(encoded)) + encoded


def _lz4(data: bytes) -> bytes:
    """A frame of independent blocks of 4 MiB, as Java's clients write them: brokers read no other."""
    descriptor = bytes([0x60, 0x70])
    checksum = xxhash.xxh32_intdigest(descriptor) >> 8 & 0xFF
    blocks = [_lz4_block(data[at : at + _LZ4_BLOCK_BYTES]) for at in range(0, len(data), _LZ4_BLOCK_BYTES)]
    return struct.pack("<I", 0x184D2204) + descriptor + bytes([checksum]) + b"".join(blocks) + bytes(4)


def _lz4_block(data: bytes) -> bytes:
    packed = pa.Codec("lz4_raw").compress(data, asbytes=True)
    if len(packed) >= len(data):
        return struct.pack("<I", len(data) | 0x80000000) + data
    return struct.pack("<I", len(packed)) + packed


def _snappy_xerial(data: bytes) -> bytes:
    blocks = [pa.Codec("snappy").compress(bytes(part), asbytes=True) for part in _parts(data, _SNAPPY_BLOCK_BYTES)]
    return b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1) + b"".join(struct.pack(">i", len(b)) + b for b in blocks)


def _zstd_without_size(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        for part in _parts(data, 1 << 20):
            stream.write(part)
    return bytes(sink.getvalue())


def _parts(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


COMPRESSIONS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "none": bytes,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "lz4": _lz4,
    "snappy_raw": lambda data: pa.Codec("snappy").compress(data, asbytes=True),
    "snappy_xerial": _snappy_xerial,
    "zstd": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    "zstd_without_size": _zstd_without_size,
}
"""Kafka's codecs as clients write them: zstd with and without the size in the frame, snappy bare and framed."""


def damage_batch(log_dir: Path, topic: str, partition: int, base_offset: int, at: int = -1) -> None:
    """Flip a byte of the batch at ``base_offset`` in a broker's log on disk; the broker may run.

    ``at`` counts from the batch's beginning, or from its end where it is negative.
    """
    for segment, offset, position, length in _batches(log_dir, topic, partition):
        if offset == base_offset:
            with segment.open("r+b") as file:
                file.seek(position + at % length)
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 0xFF]))
            return
    raise ValueError(f"no batch begins at offset {base_offset} of {topic} partition {partition}")


def last_batch(log_dir: Path, topic: str, partition: int) -> int:
    """Offset of the last batch that is whole in a broker's log on disk; -1 where there is none."""
    return max((offset for _, offset, _, _ in _batches(log_dir, topic, partition)), default=-1)


def _batches(log_dir: Path, topic: str, partition: int) -> Iterator[tuple[Path, int, int, int]]:
    """Whole batches of a partition: segment, offset, position and length in bytes."""
    for segment in sorted((log_dir / f"{topic}-{partition}").glob("*.log")):
        with segment.open("rb") as file:
            position, size = 0, segment.stat().st_size
            while len(front := file.read(12)) == 12:
                offset, length = struct.unpack(">qi", front)
                if length <= 0 or position + 12 + length > size:
                    break
                yield segment, offset, position, 12 + length
                position += 12 + length
                file.seek(position)
