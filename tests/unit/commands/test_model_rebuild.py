"""A version is trained again from its metadata: the same digest, or a sentence about what differs."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.models.registry import LIGHTGBM, Registry
from tests.helpers.mappings import PLAIN
from tests.helpers.models import small_model
from tests.unit.training.test_training import history

ARGUMENTS = ("--trees", "10", "--budget-per-day", "5", "--features", "amount,hour,card_*", "--seed", "7")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FRAUD_PIPELINE_DATA_DIR", str(tmp_path))
    history(30).to_parquet(tmp_path / "history.parquet")
    return tmp_path


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def trained(home: Path, *arguments: str) -> str:
    result = run("train", home / "history.parquet", *ARGUMENTS, *arguments)
    assert result.exit_code == 0, result.output
    version: str = json.loads(result.stdout)["lightgbm"]
    return version


def test_the_same_file_gives_the_same_digest_and_another_one_does_not(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mapping := home / "mapping.toml").write_bytes(PLAIN)
    version = trained(home, "--known-before", "2018-04-28", "--reported", "frauds-only", "--mapping", str(mapping))
    mapping.unlink()
    registry = Registry(home / "registry")
    digest = registry.entry(LIGHTGBM, version).digest
    # Another name, another active policy, and nothing of it is left behind.
    copy = (home / "history.parquet").rename(home / "moved.parquet")
    before = sorted(home.rglob("*"))
    result = run("models", "rebuild", version, copy, "--registry")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"Training again gave version {version} too: digest {digest}.\n"
    assert sorted(home.rglob("*")) == before

    frame = history(30)
    frame.iloc[1:].to_parquet(home / "shorter.parquet")
    frame.assign(amount=frame["amount"] * 2).to_parquet(home / "dearer.parquet")
    for name, sentence in (("shorter", "the rows differ: it was trained on"), ("dearer", "the content of the")):
        result = run("models", "rebuild", version, home / f"{name}.parquet", "--registry")
        assert result.exit_code == 1
        assert sentence in result.stderr
        assert "Traceback" not in result.output
    monkeypatch.setenv("FRAUD_PIPELINE_DEDUPLICATION_DAYS", "90")
    result = run("models", "rebuild", version, copy, "--registry")
    assert "settings differ: dedup_horizon_days was 120.0 and is 90.0" in result.stderr


def test_a_version_that_does_not_say_how_it_was_made_is_not_trained_again(home: Path) -> None:
    Registry(home / "registry").register(LIGHTGBM, small_model().to_payload())
    result = run("models", "rebuild", small_model().version, home / "history.parquet", "--registry")
    assert (result.exit_code, "does not say how it was trained" in result.output) == (1, True)


def test_barred_features_are_refused_before_anything_is_trained(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAUD_PIPELINE_BARRED_FEATURES", "customer_*, card_m?rchant_count, hour")
    result = run("train", home / "history.parquet", *ARGUMENTS)
    assert result.exit_code == 1
    assert (
        "bars hour, card_merchant_count: leave them out with --features '-hour,-card_merchant_count'" in result.output
    )
    assert not (home / "registry").exists()
    result = run("train", home / "history.parquet", *ARGUMENTS, "--features", "amount,card_*,-card_merchant_count")
    assert result.exit_code == 0, result.output
