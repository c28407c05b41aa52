"""The commands for analysts, against a real broker: `label` and `alerts`."""

import getpass
import json
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from pipeline.broker import embedded_broker
from pipeline.commands.dead_letters import DeadLetter
from pipeline.demo.processes import settings_environment
from pipeline.engine.records.results import Result as Dead
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.settings import Settings
from schemas.messages import Alert, Decision, Label, RecordPosition
from schemas.records import Headers, Output, Record
from schemas.topics import ALERTS, DEAD_LETTERS, DECISIONS, LABELS, TRANSACTIONS, Topic
from tests.helpers.logs import golden
from tests.helpers.topics import command, shared_producer
from tests.helpers.waiting import TIMEOUT_S

pytestmark = pytest.mark.broker


@pytest.fixture
def cluster(kafka_settings: Settings) -> Settings:
    assert kafka_settings.kafka_bootstrap_servers is not None
    ensure_topics(kafka_settings.kafka_bootstrap_servers, kafka_settings)
    return kafka_settings


def write(settings: Settings, topic: Topic, values: list[bytes], timestamp: datetime | None = None) -> None:
    assert settings.kafka_bootstrap_servers is not None
    producer = shared_producer(settings.kafka_bootstrap_servers)
    for value in values:
        timestamp_ms = int((timestamp or datetime.now(UTC)).timestamp() * 1_000)
        producer.produce(settings.topic(topic.name), value, b"key", timestamp=timestamp_ms)
    assert producer.flush(TIMEOUT_S) == 0


def labels(settings: Settings) -> list[tuple[bytes | None, Label]]:
    assert settings.kafka_bootstrap_servers is not None
    records = read_topic(settings.kafka_bootstrap_servers, settings.topic(LABELS.name), settings=settings)
    return [(record.key, msgspec.json.decode(record.value or b"", type=Label)) for record in records]


def head(transaction_id: str, card_id: str) -> bytes:
    return json.dumps({"transaction_id": transaction_id, "card_id": card_id, "more": ["x"] * 10}).encode()


def alert(number: int) -> Alert:
    (reason, _) = golden("alert", Alert).reasons
    return golden(
        "alert",
        Alert,
        alert_id=f"a{number}",
        case_id="case",
        severity=90.0,
        transaction_id=f"t{number}",
        card_id="C1",
        merchant_id="M1",
        event_time=datetime(2026, 3, 1, 12, number, tzinfo=UTC),
        amount=Decimal("100.00"),
        threshold=0.5,
        source=RecordPosition(topic="transactions", partition=0, offset=number),
        reasons=[structs.replace(reason, sentence=f"Sentence number {number}.")],
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
    *lines, sent = result.output.splitlines()
    assert f"transaction t-1 of card C9 (found in {topic.name}) is fraud, says analyst dana" in " ".join(lines)
    assert max(map(len, lines)) <= 80
    assert msgspec.json.decode(sent, type=Label) == label


@pytest.mark.parametrize("identifier", ["é/ü", 'quote"back\\slash', "\u4e2d\u6587", "<&>"])
def test_identifiers_are_found_however_their_producer_escapes_them(cluster: Settings, identifier: str) -> None:
    known = {"transaction_id": identifier, "card_id": "C1", "event_time": "2018-06-01T12:00:00+02:00"}
    write(cluster, TRANSACTIONS, [json.dumps(known).replace("/", "\\/").encode()])
    sent = command(cluster, "label", identifier, "legitimate", code=0)
    assert "It comes too late to count: the transaction is of 2018-06-01 10:00:00 UTC" in sent.output
    assert [label.transaction_id for _, label in labels(cluster)] == [identifier]


def test_an_unknown_transaction_is_an_error_and_sends_nothing(cluster: Settings) -> None:
    write(cluster, DECISIONS, [head("t-10", "C1"), head("xt-1", "C1")])
    result = command(cluster, "label", "t-1", "fraud", code=1)
    assert "No transaction t-1 in the topics alerts, decisions, transactions" in result.output
    assert labels(cluster) == []


def test_a_transaction_of_several_cards_is_an_error_until_the_card_is_named(cluster: Settings) -> None:
    write(cluster, DECISIONS, [head("t-1", "C1"), head("t-1", "C2"), head("t-1", "C1")])
    result = command(cluster, "label", "t-1", "fraud", code=1)
    assert "Several cards have a transaction t-1: C1, C2" in result.output
    assert labels(cluster) == []
    command(cluster, "label", "t-1", "fraud", "--card", "C2", code=0)
    assert [(key, label.card_id) for key, label in labels(cluster)] == [(b"C2", "C2")]


def test_a_label_bears_the_simulated_clock_of_its_topics(cluster: Settings) -> None:
    simulated = datetime(2018, 6, 1, 12, tzinfo=UTC)
    write(cluster, TRANSACTIONS, [head("t-1", "C1")], simulated - timedelta(hours=1))
    write(cluster, TRANSACTIONS, [head("t-2", "C1")], simulated)
    result = command(cluster, "label", "t-1", "fraud")
    assert "simulated clock" in result.output
    command(cluster, "label", "t-2", "fraud", "--at", "2018-06-03T00:00:00+02:00", code=0)
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
    command(cluster, "label", *arguments, code=2)
    assert labels(cluster) == []


@pytest.mark.parametrize("arguments", [("label", "t-1", "fraud"), ("alerts", "--once")])
def test_missing_topics_and_clusters_are_explained(kafka_settings: Settings, arguments: tuple[str, ...]) -> None:
    result = command(kafka_settings, *arguments, code=1)
    assert "fraud-pipeline topics" in result.output
    alone = command(kafka_settings.model_copy(update={"kafka_bootstrap_servers": None}), *arguments, code=1)
    assert "No embedded broker runs" in alone.output


def test_alerts_once_shows_what_is_there_in_plain_text(cluster: Settings) -> None:
    write(cluster, ALERTS, [msgspec.json.encode(alert(number)) for number in range(3)] + [b"{}"])
    result = command(cluster, "alerts", "--once", code=0)
    assert [f"Sentence number {number}." in result.output for number in range(3)] == [True] * 3
    assert "not an alert of this version" in result.output
    assert "\x1b" not in result.output
    assert max(map(len, result.output.splitlines())) <= 80
    limited = command(cluster, "alerts", "--once", "--limit", "2")
    assert limited.output.count("Sentence number") == 2


def test_alerts_are_chosen_by_card_merchant_time_and_severity(cluster: Settings) -> None:
    others = [("card_id", "C2"), ("merchant_id", "M2"), ("severity", 5.0)]
    alerts = [
        alert(0),
        alert(1),
        *(structs.replace(alert(2 + at), **{name: value}) for at, (name, value) in enumerate(others)),
    ]
    write(cluster, ALERTS, [msgspec.json.encode(each) for each in alerts] + [b"{}"])

    def shown(*arguments: str) -> list[str]:
        return re.findall(r"Sentence number (\d)", command(cluster, "alerts", "--once", *arguments).output)

    assert shown("--card", "C2") == ["2"]
    assert shown("--merchant", "M2") == ["3"]
    assert shown("--since", "2026-03-01T12:03:00Z", "--limit", "1") == ["3"]
    assert shown("--min-severity", "10") == ["0", "1", "2", "3"]
    assert shown("--card", "C1", "--merchant", "M1", "--min-severity", "10") == ["0", "1"]
    nothing = command(cluster, "alerts", "--once", "--card", "NOPE")
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert nothing.stderr == f"None of the 6 alerts on {cluster.topic(ALERTS.name)} fits.\n"


def decision(number: int, score: float) -> Decision:
    raised = alert(number)
    same = {name: getattr(raised, name) for name in Decision.__struct_fields__ if hasattr(raised, name)}
    same |= {"score": score, "action": "alert" if score >= raised.threshold else "allow"}
    return Decision(**same, logit=0.0, ingested_at=raised.raised_at, decided_at=raised.raised_at)


def test_show_says_why_and_what_is_known(cluster: Settings) -> None:
    write(cluster, DECISIONS, [msgspec.json.encode(decision(2, 0.9)), msgspec.json.encode(decision(1, 0.1)), b"C1"])
    write(cluster, ALERTS, [msgspec.json.encode(alert(2))])
    command(cluster, "label", "t1", "legitimate", "--analyst", "dana", "--note", "called", code=0)
    shown = command(cluster, "show", "t1").output.splitlines()
    assert shown[0] == "2026-03-01 12:01:00 UTC  100.00 EUR  score 0.100  allow"
    assert shown[1] == "  card C1  merchant M1  transaction t1"
    assert "The score is below the threshold of 0.500, and neither a rule nor an audit" in shown[2]
    assert re.fullmatch(r"  Label: legitimate, says analyst dana, .* UTC: called", " ".join(shown[4:6]).rstrip())
    of_card = command(cluster, "show", "C1").output
    assert of_card.index("transaction t1") < of_card.index("transaction t2") < of_card.index("Sentence number 2.")
    assert "The score is not below the threshold of 0.500." in of_card
    assert "No label." in of_card
    unknown = command(cluster, "show", "t9", code=1)
    assert "No decision about a transaction or card t9." in unknown.output
    assert "still waits for its decision, read on /readyz" in unknown.output


def test_a_label_says_who_said_otherwise(cluster: Settings) -> None:
    write(cluster, TRANSACTIONS, [head("t-1", "C9")])
    first = command(cluster, "label", "t-1", "legitimate", "--analyst", "dana", "--note", "customer called")
    assert "said otherwise" not in first.output
    assert "said otherwise" not in command(cluster, "label", "t-1", "legitimate", "--analyst", "kim").output
    assert "said otherwise" not in command(cluster, "label", "t-1", "fraud", "--card", "C8").output
    second = " ".join(command(cluster, "label", "t-1", "fraud").output.split())
    assert "Somebody said otherwise: legitimate, says analyst kim" in second
    assert "yours takes its place" in second
    lower = " ".join(command(cluster, "label", "t-1", "legitimate", "--source", "chargeback").output.split())
    assert f"Somebody said otherwise: fraud, says analyst {getpass.getuser()}" in lower
    assert "it still holds" in lower
    named = {(label.card_id, label.label, label.source): label.analyst for _, label in labels(cluster)}
    assert named["C9", "fraud", "analyst"] == getpass.getuser()
    assert named["C9", "legitimate", "chargeback"] is None


def test_alerts_are_shown_in_order_and_counted_within_their_case(cluster: Settings) -> None:
    write(cluster, ALERTS, [msgspec.json.encode(alert(number)) for number in (5, 3, 4)])
    held = command(cluster, "alerts", "--once").output
    assert re.findall(r"Sentence number (\d)", held) == ["3", "4", "5"]
    assert re.findall(r"case case, alert (\d)", held) == ["2", "3"]
    assert "out of order" not in held
    followed = command(cluster, "alerts", "--from-beginning", "--limit", "3").stdout
    assert re.findall(r"Sentence number (\d)", followed) == ["5", "3", "4"]
    assert followed.count("out of order") == 2


def test_following_ends_in_one_line_with_its_broker(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    with embedded_broker(tmp_path / "kafka") as broker:
        ensure_topics(broker.bootstrap_servers, settings)
        of_broker = settings.model_copy(update={"kafka_bootstrap_servers": broker.bootstrap_servers})
        write(of_broker, ALERTS, [msgspec.json.encode(alert(1))])
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "alerts", "--from-beginning"],
            env={**os.environ, "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert process.stdout is not None
        assert "Following" in process.stderr.readline()
        assert process.stdout.readline()
    try:
        _, reported = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 1
    (line,) = reported.splitlines()
    assert f"no broker answers at {broker.bootstrap_servers} any more" in line


def refused(settings: Settings, value: bytes, code: str, headers: Headers = ()) -> Output:
    result = Dead()
    record = Record(settings.topic(TRANSACTIONS.name), 1, 7, 1_700_000_000_000, b"C1", value, headers)
    result.dead_letter(record, "card", code, f"This is wrong: {code}.")
    (output,) = result.outputs
    return output


def test_dead_letters_are_listed_explained_and_resent(cluster: Settings) -> None:
    assert cluster.kafka_bootstrap_servers is not None
    values = [b'{"n":1,"to":"repair"}', b"not json", b'{"n":2}']
    codes = ["currency_unknown", "not_json", "currency_unknown"]
    producer = shared_producer(cluster.kafka_bootstrap_servers)
    for value, code in zip(values, codes, strict=True):
        letter = refused(cluster, value, code, (("trace", b"x"), ("dead-letter-topic", b"a producer's own")))
        producer.produce(cluster.topic(DEAD_LETTERS.name), letter.value, letter.key, headers=list(letter.headers))
    assert producer.flush(TIMEOUT_S) == 0
    listed = command(cluster, "dead-letters", "list").output
    assert "2  currency_unknown of transactions: Add the currency" in listed
    assert "repair" not in listed.replace("repair it at its producer, or in its mapping", "")
    found = [json.loads(line) for line in command(cluster, "dead-letters", "list", "--json").output.splitlines()]
    (odd,) = [row["position"] for row in found if row["error"] == "not_json"]
    explained = command(cluster, "dead-letters", "explain", odd, "--value").output
    assert "This is wrong: not_json." in explained
    assert "value:      not json" in explained
    command(cluster, "dead-letters", "resend", code=2)
    asked = command(cluster, "dead-letters", "resend", "--code", "currency_unknown", typed="n\n", code=1)
    assert "Send 2 to transactions?" in asked.output
    command(cluster, "dead-letters", "resend", "--code", "currency_unknown", "--yes", code=0)
    topic = cluster.topic(TRANSACTIONS.name)
    records = list(read_topic(cluster.kafka_bootstrap_servers, topic, settings=cluster))
    assert sorted(record.value or b"" for record in records) == sorted([values[0], values[2]])
    for record in records:
        assert (record.key, record.headers[:2]) == (
            b"C1",
            (("trace", b"x"), ("dead-letter-topic", b"a producer's own")),
        )
        assert record.headers[2:] == (("fraud-pipeline-resent", b"1"),)
        again = Dead()
        again.dead_letter(record, "card", "currency_unknown", "Still wrong.")
        (output,) = again.outputs
        second = DeadLetter.from_record(msgspec.structs.replace(record, headers=output.headers), cluster.topic_prefix)
        assert (second.resent, second.topic, second.obstacle({TRANSACTIONS.name})) == (1, "transactions", "")
        assert "resent 1 time before" in second.line()


def test_alerts_as_json_are_the_records_one_a_line(cluster: Settings) -> None:
    value = msgspec.json.format(msgspec.json.encode(alert(1)), indent=2)
    write(cluster, ALERTS, [value])
    (line,) = command(cluster, "alerts", "--once", "--json").output.splitlines()
    assert json.loads(line) == json.loads(value)


def test_following_shows_new_alerts_until_interrupted(cluster: Settings) -> None:
    write(cluster, ALERTS, [msgspec.json.encode(alert(1))])
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "alerts"],
        env={**os.environ, **settings_environment(cluster)},
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
        assert process.wait(TIMEOUT_S) == 130
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()
