"""Topics as the pipeline needs them, and reading them: against a real broker."""

import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import ConfigResource, NewTopic, ResourceType

from pipeline.cli import main
from pipeline.kafka.cluster.admin import end_offsets, ensure_topics, topic_config
from pipeline.kafka.cluster.clients import admin_client, consumer_config, producer_config
from pipeline.kafka.cluster.errors import ClusterUnreachable, ConfigError, TopicError
from pipeline.kafka.readers.topic_reader import read_topic, tail_topic
from pipeline.settings import Settings
from schemas.records import Record
from schemas.topics import CASE_EVENTS, DEAD_LETTERS, LABELS, MODELS, TOPICS, TRANSACTIONS
from tests.helpers.offsets import committed_offsets, group_lag
from tests.helpers.topics import raise_failure, shared_producer
from tests.helpers.waiting import TIMEOUT_S, eventually

pytestmark = pytest.mark.broker

JAVA_MURMUR2 = {
    b"21": -973_932_308,
    b"foobar": -790_332_482,
    b"a-little-bit-long-string": -985_981_536,
    b"a-little-bit-longer-string": -1_486_304_829,
    b"abc": 479_470_107,
}
"""Hashes that Kafka's own unit tests expect of its Java clients."""


def bootstrap_of(settings: Settings) -> str:
    assert settings.kafka_bootstrap_servers is not None
    return settings.kafka_bootstrap_servers


def with_changes(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update=changes)


def test_topics_are_created_as_declared_and_then_found(kafka_settings: Settings) -> None:
    bootstrap = bootstrap_of(kafka_settings)
    first = ensure_topics(bootstrap, kafka_settings)
    again = ensure_topics(bootstrap, kafka_settings)

    assert [state.name for state in first] == [kafka_settings.topic(topic.name) for topic in TOPICS]
    assert {state.action for state in first} == {"created"}
    assert {(state.action, state.warnings) for state in again} == {("present", ())}
    client = admin_client(bootstrap)
    found = client.list_topics(timeout=TIMEOUT_S).topics
    for topic in TOPICS:
        name = kafka_settings.topic(topic.name)
        assert len(found[name].partitions) == {"cards": 4, "merchants": 4, "one": 1}[topic.partitions_like]
        resource = ConfigResource(ResourceType.TOPIC, name)
        actual = client.describe_configs([resource])[resource].result(TIMEOUT_S)
        expected = topic_config(topic, kafka_settings)
        assert {key: actual[key].value for key in expected} == expected
    assert topic_config(MODELS, kafka_settings)["cleanup.policy"] == "delete"


def test_the_broker_stamps_what_producers_write_unless_they_do(kafka_settings: Settings) -> None:
    live = with_changes(kafka_settings, timestamps="broker")
    for topic in TOPICS:
        stamps = topic_config(topic, live)["message.timestamp.type"]
        assert stamps == ("LogAppendTime" if topic in (TRANSACTIONS, LABELS, CASE_EVENTS) else "CreateTime")
        simulated = topic_config(topic, kafka_settings)["message.timestamp.type"]
        assert simulated == ("LogAppendTime" if topic == CASE_EVENTS else "CreateTime")


def test_a_simulated_clock_may_stand_anywhere(kafka_settings: Settings) -> None:
    bootstrap = bootstrap_of(kafka_settings)
    ensure_topics(bootstrap, kafka_settings, [TRANSACTIONS])
    name = kafka_settings.topic("transactions")
    stamps_ms = [1_522_540_800_000, 4_102_444_800_000]
    producer = shared_producer(bootstrap)
    for stamp_ms in stamps_ms:
        producer.produce(name, b"value", b"card", timestamp=stamp_ms)
    assert producer.flush(TIMEOUT_S) == 0
    assert [record.timestamp_ms for record in read_topic(bootstrap, name, settings=kafka_settings)] == stamps_ms


def test_a_wrong_partition_count_says_what_to_do(kafka_settings: Settings) -> None:
    bootstrap = bootstrap_of(kafka_settings)
    ensure_topics(bootstrap, with_changes(kafka_settings, card_partitions=3))
    name = kafka_settings.topic("transactions")
    with pytest.raises(TopicError) as caught:
        ensure_topics(bootstrap, kafka_settings)
    assert f"topic {name} has 3 partitions, but 4 are expected" in str(caught.value)
    assert "set FRAUD_PIPELINE_CARD_PARTITIONS=3" in str(caught.value)
    assert "merchant" not in str(caught.value).lower()


def test_other_differences_are_warnings(kafka_settings: Settings) -> None:
    bootstrap = bootstrap_of(kafka_settings)
    name = kafka_settings.topic("transactions")
    drifted = {**topic_config(TRANSACTIONS, kafka_settings), "retention.ms": "1000", "max.message.bytes": "9000000"}
    client = admin_client(bootstrap)
    client.create_topics([NewTopic(name, 4, 1, config=drifted)], operation_timeout=TIMEOUT_S)[name].result(TIMEOUT_S)
    (state,) = ensure_topics(bootstrap, kafka_settings, [TRANSACTIONS])
    assert state.action == "present"
    assert state.warnings == ("retention.ms is 1000, should be -1",)


def test_missing_topics_are_an_error_where_they_may_not_be_created(kafka_settings: Settings) -> None:
    bootstrap = bootstrap_of(kafka_settings)
    with pytest.raises(TopicError, match=f"missing topics: {kafka_settings.topic('labels')}"):
        ensure_topics(bootstrap, with_changes(kafka_settings, create_topics=False), [LABELS])


def test_workers_that_start_together_create_together(kafka_settings: Settings) -> None:
    bootstrap = bootstrap_of(kafka_settings)
    actions: list[str] = []
    gate = threading.Barrier(4)

    def start() -> None:
        gate.wait()
        actions.extend(state.action for state in ensure_topics(bootstrap, kafka_settings))

    workers = [threading.Thread(target=start) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(TIMEOUT_S)
    assert len(actions) == 4 * len(TOPICS)
    assert actions.count("created") == len(TOPICS)


def test_dead_letters_hold_the_largest_transaction_with_its_headers(kafka_settings: Settings) -> None:
    bootstrap = bootstrap_of(kafka_settings)
    ensure_topics(bootstrap, kafka_settings, [TRANSACTIONS, DEAD_LETTERS])
    largest = b"x" * (TRANSACTIONS.max_message_bytes - 1_000)
    producer = Producer(
        producer_config(bootstrap, overrides={"compression.type": "none", "on_delivery": raise_failure})
    )
    producer.produce(kafka_settings.topic(TRANSACTIONS.name), largest, b"card")
    producer.produce(kafka_settings.topic(DEAD_LETTERS.name), largest, b"card", headers=[("reason", b"y" * 10_000)])
    assert producer.flush(TIMEOUT_S) == 0
    (record,) = read_topic(bootstrap, kafka_settings.topic(DEAD_LETTERS.name), settings=kafka_settings)
    assert record.value == largest
    assert record.headers == (("reason", b"y" * 10_000),)


def test_only_committed_records_are_read_up_to_the_end(kafka_settings: Settings) -> None:
    bootstrap = bootstrap_of(kafka_settings)
    ensure_topics(bootstrap, kafka_settings, [TRANSACTIONS])
    name = kafka_settings.topic("transactions")
    producer = Producer(producer_config(bootstrap, transactional_id=kafka_settings.topic("writer")))
    producer.init_transactions(TIMEOUT_S)
    for outcome in ("committed", "aborted"):
        producer.begin_transaction()
        for number in range(100):
            producer.produce(name, f"{outcome} {number}".encode(), f"card {number}".encode())
        (producer.commit_transaction if outcome == "committed" else producer.abort_transaction)(TIMEOUT_S)

    records = list(read_topic(bootstrap, name, settings=kafka_settings))

    assert sorted(record.value or b"" for record in records) == sorted(f"committed {n}".encode() for n in range(100))
    assert {record.partition for record in records} == {0, 1, 2, 3}
    first = records[0]
    rest = read_topic(
        bootstrap,
        name,
        settings=kafka_settings,
        partitions=[first.partition],
        start={first.partition: first.offset + 1},
    )
    assert [r.offset for r in rest] == [r.offset for r in records if r.partition == first.partition][1:]
    assert list(read_topic(bootstrap, name, settings=kafka_settings, start=dict.fromkeys(range(4), 10_000))) == []


def test_an_open_transaction_ends_the_readable_log(kafka_settings: Settings) -> None:
    bootstrap = bootstrap_of(kafka_settings)
    settings = with_changes(kafka_settings, card_partitions=1)
    ensure_topics(bootstrap, settings, [TRANSACTIONS])
    name = settings.topic("transactions")
    held = {"transaction.timeout.ms": 600_000}  # no broker ends it while the test looks
    producer = Producer(producer_config(bootstrap, transactional_id=settings.topic("writer"), overrides=held))
    producer.init_transactions(TIMEOUT_S)
    producer.begin_transaction()
    producer.produce(name, b"open", b"card")
    assert producer.flush(TIMEOUT_S) == 0
    assert end_offsets(bootstrap, [name]) == {(name, 0): 0}
    assert list(read_topic(bootstrap, name, settings=kafka_settings)) == []
    producer.commit_transaction(TIMEOUT_S)
    assert end_offsets(bootstrap, [name]) == {(name, 0): 2}
    assert [record.value for record in read_topic(bootstrap, name, settings=kafka_settings)] == [b"open"]


def test_a_tail_follows_from_the_end_until_it_is_stopped(kafka_settings: Settings) -> None:
    bootstrap = bootstrap_of(kafka_settings)
    ensure_topics(bootstrap, kafka_settings, [TRANSACTIONS])
    name = kafka_settings.topic("transactions")
    producer = shared_producer(bootstrap)
    producer.produce(name, b"old", b"card")
    assert producer.flush(TIMEOUT_S) == 0
    seen: list[Record] = []
    start = {number: end for (_, number), end in end_offsets(bootstrap, [name]).items()}
    tail = tail_topic(bootstrap, name, settings=kafka_settings, start=start, lost_after_s=TIMEOUT_S)
    follower = threading.Thread(target=lambda: seen.append(next(tail)))
    follower.start()
    deadline_s = time.monotonic() + TIMEOUT_S
    while not seen and time.monotonic() < deadline_s:
        producer.produce(name, b"new", b"card")
        producer.flush(TIMEOUT_S)
        follower.join(0.05)
    follower.join(TIMEOUT_S)
    tail.close()
    assert {record.value for record in seen} == {b"new"}


def test_lag_counts_from_what_a_group_committed(kafka_settings: Settings) -> None:
    bootstrap = bootstrap_of(kafka_settings)
    settings = with_changes(kafka_settings, card_partitions=1)
    ensure_topics(bootstrap, settings, [TRANSACTIONS])
    name, group = settings.topic("transactions"), settings.topic("group")
    producer = shared_producer(bootstrap)
    for _ in range(10):
        producer.produce(name, b"value", b"card")
    assert producer.flush(TIMEOUT_S) == 0

    assert committed_offsets(bootstrap, group, [name]) == {}
    assert group_lag(bootstrap, group, [name]) == {(name, 0): 10}

    consumer = Consumer(consumer_config(bootstrap, group))
    consumer.subscribe([name])
    eventually(lambda: consumer.poll(0.1) is not None)
    consumer.commit(offsets=[TopicPartition(name, 0, 4)], asynchronous=False)
    consumer.close()
    assert committed_offsets(bootstrap, group, [name]) == {(name, 0): 4}
    assert group_lag(bootstrap, group, [name]) == {(name, 0): 6}


def test_the_documented_topics_are_the_declared_ones() -> None:
    page = (Path(__file__).parents[2] / "docs" / "broker.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 6]
    fields = [tuple(cell.strip().strip("`") for cell in row.strip("|").split("|")) for row in rows]
    assert fields == [
        (topic.name, topic.key, topic.partitions_like, topic.cleanup_policy, str(topic.max_message_bytes))
        for topic in TOPICS
    ]


def test_settings_cannot_take_the_guarantees_away(kafka_settings: Settings) -> None:
    bootstrap = bootstrap_of(kafka_settings)
    careless = with_changes(kafka_settings, kafka_config={"isolation.level": "read_uncommitted"})
    with pytest.raises(ConfigError, match=r"sets isolation\.level, but the pipeline relies on 'read_committed'"):
        consumer_config(bootstrap, "group", settings=careless)
    tuned = with_changes(kafka_settings, kafka_config={"linger.ms": "50", "acks": "all"})
    assert producer_config(bootstrap, settings=tuned)["linger.ms"] == "50"


def test_the_command_creates_checks_and_fails_with_a_reason(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", bootstrap_of(kafka_settings))
    monkeypatch.setenv("FRAUD_PIPELINE_TOPIC_PREFIX", kafka_settings.topic_prefix)

    refused = CliRunner().invoke(main, ["topics", "--check"])
    assert refused.exit_code == 1
    assert "missing topics" in refused.output

    created = CliRunner().invoke(main, ["topics"])
    assert created.exit_code == 0, created.output
    assert created.output.count("created") == len(TOPICS)

    checked = CliRunner().invoke(main, ["topics", "--check"])
    assert checked.exit_code == 0, checked.output
    assert checked.output.count("present") == len(TOPICS)

    monkeypatch.setenv("FRAUD_PIPELINE_MERCHANT_PARTITIONS", "7")
    wrong = CliRunner().invoke(main, ["topics"])
    assert wrong.exit_code == 1
    assert "set FRAUD_PIPELINE_MERCHANT_PARTITIONS=4" in wrong.output


def test_a_cluster_that_does_not_answer_is_a_clear_error(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.kafka.cluster.admin.CONNECT_TIMEOUT_S", 0.5)
    with pytest.raises(
        ClusterUnreachable, match=r"no Kafka broker answers at 127\.0\.0\.1:1 .* KAFKA_BOOTSTRAP_SERVERS"
    ):
        ensure_topics("127.0.0.1:1", kafka_settings)
