"""`train --from-topics`: a version from what was served, with what labels say of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.commands import training_input
from pipeline.models.registry import Registry
from pipeline.settings import Settings
from pipeline.training.served import ServedLog
from tests.helpers.models import registered, small_model
from tests.helpers.served import feature_records, label_records, simulated

HISTORY = simulated(40, cards=150, merchants=300)


def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: ServedLog, *options: str) -> Result:
    monkeypatch.setenv("FRAUD_PIPELINE_REGISTRY_DIR", str(tmp_path / "registry"))
    # What is read is what `tests/integration/test_retrain.py` reads from a broker.
    monkeypatch.setattr(training_input, "read_served", lambda *_: log)
    return CliRunner().invoke(main, ["train", "--from-topics", "--bootstrap", "b", "--trees", "20", *options])


def test_a_version_is_trained_on_every_decision_that_is_mature(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = ServedLog(Settings())
    log.add_features(feature_records(HISTORY, small_model()))
    frauds = np.flatnonzero(HISTORY.fraud)
    log.add_labels(label_records(HISTORY, frauds.tolist()))
    options = ("--label-delay-days", "7", "--budget-per-day", "5")
    run = trained(monkeypatch, tmp_path, log, *options)
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    mature = HISTORY.event_time_us <= HISTORY.event_time_us[-1] - 7 * 86_400_000_000
    rows = found["periods"]["training"]["rows"] + found["periods"]["validation"]["rows"]
    assert rows == int(mature.sum())
    metadata = registered(Registry(tmp_path / "registry"), found["lightgbm"]).metadata
    assert metadata["frauds"]["training"] + metadata["frauds"]["validation"] == int((HISTORY.fraud & mature).sum())
    assert "early" not in metadata


def test_without_a_decision_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = trained(monkeypatch, tmp_path, ServedLog(Settings()))
    assert run.exit_code == 1
    assert "topic features holds no decision to train on: train from a file until workers have decided" in run.output
