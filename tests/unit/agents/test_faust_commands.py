"""Faust's own commands on the app, and its records for agents of others."""

import subprocess
import sys
from datetime import datetime
from decimal import Decimal
from typing import Any

import faust
import msgspec
import pytest

from agents import records
from agents.topology import AGENTS
from schemas import messages
from tests.helpers.waiting import TIMEOUT_S
from tests.helpers.worker import ROOT, inherited_environment


def faust_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "faust", "-A", "agents.app", *arguments],
        check=False, capture_output=True, text=True, cwd=ROOT, env=inherited_environment(), timeout=TIMEOUT_S,
    )  # fmt: skip


def test_faust_lists_the_agents_with_topics_and_help() -> None:
    listed = faust_command("agents", "--local").stdout
    for agent in AGENTS.values():
        (line,) = (line for line in listed.splitlines() if f"@{agent.name} " in line)
        assert [cell.strip() for cell in line.split("|")[2:4]] == [
            ", ".join(topic.name for topic in agent.reads),
            agent.help,
        ]
        assert agent.help


@pytest.mark.parametrize(
    ("entity", "sentence"),
    [
        (
            "@card",
            "agent card takes no messages from Faust: write to transactions, rerouted, accepted-labels with a Kafka "
            "producer",
        ),
        ("card", "this app writes nothing with Faust: write to topics with a Kafka producer"),
    ],
)
def test_faust_send_says_where_to_write(entity: str, sentence: str) -> None:
    sent = faust_command("send", entity, "{}")
    assert (sent.returncode, sent.stderr) == (1, f"Error: {sentence}\n")


@pytest.mark.parametrize(
    ("record", "kind", "golden"),
    [
        (records.Transaction, messages.Transaction, "transaction-full"),
        (records.Label, messages.Label, "label-full"),
        (records.Decision, messages.Decision, "decision"),
        (records.Alert, messages.Alert, "alert"),
    ],
)
def test_records_of_faust_have_the_fields_and_values_of_messages(
    record: type[faust.Record], kind: type[messages.Message], golden: str
) -> None:
    content = (ROOT / f"schemas/golden/v1/{golden}.json").read_bytes()
    read: Any = record.loads(content, serializer="json")
    expected: Any = msgspec.json.decode(content, type=kind)
    assert [field.name for field in msgspec.structs.fields(kind)] == sorted(
        record._options.fields, key=kind.__struct_fields__.index
    )
    for name in kind.__struct_fields__:
        value, wanted = getattr(read, name), getattr(expected, name)
        if isinstance(wanted, Decimal):
            wanted = float(wanted)
        if isinstance(wanted, str | int | float | datetime | None):
            assert value == wanted, name
            assert type(value) is type(wanted) or isinstance(wanted, datetime), name
    if kind is messages.Alert:
        assert [reason.sentence for reason in read.reasons] == [reason.sentence for reason in expected.reasons]
