"""The measurement of renewals on a small file."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.learning.regimes import LabelRegime
from pipeline.training.fit import TrainingConfig
from tests.evaluation import attacks, detection, renewed
from tests.helpers.handbook import handbook_frame


@pytest.fixture
def frame() -> pd.DataFrame:
    made = handbook_frame(38, seed=3)
    return made.assign(TRANSACTION_ID=np.arange(len(made)), TX_FRAUD_SCENARIO=made["TX_FRAUD"])


def test_an_attack_adds_frauds_and_changes_nothing_else(frame: pd.DataFrame) -> None:
    start = detection.at(f"{frame['TX_DATETIME'].min():%Y-%m-%d}") + timedelta(days=34)
    attack = attacks.Attack(a_day=5)
    found = attacks.attacked(frame, attack, start, start + timedelta(days=3))
    added = found["TX_FRAUD_SCENARIO"] == attacks.ATTACK
    assert added.sum() == 15
    assert found.loc[added, "TX_FRAUD"].all()
    pd.testing.assert_frame_equal(found[~added].reset_index(drop=True), frame)
    assert found["TX_DATETIME"].is_monotonic_increasing
    days = (found.loc[added, "TX_DATETIME"] - start.replace(tzinfo=None)).dt.days
    assert np.bincount(days).tolist() == [5, 5, 5]
    pd.testing.assert_frame_equal(found, attacks.attacked(frame, attack, start, start + timedelta(days=3)))


def test_renewals_are_compared_with_early_reports_and_without(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = frame["TX_DATETIME"].min().normalize()
    days = [f"{first + pd.Timedelta(days=day):%Y-%m-%d}" for day in (33, 37)]
    monkeypatch.setattr(detection, "TRAIN_FROM", f"{first:%Y-%m-%d}")
    monkeypatch.setattr(renewed, "FIRST", days[0])
    monkeypatch.setattr(renewed, "BEHIND", days[1])
    config = TrainingConfig(trees=20, leaves=6)
    monkeypatch.setattr(renewed, "Variant", lambda *source, **more: detection.Variant(*source, config=config, **more))
    _, _, line = renewed.lines(frame, 2, {"one delay": LabelRegime(reported="frauds-only")}, ())
    assert line.startswith("| one delay |")
    assert line.count("+0.00 [+0.00, +0.00]") == 2
    regime = LabelRegime(reported="frauds-only", early_share=0.5)
    file = tmp_path / "transactions.parquet"
    frame.to_parquet(file)
    start, end = (detection.at(day) for day in days)
    without, with_them, _ = renewed.measured(detection.Data(file), regime, 2, start, end)
    assert without.shape == (len(detection.MEASURES), 4)
    assert not np.array_equal(without, with_them)
