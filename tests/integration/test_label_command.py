"""The commands for analysts, against a real broker: `label` and `alerts`."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec
import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.kafka.admin import ensure_topics
from pipeline.kafka.clients import read_topic
from pipeline.settings import Settings
from schemas.messages import Alert, Label, LogPosition, ModelScores, Reason, RecordPosition, Versions
from schemas.topics import ALERTS, DECISIONS, LABELS, TRANSACTIONS, Topic
from tests.helpers.topics import PATIENCE_S, shared_producer

pytestmark = pytest.mark.broker


def environment(settings: Settings) -> dict[str, str]:
    assert settings.kafka_bootstrap_servers is not None
    return {
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "FRAUD_PIPELINE_TOPIC_PREFIX": settings.topic_prefix,
        "FRAUD_PIPELINE_DATA_DIR": str(settings.data_dir),
    }


@pytest.fixture
def cluster(kafka_settings: Settings) -> Settings:
    assert kafka_settings.kafka_bootstrap_servers is not None
    ensure_topics(kafka_settings.kafka_bootstrap_servers, kafka_settings)
    return kafka_settings


def command(settings: Settings, *arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environment(settings))


def write(settings: Settings, topic: Topic, values: list[bytes], timestamp: datetime | None = None) -> None:
    assert settings.kafka_bootstrap_servers is not None
    producer = shared_producer(settings.kafka_bootstrap_servers)
    for value in values:
        timestamp_ms = int((timestamp or datetime.now(UTC)).timestamp() * 1_000)
        producer.produce(settings.topic(topic.name), value, b"key", timestamp=timestamp_ms)
    assert producer.flush(PATIENCE_S) == 0


def labels(settings: Settings) -> list[tuple[bytes | None, Label]]:
    assert settings.kafka_bootstrap_servers is not None
    records = read_topic(settings.kafka_bootstrap_servers, settings.topic(LABELS.name), settings=settings)
    return [(record.key, msgspec.json.decode(record.value or b"", type=Label)) for record in records]


def head(transaction_id: str, card_id: str) -> bytes:
    return json.dumps({"transaction_id": transaction_id, "card_id": card_id, "more": ["x"] * 10}).encode()


def alert(number: int) -> Alert:
    return Alert(
        alert_id=f"a{number}",
        case_id="case",
        case_sequence=1,
        severity=90.0,
        raised_at=datetime(2026, 3, 1, tzinfo=UTC),
        transaction_id=f"t{number}",
        card_id="C1",
        merchant_id="M1",
        event_time=datetime(2026, 3, 1, 12, number, tzinfo=UTC),
        amount=Decimal("100.00"),
        currency="EUR",
        amount_base=100.0,
        base_currency="EUR",
        score=0.9,
        model_scores=ModelScores(lightgbm=0.9, river=0.9),
        threshold=0.5,
        selection="score",
        reasons=[
            Reason(
                code="amount", feature="amount", value=100.0, contribution=2.0, sentence=f"Sentence number {number}."
            )
        ],
        versions=Versions(lightgbm="l", river="r", policy="p", kernel="k", rates="x"),
        source=RecordPosition(topic="transactions", partition=0, offset=number),
        log=LogPosition(partition=0, offset=number),
    )


@pytest.mark.parametrize("topic", [ALERTS, DECISIONS, TRANSACTIONS])
def test_the_card_is_found_in_any_of_the_topics(cluster: Settings, topic: Topic) -> None:
    write(cluster, topic, [head(f"other-{i}", "C0") for i in range(50)] + [b"not json t-1", head("t-1", "C9")])
    before = datetime.now(UTC)
    result = command(
        cluster, "label", "t-1", "fraud", "--analyst", "dana", "--note", "called", "--fraud-type", "stolen"
    )
    assert result.exit_code == 0, result.output
    ((key, label),) = labels(cluster)
    assert key == b"C9"
    assert (label.transaction_id, label.card_id, label.label, label.source) == ("t-1", "C9", "fraud", "analyst")
    assert (label.analyst, label.note, label.fraud_type) == ("dana", "called", "stolen")
    assert before <= label.labelled_at <= datetime.now(UTC)
    first, *_, sent = result.output.splitlines()
    assert f"transaction t-1 of card C9 (found in {topic.name}) is fraud, says analyst dana" in first
    assert msgspec.json.decode(sent, type=Label) == label


@pytest.mark.parametrize("identifier", ["é/ü", 'quote"back\\slash', "\u4e2d\u6587", "<&>"])
def test_identifiers_are_found_however_their_producer_escapes_them(cluster: Settings, identifier: str) -> None:
    write(
        cluster,
        TRANSACTIONS,
        [json.dumps({"transaction_id": identifier, "card_id": "C1"}).replace("/", "\\/").encode()],
    )
    assert command(cluster, "label", identifier, "legitimate").exit_code == 0
    assert [label.transaction_id for _, label in labels(cluster)] == [identifier]


def test_an_unknown_transaction_is_an_error_and_sends_nothing(cluster: Settings) -> None:
    write(cluster, DECISIONS, [head("t-10", "C1"), head("xt-1", "C1")])
    result = command(cluster, "label", "t-1", "fraud")
    assert result.exit_code == 1
    assert "No transaction t-1 in the topics alerts, decisions, transactions" in result.output
    assert labels(cluster) == []


def test_a_transaction_of_several_cards_is_an_error_until_the_card_is_named(cluster: Settings) -> None:
    write(cluster, DECISIONS, [head("t-1", "C1"), head("t-1", "C2"), head("t-1", "C1")])
    result = command(cluster, "label", "t-1", "fraud")
    assert result.exit_code == 1
    assert "Several cards have a transaction t-1: C1, C2" in result.output
    assert labels(cluster) == []
    assert command(cluster, "label", "t-1", "fraud", "--card", "C2").exit_code == 0
    assert [(key, label.card_id) for key, label in labels(cluster)] == [(b"C2", "C2")]


def test_a_label_bears_the_simulated_clock_of_its_topics(cluster: Settings) -> None:
    simulated = datetime(2018, 6, 1, 12, tzinfo=UTC)
    write(cluster, TRANSACTIONS, [head("t-1", "C1")], simulated - timedelta(hours=1))
    write(cluster, TRANSACTIONS, [head("t-2", "C1")], simulated)
    result = command(cluster, "label", "t-1", "fraud")
    assert "simulated clock" in result.output
    assert command(cluster, "label", "t-2", "fraud", "--at", "2018-06-03T00:00:00+02:00").exit_code == 0
    assert [label.labelled_at for _, label in labels(cluster)] == [simulated, datetime(2018, 6, 2, 22, tzinfo=UTC)]


@pytest.mark.parametrize(
    "arguments",
    [
        ("t-1", "perhaps"),
        ("t-1", "fraud", "--source", "nobody"),
        ("t-1", "fraud", "--at", "yesterday"),
        ("t-1", "fraud", "--at", "2018-06-03T00:00:00"),
        ("t" * 300, "fraud", "--card", "C1"),
    ],
)
def test_what_the_pipeline_would_refuse_is_not_sent(cluster: Settings, arguments: tuple[str, ...]) -> None:
    assert command(cluster, "label", *arguments).exit_code == 2
    assert labels(cluster) == []


@pytest.mark.parametrize("arguments", [("label", "t-1", "fraud"), ("alerts", "--once")])
def test_missing_topics_and_clusters_are_explained(kafka_settings: Settings, arguments: tuple[str, ...]) -> None:
    result = command(kafka_settings, *arguments)
    assert result.exit_code == 1
    assert "fraud-pipeline topics" in result.output
    alone = CliRunner().invoke(
        main,
        arguments,
        env={**environment(kafka_settings), "KAFKA_BOOTSTRAP_SERVERS": ""} | {"KAFKA_BOOTSTRAP_SERVERS": None},
    )
    assert alone.exit_code == 1
    assert "No embedded broker runs" in alone.output


def test_alerts_once_shows_what_is_there_in_plain_text(cluster: Settings) -> None:
    write(cluster, ALERTS, [msgspec.json.encode(alert(number)) for number in range(3)] + [b"{}"])
    result = command(cluster, "alerts", "--once")
    assert result.exit_code == 0
    assert [f"Sentence number {number}." in result.output for number in range(3)] == [True] * 3
    assert "not an alert of this version" in result.output
    assert "\x1b" not in result.output
    assert max(map(len, result.output.splitlines())) <= 80
    limited = command(cluster, "alerts", "--once", "--limit", "2")
    assert limited.output.count("Sentence number") == 2


def test_alerts_as_json_are_the_records_one_a_line(cluster: Settings) -> None:
    value = msgspec.json.format(msgspec.json.encode(alert(1)), indent=2)
    write(cluster, ALERTS, [value])
    (line,) = command(cluster, "alerts", "--once", "--json").output.splitlines()
    assert json.loads(line) == json.loads(value)


def test_following_shows_new_alerts_until_interrupted(cluster: Settings) -> None:
    write(cluster, ALERTS, [msgspec.json.encode(alert(1))])
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "alerts"],
        env={**os.environ, **environment(cluster)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "Following" in process.stderr.readline()
        # The reader starts at the end as it is when it first asks: send until one arrives.
        lines: list[str] = []
        while not any("Sentence number" in line for line in lines):
            write(cluster, ALERTS, [msgspec.json.encode(alert(2))])
            os.set_blocking(process.stdout.fileno(), False)
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                lines += process.stdout.readlines()
            else:
                pytest.fail(process.stderr.read())
        assert "Sentence number 2." in "".join(lines)
        assert "Sentence number 1." not in "".join(lines)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()
