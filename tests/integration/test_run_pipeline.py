"""`fraud-pipeline run` as a user starts it: a process of its own, small, with everything real."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from agents.models import CONTROL
from pipeline.kafka.clients import read_topic
from pipeline.settings import Settings
from schemas.messages import Alert, Decision, ModelVersion
from schemas.topics import ALERTS, DECISIONS, LABELS, MODELS, TRANSACTIONS, Topic

pytestmark = [pytest.mark.broker, pytest.mark.timeout(600)]

SMALL = ("--cards", "200", "--merchants", "400", "--history-days", "40", "--day-seconds", "0.5")
KEYS = {"transactions", "decisions", "alerts", "dead_letters", "labels", "river_version", "p50_ms", "p99_ms"}
TRAINING = "training the first LightGBM model"
STREAMING = "streaming"


class Run:
    """A run in a process, with its standard output in a file, as behind a pipe."""

    def __init__(self, directory: Path, environment: dict[str, str], *arguments: str) -> None:
        self.directory = directory
        self._output = (directory / "stdout").open("wb")
        self._errors = (directory / "stderr").open("wb")
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("FRAUD_", "KAFKA_", "DAYS"))
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "run", *SMALL, *arguments],
            env={**inherited, "FRAUD_PIPELINE_DATA_DIR": str(directory / "data"), **environment},
            stdout=self._output,
            stderr=self._errors,
        )

    @property
    def output(self) -> str:
        return (self.directory / "stdout").read_text()

    @property
    def errors(self) -> str:
        return (self.directory / "stderr").read_text()

    @property
    def summary(self) -> dict[str, object]:
        summary = json.loads(self.output.splitlines()[-1])
        assert isinstance(summary, dict)
        return summary

    def wait_for(self, text: str) -> None:
        while text not in self.output:
            try:
                self.process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(f"the run ended without {text!r}:\n{self.output}\n{self.errors}")

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def worker(self) -> psutil.Process:
        (worker,) = (child for child in self.children() if "pipeline.demo.guarded" in child.cmdline())
        return worker

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._output.close()
        self._errors.close()


@pytest.fixture
def runs() -> Iterator[list[Run]]:
    started: list[Run] = []
    yield started
    for run in started:
        run.end()


def on_cluster(settings: Settings) -> dict[str, str]:
    assert settings.kafka_bootstrap_servers is not None
    return {
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "FRAUD_PIPELINE_TOPIC_PREFIX": settings.topic_prefix,
        "FRAUD_PIPELINE_METRICS_PORT": "0",
    }


def values(settings: Settings, topic: Topic) -> list[bytes]:
    assert settings.kafka_bootstrap_servers is not None
    records = read_topic(settings.kafka_bootstrap_servers, settings.topic(topic.name), settings=settings)
    return [record.value or b"" for record in records if not (record.key or b"").startswith(CONTROL)]


def gone(processes: list[psutil.Process], timeout_s: float) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    return not alive


def test_a_run_decides_every_transaction_once_and_ends_by_itself(
    kafka_settings: Settings, tmp_path: Path, runs: list[Run]
) -> None:
    run = Run(tmp_path, {**on_cluster(kafka_settings), "DAYS": "9", "TERM": "xterm-256color"})
    runs.append(run)
    run.wait_for(TRAINING)
    children = run.children()
    assert children
    assert run.process.wait(400) == 0, run.errors
    assert gone(children, 0)

    summary = run.summary
    assert summary.keys() == KEYS
    transactions = [msgspec.json.decode(value)["transaction_id"] for value in values(kafka_settings, TRANSACTIONS)]
    decisions = [msgspec.json.decode(value, type=Decision) for value in values(kafka_settings, DECISIONS)]
    assert len(transactions) == summary["transactions"] == summary["decisions"] > 0
    assert sorted(transactions) == sorted(decision.transaction_id for decision in decisions)
    assert summary["dead_letters"] == 0
    assert len(values(kafka_settings, LABELS)) == summary["labels"] > 0

    alerts = [msgspec.json.decode(value, type=Alert) for value in values(kafka_settings, ALERTS)]
    assert len(alerts) == summary["alerts"] > 0
    assert all(alert.reasons and all(reason.sentence for reason in alert.reasons) for alert in alerts)
    alerted = {decision.transaction_id for decision in decisions if decision.action == "alert"}
    assert {alert.transaction_id for alert in alerts} == alerted

    published = [msgspec.json.decode(value, type=ModelVersion) for value in values(kafka_settings, MODELS)]
    river = [model.version for model in published if model.name == "river"]
    assert summary["river_version"] == river[-1]
    assert river[-1] in {decision.versions.river for decision in decisions} | {river[-1]}
    assert len({decision.versions.river for decision in decisions}) > 1
    assert isinstance(summary["p50_ms"], float)
    assert isinstance(summary["p99_ms"], float)
    assert 0 < summary["p50_ms"] <= summary["p99_ms"]

    human = run.output.splitlines()[:-1]
    assert "\x1b" not in run.output
    assert max(map(len, human)) <= 80
    assert any("one for each transaction" in line for line in human)
    assert any("day 9/9" in line or "day 8/9" in line for line in human)
    assert run.errors == ""


def test_ctrl_c_stops_a_run_without_end_and_everything_it_started(tmp_path: Path, runs: list[Run]) -> None:
    run = Run(tmp_path, {"FRAUD_PIPELINE_METRICS_PORT": "0"}, "--days", "0")
    runs.append(run)
    run.wait_for(STREAMING)
    children = run.children()
    assert any("java" in child.name() for child in children)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(120) == 0, run.errors
    assert gone(children, 0)
    assert run.summary["decisions"] == run.summary["transactions"] > 0
    assert run.errors == ""


def test_ctrl_c_at_an_early_stage_ends_with_a_summary_too(
    kafka_settings: Settings, tmp_path: Path, runs: list[Run]
) -> None:
    run = Run(tmp_path, on_cluster(kafka_settings), "--days", "5")
    runs.append(run)
    run.wait_for(TRAINING)
    children = run.children()
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(120) == 130, run.errors
    assert gone(children, 0)
    assert run.summary["decisions"] == 0
    assert run.summary["p50_ms"] is None


def test_a_worker_that_dies_ends_the_run_with_its_log(
    kafka_settings: Settings, tmp_path: Path, runs: list[Run]
) -> None:
    run = Run(tmp_path, on_cluster(kafka_settings), "--days", "0")
    runs.append(run)
    run.wait_for(STREAMING)
    run.worker().kill()
    assert run.process.wait(120) == 1
    assert "worker-1 was killed by signal 9" in run.errors
    assert "worker-1.log" in run.errors
    assert "joined" in run.errors
    assert run.summary.keys() == KEYS


def test_nothing_outlives_a_controller_that_is_killed(tmp_path: Path, runs: list[Run]) -> None:
    run = Run(tmp_path, {"FRAUD_PIPELINE_METRICS_PORT": "0"}, "--days", "0")
    runs.append(run)
    run.wait_for(TRAINING)
    children = run.children()
    assert any("java" in child.name() for child in children)
    assert run.worker() in children
    run.process.kill()
    assert gone(children, 60)


def test_a_run_keeps_away_from_topics_with_records(kafka_settings: Settings, tmp_path: Path, runs: list[Run]) -> None:
    from pipeline.kafka.admin import ensure_topics
    from pipeline.kafka.producer import RecordProducer

    servers = kafka_settings.kafka_bootstrap_servers
    assert servers is not None
    ensure_topics(servers, kafka_settings)
    with RecordProducer(servers, kafka_settings) as producer:
        producer.produce(kafka_settings.topic(LABELS.name), b"key", b"value", 0)
    run = Run(tmp_path, on_cluster(kafka_settings))
    runs.append(run)
    assert run.process.wait(60) == 1
    assert f"hold records already: {kafka_settings.topic(LABELS.name)}" in run.errors
    assert "FRAUD_PIPELINE_TOPIC_PREFIX" in run.errors
