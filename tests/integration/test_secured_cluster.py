"""Commands and agents on a cluster with TLS, client certificates, SASL and access rules."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pytest
import trustme
from click.testing import CliRunner
from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
)

from agents.permissions import DECIDES, DEMO, GROUP, REPROCESSED, TOPIC, TRANSACTIONAL_ID, Grant, roles
from agents.topology import AGENTS
from pipeline.cli import main
from pipeline.demo.processes import settings_environment
from pipeline.kafka.cluster.acl import AclRule, create_rules
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.kafka.cluster.clients import READER_GROUP, admin_client
from pipeline.kafka.cluster.retries import retried
from pipeline.kafka.readers.follower import TopicFollower
from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.kafka.session.gateway import STAGE
from pipeline.kafka.writers.producer import RecordProducer
from pipeline.learning.label_sources import NOT_ALLOWED
from pipeline.settings import Settings
from pipeline.simulation.simulator import Scenario, make_profiles, simulate_days
from schemas.topics import ACCEPTED_LABELS, CONTROL, DEAD_LETTERS, MODELS, TRANSACTIONS, Topic
from tests.helpers.batches import produce_batch, record_batch
from tests.helpers.champion import LARGE_AMOUNT
from tests.helpers.logs import label, transaction
from tests.helpers.runs import RunStarter
from tests.helpers.secured import PASSWORDS, SUPER, Secured, secured_broker
from tests.helpers.topics import Cluster, Starter
from tests.helpers.waiting import TIMEOUT_S, eventually
from tests.helpers.worker import ROOT

pytestmark = pytest.mark.broker

TOPICS_OF_LABELS: Final = {"labels": ("analyst", "audit"), "chargebacks": ("chargeback",)}
OTHERS: Final = "other."
"""Prefix of topics that nobody of these may touch."""
DENIED: Final = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)
WAYS: Final[dict[str, Callable[[Secured, str], dict[str, str]]]] = {
    "TLS": lambda broker, _: broker.tls(),
    "MUTUAL": lambda broker, name: broker.mutual(name),
    "LOGIN": lambda broker, name: broker.login(name),
}


class Client(NamedTuple):
    """A person or program with a principal, that connects through one of the listeners."""

    settings: Settings
    secret: Path | None
    """File with the password, which the settings lack."""

    @property
    def whole(self) -> Settings:
        """Settings with the password."""
        name = self.settings.kafka_config.get("sasl.username")
        more = {} if name is None else {"sasl.password": PASSWORDS.format(name)}
        return self.settings.model_copy(update={"kafka_config": {**self.settings.kafka_config, **more}})

    @property
    def environment(self) -> dict[str, str]:
        """Environment of its processes."""
        secrets = {} if self.secret is None else {"FRAUD_PIPELINE_KAFKA_CONFIG_FILE": str(self.secret)}
        return {**settings_environment(self.settings), **secrets}

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a command, and return what it printed."""
        result = CliRunner().invoke(main, arguments, env=self.environment)
        assert result.exit_code == code, f"{arguments}: {result.output} {result.exception!r}"
        return result.output


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured_broker(tmp_path_factory.mktemp("secured")) as broker:
        broker.add_users(SUPER)
        yield broker


def client_of(secured: Secured, listener: str, name: str, prefix: str, data_dir: Path) -> Client:
    settings = Settings(
        kafka_bootstrap_servers=secured.addresses[listener],
        kafka_config=WAYS[listener](secured, name),
        topic_prefix=prefix,
        data_dir=data_dir,
        metrics_port=0,
        shutdown_timeout_s=60,
        card_partitions=1,
        merchant_partitions=1,
        label_topics=TOPICS_OF_LABELS,
    )
    return Client(settings, secured.secret_file(name) if listener == "LOGIN" else None)


def write(client: Client, topic: str, *values: bytes) -> None:
    """Write as any producer does, and let nothing be refused."""
    errors = produced(client, {topic: values})
    assert errors == {topic: None}


def produced(client: Client, values: dict[str, tuple[bytes, ...]]) -> dict[str, int | None]:
    """Write to topics (without prefix); return the code of the error of each, None for those that took everything."""
    name, errors = client.settings.topic, dict.fromkeys(values)

    def reported(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            errors[message.topic().removeprefix(client.settings.topic_prefix)] = error.code()

    producer = Producer(
        {
            "bootstrap.servers": client.settings.kafka_bootstrap_servers,
            **client.whole.kafka_config,
            "message.timeout.ms": round(TIMEOUT_S * 1_000),
            "error_cb": lambda _error: None,
        }
    )
    for topic, of_topic in values.items():
        for value in of_topic:
            producer.produce(name(topic), value, b"c1", partition=0, on_delivery=reported)
    assert producer.flush(TIMEOUT_S) == 0
    return errors


def now() -> datetime:
    return datetime.now(UTC)


def run_operators_commands(client: Client, directory: Path) -> None:
    """Run the commands for people who look after a pipeline that has decided something."""
    history = simulate_days(make_profiles(np.random.default_rng(4), 70, 140, Scenario()), 4, 0, 24)
    history[history["amount_minor"] > 0].to_parquet(file := directory / "history.parquet", index=False)
    quick = ("--trees", "5", "--force", "--label-delay-days", "1", "--validation-days", "4")
    assert "no challenger could be made" in client.run("retrain", "--once", code=1)
    for arguments in (
        ["topics", "--check"],
        ["rates"],
        ["models", "list"],
        ["inspect", "profiled", "0", "0"],
        ["audit", "--json"],
        ["drift"],
        ["pace", "--once", "--budget-per-day", "1"],
        ["dead-letters", "list"],
        ["export", str(directory / "files"), TRANSACTIONS.name, *TOPICS_OF_LABELS],
        ["backtest", "--order", "recorded", "--compare", "live"],
        ["backtest", "--decisions", f"topic:{REPROCESSED}one"],
        ["train", str(file), *quick, "--publish"],
        ["models", "freeze", "--reason", "a look"],
    ):
        assert client.run(*arguments)


def test_the_commands_for_analysts_work_by_tls(secured: Secured, tmp_path: Path) -> None:
    client = client_of(secured, "TLS", SUPER, "tls-", tmp_path / "data")
    assert "created" in client.run("topics")
    write(client, TRANSACTIONS.name, transaction(1, now()))
    client.run("alerts", "--once")
    client.run("rates")
    assert "is fraud, says analyst" in client.run("label", "t1", "fraud")


def test_all_agents_work_by_client_certificates(secured: Secured, tmp_path: Path, start: Starter) -> None:
    client = client_of(secured, "MUTUAL", SUPER, "mutual-", tmp_path / "data")
    assert "created" in client.run("topics")
    cluster = Cluster(client.whole)
    cluster.publish()
    write(client, TRANSACTIONS.name, transaction(1, now(), amount=LARGE_AMOUNT), transaction(2, now()))
    worker = start(client.whole)
    worker.until(lambda: len(cluster.decisions()) == 2)
    assert "t1" in client.run("alerts", "--once", "--json")
    assert "is fraud, says analyst dana" in client.run("label", "t1", "fraud", "--analyst", "dana")
    worker.until(lambda: len(cluster.examples()) == 1)
    assert worker.stop() == 0


def test_a_client_without_its_security_settings_learns_what_to_check(
    secured: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(secured, "TLS", SUPER, "", tmp_path)
    plain = client._replace(settings=client.settings.model_copy(update={"kafka_config": {}}))
    with monkeypatch.context() as shortened:
        # A broker with TLS never answers a client without.
        shortened.setattr("pipeline.broker.running.ANSWER_TIMEOUT_S", 1.0)
        assert "FRAUD_PIPELINE_KAFKA_CONFIG for its security settings" in plain.run("alerts", "--once", code=1)
    stranger = client_of(secured, "LOGIN", "stranger", "", tmp_path)
    run = stranger.run("alerts", "--once", code=1)
    assert "Authentication failed" in run
    assert PASSWORDS.format("stranger") not in run
    distrustful = {"security.protocol": "ssl", "ssl.ca.pem": trustme.CA().cert_pem.bytes().decode()}
    other = client._replace(settings=client.settings.model_copy(update={"kafka_config": distrustful}))
    assert "certificate" in other.run("alerts", "--once", code=1)


def test_who_lacks_a_right_reads_so(secured: Secured, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secured.add_users("nobody", "reader")
    names = (SUPER, "nobody", "reader")
    root, nobody, reader = (client_of(secured, "LOGIN", name, "rights.", tmp_path) for name in names)
    assert "created" in root.run("topics")
    rights = [("topic", root.settings.topic(topic.name), "read") for topic in (MODELS, CONTROL)]
    rights += [("group", READER_GROUP, "read"), ("topic", root.settings.topic(TRANSACTIONS.name), "describe")]
    rules = [AclRule("User:reader", kind, name, operation, prefixed=False) for kind, name, operation in rights]
    create_rules(secured.addresses["LOGIN"], root.whole, rules)
    table = json.loads((ROOT / "pipeline/data/rates.json").read_bytes())
    (file := tmp_path / "rates.json").write_text(json.dumps(table | {"version": "of-a-reader"}))
    assert "you may not see them: `fraud-pipeline acl`" in nobody.run("topics", "--check", code=1)
    assert "this user lacks a right: `fraud-pipeline acl`" in nobody.run("rates", code=1)
    assert reader.run("rates") == ""
    refused = reader.run("rates", str(file), code=1)
    assert "records were not written" in refused
    assert "this user lacks a right" in refused
    with closing(TopicFollower(secured.addresses["LOGIN"], reader.whole, TRANSACTIONS).start()) as follower:
        eventually(lambda: "TOPIC_AUTHORIZATION_FAILED" in caplog.text, meanwhile=lambda: follower.poll(0.1))
    assert "topic rights.transactions partition " in caplog.text


@pytest.mark.parametrize("listener", WAYS)
def test_batches_are_fetched_as_each_listener_wants_it(listener: str, secured: Secured, tmp_path: Path) -> None:
    client = client_of(secured, listener, SUPER, "fetched.", tmp_path).whole
    topic = client.topic(TRANSACTIONS.name)
    ensure_topics(secured.addresses[listener], client, [TRANSACTIONS])
    base_offset = produce_batch(secured.plain, topic, 0, record_batch([b"1", b"2"]))
    reading = read_topic(secured.addresses[listener], topic, settings=client, partitions=[0], start={0: base_offset})
    assert [(record.offset, record.value) for record in reading] == [(base_offset, b"1"), (base_offset + 1, b"2")]


class Roles(NamedTuple):
    """A client for each role, the topics of all, and what each may do."""

    clients: dict[str, Client]
    cluster: Cluster
    granted: dict[str, list[Grant]]


@pytest.fixture(scope="module")
def by_role(secured: Secured, tmp_path_factory: pytest.TempPathFactory) -> Roles:
    directory = tmp_path_factory.mktemp("roles")
    root = client_of(secured, "LOGIN", SUPER, "bank.", directory / SUPER)
    granted = roles(root.settings)
    names = {role: role.replace(":", "-") for role in granted}
    secured.add_users(*names.values())
    principals = [option for role, name in names.items() for option in ("--principal", f"{role}=User:{name}")]
    assert " 0 were there already" in root.run("acl", *principals, "--apply")
    assert root.run("acl", *principals, "--apply").startswith("0 access rules created")
    clients = {
        role: client_of(secured, "LOGIN", name, "" if role == "demo" else "bank.", directory / name)
        for role, name in names.items()
    }
    assert "created" in clients["operator"].run("topics")
    for prefix in (OTHERS, f"{DEMO}0-"):
        others = root.settings.model_copy(update={"topic_prefix": prefix})
        ensure_topics(secured.addresses["LOGIN"], Client(others, None).whole, [TRANSACTIONS])
    return Roles(clients, Cluster(root.whole), granted)


def test_each_role_does_its_part(by_role: Roles, start: Starter, tmp_path: Path) -> None:
    clients, cluster = by_role.clients, by_role.cluster
    cluster_of_operator = Cluster(clients["operator"].whole)
    cluster_of_operator.publish()
    write(clients["producer"], TRANSACTIONS.name, *(transaction(n, now(), amount=LARGE_AMOUNT) for n in (1, 2)))
    worker = start(clients["worker"].whole)
    worker.until(lambda: len(cluster.decisions()) == 2)
    analyst, operator = clients["analyst"], clients["operator"]
    assert "t1" in analyst.run("alerts", "--once", "--json")
    assert "Sent" in analyst.run("label", "t1", "fraud")
    write(clients["labeller:chargebacks"], "chargebacks", label(2, now(), "fraud", source="chargeback"))
    # Who may write there claims what the topic does not speak for.
    write(clients["labeller:chargebacks"], "chargebacks", label(1, now(), "legitimate", source="audit"))
    worker.until(lambda: len(cluster.read(ACCEPTED_LABELS)) == 2)
    worker.until(lambda: len(cluster.read(DEAD_LETTERS)) == 1)
    (dead,) = cluster.read(DEAD_LETTERS)
    assert ("dead-letter-error", NOT_ALLOWED.encode()) in dead.headers
    # What is sent again is refused again.
    assert "Sent 1 to chargebacks" in clients["resender"].run("dead-letters", "resend", "--code", NOT_ALLOWED, "--yes")
    worker.until(lambda: len(cluster.read(DEAD_LETTERS)) == 2)
    worker.until(lambda: len(cluster.examples()) == 2)
    assert {(example.transaction_id, example.label_source) for example in cluster.examples()} == {
        ("t1", "analyst"),
        ("t2", "chargeback"),
    }
    assert worker.stop() == 0
    assert "cannot be checked" not in worker.output
    run_operators_commands(operator, tmp_path)


def test_the_gateway_writes_tokens_by_its_role(by_role: Roles, tmp_path: Path) -> None:
    root, gateway = by_role.cluster.settings, by_role.clients["gateway"]
    bootstrap, raw = by_role.cluster.bootstrap, Topic("raw", "any", bytes, "producers", "cards")
    ensure_topics(bootstrap, root, [raw])
    name = root.topic(raw.name)
    create_rules(bootstrap, root, [AclRule("User:gateway", "topic", name, "read", prefixed=False)])
    with RecordProducer(bootstrap, root) as producer:
        producer.produce(name, b"c1", transaction(9, now()), 1_000)
        producer.produce(name, b"c1", b"not json", 1_000)
    before = len(by_role.cluster.read(DEAD_LETTERS))
    (secret := tmp_path / "secret").write_text("s" * 64)
    secret.chmod(0o600)
    settings = gateway.settings.model_copy(update={"token_secret_file": secret})
    done = gateway._replace(settings=settings).run("tokenise", raw.name, "--limit", "2")
    assert "1 records written to bank.transactions, 1 refused" in done
    assert len(by_role.cluster.read(DEAD_LETTERS)) == before + 1


def test_the_replayer_feeds_a_simulation_and_reviews_its_alerts(
    secured: Secured, by_role: Roles, tmp_path: Path, start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def client(name: str) -> Client:
        found = client_of(secured, "LOGIN", name, "simulated.", tmp_path / name)
        more = {"timestamps": "producer", "accept_producer_timestamps": True, "label_topics": {"labels": ("*",)}}
        return found._replace(settings=found.settings.model_copy(update=more))

    root = client(SUPER)
    given = [option for role in ("replayer", "worker") for option in ("--principal", f"{role}=User:{role}")]
    assert "access rules created" in root.run("acl", *given, "--apply")
    assert "created" in root.run("topics")
    cluster = Cluster(root.whole)
    cluster.publish()
    frame = simulate_days(make_profiles(np.random.default_rng(1), 60, 120), 1, 20, 1).head(20)
    frame.assign(amount=LARGE_AMOUNT).to_parquet(file := tmp_path / "history.parquet", index=False)
    worker = start(client("worker").whole)
    # The replayer waits for alerts for a second behind what the card agent has read: a busy score agent needs more.
    monkeypatch.setattr("pipeline.replay.replayer._QUIET_S", 10.0)
    cluster.buy(1, frame["event_time"].iloc[0].to_pydatetime())
    cluster.flush()
    worker.until(lambda: len(cluster.decisions()) == 1)
    run = client("replayer").run("replay", str(file), "--review-delay", "60", "--max-in-flight", "5")
    summary = json.loads(run.splitlines()[-1])
    assert (summary["transactions"], summary["stopped"]) == (20, False)
    assert summary["reviews"] > 0
    assert worker.stop() == 0


def test_a_run_of_the_demo_stays_below_its_prefix(by_role: Roles, begin: RunStarter) -> None:
    client = by_role.clients["demo"]
    small = ("--cards", "200", "--merchants", "400", "--history-days", "40", "--day-seconds", "0.5")
    run = begin("run", *small, "--days", "1", **client.environment)
    assert run.process.wait(TIMEOUT_S) == 0, run.errors
    summary = json.loads(run.output.splitlines()[-1])
    assert summary["decisions"] == summary["transactions"] > 0
    assert f"topics begin with {DEMO}" in " ".join(run.output.split())


def expected(grants: list[Grant], resource: str, name: str) -> set[str]:
    """Operations that the table allows on a resource (full name), with those that Kafka infers."""
    found = {
        operation
        for grant in grants
        if grant.resource == resource and (name.startswith(grant.name) if grant.prefixed else name == grant.name)
        for operation in grant.operations
    }
    return found | ({"describe"} if found & {"read", "write", "delete"} else set())


def test_each_role_may_do_with_topics_what_the_table_says_and_nothing_else(by_role: Roles) -> None:
    settings = by_role.cluster.settings
    names = [settings.topic(topic.name) for topic in settings.topics]
    names += [f"{prefix}{TRANSACTIONS.name}" for prefix in (OTHERS, f"{DEMO}0-")]
    for role, client in by_role.clients.items():
        admin = admin_client(str(client.settings.kafka_bootstrap_servers), settings=client.whole)
        asked = admin.describe_topics(TopicCollection(names), include_authorized_operations=True)
        for name, future in asked.items():
            assert _code(future.result) in {None, KafkaError.TOPIC_AUTHORIZATION_FAILED}
            operations = [] if future.exception() is not None else future.result().authorized_operations
            allowed = {operation.name.lower() for operation in operations}
            assert allowed == expected(by_role.granted[role], TOPIC, name), (role, name)


def test_each_role_writes_where_it_may_and_nowhere_else(by_role: Roles) -> None:
    settings = by_role.cluster.settings
    names = [topic.name for topic in settings.topics]
    for role, of_role in by_role.clients.items():
        # The demo has a prefix of its own: it tries the others' topics.
        client = of_role._replace(settings=of_role.settings.model_copy(update={"topic_prefix": settings.topic_prefix}))
        may = {name: "write" in expected(by_role.granted[role], TOPIC, settings.topic(name)) for name in names}
        errors = produced(client, dict.fromkeys(names, (b"{}",)))
        assert {name: error is None for name, error in errors.items()} == may, role
        assert {error for error in errors.values() if error is not None} <= DENIED


def test_each_role_uses_the_groups_that_it_may(by_role: Roles) -> None:
    settings = by_role.cluster.settings
    at = TopicPartition(settings.topic(TRANSACTIONS.name), 0, 0)
    groups = [
        *(settings.topic(name) for name in (*AGENTS, f"{STAGE}-labels")),
        READER_GROUP,
        f"{DEMO}0-card",
        "somebody",
    ]
    for role, client in by_role.clients.items():
        admin = admin_client(str(client.settings.kafka_bootstrap_servers), settings=client.whole)
        for group in groups:
            allowed = expected(by_role.granted[role], GROUP, group)
            # Of what offsets there are asks who describes a group; who reads in it commits them.
            describe = partial(admin.list_consumer_group_offsets, [ConsumerGroupTopicPartitions(group)])
            commit = partial(admin.alter_consumer_group_offsets, [ConsumerGroupTopicPartitions(group, [at])])
            codes = [_code(partial(retried, partial(_result, call, group))) for call in (describe, commit)]
            denied = [code == KafkaError.GROUP_AUTHORIZATION_FAILED for code in codes]
            assert denied == ["describe" not in allowed, "read" not in allowed], (role, group, codes)


def test_each_role_uses_the_transactional_ids_that_it_may(by_role: Roles) -> None:
    settings = by_role.cluster.settings
    ids = [settings.topic(f"{agent}-w1") for agent in AGENTS]
    ids += [settings.topic(name) for name in (f"{REPROCESSED}one-reprocess", f"{STAGE}-labels-w1", DECIDES, "somebody")]
    ids.append(f"{DEMO}0-card-w1")

    def denied(cell: tuple[str, str]) -> bool:
        client = by_role.clients[cell[0]]
        producer = Producer(
            {
                "bootstrap.servers": client.settings.kafka_bootstrap_servers,
                **client.whole.kafka_config,
                "transactional.id": cell[1],
                "error_cb": lambda _error: None,
                "log_level": 0,
            }
        )
        code = _code(lambda: producer.init_transactions(TIMEOUT_S))
        assert code in {None, KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED}, cell
        return code is not None

    cells = [(role, name) for role in by_role.clients for name in ids]
    with ThreadPoolExecutor(8) as threads:
        found = dict(zip(cells, threads.map(denied, cells), strict=True))
    for (role, name), is_denied in found.items():
        assert is_denied == ("write" not in expected(by_role.granted[role], TRANSACTIONAL_ID, name)), (role, name)


def _result(call: Callable[[], dict[str, Future[object]]], name: str) -> object:
    return call()[name].result()


def _code(call: Callable[[], object]) -> int | None:
    """Code of the error that a call raises, or that what it returns bears; None for none."""
    try:
        answer = call()
    except KafkaException as error:
        return int(error.args[0].code())
    errors = [at.error for at in getattr(answer, "topic_partitions", ()) or () if at.error is not None]
    return int(errors[0].code()) if errors else None
