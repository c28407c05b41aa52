"""Drift and the audit's figures, read from real topics and served to Prometheus."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from pipeline.commands.drift import DRIFTED
from pipeline.decision.audit_sample import Audit
from pipeline.decision.policy import LARGEST_THRESHOLD, Policy
from pipeline.decision.rules import PolicyRule
from pipeline.demo.processes import settings_environment
from pipeline.features.xxh3 import transaction_hash
from pipeline.learning.sampling import AUDIT_SAMPLE, keyed_positions
from pipeline.monitoring.daily import ALERTS as ALERTS_SERIES
from pipeline.monitoring.daily import REPORTS
from pipeline.monitoring.drift import judge
from pipeline.monitoring_data.drift import Monitored, MonitoredTopics
from schemas.codec import encode
from schemas.messages import Alert
from schemas.topics import ACCEPTED_LABELS, ALERTS, DECISION_FEATURES, EXAMPLES, LABELS
from tests.helpers.drifting import ROWS, drifting_blocks
from tests.helpers.logs import after, golden
from tests.helpers.models import example
from tests.helpers.topics import Cluster, Starter
from tests.helpers.waiting import TIMEOUT_S, eventually
from tests.helpers.worker import ROOT

pytestmark = pytest.mark.broker

DAYS = 32


def write_days(cluster: Cluster, days: range) -> None:
    for number, (value, at) in enumerate(drifting_blocks(days, DAYS - 2)):
        cluster.write(DECISION_FEATURES, value, f"{number}".encode(), at)
    cluster.flush()


def write_events(cluster: Cluster) -> None:
    reported = example(0, event_time=after(1), known_at=after(2))
    about = {"transaction_id": reported.transaction_id, "card_id": reported.card_id}
    alert = golden("alert", Alert, event_time=after(1), **about)
    cluster.write(ALERTS, encode(alert), b"c1", after(1))
    cluster.write(EXAMPLES, encode(reported), b"c1", after(2))
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
    series = {history.name: history for history in monitored.counts.histories()}
    assert series["amount"].counts.sum() == (DAYS - 3) * ROWS
    assert (series[ALERTS_SERIES].counts[1, 1], series[REPORTS].counts[2, 1]) == (1, 1)
    result = cluster.command("drift")
    assert (result.exit_code, "no drift" in result.stdout) == (0, True), result.stdout + result.stderr
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
        with urllib.request.urlopen(address[0], timeout=TIMEOUT_S) as response:
            found = re.search(rf"^fraud_pipeline_{name} (\S+)$", response.read().decode(), re.MULTILINE)
        return None if found is None else float(found[1])

    try:
        eventually(lambda: gauge('drift_alarm{series="amount"}') == 0.0)
        write_days(cluster, range(DAYS - 2, DAYS))
        eventually(lambda: gauge('drift_alarm{series="amount"}') == 1.0)
        assert gauge("drift_day_timestamp_seconds") == after(DAYS - 2).timestamp()
        assert gauge("alert_precision") == 1.0
        assert gauge('fraud_amount{outcome="alerted"}') == example(0).amount_base
        assert gauge('fraud_amount{outcome="missed"}') == 0.0
        follower.send_signal(signal.SIGINT)
        assert follower.wait(TIMEOUT_S) == 130, log.read_text()
    finally:
        follower.kill()
        follower.wait()
    topics.refresh()
    assert monitored.counts.histories()[0].counts.sum() == (DAYS - 1) * ROWS, "nothing is counted twice"
    assert [found.name for found in judge(monitored.counts.histories())[-1].findings] == ["amount"]
    result = cluster.command("drift", "--json")
    assert result.exit_code == DRIFTED, result.stderr
    assert [found["name"] for found in json.loads(result.stdout)["findings"]] == ["amount"]


def test_a_worker_audits_by_its_key_and_the_figures_come_from_topics(cluster: Cluster, start: Starter) -> None:
    """Amounts above 500 alert by a rule, half of all others are audited; a tenth is fraud that nobody reports."""
    audit = Audit(rate=0.5, key_id="k1")
    rule = PolicyRule(code="LARGE", feature="amount", op=">", value=500.0, sentence="More than 500.")
    cluster.publish(Policy(LARGEST_THRESHOLD, old_rules=(rule,), audit=audit))
    for number in range(120):
        cluster.buy(
            number, after(hours=2 * number), card_id=f"c{number % 7}", amount="900" if number % 12 == 0 else "9"
        )
    cluster.buy(900, after(80))
    cluster.flush()
    start(cluster.settings, audit_keys={"k1": "secret"})
    eventually(lambda: len(cluster.decisions()) == 121)
    decisions = cluster.decisions()
    who = np.array([transaction_hash(decision.card_id, decision.transaction_id) for decision in decisions], np.uint64)
    drawn = keyed_positions(who, AUDIT_SAMPLE, b"secret") < audit.rate
    large = np.array([decision.amount > 500 for decision in decisions])
    expected = np.where(large, "rule", np.where(drawn, "audit", "none")).tolist()
    assert [decision.selection or "none" for decision in decisions] == expected
    assert {decision.selection_probability for decision in decisions} == {0.5, 1.0}
    for decision in decisions:
        number = int(decision.transaction_id[1:])
        if decision.selection == "audit":
            known = "fraud" if number % 10 == 1 else "legitimate"
            cluster.say((decision.card_id, decision.transaction_id), after(21), known, source="audit")
        elif decision.selection == "rule":
            cluster.say((decision.card_id, decision.transaction_id), after(21))
        elif number % 10 == 5:
            cluster.say((decision.card_id, decision.transaction_id), after(21), source="customer")
    cluster.flush()
    eventually(lambda: len(cluster.read(ACCEPTED_LABELS)) == len(cluster.read(LABELS)))
    result = cluster.command("audit", "--from", f"{after():%Y-%m-%d}", "--json", code=0)
    reported = json.loads(result.stdout)
    assert (reported["decisions"], reported["decisions_without_audit"], reported["alerted"]) == (121, 0, 10)
    audits = [decision for decision in decisions if decision.selection == "audit" and decision.transaction_id != "t900"]
    assert reported["audited"] == len(audits)
    silent = sum(int(audit.transaction_id[1:]) % 10 == 1 for audit in audits)
    assert reported["never_reported_found"] == silent > 0
    low, high = reported["never_reported"]
    assert low <= 12 <= high
    text = cluster.command("audit", "--from", f"{after():%Y-%m-%d}").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "10 frauds raised an alert by score or rule\n" in text
