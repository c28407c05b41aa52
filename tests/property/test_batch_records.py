"""Record batches give the records that other readers find in them, or one word about the whole batch."""

import tracemalloc
from collections.abc import Iterator
from typing import Any, Final

import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.util import decode_varint
from hypothesis import given
from hypothesis import strategies as st

from pipeline.kafka.records.batch import UnreadableRange
from pipeline.kafka.records.batch_records import MOST_HEADERS, BatchRecords, open_batch
from pipeline.kafka.records.inflation import MOST_BATCH_BYTES, TooLarge, inflate
from pipeline.kafka.records.record_batches import GZIP, LZ4, SNAPPY, ZSTD, RecordBatch, split_batches
from schemas.records import Record
from tests.helpers.batches import COMPRESSIONS, odd_batch, record_batch, with_payload

PARTITION: Final = ("transactions", 3)
CODECS: Final = {"gzip": GZIP, "lz4": LZ4, "snappy_raw": SNAPPY, "snappy_xerial": SNAPPY, "zstd": ZSTD}
CODECS_OF: Final = CODECS | {"zstd_without_size": ZSTD}
HEADER_BYTES: Final = 61
values = st.lists(st.binary(max_size=300), min_size=1, max_size=20)
names = st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=5)), max_size=3)


def only(data: bytes) -> RecordBatch:
    (batch,) = split_batches(data)
    return batch


def opened(data: bytes, position: int = 0) -> list[Record] | UnreadableRange:
    batch = only(data)
    assert batch.is_intact
    found = open_batch(batch, PARTITION, position)
    return found if isinstance(found, UnreadableRange) else found.take(1 << 31)


def moved(data: bytes, base_offset: int) -> bytes:
    """Return a batch at the offset that a broker gave it."""
    return base_offset.to_bytes(8, "big") + data[8:]


def seen_by_others(plain: bytes) -> list[Record]:
    return [
        Record(*PARTITION, record.offset, record.timestamp, record.key, record.value, tuple(record.headers))
        for record in DefaultRecordBatch(plain)
    ]


def attributes_of(payload: bytes) -> Iterator[int]:
    """Yield the attributes of each record, which stand behind its length."""
    at = 0
    while at < len(payload):
        size, at = decode_varint(payload, at)
        yield payload[at]
        at += size


@given(values, st.none() | st.binary(max_size=9), st.integers(0, 1 << 50), names, st.integers(0, 1 << 40), st.data())
def test_records_are_those_that_another_reader_finds(
    sent: list[bytes], key: bytes | None, time_ms: int, headers: Any, base: int, data: st.DataObject
) -> None:
    options = {"key": key, "timestamp_ms": time_ms, "headers": headers}
    expected = seen_by_others(moved(record_batch(sent, **options), base))
    batch = moved(record_batch(sent, data.draw(st.sampled_from(sorted(COMPRESSIONS))), **options), base)
    assert opened(batch) == expected
    position = base + data.draw(st.integers(0, len(sent)))
    found = open_batch(only(batch), PARTITION, position)
    assert isinstance(found, BatchRecords)
    assert len(found) == len(expected) - (position - base)
    parts = [found.take(data.draw(st.integers(1, 4))) for _ in range(len(sent))]
    assert [record for part in parts for record in part] == expected[position - base :]


@given(st.lists(st.integers(-3, 8), min_size=1, max_size=6))
def test_a_claim_that_is_no_ascending_offset_of_the_batch_refuses_all_of_it(deltas: list[int]) -> None:
    found = opened(odd_batch([b"value"] * len(deltas), deltas))
    if deltas == list(range(len(deltas))):
        assert not isinstance(found, UnreadableRange)
        assert [record.offset for record in found] == deltas
    else:
        assert isinstance(found, UnreadableRange)
        assert found[:4] == (PARTITION, 0, len(deltas), "OddOffset")


@given(values, st.data())
def test_damaged_records_are_refused_or_as_another_reader_sees_them(sent: list[bytes], data: st.DataObject) -> None:
    """No bytes make the reader fail, or read beyond a batch; what it returns is what the bytes say."""
    payload = bytearray(record_batch(sent, key=b"key", headers=[("name", b"x")])[HEADER_BYTES:])
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    damaged = with_payload(
        record_batch(sent), bytes(payload[:cut]) if data.draw(st.booleans()) else bytes(payload), "none"
    )
    found = opened(damaged)
    if isinstance(found, UnreadableRange):
        assert (found.start, found.end) == (0, len(sent))
        assert found.error in ("MalformedBatch", "OddOffset")
        return
    if any(attributes > 0x7F for attributes in attributes_of(damaged[HEADER_BYTES:])):
        # Kafka's are one byte, which nobody uses; the other reader takes it for a number of variable length.
        return
    try:
        expected = seen_by_others(damaged)
    except UnicodeDecodeError:
        return
    assert found == expected


@given(st.sampled_from(sorted(CODECS_OF)), st.binary(max_size=2_000))
def test_no_bytes_make_a_codec_fail_in_another_way(codec: str, garbage: bytes) -> None:
    found = opened(with_payload(record_batch([b"value"]), garbage, codec))
    assert isinstance(found, UnreadableRange)
    assert found.error in ("BadCompression", "BatchTooLarge", "MalformedBatch")


@pytest.mark.parametrize("codec", sorted(CODECS_OF))
def test_a_bomb_is_not_inflated_beyond_the_bound(codec: str) -> None:
    most = 1 << 20
    packed = memoryview(COMPRESSIONS[codec](bytes(64 * most)))
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            inflate(packed, CODECS_OF[codec], most)
        assert tracemalloc.get_traced_memory()[1] < 4 * most
    finally:
        tracemalloc.stop()
    exact = bytes(most)
    assert inflate(memoryview(COMPRESSIONS[codec](exact)), CODECS_OF[codec], most) == exact


def test_the_bound_is_the_contract_s() -> None:
    value = bytes(1024 * 1024)
    assert len(opened(record_batch([value] * 16, "lz4"))) == 16
    found = opened(record_batch([value] * 17, "lz4"))
    assert isinstance(found, UnreadableRange)
    assert found.error == "BatchTooLarge"
    assert str(MOST_BATCH_BYTES) in found.message


@pytest.mark.parametrize("at", [1, 150])
def test_several_gzip_members_are_refused_as_a_whole(at: int) -> None:
    plain = record_batch([b"a" * 100] * 3)
    payload = plain[HEADER_BYTES:]
    pack = COMPRESSIONS["gzip"]
    found = opened(with_payload(plain, pack(payload[:at]) + pack(payload[at:]), "gzip"))
    assert isinstance(found, UnreadableRange)
    assert found[:4] == (PARTITION, 0, 3, "BadCompression")


def test_a_header_whose_name_is_not_utf_8_is_left_out() -> None:
    batch = record_batch([b"value"], headers=[("zzzz", b"1")])
    found = opened(with_payload(batch, batch[HEADER_BYTES:].replace(b"zzzz", b"\xff\xfe\xed\xa0"), "none"))
    assert found == [Record(*PARTITION, 0, 0, None, b"value", ())]


@pytest.mark.parametrize(("headers", "read"), [(MOST_HEADERS, MOST_HEADERS), (MOST_HEADERS + 1, 0), (8_000_000, 0)])
def test_a_record_of_many_headers_is_read_without_them(headers: int, read: int) -> None:
    # A header without name and value takes two bytes, and next to none of a compressed batch.
    (record,) = opened(record_batch([b"value"], "gzip", key=b"c1", headers=[("", None)] * headers))
    assert (record.key, record.value, len(record.headers)) == (b"c1", b"value", read)
