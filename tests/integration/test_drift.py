"""Drift and the audit's figures, read from real topics and served to Prometheus."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import msgspec
import pytest

from pipeline.commands.drift import DRIFTED
from pipeline.demo.processes import settings_environment
from pipeline.monitored import Monitored, MonitoredTopics
from pipeline.monitoring.daily import ALERTS as ALERTS_SERIES
from pipeline.monitoring.daily import REPORTS
from pipeline.monitoring.drift import judge
from schemas.codec import encode
from schemas.messages import Alert
from schemas.topics import ALERTS, DECISION_FEATURES, DECISIONS, EXAMPLES
from tests.helpers.drifting import ROWS, drifting_blocks
from tests.helpers.logs import after, decision
from tests.helpers.topics import PATIENCE_S, Cluster
from tests.helpers.waiting import eventually
from tests.helpers.worker import ROOT
from tests.unit.model_helpers import example

pytestmark = pytest.mark.broker

DAYS = 32


def run(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        env={"PATH": "", **settings_environment(cluster.settings)},
        cwd=ROOT, capture_output=True, check=False, text=True, timeout=PATIENCE_S,
    )  # fmt: skip


def write_days(cluster: Cluster, days: range) -> None:
    for number, (value, at) in enumerate(drifting_blocks(days, DAYS - 2)):
        cluster.write(DECISION_FEATURES, value, f"{number}".encode(), at)
    cluster.flush()


def write_events(cluster: Cluster) -> None:
    golden = msgspec.json.decode((ROOT / "schemas/golden/v1/alert.json").read_bytes(), type=Alert)
    cluster.write(ALERTS, encode(msgspec.structs.replace(golden, event_time=after(1))), b"c1", after(1))
    cluster.write(EXAMPLES, encode(example(0, event_time=after(1), known_at=after(2))), b"c1", after(2))
    # Somebody else's.
    for topic in (DECISION_FEATURES, ALERTS, EXAMPLES):
        cluster.write(topic, b"no message", b"c1", after(1))
    cluster.flush()


def test_drift_is_found_on_topics_and_served_to_prometheus(cluster: Cluster, tmp_path: Path) -> None:
    write_days(cluster, range(DAYS - 2))
    write_events(cluster)
    monitored = Monitored(None)
    topics = MonitoredTopics(cluster.bootstrap, cluster.settings, monitored)
    topics.refresh()
    series = {one.name: one for one in monitored.counts.histories()}
    assert series["amount"].counts.sum() == (DAYS - 3) * ROWS
    assert (series[ALERTS_SERIES].counts[1, 1], series[REPORTS].counts[2, 1]) == (1, 1)
    result = run(cluster, "drift")
    assert (result.returncode, "no drift" in result.stdout) == (0, True), result.stdout + result.stderr
    log = tmp_path / "log"
    with log.open("wb") as out:
        follower = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "drift", "--follow", "--interval", "0.2", "--port", "0"],
            env={"PATH": "", **settings_environment(cluster.settings)}, cwd=ROOT, stdout=out, stderr=out,
        )  # fmt: skip

    def gauge(name: str) -> float | None:
        address = re.search(r"http://\S+/metrics", log.read_text())
        if address is None:
            return None
        with urllib.request.urlopen(address[0], timeout=PATIENCE_S) as response:
            found = re.search(rf"^fraud_pipeline_{name} (\S+)$", response.read().decode(), re.MULTILINE)
        return None if found is None else float(found[1])

    try:
        eventually(lambda: gauge('drift_alarm{series="amount"}') == 0.0)
        write_days(cluster, range(DAYS - 2, DAYS))
        eventually(lambda: gauge('drift_alarm{series="amount"}') == 1.0)
        assert gauge("drift_day_timestamp_seconds") == after(DAYS - 2).timestamp()
        follower.send_signal(signal.SIGINT)
        assert follower.wait(PATIENCE_S) == 130, log.read_text()
    finally:
        follower.kill()
        follower.wait()
    topics.refresh()
    assert monitored.counts.histories()[0].counts.sum() == (DAYS - 1) * ROWS, "nothing is counted twice"
    assert [found.name for found in judge(monitored.counts.histories())[-1].findings] == ["amount"]
    result = run(cluster, "drift", "--json")
    assert result.returncode == DRIFTED, result.stderr
    assert [found["name"] for found in json.loads(result.stdout)["findings"]] == ["amount"]


def test_the_audits_figures_come_from_decisions_and_labels(cluster: Cluster) -> None:
    def decide(number: int, selection: str | None, probability: float) -> None:
        at = after(number % 20)
        value = decision(number, at, selection=selection, selection_probability=probability)
        cluster.write(DECISIONS, value, b"c1", at)

    for number in range(300):
        decide(number, None, 0.5)
    for number in range(300, 340):
        decide(number, "audit", 0.5)
        cluster.say(("c1", f"t{number}"), after(21), "fraud" if number < 310 else "legitimate", source="audit")
    for number in range(340, 360):
        decide(number, "score", 1.0)
        cluster.say(("c1", f"t{number}"), after(21))
    for number in range(20):
        cluster.say(("c1", f"t{number}"), after(21), source="customer")
    cluster.say(("c1", "t3"), after(22), source="x" * 70)
    cluster.write(DECISIONS, decision(400, after(80), selection_probability=0.5), b"c1", after(80))
    cluster.flush()
    result = run(cluster, "audit", "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["decisions"], told["alerted"], told["missed_reported"], told["audited"]) == (361, 20, 20, 40)
    low, high = told["never_reported"]
    assert low < 20 < high < 60
    text = run(cluster, "audit").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"Never reported.*\n  \d+% to \d+%: \d+ to \d+ frauds\n", text)
