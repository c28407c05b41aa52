"""Record batches of a transaction: their partitions, numbers, sizes and reports, and what brokers say of versions."""

from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from hypothesis import given, strategies

from pipeline.kafka.records.record_batches import split_batches
from pipeline.kafka.writers.producer_batches import (
    BatchBuilder,
    PendingRecord,
    ProducerId,
    codec_of,
    keyed_partitions,
)
from pipeline.kafka.writers.transaction_protocol import (
    FEATURES,
    NO_TAGS,
    V1,
    V2,
    GroupMember,
    KafkaRequest,
    group_member,
    newest_protocol,
)
from tests.chaos import arithmetic

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
KEYS = strategies.one_of(strategies.none(), strategies.binary(max_size=20))
HEADERS = strategies.lists(
    strategies.tuples(strategies.text(max_size=5), strategies.one_of(strategies.none(), strategies.binary(max_size=5))),
    max_size=3,
)
RECORDS = strategies.lists(
    strategies.builds(
        PendingRecord,
        strategies.sampled_from(["one", "three"]),
        strategies.sampled_from([-1, 0]),
        KEYS,
        strategies.one_of(strategies.none(), strategies.binary(max_size=200)),
        HEADERS,
        strategies.integers(1, 1 << 40),
        strategies.none(),
    ),
    max_size=40,
)
COUNTS = {"one": 1, "three": 3}


def builder(codec: str = "none", most_bytes: int = 1 << 20) -> BatchBuilder:
    made = BatchBuilder(codec_of({"compression.type": codec}), most_bytes)
    made.number_for(ProducerId(7, 1))
    return made


def record(value: bytes, partition: int = 0, key: bytes | None = None, report: Any = None) -> PendingRecord:
    return PendingRecord("three", partition, key, value, [], 1_000, report)


@given(RECORDS, strategies.sampled_from(CODECS), strategies.sampled_from([150, 1_000, 1 << 20]))
def test_batches_hold_all_records_in_order_where_their_keys_belong(
    records: list[PendingRecord], codec: str, most_bytes: int
) -> None:
    built = builder(codec, most_bytes).build(records, COUNTS, set())
    found: list[Any] = []
    for (topic, number), batches in built.items():
        sequence = 0
        for batch in batches:
            (header,) = split_batches(batch.data)
            assert (header.is_intact, header.is_transactional, header.size) == (True, True, len(batch.data))
            assert (header.producer_id, header.producer_epoch) == (7, 1)
            assert (header.base_sequence, header.record_count) == (sequence, batch.count)
            sequence += batch.count
            for item in DefaultRecordBatch(batch.data):
                found.append((topic, number, item.key, item.value, list(item.headers), item.timestamp))
    for topic in COUNTS:
        expected = [item for item in records if item.topic == topic]
        assert sorted(map(repr, [line[2:] for line in found if line[0] == topic])) == sorted(
            repr((item.key, item.value, item.headers, item.timestamp_ms)) for item in expected
        )
    for topic, number, key, *_ in found:
        if key is not None and number:
            assert number == (arithmetic.murmur2(key) & 0x7FFFFFFF) % COUNTS[topic]


@given(strategies.lists(strategies.binary(max_size=30), min_size=1), strategies.integers(2, 1_000))
def test_partitions_are_those_of_java(keys: list[bytes], partitions: int) -> None:
    expected = [(arithmetic.murmur2(key) & 0x7FFFFFFF) % partitions for key in keys]
    assert keyed_partitions(keys, partitions) == expected


def test_records_without_a_key_stay_together() -> None:
    built = builder().build([record(b"%d" % number, -1) for number in range(20)], COUNTS, set())
    (batches,) = built.values()
    assert [batch.count for batch in batches] == [20]


def test_records_without_a_key_go_where_a_leader_is() -> None:
    for _ in range(20):
        assert [*builder().build([record(b"a", -1)], COUNTS, {("three", 1), ("one", 0)})] == [("three", 1)]


def test_numbers_go_on_behind_what_was_acknowledged_and_begin_anew_with_an_epoch() -> None:
    made = builder()

    def sequence() -> int:
        (batch,) = made.build([record(b"a"), record(b"b")], COUNTS, set())["three", 0]
        made.count(batch)
        (header,) = split_batches(batch.data)
        return header.base_sequence

    assert [sequence(), sequence(), sequence()] == [0, 2, 4]
    made.number_for(ProducerId(7, 1))
    assert sequence() == 6
    made.number_for(ProducerId(7, 2))
    assert sequence() == 0
    made._next["three", 0] = (1 << 31) - 1
    assert [sequence(), sequence()] == [(1 << 31) - 1, 1]


def test_reports_name_offsets_and_none_where_the_broker_knows_them_no_more() -> None:
    reported: list[tuple[int, int]] = []

    def report(error: None, message: Any) -> None:
        assert error is None
        reported.append((message.partition(), message.offset()))

    records = [record(b"a"), record(b"b", report=report), record(b"c"), record(b"d", report=report)]
    (batch,) = builder().build(records, COUNTS, set())["three", 0]
    batch.acknowledge(100)
    batch.acknowledge(-1)
    assert reported == [(0, 101), (0, 103), (0, -1), (0, -1)]


def test_a_codec_goes_by_either_name() -> None:
    assert codec_of({"compression.type": "lz4", "compression.codec": "zstd"}) == codec_of({"compression.type": "zstd"})


def features(level: int, highest: int) -> Any:
    name = b"\x14transaction.version"
    tag = b"\2" + name + level.to_bytes(2, "big") + bytes(3)
    keys = [(key, 0, highest, NO_TAGS) for key in (0, 26, 28)]
    return SimpleNamespace(versions=keys, tags={2: tag})


def test_version_2_is_what_a_cluster_has_agreed_on_and_its_brokers_have() -> None:
    assert newest_protocol(features(2, 12)) is V2
    assert newest_protocol(features(1, 12)) is V1
    assert newest_protocol(features(2, 11)) is V1
    assert newest_protocol(SimpleNamespace(versions=features(2, 12).versions, tags={})) is V1


def test_an_answer_about_features_is_read_without_the_tags_of_other_headers() -> None:
    request = KafkaRequest(FEATURES, "software", "1", NO_TAGS)
    data = BytesIO((5).to_bytes(4, "big") + b"rest")
    assert request.parse_response_header(data).correlation_id == 5
    assert data.read() == b"rest"


def test_a_member_of_a_group_is_read_from_librdkafka_s_bytes() -> None:
    static = b"CGMDv2:\x07\0\0\0card\0member-1\0\0host-1\0"
    assert group_member(static) == GroupMember("card", 7, "member-1", "host-1")
    assert group_member(b"CGMDv2:\xff\xff\xff\xffcard\0\0\1") == GroupMember("card", -1, "", None)


@pytest.mark.parametrize(
    "metadata", [b"", b"CGMDv3:\0\0\0\0card\0\0\1", b"CGMDv2:\0\0\0\0card\0", b"CGMDv2:\0\0\0\0c\0m\0\2"]
)
def test_another_form_of_a_group_s_metadata_is_refused(metadata: bytes) -> None:
    with pytest.raises(ValueError, match="form that is not known"):
        group_member(metadata)
