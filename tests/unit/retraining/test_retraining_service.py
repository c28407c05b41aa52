"""When the service trains a challenger, and what it says where it cannot run."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.decision.policy import FIRST_BLEND
from pipeline.kafka.session.quarantine import control_record
from pipeline.retraining import service as retraining_service
from pipeline.retraining.cluster_reader import AS_OF, BY
from pipeline.retraining.service import Retrainer, ServiceOptions, policy_back
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.settings import Settings
from pipeline.training.cold_start import cold_start
from schemas.messages import Assessment, Control, LearningSwitch
from schemas.records import Record
from schemas.times import US_PER_DAY
from tests.helpers.logs import START
from tests.helpers.models import small_model
from tests.unit.retraining.test_retraining import activation

DAY = 20_000
CYCLE = Assessment(
    versions=[], outcome="rejected", by=BY, reason="", figures={AS_OF: DAY * US_PER_DAY}, assessed_at=START
)
ROLLBACK = activation(1, "a", "p", step="rollback", by=BY, **{AS_OF: DAY * US_PER_DAY})
PROMOTION = activation(1, "a", "p", step="promote", by=BY, **{AS_OF: DAY * US_PER_DAY})


def switch(frozen: bool) -> LearningSwitch:
    return LearningSwitch(frozen=frozen, by="dana", reason="labels are wrong", switched_at=START)


@pytest.fixture(autouse=True)
def no_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retraining_service, "_drift_of", lambda *_: None)


def waits(items: Sequence[Control], days: float, *, now: bool = False, new_day: bool = True) -> str | None:
    """Return why a service waits that reads ``items`` on `control`, so many days behind `DAY`."""
    # No broker is asked: the records are handed over.
    service = Retrainer("127.0.0.1:1", Settings(), ServiceOptions(every_days=2.0))
    service._topics.published.add(
        [Record("control", 0, n, 0, b"", control_record(item).value) for n, item in enumerate(items)]
    )
    return service._waits(small_model(), round((DAY + days) * US_PER_DAY), now=now, new_day=new_day)


def test_a_challenger_is_due_with_event_time_since_the_last_one() -> None:
    assert waits([], 0) is None
    for item in (CYCLE, PROMOTION):
        assert waits([item], 1.9) == "no challenger is due"
        assert waits([item], 2.0) is None
    assert waits([CYCLE], 0.1, now=True) is None
    assert "has read the newest decisions" in (waits([CYCLE], 0, now=True) or "")


def test_nothing_is_trained_while_learning_is_frozen_or_after_a_rollback() -> None:
    assert waits([CYCLE, switch(True)], 9, now=True) == "learning is frozen by dana: labels are wrong"
    assert waits([CYCLE, switch(True), switch(False)], 9) is None
    assert "a version was rolled back" in (waits([ROLLBACK], 6.9, now=True) or "")
    assert waits([ROLLBACK], 7.0) is None


def test_drift_brings_a_challenger_ahead_of_time_once_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    def drifted(_: object, model: LightGBMModel) -> str:
        assert model.trees
        return "amounts are twice as large"

    monkeypatch.setattr(retraining_service, "_drift_of", drifted)
    assert waits([CYCLE], 0.5) is None
    assert waits([CYCLE], 0.5, new_day=False) == "no challenger is due"
    assert waits([switch(True)], 0.5) is not None


def test_a_rollback_to_a_cold_start_lets_the_online_model_score_again() -> None:
    cold, of_cold = cold_start(0.01, 0.4, 0.0)
    back = policy_back(of_cold.replace(blend=FIRST_BLEND, threshold=0.9), of_cold, cold)
    assert (back.blend, back.threshold, back.lightgbm_version) == (1.0, 0.4, cold.version)
    back = policy_back(of_cold.replace(blend=0.25), of_cold, small_model())
    assert (back.blend, back.lightgbm_version) == (0.25, small_model().version)


def test_without_a_cluster_the_command_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.setenv("FRAUD_PIPELINE_DATA_DIR", str(tmp_path))
    run = CliRunner().invoke(main, ["retrain", "--once"])
    assert run.exit_code == 1
    assert "name a cluster with KAFKA_BOOTSTRAP_SERVERS" in run.output
    assert CliRunner().invoke(main, ["retrain", "--compare-days", "1"]).exit_code == 2
