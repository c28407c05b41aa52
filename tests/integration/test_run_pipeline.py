"""`fraud-pipeline run` as a user starts it: a process of its own, small, with everything real."""

import json
import re
import signal
import subprocess
from pathlib import Path

import msgspec
import psutil
import pytest

from pipeline.demo.view import COMMAND_INDENT
from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.scoring.river_factory import first_river
from pipeline.settings import Settings
from schemas.messages import Alert, Decision, ModelVersion
from schemas.topics import ALERTS, DECISIONS, LABELS, MODELS, TRANSACTIONS, Topic
from tests.helpers.installed import PACKAGES, build_wheel, install
from tests.helpers.runs import Run, RunStarter, gone, on_cluster
from tests.helpers.waiting import TIMEOUT_S, eventually
from tests.helpers.worker import ROOT

pytestmark = pytest.mark.broker

SMALL = ("run", "--cards", "200", "--merchants", "400", "--seed", "1", "--history-days", "40", "--day-seconds", "0.5")
KEYS = {"transactions", "decisions", "alerts", "dead_letters", "labels", "river_version", "p50_ms", "p99_ms"}
TRAINING = "training the first LightGBM model"
STREAMING = "streaming"


def summary(run: Run) -> dict[str, object]:
    """The last line of its output."""
    reported = json.loads(run.output.splitlines()[-1])
    assert isinstance(reported, dict)
    return reported


def worker_among(processes: list[psutil.Process]) -> psutil.Process:
    (worker,) = (process for process in processes if process.environ().get("FRAUD_PIPELINE_INSTANCE") == "worker-1")
    return worker


def values(settings: Settings, topic: Topic) -> list[bytes]:
    assert settings.kafka_bootstrap_servers is not None
    records = read_topic(settings.kafka_bootstrap_servers, settings.topic(topic.name), settings=settings)
    return [record.value or b"" for record in records]


def river_versions(settings: Settings) -> list[str]:
    """Return the versions of the River model, in the order of publication."""
    published = [msgspec.json.decode(value, type=ModelVersion) for value in values(settings, MODELS)]
    return [model.version for model in published if model.name == "river"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's ``fraud-pipeline``, in a virtual environment of its own."""
    directory = tmp_path_factory.mktemp("installed")
    return install(build_wheel(directory), directory)


def test_the_wheel_has_every_file(installed: Path) -> None:
    (packages,) = installed.parents[1].glob("lib/python*/site-packages")
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*")]
    wanted = [path for path in files if path.is_file() and path.suffix not in (".pyc", ".nbi", ".nbc")]
    assert {path.suffix for path in wanted} >= {".py", ".json", ".jinja", ".css"}
    installed_bytes = [packages / path.relative_to(ROOT) for path in wanted]
    assert [path for path in installed_bytes if not path.exists()] == []
    assert [path.read_bytes() for path in installed_bytes] == [path.read_bytes() for path in wanted]


def test_a_run_of_the_wheel_decides_every_transaction_once_and_ends_by_itself(
    kafka_settings: Settings, begin: RunStarter, installed: Path
) -> None:
    run = begin(*SMALL, "--keep", program=installed, **on_cluster(kafka_settings), DAYS="24", TERM="xterm-256color")
    children = run.wait_for(TRAINING)
    opened = [Path(file.path) for child in children for file in child.open_files()]
    assert [path for path in opened for package in PACKAGES if path.is_relative_to(ROOT / package)] == []
    assert children
    run.wait_for("stay for a look")
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(TIMEOUT_S) == 0, run.errors
    assert gone(children)

    reported = summary(run)
    assert reported.keys() == KEYS
    transactions = [msgspec.json.decode(value)["transaction_id"] for value in values(kafka_settings, TRANSACTIONS)]
    decisions = [msgspec.json.decode(value, type=Decision) for value in values(kafka_settings, DECISIONS)]
    assert len(transactions) == reported["transactions"] == reported["decisions"] > 0
    assert sorted(transactions) == sorted(decision.transaction_id for decision in decisions)
    assert reported["dead_letters"] == 0
    assert len(values(kafka_settings, LABELS)) == reported["labels"] > 0

    alerts = [msgspec.json.decode(value, type=Alert) for value in values(kafka_settings, ALERTS)]
    assert len(alerts) == reported["alerts"] > 0
    assert all(alert.reasons and all(reason.sentence for reason in alert.reasons) for alert in alerts)
    alerted = {decision.transaction_id for decision in decisions if decision.action == "alert"}
    assert {alert.transaction_id for alert in alerts} == alerted

    # How often it learns in twelve seconds depends on the machine; that it learns is awaited in a run without end.
    river = [first_river(None).version, *river_versions(kafka_settings)]
    assert reported["river_version"] == river[-1]
    assert {decision.versions.river for decision in decisions} <= set(river)
    assert isinstance(reported["p50_ms"], float)
    assert isinstance(reported["p99_ms"], float)
    assert 0 < reported["p50_ms"] <= reported["p99_ms"]

    human = run.output.splitlines()[:-1]
    assert "\x1b" not in run.output
    assert max(len(line) for line in human if not line.startswith(COMMAND_INDENT)) <= 80
    (hint,) = (line for line in human if line.endswith("fraud-pipeline alerts"))
    look = subprocess.run(
        f"{hint} --once --limit 1", shell=True, check=False, capture_output=True, text=True, cwd=run.directory
    )
    assert look.returncode == 0, look.stderr
    assert "score" in look.stdout
    assert "What next" in human
    assert any("one for each transaction" in line for line in human)
    # A line every few seconds: the last one may be of some days before the end.
    days = [int(found[1]) for line in human if (found := re.search(r"day (\d+)/24 ", line))]
    assert days == sorted(days)
    assert 1 <= days[0] < days[-1] <= 24
    assert run.errors == ""


def test_ctrl_c_stops_a_run_without_end_and_everything_it_started(begin: RunStarter) -> None:
    run = begin(*SMALL, "--days", "0")
    children = run.wait_for(STREAMING)
    assert any("java" in child.name() for child in children)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(TIMEOUT_S) == 0, run.errors
    assert gone(children)
    assert summary(run)["decisions"] == summary(run)["transactions"] > 0
    assert run.errors == ""
    assert re.search(r"simulated days until stopped \(about [\d,]+ MB of disk a minute\)", " ".join(run.output.split()))
    # What the run kept is there to be read.
    human = run.output.splitlines()
    command = human[human.index("What next") + 2]
    look = subprocess.run(command, shell=True, check=False, capture_output=True, text=True, cwd=run.directory)
    assert look.returncode == 0, look.stderr
    assert "starting one on what the last run kept" in look.stderr
    assert "score" in look.stdout


def test_ctrl_c_at_an_early_stage_ends_with_a_summary_too(kafka_settings: Settings, begin: RunStarter) -> None:
    # A history that takes long to learn from: the signal must come before the model is there.
    run = begin(*SMALL, "--cards", "5000", "--history-days", "300", "--days", "5", **on_cluster(kafka_settings))
    children = run.wait_for(TRAINING)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(TIMEOUT_S) == 0, run.errors
    assert gone(children)
    assert summary(run)["decisions"] == 0
    assert summary(run)["p50_ms"] is None
    assert "before any transaction" in run.output
    assert "Transactions   0" not in run.output


def test_a_run_learns_and_a_worker_that_dies_ends_it_with_its_log(kafka_settings: Settings, begin: RunStarter) -> None:
    run = begin(*SMALL, "--days", "0", **on_cluster(kafka_settings))
    children = run.wait_for(STREAMING)
    eventually(lambda: river_versions(kafka_settings) != [])
    worker_among(children).kill()
    assert run.process.wait(TIMEOUT_S) == 1
    assert "worker-1 was killed by signal 9" in run.errors
    log = re.search(r"Its log is (\S+worker-1\.log);", run.errors)
    assert log, run.errors
    assert (run.directory / log[1]).read_text().splitlines()[-1] in run.errors
    assert summary(run).keys() == KEYS


def test_nothing_outlives_a_controller_that_is_killed(begin: RunStarter) -> None:
    run = begin(*SMALL, "--days", "0")
    children = run.wait_for(TRAINING)
    assert any("java" in child.name() for child in children)
    assert worker_among(children)
    run.process.kill()
    assert gone(children, TIMEOUT_S)


def test_a_run_keeps_away_from_topics_with_records(kafka_settings: Settings, begin: RunStarter) -> None:
    from pipeline.kafka.cluster.admin import ensure_topics
    from pipeline.kafka.writers.producer import RecordProducer

    servers = kafka_settings.kafka_bootstrap_servers
    assert servers is not None
    ensure_topics(servers, kafka_settings)
    with RecordProducer(servers, kafka_settings) as producer:
        producer.produce(kafka_settings.topic(LABELS.name), b"key", b"value", 0)
    run = begin(*SMALL, **on_cluster(kafka_settings))
    assert run.process.wait(TIMEOUT_S) == 1
    assert f"hold records already: {kafka_settings.topic(LABELS.name)}" in run.errors
    assert "FRAUD_PIPELINE_TOPIC_PREFIX" in run.errors
