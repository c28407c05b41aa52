"""The records of a batch, checked as a whole before the first of them is believed.

Brokers check neither the offsets that uncompressed records claim nor how far compressed ones expand: what they do not
check is decided here, by the batch alone, so that every reader decides alike.
"""

from typing import Final, NamedTuple

import numpy as np
from aiokafka.record.util import decode_varint
from numpy.typing import NDArray

from pipeline.features.compiled import compiled, inlined
from pipeline.kafka.records.batch import Partition, UnreadableRange
from pipeline.kafka.records.inflation import MOST_BATCH_BYTES, NotInflated, TooLarge, inflate
from pipeline.kafka.records.record_batches import RecordBatch
from schemas.records import Headers, Record

ODD_OFFSET: Final = "OddOffset"
_CLAIM: Final = "a record claims another offset than the broker gave it"
_LEAST_RECORD_BYTES: Final = 7
MOST_HEADERS: Final = 100
"""Headers of a producer's record beyond which it is read without them: 16 kB of gzip hold eight million empty ones."""
_DELTA, _KEY, _KEY_END, _VALUE, _VALUE_END, _HEADERS = range(6)
"""Columns of what `_scan` finds of a record: its offset's distance from the batch's, then positions of bytes; -1: null,
and of headers: none."""
_SCANNED, _MALFORMED, _ODD = range(3)


@inlined
def _varint(data: NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    """Return a number of variable length, in zigzag, and where it ends; -1 where it does not end before ``end``."""
    value = np.uint64(0)
    shift = np.uint64(0)
    while at < end and shift < 70:
        byte = np.uint64(data[at])
        at += 1
        value |= (byte & np.uint64(127)) << shift
        if byte < 128:
            return int(np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1))), at
        shift += np.uint64(7)
    return 0, -1


@inlined
def _span(data: NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    """Return where bytes with their length before them begin and end; (-1, at) for null, (0, -1) if they are cut."""
    size, at = _varint(data, at, end)
    if at < 0 or size < -1 or size > end - at:
        return 0, -1
    if size == -1:
        return -1, at
    return at, at + size


@compiled
def _scan(data: NDArray[np.uint8], columns: NDArray[np.int32], times: NDArray[np.int64], last_delta: int) -> int:
    """Fill ``columns`` (6, n) and ``times`` (n,), the distance from the batch's first timestamp; return a finding."""
    at, before = 0, -1
    for row in range(len(times)):
        size, at = _varint(data, at, len(data))
        if at < 0 or size < 1 or size > len(data) - at:
            return _MALFORMED
        end = at + size
        times[row], at = _varint(data, at + 1, end)
        if at < 0:
            return _MALFORMED
        delta, at = _varint(data, at, end)
        if at < 0:
            return _MALFORMED
        if delta <= before or delta > last_delta:
            return _ODD
        columns[_DELTA, row] = before = delta
        for column in (_KEY, _VALUE):
            columns[column, row], at = _span(data, at, end)
            if at < 0:
                return _MALFORMED
            columns[column + 1, row] = at
        columns[_HEADERS, row] = at
        count, at = _varint(data, at, end)
        if at < 0 or count < 0:
            return _MALFORMED
        if count == 0:
            columns[_HEADERS, row] = -1
        for _ in range(count):
            start, at = _span(data, at, end)
            if at < 0 or start < 0:
                return _MALFORMED
            start, at = _span(data, at, end)
            if at < 0:
                return _MALFORMED
        if at != end:
            return _MALFORMED
    return _SCANNED if at == len(data) else _MALFORMED


class BatchBounds(NamedTuple):
    """Bounds of a batch that is read."""

    most_bytes: int = MOST_BATCH_BYTES
    """Bytes of its records before compression."""
    most_headers: int = MOST_HEADERS
    """Headers of a record."""


BOUNDS: Final = BatchBounds()
"""Bounds of batches that producers write."""


class BatchRecords:
    """The records of one batch from an offset on, made when they are asked for."""

    def __init__(
        self,
        batch: RecordBatch,
        partition: Partition,
        data: bytes,
        columns: NDArray[np.int32],
        times: NDArray[np.int64],
        first: int,
        most_headers: int,
    ) -> None:
        """Take a batch that `open_batch` has checked.

        Args:
            batch: The batch of ``m`` records.
            partition: Full topic name and number of its partition.
            data: Its records, decompressed.
            columns: Where the fields of each record lie in ``data``, as `_scan` found them; shape ``(6, m)``.
            times: Timestamp of each record, as `_scan` found it; shape ``(m,)``.
            first: Number within the batch of the first record that is wanted.
            most_headers: Largest number of headers of a record.
        """
        self._batch, self._partition, self._data, self._most_headers = batch, partition, data, most_headers
        self._columns, self._times, self._next = columns, times, first
        self.size, self.end = len(data), batch.end
        """Bytes of all its records, and the offset behind the batch."""

    def __len__(self) -> int:
        """Return how many are left."""
        return len(self._times) - self._next

    def take(self, most: int) -> list[Record]:
        """Return the next ones, at most ``most``."""
        begin, end = self._next, min(self._next + most, len(self._times))
        self._next = end
        batch, data, (topic, number) = self._batch, self._data, self._partition
        if batch.is_append_time:
            times = [batch.max_timestamp_ms] * (end - begin)
        else:
            times = (self._times[begin:end] + batch.first_timestamp_ms).tolist()
        base = batch.base_offset
        return [
            Record(
                topic, number, base + delta, time_ms,
                data[key:key_end] if key >= 0 else None,
                data[value:value_end] if value >= 0 else None,
                _headers(data, headers, self._most_headers) if headers >= 0 else (),
            )
            for time_ms, delta, key, key_end, value, value_end, headers
            in zip(times, *self._columns[:, begin:end].tolist(), strict=True)
        ]  # fmt: skip


def open_batch(
    batch: RecordBatch, partition: Partition, position: int, bounds: BatchBounds = BOUNDS
) -> BatchRecords | UnreadableRange:
    """Return the records of an intact batch from an offset on, or why there are none.

    Args:
        batch: A batch whose checksum is right.
        partition: Full topic name and number of its partition.
        position: Offset of the first record that is wanted; earlier ones of the batch are left out.
        bounds: Largest size before compression and number of headers; by default those for batches of producers.
    """

    def bad(error: str, message: str) -> UnreadableRange:
        return UnreadableRange(partition, max(position, batch.base_offset), batch.end, error, message)

    try:
        data = inflate(batch.payload, batch.codec, bounds.most_bytes)
    except TooLarge:
        return bad("BatchTooLarge", f"its records are larger than {bounds.most_bytes} bytes before compression")
    except NotInflated as error:
        return bad("BadCompression", str(error))
    if not 0 <= batch.record_count <= len(data) // _LEAST_RECORD_BYTES:
        return bad("MalformedBatch", "it does not hold as many records as it says")
    columns = np.empty((6, batch.record_count), np.int32)
    times = np.empty(batch.record_count, np.int64)
    scanned = _scan(np.frombuffer(data, np.uint8), columns, times, batch.last_offset_delta)
    if scanned == _ODD:
        return bad(ODD_OFFSET, _CLAIM)
    if scanned == _MALFORMED:
        return bad("MalformedBatch", "a record in it is cut short, or longer than it says")
    behind = position - batch.base_offset
    first = int(np.searchsorted(columns[_DELTA], behind)) if behind > 0 else 0
    return BatchRecords(batch, partition, data, columns, times, first, bounds.most_headers)


def compile_scan() -> None:
    """Compile what reads records, or load it: whoever joins a group does so before."""
    _scan(np.empty(0, np.uint8), np.empty((6, 0), np.int32), np.empty(0, np.int64), 0)


def _headers(data: bytes, at: int, most: int) -> Headers:
    """Return the headers of a record that was scanned; none of them, where they are many or a name is not UTF-8."""
    count, at = decode_varint(data, at)
    if count > most:
        return ()
    headers = []
    for _ in range(count):
        size, at = decode_varint(data, at)
        name, at = data[at : at + size], at + size
        size, at = decode_varint(data, at)
        headers.append((name, data[at : at + size] if size >= 0 else None))
        at += max(size, 0)
    try:
        return tuple((name.decode(), value) for name, value in headers)
    except UnicodeDecodeError:
        return ()
