"""`fraud-pipeline backtest-example` as a user starts it: a process of its own, small, with everything real."""

import json
import re
import shlex
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.models.registry import LIGHTGBM, Registry
from pipeline.settings import Settings
from schemas.topics import DECISIONS, LABELS, TRANSACTIONS, Topic
from tests.helpers.runs import RunStarter, gone, on_cluster
from tests.helpers.waiting import TIMEOUT_S

pytestmark = pytest.mark.broker

SMALL = ("backtest-example", "--cards", "150", "--merchants", "300", "--days", "91")
DECIDING = "The topics are read again"


def count(settings: Settings, topic: Topic) -> int:
    assert settings.kafka_bootstrap_servers is not None
    return sum(1 for _ in read_topic(settings.kafka_bootstrap_servers, settings.topic(topic.name), settings=settings))


def test_two_models_are_compared_on_topics_and_the_report_is_named(
    kafka_settings: Settings, tmp_path: Path, begin: RunStarter
) -> None:
    run = begin(*SMALL, **on_cluster(kafka_settings), TERM="xterm-256color")
    assert run.process.wait(TIMEOUT_S) == 0, run.errors

    page, content = tmp_path / "build" / "backtest.html", tmp_path / "build" / "backtest.json"
    assert "<!doctype html>" in page.read_text(encoding="utf-8").lower()
    report = json.loads(content.read_text(encoding="utf-8"))
    assert (report["partial"], report["days"]) == (False, 21)
    assert [variant["name"] for variant in report["variants"]] == ["older", "newer"]
    registered = {entry.version for entry in Registry(tmp_path / "data" / "demo" / "registry").entries(LIGHTGBM)}
    assert {variant["models"]["lightgbm"] for variant in report["variants"]} == registered
    assert len(registered) == 2
    assert report["warnings"] == []

    # All that was decided lies on the topics, with the truth of each; a backtest itself writes nothing.
    assert count(kafka_settings, TRANSACTIONS) == count(kafka_settings, LABELS) > report["transactions"]
    assert count(kafka_settings, DECISIONS) == 0
    assert report["labels"]["unlabelled"] == 0

    assert "\x1b" not in run.output + run.errors
    assert max(map(len, run.output.splitlines())) <= 80
    reported = " ".join(run.output.split())
    assert "newer beside older" in reported
    assert "The report is build/backtest.html: open it in a browser. As data, it is build/backtest.json." in reported
    assert reported.endswith(f"The topics begin with {kafka_settings.topic_prefix}, and stay.")

    # The command that it tells says the same.
    words = shlex.split(re.search(r"fraud-pipeline (backtest (?:.*\\\n)*.*)\n", run.output)[1].replace("\\\n", ""))
    words = [word.replace("build/", f"{tmp_path}/again-") for word in words]
    assignment = re.search(r"(FRAUD_PIPELINE_\w+)=(\w+) fraud-pipeline backtest", run.output)
    assert assignment is not None
    environment = {
        **on_cluster(kafka_settings),
        "FRAUD_PIPELINE_DATA_DIR": str(tmp_path / "data" / "demo"),
        assignment[1]: assignment[2],
    }
    again = CliRunner().invoke(main, words, env=environment)
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "again-backtest.json").read_text(encoding="utf-8")) == report


def test_ctrl_c_during_the_backtest_leaves_nothing_running_and_no_report_that_looks_whole(
    tmp_path: Path, begin: RunStarter
) -> None:
    run = begin(*SMALL)
    children = run.wait_for(DECIDING)
    assert any("java" in child.name() for child in children)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(TIMEOUT_S) == 130, run.errors
    assert gone(children)
    assert run.errors == ""
    assert "stopping the broker" in run.output
    content = tmp_path / "build" / "backtest.json"
    if content.exists():
        assert json.loads(content.read_text(encoding="utf-8"))["partial"]
        assert "The report is partial. It is build/backtest.html" in run.output
