"""The acceptance run as a user starts it, on a small file with the Handbook's columns."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.settings import Settings
from tests.evaluation.handbook import command
from tests.helpers.handbook import handbook_frame

pytestmark = pytest.mark.broker

CHECKS = 6


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty days, one purchase of them at amount zero."""
    frame = handbook_frame(days=50, seed=2)
    frame.loc[frame.index[frame["TX_FRAUD"] == 0][-1], "TX_AMOUNT"] = 0.0
    path = tmp_path_factory.mktemp("evaluation") / "transactions.parquet"
    frame.to_parquet(path)
    return path


def test_a_run_is_checked_and_measured(
    file: Path, kafka_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", str(kafka_settings.kafka_bootstrap_servers))
    data_dir, output = tmp_path / "data", tmp_path / "evaluation.json"
    arguments = [str(file), "--from", "2018-04-20", "--known-before", "2018-05-10", "--to", "2018-05-21"]
    arguments += ["--sample", "5", "10", "--workers", "1", "--partitions", "2"]
    arguments += ["--budget-per-day", "5", "--data-dir", str(data_dir), "--output", str(output)]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output

    figures = json.loads(output.read_text())
    assert len(figures["checks"]) == CHECKS
    assert all(check["passed"] for check in figures["checks"])
    by_name = {check["name"]: check["figures"] for check in figures["checks"]}
    sent = figures["throughput"]["transactions"]
    assert by_name["every transaction has exactly one decision"] == {
        "file": sent,
        "sent": sent,
        "decisions": sent,
        "decided_more_than_once": 0,
        "dead_letters": 0,
    }
    assert by_name["every label is behind its transaction"]["profiled"] == figures["throughput"]["labels"] > 0
    assert by_name["features equal the reference"]["values"] > 0
    assert by_name["the blend is reproduced"]["decisions"] == sent
    assert figures["throughput"]["transactions_per_s"] > 0
    assert list(figures["detection"]) == ["2018-05-10 to 2018-05-20", "2018-05-14 to 2018-05-20"]
    assert all(period["lightgbm"]["auc_roc"] > 0.5 for period in figures["detection"].values())
    assert "[ok] features equal the reference" in result.output
    assert "trained in" in result.output


def test_a_file_with_too_little_to_learn_from_is_an_error(file: Path, tmp_path: Path) -> None:
    arguments = [str(file), "--from", "2018-04-02", "--known-before", "2018-04-03", "--to", "2018-04-04"]
    result = CliRunner().invoke(command, [*arguments, "--output", str(tmp_path / "none.json")])
    assert result.exit_code == 1
    assert "--label-delay-days" in result.output
    assert not (tmp_path / "none.json").exists()
