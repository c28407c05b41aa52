"""The table of roles: what it takes from agents, topics and settings, and what the command says."""

import pytest
from click.testing import CliRunner

from agents.permissions import GROUP, TOPIC, TRANSACTIONAL_ID, Grant, roles
from agents.topology import AGENTS
from pipeline.cli import main
from pipeline.kafka.cluster.clients import READER_GROUP
from pipeline.settings import Settings
from schemas.topics import TOPICS

LABEL_TOPICS = {"labels": ("analyst", "audit"), "chargebacks": ("chargeback",)}
SETTINGS = Settings(topic_prefix="bank.", label_topics=LABEL_TOPICS)


def writers(topic: str) -> set[str]:
    return {
        role
        for role, grants in roles(SETTINGS).items()
        for grant in grants
        if (grant.resource, grant.name) == (TOPIC, f"bank.{topic}") and "write" in grant.operations
    }


def test_every_topic_has_the_writers_that_its_declaration_names() -> None:
    expected = {topic.name: {"worker"} for topic in TOPICS}
    expected |= {
        "transactions": {"producer", "gateway", "resender", "replayer"},
        "labels": {"labeller:labels", "gateway", "analyst", "console", "resender", "replayer"},
        "chargebacks": {"labeller:chargebacks", "gateway", "resender", "replayer"},
        "case-events": {"console"},
        "dead-letters": {"worker", "gateway"},
        "models": {"worker", "operator"},
        "control": {"worker", "operator"},
        "lists": {"operator"},
        "examples": {"worker", "operator"},
    }
    assert {topic: writers(topic) for topic in expected} == expected


def test_every_name_has_the_prefix() -> None:
    # What `run` makes has a prefix of its own.
    names = {grant.name for role, grants in roles(SETTINGS).items() for grant in grants if role != "demo"}
    assert all(name.startswith("bank.") for name in names - {"kafka-cluster", READER_GROUP})


@pytest.mark.parametrize("agent", AGENTS)
def test_a_worker_may_do_what_its_agents_need_alone(agent: str) -> None:
    grants = roles(SETTINGS.model_copy(update={"agents": agent}))["worker"]
    groups = {grant.name: grant.operations for grant in grants if grant.resource == GROUP}
    # Card and score agents look at each other's group, in case that another release runs the other one.
    other = {"card": {"bank.score": ("describe",)}, "score": {"bank.card": ("describe",)}}.get(agent, {})
    assert groups == {f"bank.{agent}": ("read",), **other, READER_GROUP: ("describe",)}
    (ids,) = [grant for grant in grants if grant.resource == TRANSACTIONAL_ID]
    assert ids == Grant(TRANSACTIONAL_ID, f"bank.{agent}", ("write",), prefixed=True)
    may = {
        operation: {grant.name.removeprefix("bank.") for grant in grants if operation in grant.operations}
        for operation in ("read", "write")
    }
    inputs = {"label": {*LABEL_TOPICS}}.get(agent, {topic.name for topic in AGENTS[agent].reads})
    outputs = {topic.name for topic in AGENTS[agent].writes} | {"control", "dead-letters"}
    outputs |= {"models"} if agent == "card" else set()
    topics = {*LABEL_TOPICS, *(topic.name for topic in TOPICS)}
    assert may["write"] & topics == outputs
    lists = {"lists"} if agent == "score" else set()
    assert may["read"] & topics == inputs | outputs | {"models", "control"} | lists


def test_the_command_prints_the_table_and_commands() -> None:
    environment = {
        "FRAUD_PIPELINE_TOPIC_PREFIX": "bank.",
        "FRAUD_PIPELINE_LABEL_TOPICS": '{"labels": ["analyst"], "chargebacks": ["chargeback"]}',
    }
    table = CliRunner().invoke(main, ["acl"], env=environment).output
    assert "labeller:chargebacks  topic             bank.chargebacks" in table
    given = ("acl", "--principal", "producer=User:core banking", "--principal", "operator=User:ops")
    commands = CliRunner().invoke(main, given, env=environment).output.splitlines()
    assert commands[0] == (
        'kafka-acls --bootstrap-server "$KAFKA_BOOTSTRAP_SERVERS" --add --allow-principal '
        "'User:core banking' --operation Write --topic bank.transactions"
    )
    assert any(
        line.endswith("Write --transactional-id bank.reprocess- --resource-pattern-type prefixed") for line in commands
    )


@pytest.mark.parametrize(
    "arguments",
    [("--principal", "cook=User:a"), ("--principal", "producer"), ("--principal", "producer=a"), ("--apply",)],
)
def test_what_is_no_role_or_principal_is_an_error(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, ["acl", *arguments])
    assert result.exit_code == 2
    assert "--principal" in result.output
