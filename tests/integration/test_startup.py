"""What a worker refuses to start on, and how it tells that a broker went away: against a real broker."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from typing import Final

import msgspec
import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import (
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from agents.app import WorkerContext
from agents.topology import AGENTS, CARD, FEEDBACK, LABEL, LEARN, SCORE
from agents.watches import BrokerWatch
from pipeline.broker import EmbeddedBroker, embedded_broker
from pipeline.broker.local import free_port
from pipeline.engine.records.forwarding import forward
from pipeline.engine.records.partitioner import partition_of
from pipeline.engine.records.results import Result
from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.kafka.checks.offset_checks import result_offsets
from pipeline.kafka.checks.startup import Role, StartRefused, check_start
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.kafka.cluster.clients import MEMBER_ID, admin_client, consumer_config, producer_config
from pipeline.kafka.cluster.cluster import group_protocol, topic_identities
from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.cluster.retention import needed_days
from pipeline.kafka.records.internal import not_counted
from pipeline.kafka.records.member import Member
from pipeline.kafka.session.quarantine import Quarantines
from pipeline.observability.health import Health
from pipeline.settings import Settings
from schemas.messages import Decision, Example, LogPosition, ProfiledTransaction, Progress, RecordPosition
from schemas.records import Headers, Output, Record
from schemas.times import MS_PER_DAY
from schemas.topics import (
    ACCEPTED_LABELS,
    CONTROL,
    DEAD_LETTERS,
    DECISION_FEATURES,
    DECISIONS,
    EXAMPLES,
    LABELS,
    MODELS,
    PROFILED,
    PROGRESS,
    REROUTED,
    TRANSACTIONS,
    Topic,
)
from tests.helpers.logs import block_of, features, golden, label
from tests.helpers.topics import shared_producer
from tests.helpers.waiting import TIMEOUT_S, eventually, retried

pytestmark = pytest.mark.broker

ALL: Final = tuple(AGENTS.values())


@pytest.fixture
def bootstrap(broker: EmbeddedBroker) -> str:
    return broker.bootstrap_servers


@pytest.fixture
def settings(kafka_settings: Settings, bootstrap: str) -> Settings:
    """Settings whose topics exist and are empty."""
    ensure_topics(bootstrap, kafka_settings)
    return kafka_settings


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.kafka.checks.startup.RECHECK_S", 0.0)


def changed(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update=changes)


def configure(bootstrap: str, name: str, **config: str) -> None:
    entries = [
        ConfigEntry(key.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for key, value in config.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
    client = admin_client(bootstrap)
    client.incremental_alter_configs([resource])[resource].result(TIMEOUT_S)

    def described() -> bool:
        found = client.describe_configs([resource])[resource].result(TIMEOUT_S)
        return all(found[entry.name].value == entry.value for entry in entries)

    # A busy broker may go on describing the topic as it was for a moment.
    eventually(described)


def write(bootstrap: str, settings: Settings, topic: Topic, value: bytes = b"{}", **where: object) -> None:
    producer = shared_producer(bootstrap)
    producer.produce(settings.topic(topic.name), value, **where)
    assert producer.flush(TIMEOUT_S) == 0


def commit(bootstrap: str, settings: Settings, agent: str, offsets: dict[tuple[Topic, int], int]) -> None:
    """Offsets as the agent's group would have committed them; committed with records, as its batches are."""
    positions = [
        TopicPartition(settings.topic(topic.name), number, offset) for (topic, number), offset in offsets.items()
    ]
    request = [ConsumerGroupTopicPartitions(settings.topic(agent), positions)]
    client = admin_client(bootstrap)

    def altered() -> None:
        (future,) = client.alter_consumer_group_offsets(request).values()
        for position in future.result(TIMEOUT_S).topic_partitions:
            assert position.error is None

    # A coordinator may still be loading what groups have committed.
    retried(altered, AssertionError)
    if len(AGENTS[agent].reads) > 1:
        for number in {number for _, number in offsets}:
            progress(bootstrap, settings, agent, number, {t: end for (t, n), end in offsets.items() if n == number})


def progress(bootstrap: str, settings: Settings, agent: str, number: int, ends: dict[Topic, int]) -> None:
    """What an agent of several inputs tells of a batch that it has read."""
    value = Progress(
        agent=agent,
        starts={topic.name: max(0, end - 1) for topic, end in ends.items()},
        ends={topic.name: end for topic, end in ends.items()},
    )
    write(bootstrap, settings, PROGRESS, msgspec.json.encode(value), key=agent.encode(), partition=number)


def dead_letter(role: str, source: str, number: int, offset: int) -> Output:
    """A dead letter of an agent, of a record of a topic (full name)."""
    refused = Result()
    refused.dead_letter(Record(source, number, offset, 0, None, b"{"), role, "not_json", "It is no JSON.")
    return refused.outputs[0]


def write_result(bootstrap: str, settings: Settings, role: Role, result: Topic, number: int = 0, at: int = 0) -> None:
    """Write what an agent makes of the record at an offset of a partition of its first input."""
    source, where = settings.topic(role.reads[0].name), RecordPosition(
        topic=role.reads[0].name, partition=number, offset=at
    )  # fmt: skip
    headers: Headers = ()
    read = Record(source, number, at, 0, None, label())
    log = LogPosition(partition=number, offset=at)
    if result is PROFILED:
        message = golden("profiled-transaction", ProfiledTransaction)
        value = block_of(msgspec.structs.replace(message, source=where, kernel=KERNEL_VERSION))
    elif result is DECISION_FEATURES:
        value = features(log=log)
    elif result is DECISIONS:
        value = msgspec.json.encode(golden("decision", Decision, log=log))
    elif result is EXAMPLES:
        cards = (f"c{n}" for n in count())
        card = next(card for card in cards if partition_of(card, settings.card_partitions) == number)
        value = msgspec.json.encode(golden("example", Example, card_id=card))
    else:
        output = (
            dead_letter(role.name, source, number, at)
            if result is DEAD_LETTERS
            else forward(read, ACCEPTED_LABELS, "c1", 0, known_at_us=1)
        )
        value, headers = output.value or b"", output.headers
    write(bootstrap, settings, result, value, headers=[*headers])


def made_anew(bootstrap: str, settings: Settings, topic: Topic) -> None:
    """Delete a topic, with which Kafka forgets the groups' offsets, and create it again."""
    client, name = admin_client(bootstrap), settings.topic(topic.name)
    client.delete_topics([name])[name].result(TIMEOUT_S)
    eventually(lambda: name not in client.list_topics(timeout=TIMEOUT_S).topics)
    ensure_topics(bootstrap, settings)


def refusal(bootstrap: str, settings: Settings, *roles: object) -> str:
    with pytest.raises(StartRefused) as caught:
        check_start(bootstrap, settings, roles or ALL)  # type: ignore[arg-type]
    return str(caught.value)


def test_fresh_topics_are_fit(bootstrap: str, settings: Settings) -> None:
    assert check_start(bootstrap, settings, ALL) == []


@pytest.mark.parametrize("topic", [TRANSACTIONS, LABELS, PROFILED, DECISION_FEATURES, EXAMPLES, PROGRESS])
def test_a_topic_that_forgets_too_soon_is_refused(bootstrap: str, settings: Settings, topic: Topic) -> None:
    name = settings.topic(topic.name)
    days = needed_days(topic, settings)
    short_ms = 10_000 * MS_PER_DAY if days is None else round(days * MS_PER_DAY) - 1
    configure(bootstrap, name, retention_ms=str(short_ms))
    reported = refusal(bootstrap, settings)
    assert f"topic {name} deletes records after" in reported
    assert "retention.ms" in reported
    assert "FRAUD_PIPELINE_ACCEPT_SHORT_RETENTION=true" in reported
    assert len(reported.splitlines()) == 1
    (warning,) = check_start(bootstrap, changed(settings, accept_short_retention=True), ALL)
    assert warning in reported
    configure(bootstrap, name, retention_ms="-1" if days is None else str(short_ms + 1))
    assert check_start(bootstrap, settings, ALL) == []


def test_retention_by_size_and_compaction_are_refused(bootstrap: str, settings: Settings) -> None:
    configure(bootstrap, settings.topic("profiled"), retention_bytes="1000000")
    configure(bootstrap, settings.topic("features"), cleanup_policy="compact")
    reported = refusal(bootstrap, settings)
    assert "retention.bytes=-1" in reported
    assert "cleanup.policy=delete" in reported
    assert len(reported.splitlines()) == 2


def test_topics_keyed_alike_must_agree(bootstrap: str, settings: Settings) -> None:
    client = admin_client(bootstrap)
    name = settings.topic("progress")
    client.delete_topics([name])[name].result(TIMEOUT_S)
    eventually(lambda: name not in client.list_topics(timeout=TIMEOUT_S).topics)
    client.create_topics([NewTopic(name, 3, 1)])[name].result(TIMEOUT_S)
    eventually(lambda: name in client.list_topics(timeout=TIMEOUT_S).topics)
    reported = refusal(bootstrap, settings)
    assert "keyed by cards" in reported
    assert f"{name} 3" in reported
    with pytest.raises(TopicError, match="has 3 partitions"):
        ensure_topics(bootstrap, settings)


def test_more_insync_replicas_than_replicas_are_refused(bootstrap: str, settings: Settings) -> None:
    configure(bootstrap, settings.topic("alerts"), min_insync_replicas="2")
    assert "nothing can be written" in refusal(bootstrap, settings)
    other = changed(settings, topic_prefix=f"{settings.topic_prefix}other-", min_insync_replicas=2)
    with pytest.raises(TopicError, match="FRAUD_PIPELINE_MIN_INSYNC_REPLICAS is 2"):
        ensure_topics(bootstrap, other)


@pytest.mark.parametrize(
    ("role", "source", "result"),
    [
        (CARD, TRANSACTIONS, PROFILED),
        (CARD, TRANSACTIONS, DEAD_LETTERS),
        (LABEL, LABELS, ACCEPTED_LABELS),
        (LABEL, LABELS, DEAD_LETTERS),
        (SCORE, PROFILED, DECISIONS),
        (FEEDBACK, DECISION_FEATURES, EXAMPLES),
    ],
)
def test_lost_offsets_of_a_group_with_results_are_refused(
    bootstrap: str, settings: Settings, role: Role, source: Topic, result: Topic
) -> None:
    write(bootstrap, settings, source)
    write(bootstrap, settings, DEAD_LETTERS, headers=[*dead_letter("another", "t", 0, 0).headers])
    # What is no result of anybody.
    write(bootstrap, settings, result, headers=[("dead-letter-stage", role.name.encode())])
    refused: list[str] = []
    assert check_start(bootstrap, settings, [role], refused.append) == []
    assert refused == [settings.topic(result.name)]
    write_result(bootstrap, settings, role, result)
    reported = refusal(bootstrap, settings, role)
    assert "has no offsets" in reported
    assert settings.topic(result.name) in reported
    assert "FRAUD_PIPELINE_RESTART_FROM_BEGINNING=true" in reported
    again = check_start(bootstrap, changed(settings, restart_from_beginning=True), [role])
    assert len(again) == 1


def test_models_that_somebody_published_are_no_result_of_the_learn_agent(bootstrap: str, settings: Settings) -> None:
    write(bootstrap, settings, EXAMPLES)
    write(bootstrap, settings, MODELS, key=b"lightgbm")
    assert check_start(bootstrap, settings, [LEARN]) == []


def test_what_an_aborted_transaction_left_is_no_result(bootstrap: str, settings: Settings) -> None:
    write(bootstrap, settings, TRANSACTIONS)
    producer = Producer(producer_config(bootstrap, transactional_id=settings.topic("aborting")))
    producer.init_transactions(TIMEOUT_S)
    producer.begin_transaction()
    producer.produce(settings.topic("profiled"), b"{}")
    producer.flush(TIMEOUT_S)
    producer.abort_transaction(TIMEOUT_S)
    assert check_start(bootstrap, settings, [CARD]) == []


def test_a_partition_without_an_offset_is_refused_only_if_it_was_worked_on(bootstrap: str, settings: Settings) -> None:
    for number in (0, 1):
        write(bootstrap, settings, TRANSACTIONS, partition=number)
    write(bootstrap, settings, PROFILED)
    commit(bootstrap, settings, "card", {(TRANSACTIONS, 0): 1})
    assert check_start(bootstrap, settings, [CARD]) == []
    write(bootstrap, settings, ACCEPTED_LABELS, partition=1)
    commit(bootstrap, settings, "card", {(ACCEPTED_LABELS, 1): 1})
    progress(bootstrap, settings, "feedback", 1, {TRANSACTIONS: 1})
    assert check_start(bootstrap, settings, [CARD]) == []
    # A marker alone is quickly forged.
    write(bootstrap, settings, TRANSACTIONS, partition=2)
    progress(bootstrap, settings, "card", 2, {TRANSACTIONS: 1})
    assert check_start(bootstrap, settings, [CARD]) == []
    write_result(bootstrap, settings, CARD, PROFILED, 1)
    progress(bootstrap, settings, "card", 1, {TRANSACTIONS: 1})
    assert f"no offsets for {settings.topic('transactions')} partition 1" in refusal(bootstrap, settings, CARD)
    # Results without an offset are what a worker leaves that dies between the two.
    assert check_start(bootstrap, changed(settings, delivery="at_least_once"), [CARD]) == []


def test_a_scored_partition_without_an_offset_is_refused(bootstrap: str, settings: Settings) -> None:
    for number in (0, 1, 2):
        write(bootstrap, settings, PROFILED, partition=number)
    commit(bootstrap, settings, "score", {(PROFILED, 0): 1})
    write(bootstrap, settings, DECISIONS, b'{"log": {"partition": 0, "offset": 0}}')
    assert check_start(bootstrap, settings, [SCORE]) == []
    # A decision alone is quickly forged.
    write(bootstrap, settings, DECISIONS, b'{"log": {"partition": 2, "offset": 0}}')
    assert check_start(bootstrap, settings, [SCORE]) == []
    write_result(bootstrap, settings, SCORE, DECISION_FEATURES, 1)
    write(bootstrap, settings, DECISIONS, b'{"log": {"partition": 1, "offset": 0}}')
    assert f"no offsets for {settings.topic('profiled')} partition 1" in refusal(bootstrap, settings, SCORE)


def merchant_at_home(settings: Settings, number: int) -> str:
    """A merchant of a partition."""
    return next(
        name for name in (f"m{at}" for at in count()) if partition_of(name, settings.merchant_partitions) == number
    )


def profiled(bootstrap: str, settings: Settings, number: int, *kernels: str, first: int = 0) -> None:
    """Transactions of one partition, one of each kernel, of the card agent's input of the same number."""
    message = golden("profiled-transaction", ProfiledTransaction)
    merchant = merchant_at_home(settings, number)
    for offset, kernel in enumerate(kernels, first):
        source = RecordPosition(topic="transactions", partition=number, offset=offset)
        value = block_of(msgspec.structs.replace(message, merchant_id=merchant, kernel=kernel, source=source))
        write(bootstrap, settings, PROFILED, value, partition=number)


def read_by_card_agent(bootstrap: str, settings: Settings, number: int, end: int) -> None:
    """Transactions of a merchant of the same partition, and the offset that the card agent's group has committed."""
    for _ in range(end):
        value = msgspec.json.encode({"merchant_id": merchant_at_home(settings, number)})
        write(bootstrap, settings, TRANSACTIONS, value, partition=number)
    commit(bootstrap, settings, "card", {(TRANSACTIONS, number): end})


def test_undecided_records_of_another_kernel_are_refused(bootstrap: str, settings: Settings) -> None:
    name = settings.topic(PROFILED.name)
    profiled(bootstrap, settings, 1, KERNEL_VERSION, "0-other", "0-other")
    write(bootstrap, settings, PROFILED, b'{"kernel":"0-other"}', partition=1)
    # Before the card agent has read their transactions, others have written them.
    assert check_start(bootstrap, settings, ALL) == []
    read_by_card_agent(bootstrap, settings, 1, 3)
    expected = (
        f"topic {name} partition 1 ends with undecided records of another kernel version (offset 1 is of 0-other, this "
        f"release has {KERNEL_VERSION})"
    )
    assert expected in refusal(bootstrap, settings, CARD, SCORE)
    # A score agent alone decides what is of its kernel, and adds nothing.
    (warning,) = check_start(bootstrap, settings, [SCORE])
    assert warning.startswith(expected)
    commit(bootstrap, settings, "score", {(PROFILED, 1): 1})
    assert expected in refusal(bootstrap, settings, SCORE)
    # With the source of a transaction of another merchant, anybody could have written it.
    elsewhere = settings.merchant_partitions - 1
    message = golden("profiled-transaction", ProfiledTransaction)
    source = RecordPosition(topic="transactions", partition=1, offset=2)
    forged = msgspec.structs.replace(
        message, merchant_id=merchant_at_home(settings, elsewhere), kernel="0-other", source=source
    )
    write(bootstrap, settings, PROFILED, block_of(forged), partition=elsewhere)
    assert f"partition {elsewhere} ends" not in refusal(bootstrap, settings, SCORE)
    (warning,) = check_start(bootstrap, changed(settings, accept_other_kernel=True), [SCORE])
    assert warning.startswith(expected)
    assert check_start(bootstrap, settings, [LABEL, FEEDBACK, LEARN]) == []


def test_workers_of_another_kernel_are_refused_though_everything_is_decided(bootstrap: str, settings: Settings) -> None:
    read_by_card_agent(bootstrap, settings, 1, 2)
    profiled(bootstrap, settings, 1, KERNEL_VERSION, "0-other")
    commit(bootstrap, settings, "score", {(PROFILED, 1): 2})
    # They have drained the log and left.
    assert check_start(bootstrap, settings, ALL) == []

    @contextmanager
    def member(client_id: str) -> Iterator[None]:
        """A member of the card agent's group."""
        overrides = {"client.id": client_id}
        with closing(Consumer(consumer_config(bootstrap, settings.topic("card"), overrides=overrides))) as consumer:
            consumer.subscribe([settings.topic(TRANSACTIONS.name)])
            eventually(lambda: consumer.poll(0.1) is None and consumer.assignment())
            yield

    with member("fraud-pipeline"):
        for role in (CARD, SCORE):
            reported = refusal(bootstrap, settings, role)
            assert "workers of another kernel version run" in reported
            assert f"(partition 1 offset 1) is of 0-other, this release has {KERNEL_VERSION}, and group" in reported
    # One of this release joined before.
    with member(MEMBER_ID):
        assert check_start(bootstrap, settings, ALL) == []
    # It has written by now; a partition of which nobody buys any more still ends with the other's.
    read_by_card_agent(bootstrap, settings, 2, 1)
    profiled(bootstrap, settings, 2, KERNEL_VERSION)
    with member("named-by-its-operator"):
        assert check_start(bootstrap, settings, [SCORE]) == []


def test_records_deleted_before_they_were_read_are_refused(bootstrap: str, settings: Settings) -> None:
    name = settings.topic("transactions")
    for _ in range(3):
        write(bootstrap, settings, TRANSACTIONS, partition=2)
    commit(bootstrap, settings, "card", {(TRANSACTIONS, 2): 1})
    assert check_start(bootstrap, settings, [CARD]) == []
    at = TopicPartition(name, 2, 2)
    client = admin_client(bootstrap)
    client.delete_records([at])[at].result(TIMEOUT_S)
    reported = refusal(bootstrap, settings, CARD)
    assert f"offset 1 of {name} partition 2, whose log begins at 2" in reported
    assert "FRAUD_PIPELINE_ACCEPT_LOST_RECORDS=true" in reported
    (warning,) = check_start(bootstrap, changed(settings, accept_lost_records=True), [CARD])
    assert warning in reported


def test_an_offset_behind_the_log_is_refused(bootstrap: str, settings: Settings) -> None:
    write(bootstrap, settings, ACCEPTED_LABELS, partition=0)
    commit(bootstrap, settings, "feedback", {(ACCEPTED_LABELS, 0): 2})
    reported = refusal(bootstrap, settings, FEEDBACK)
    assert "offset 2" in reported
    assert "whose log ends at 1" in reported
    # Where to go on nobody knows, so that no setting may say so.
    assert "FRAUD_PIPELINE_ACCEPT_LOST_RECORDS" not in reported
    assert "whose log ends at 1" in refusal(bootstrap, changed(settings, accept_lost_records=True), FEEDBACK)


@pytest.mark.parametrize("role", [CARD, SCORE, FEEDBACK])
def test_an_input_made_anew_is_refused_even_while_it_is_empty(bootstrap: str, settings: Settings, role: Role) -> None:
    source = {"card": TRANSACTIONS, "score": PROFILED, "feedback": DECISION_FEATURES}[role.name]
    for number in (0, 1):
        for _ in range(3):
            write(bootstrap, settings, source, partition=number)
    commit(bootstrap, settings, role.name, {(source, 0): 3, (source, 1): 3})
    if role == SCORE:
        for number in (0, 1):
            write(bootstrap, settings, DECISIONS, b'{"log": {"partition": %d, "offset": 2}}' % number)
    for number in (0, 1):
        second = {"card": PROFILED, "score": DECISION_FEATURES, "feedback": EXAMPLES}[role.name]
        write_result(bootstrap, settings, role, second, number, 2)
    if role == CARD:
        # Its other input is still there, with an offset.
        write(bootstrap, settings, ACCEPTED_LABELS, partition=0)
        commit(bootstrap, settings, "card", {(ACCEPTED_LABELS, 0): 1})
    assert check_start(bootstrap, settings, [role]) == []
    made_anew(bootstrap, settings, source)
    for written_since in (0, 1):
        for _ in range(written_since):
            write(bootstrap, settings, source, partition=0)
        for delivery in ("exactly_once", "at_least_once"):
            delivering = changed(settings, delivery=delivery)
            reported = refusal(bootstrap, delivering, role)
            assert f"no offsets for topic {settings.topic(source.name)}, which ends before" in reported
            assert "partition 0 up to offset 3, partition 1 up to offset 3" in reported
            assert "FRAUD_PIPELINE_ACCEPT_LOST_RECORDS=true" in reported
            assert len(reported.splitlines()) == 1
            (warning,) = check_start(bootstrap, changed(delivering, accept_lost_records=True), [role])
            assert warning in reported


def test_a_trace_among_the_oldest_results_is_found(
    bootstrap: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.kafka.checks.offset_checks.CHECKED_RECORDS", 3)
    for number in (0, 1):
        progress(bootstrap, settings, "card", number, {LABELS: 7})
        for end in range(1, 8):
            progress(bootstrap, settings, "card", number, {TRANSACTIONS: end})
    for number in (0, 1):
        reported = result_offsets(Member(bootstrap, settings, "card", CARD.reads), [0, 1, 2])
        labels, transactions = (settings.topic(topic.name) for topic in (LABELS, TRANSACTIONS))
        assert reported.furthest[labels, number].end == reported.furthest[transactions, number].end == 7
        assert reported.newest == {(transactions, 0): 7, (transactions, 1): 7}


def test_committed_inputs_without_a_recorded_order_are_reported(bootstrap: str, settings: Settings) -> None:
    for _ in range(4):
        write(bootstrap, settings, TRANSACTIONS, partition=0)
    commit(bootstrap, settings, "card", {(TRANSACTIONS, 0): 2})
    assert check_start(bootstrap, settings, [CARD]) == []
    made_anew(bootstrap, settings, PROGRESS)
    (warning,) = check_start(bootstrap, settings, [CARD])
    assert f"partition 0, and topic {settings.topic('progress')} tells nothing of it" in warning
    progress(bootstrap, settings, "card", 0, {TRANSACTIONS: 1})
    (warning,) = check_start(bootstrap, settings, [CARD])
    assert "stands at offset 2" in warning
    assert "up to offset 1 only" in warning
    progress(bootstrap, settings, "card", 0, {TRANSACTIONS: 2})
    assert check_start(bootstrap, settings, [CARD]) == []


@pytest.mark.parametrize(("topic", "roles"), [(TRANSACTIONS, [CARD]), (LABELS, [LABEL])])
def test_inputs_that_producers_stamp_are_refused_where_brokers_should(
    bootstrap: str, settings: Settings, topic: Topic, roles: list[Role]
) -> None:
    live = changed(settings, timestamps="broker")
    name = settings.topic(topic.name)
    for other in {TRANSACTIONS, LABELS} - {topic}:
        configure(bootstrap, settings.topic(other.name), message_timestamp_type="LogAppendTime")
    for role in roles:
        reported = refusal(bootstrap, live, role)
        assert f"topic {name} has message.timestamp.type=CreateTime" in reported
        assert "FRAUD_PIPELINE_ACCEPT_PRODUCER_TIMESTAMPS=true" in reported
        assert len(reported.splitlines()) == 1
        (warning,) = check_start(bootstrap, changed(live, accept_producer_timestamps=True), [role])
        assert warning in reported
    assert check_start(bootstrap, live, [SCORE]) == []
    assert check_start(bootstrap, settings, roles) == []
    configure(bootstrap, name, message_timestamp_type="LogAppendTime")
    assert check_start(bootstrap, live, roles) == []


def test_a_snapshot_belongs_to_the_topics_that_its_state_is_replayed_from(bootstrap: str, settings: Settings) -> None:
    context = WorkerContext(settings)
    context.connect()
    try:
        for spec, topics in (
            (CARD, (TRANSACTIONS, REROUTED, ACCEPTED_LABELS, PROGRESS)),
            (SCORE, (PROFILED,)),
            (FEEDBACK, (ACCEPTED_LABELS, DECISION_FEATURES, PROGRESS)),
        ):
            snapshots = context._environment(
                spec, Quarantines(bootstrap, settings, spec.name, spec.reads, not_counted)
            ).snapshots
            assert snapshots is not None
            found = topic_identities(admin_client(bootstrap), [settings.topic(topic.name) for topic in topics])
            assert snapshots._key.topic_ids == {
                topic.name: found.topic_ids[settings.topic(topic.name)] for topic in topics
            }
    finally:
        context.disconnect()


def test_a_start_that_an_open_transaction_holds_says_so_and_is_live(bootstrap: str, settings: Settings) -> None:
    """A startup probe found a closed port, and ended the worker again and again."""
    held = {"transaction.timeout.ms": 600_000}  # no broker ends it while the test looks
    writer = Producer(producer_config(bootstrap, transactional_id=settings.topic("holding"), overrides=held))
    writer.init_transactions(TIMEOUT_S)
    writer.begin_transaction()
    writer.produce(settings.topic(CONTROL.name), b"{}")
    writer.flush(TIMEOUT_S)
    port = free_port()
    context = WorkerContext(changed(settings, metrics_port=port))
    start = threading.Thread(target=context.connect, daemon=True)
    start.start()
    try:
        eventually(lambda: settings.topic(CONTROL.name).encode() in asked(port, "/readyz")[1])
        status, body = asked(port, "/readyz")
        assert status == 503
        assert b"hanging transactions" in body
        assert asked(port, "/livez")[0] == 200
        writer.abort_transaction(TIMEOUT_S)
        eventually(lambda: b"joins its group" in asked(port, "/readyz")[1])
        start.join(TIMEOUT_S)
        assert not start.is_alive()
    finally:
        context.disconnect()


def asked(port: int, path: str) -> tuple[int, bytes]:
    """Return a worker's answer: status and body, 0 and nothing where it does not serve yet."""
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except ConnectionRefusedError:
        return 0, b""
    finally:
        connection.close()


def test_a_topic_made_anew_has_another_identity(bootstrap: str, settings: Settings) -> None:
    client = admin_client(bootstrap)
    names = [settings.topic("labels"), settings.topic("transactions")]
    before = topic_identities(client, names)
    assert topic_identities(client, names) == before
    assert before.cluster_id
    client.delete_topics(names[:1])[names[0]].result(TIMEOUT_S)
    eventually(lambda: names[0] not in client.list_topics(timeout=TIMEOUT_S).topics)
    with pytest.raises(TopicError, match="there is no topic"):
        topic_identities(client, names)
    ensure_topics(bootstrap, settings)
    after = topic_identities(client, names)
    assert after.topic_ids[names[0]] != before.topic_ids[names[0]]
    assert after.topic_ids[names[1]] == before.topic_ids[names[1]]
    assert after.cluster_id == before.cluster_id


def test_groups_use_the_newer_protocol_where_it_is_offered(bootstrap: str, settings: Settings) -> None:
    client = admin_client(bootstrap)
    assert group_protocol(client, settings) == "consumer"
    assert group_protocol(client, changed(settings, group_protocol="classic")) == "classic"
    classic = consumer_config(bootstrap, "g", protocol="classic")
    assert (classic["group.protocol"], classic["partition.assignment.strategy"]) == ("classic", "range")


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    """A broker that a test may stop."""
    with embedded_broker(tmp_path / "kafka") as running:
        yield running


def test_a_broker_that_stops_makes_the_worker_unready_and_its_return_ready(own_broker: EmbeddedBroker) -> None:
    settings = Settings(kafka_bootstrap_servers=own_broker.bootstrap_servers)
    ensure_topics(own_broker.bootstrap_servers, settings)
    health = Health(("score",), broker_timeout_s=1.0)
    health.state("score", "running")
    with BrokerWatch(own_broker.bootstrap_servers, settings, health, interval_s=0.1, request_timeout_s=0.5):
        eventually(lambda: health.ready().ok)
        os.kill(own_broker.pid, signal.SIGSTOP)
        try:
            eventually(lambda: not health.ready().ok)
            eventually(lambda: health.ready().checks[0].detail.startswith("no answer for"))
            assert health.unreachable_s() > 1.0
            assert health.live().ok
        finally:
            os.kill(own_broker.pid, signal.SIGCONT)
        eventually(lambda: health.ready().ok)
        own_broker.kill()
        eventually(lambda: not health.ready().ok)
        own_broker.start()
        eventually(lambda: health.ready().ok)
        # A broker that has just come back may leave a question after the first one unanswered.
        eventually(lambda: health.unreachable_s() == 0)
