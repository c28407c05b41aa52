"""Commands of rules on a cluster: what a test on history counts for, and what is refused."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.settings import Settings
from tests.helpers.logs import after
from tests.helpers.topics import Cluster, command
from tests.unit.rules.test_rule_history import A_DAY, exported, simulated

pytestmark = pytest.mark.broker

WHY = ("--reason", "A test.", "--by", "dana")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return simulated()


@pytest.fixture
def rule_file(tmp_path: Path) -> str:
    file = tmp_path / "tried.sql"
    file.write_text("-- code: tried\n-- owner: dana\n-- reason: A test.\nscore > 0.5\n")
    return str(file)


def test_empty_days_between_two_transactions_are_no_test(
    cluster: Cluster, rule_file: str, tmp_path: Path, frame: pd.DataFrame
) -> None:
    cluster.publish()
    few = str(exported(tmp_path / "few", frame.loc[[0, 6 * A_DAY, 24 * A_DAY]]))
    shown = cluster.command("rules", "test", rule_file, "--on", few, "--by", "dana", code=0).output
    assert ": 7 days (2 with transactions), 2 transactions" in shown
    assert "Recorded as test 1 of tried." in shown
    cluster.command("rules", "publish", rule_file, *WHY, code=0)
    day = f"{after(24 * 24):%Y-%m-%d}"
    for chosen, reason in ((("--from", day), "among the newest 14"), (("--from", day, "--to", day), "there is no day")):
        assert reason in cluster.command("rules", "test", rule_file, "--on", few, *chosen).output
    assert "Recorded as test 2" in cluster.command("rules", "test", rule_file, "--on", few, code=0).output
    refused = cluster.command("rules", "activate", "tried", *WHY, code=1).output
    assert "'tried' was not tested on 7 days of history with transactions" in refused


def test_a_history_that_cannot_be_read_publishes_nothing(cluster: Cluster, rule_file: str, tmp_path: Path) -> None:
    cluster.publish()
    cluster.command("rules", "publish", rule_file, "--on", str(tmp_path / "none.parquet"), *WHY, code=1)
    assert "tried" not in cluster.command("rules", "list", code=0).output


def test_each_look_at_the_newest_days_is_recorded_and_is_no_test(
    cluster: Cluster, rule_file: str, tmp_path: Path, frame: pd.DataFrame
) -> None:
    cluster.publish()
    history = str(exported(tmp_path / "history", frame))
    for look in (1, 2):
        shown = cluster.command("rules", "publish", rule_file, "--on", history, *WHY, code=0).output
        assert f"Recorded as look {look} at the newest days of tried." in shown
        assert ": 14 days, " in shown
        twice = cluster.command("rules", "publish", rule_file, "--on", history, *WHY, code=1).output
        assert "hits:" not in twice
        if look == 1:
            cluster.command("rules", "retire", "tried", *WHY, code=0)
    assert "was not tested on 7 days" in cluster.command("rules", "activate", "tried", *WHY, code=1).output
    cluster.command("rules", "test", rule_file, "--on", history, "--by", "dana", code=0)
    cluster.command("rules", "activate", "tried", *WHY, code=0)
    shown = cluster.command("rules", "show", "tried", code=0).output
    assert "shadow -> active (tests: 1, looks at the newest days: 2)  by dana" in shown


def test_a_cluster_without_topics_records_no_test(
    kafka_settings: Settings, rule_file: str, tmp_path: Path, frame: pd.DataFrame
) -> None:
    history = str(exported(tmp_path / "history", frame))
    shown = command(kafka_settings, "rules", "test", rule_file, "--on", history, code=0).output
    assert "  hits: " in shown
    assert f"Not recorded: there is no topic {kafka_settings.topic('control')}" in shown


@pytest.mark.parametrize("name", ["", "  ", "dana\n", "da\x1b[2Kna", "\u202eanad"])
def test_a_name_or_reason_that_nobody_can_read_changes_nothing(cluster: Cluster, rule_file: str, name: str) -> None:
    why = ("--reason", "A test.", "--by")
    for arguments in (
        ("rules", "retire", "large-amount", *why, name),
        ("rules", "test", rule_file, "--on", "nowhere", "--by", name),
        ("lists", "add", "bad", "c1", "--kind", "block", "--field", "card_id", *why, "dana", "--owner", name),
        ("rules", "retire", "large-amount", "--by", "dana", "--reason", name),
    ):
        assert "takes one line, without control characters" in cluster.command(*arguments, code=2).output
