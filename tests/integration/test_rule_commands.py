"""Commands of rules on a cluster: what a test on history counts for, and what is refused."""

from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.topics import Cluster
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
    refused = cluster.command("rules", "activate", "tried", *WHY, code=1).output
    assert "'tried' was not tested on 7 days of history with transactions" in refused


def test_a_history_that_cannot_be_read_publishes_nothing(cluster: Cluster, rule_file: str, tmp_path: Path) -> None:
    cluster.publish()
    cluster.command("rules", "publish", rule_file, "--on", str(tmp_path / "none.parquet"), *WHY, code=1)
    assert "tried" not in cluster.command("rules", "list", code=0).output
