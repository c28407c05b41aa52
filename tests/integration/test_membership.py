"""A worker that was killed is a member of its group until the same worker is started again."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.session.membership import leave, replace_member
from pipeline.settings import Settings
from schemas.topics import TRANSACTIONS
from tests.helpers.waiting import TIMEOUT_S

pytestmark = pytest.mark.broker

MEMBER = """
import sys
from confluent_kafka import Consumer
from pipeline.kafka.cluster.clients import consumer_config

consumer = Consumer(consumer_config(*sys.argv[1:3]))
consumer.subscribe(sys.argv[3:], on_assign=lambda *_: print(consumer.memberid(), flush=True))
while True:
    consumer.poll(1.0)
"""


def test_a_killed_member_leaves_its_group_through_its_successor(
    kafka_settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.kafka.session.membership.LEAVE_S", TIMEOUT_S)
    bootstrap, group = str(kafka_settings.kafka_bootstrap_servers), kafka_settings.topic("card")
    ensure_topics(bootstrap, kafka_settings, [TRANSACTIONS])
    command = [sys.executable, "-c", MEMBER, bootstrap, group, kafka_settings.topic(TRANSACTIONS.name)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        member = killed.stdout.readline().strip()
        killed.kill()
    note = tmp_path / "card.member"
    note.write_text(f"{member}\n")
    caplog.set_level("INFO", "pipeline")
    replace_member(bootstrap, kafka_settings, group, "next", tmp_path / "card")
    client = admin_client(bootstrap, settings=kafka_settings)
    (described,) = client.describe_consumer_groups([group], request_timeout=TIMEOUT_S).values()
    assert member not in {each.member_id for each in described.result().members}
    assert note.read_text() == "next\n"
    # One that has left, or whose session has ended, is nothing to report.
    leave(bootstrap, kafka_settings, group, member)
    assert caplog.messages == []


def test_a_coordinator_that_nobody_finds_keeps_no_worker_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.kafka.session.membership.LEAVE_S", 0.1)
    (tmp_path / "card.member").write_text("dead")
    caplog.set_level("INFO", "pipeline.kafka.session")
    replace_member("127.0.0.1:1", Settings(), "card", "next", tmp_path / "card")
    assert "group card waits for the session of a process before" in caplog.text
    assert (tmp_path / "card.member").read_text() == "next\n"
