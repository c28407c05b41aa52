"""Batches are split from a broker's answer as they are, damaged ones too."""

from aiokafka.record.default_records import DefaultRecordBatch

from pipeline.kafka.records.record_batches import HEADER, LZ4, NONE, split_batches
from tests.helpers.batches import record_batch


def moved(batch: bytes, base_offset: int) -> bytes:
    return base_offset.to_bytes(8, "big") + batch[8:]


def flipped(batch: bytes, at: int) -> bytes:
    return batch[:at] + bytes([batch[at] ^ 0xFF]) + batch[at + 1 :]


def test_an_answer_is_split_into_whole_batches() -> None:
    first, second = record_batch([b"a", b"b"]), moved(record_batch([b"c"] * 3, "lz4", timestamp_ms=7), 2)
    found = list(split_batches(first + second + second[:70]))
    assert [(batch.base_offset, batch.end, batch.codec, batch.record_count) for batch in found] == [
        (0, 2, NONE, 2),
        (2, 5, LZ4, 3),
    ]
    assert [bytes(batch.data) for batch in found] == [first, second]
    assert all(batch.is_intact and not batch.is_control and not batch.is_transactional for batch in found)
    theirs = DefaultRecordBatch(second)
    assert (found[1].crc, found[1].max_timestamp_ms, found[1].producer_id) == (
        theirs.crc,
        theirs.max_timestamp,
        theirs.producer_id,
    )
    assert found[1].payload == second[HEADER.size :]


def test_no_flipped_byte_of_what_the_checksum_is_of_stays_hidden() -> None:
    batch = record_batch([b"a value", b"another"])
    for at in range(16, len(batch)):
        (found,) = split_batches(flipped(batch, at))
        assert not found.is_intact


def test_what_follows_a_batch_of_a_wrong_length_is_not_guessed() -> None:
    batch = record_batch([b"a"])
    damaged = batch[:8] + (3).to_bytes(4, "big") + batch[12:]
    (found,) = split_batches(damaged + batch)
    assert (found.length, found.base_offset) == (3, 0)
