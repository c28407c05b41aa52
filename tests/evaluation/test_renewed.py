"""The measurement of renewals on a small file."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.engine.history import event_times_us
from pipeline.features.catalogue import US_PER_DAY
from pipeline.learning.regimes import LabelRegime
from pipeline.sources import load_transactions, resolve_mapping
from pipeline.training.fit import TrainingConfig
from tests.evaluation import quality, renewed
from tests.helpers.handbook import handbook_frame


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    path = tmp_path / "transactions.parquet"
    made = handbook_frame(38, seed=3)
    made.assign(TX_FRAUD_SCENARIO=made["TX_FRAUD"]).to_parquet(path)
    return load_transactions(path, resolve_mapping(path, preset="handbook"))


def test_an_attack_adds_frauds_and_changes_nothing_else(frame: pd.DataFrame) -> None:
    times_us = event_times_us(frame["event_time"])
    from_us = int(times_us[0]) // US_PER_DAY * US_PER_DAY + 34 * US_PER_DAY
    attack = renewed.Attack(a_day=5)
    found = renewed.attacked(frame, attack, from_us, from_us + 3 * US_PER_DAY)
    added = found["fraud_type"] == renewed.ATTACK
    assert added.sum() == 15
    assert found.loc[added, "fraud"].all()
    pd.testing.assert_frame_equal(found[~added].reset_index(drop=True), frame)
    assert found["event_time"].is_monotonic_increasing
    days = (event_times_us(found.loc[added, "event_time"]) - from_us) // US_PER_DAY
    assert np.bincount(days).tolist() == [5, 5, 5]
    again = renewed.attacked(frame, attack, from_us, from_us + 3 * US_PER_DAY)
    pd.testing.assert_frame_equal(found, again)


def test_renewals_are_compared_with_early_reports_and_without(
    frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = frame["event_time"].min().normalize()
    days = [f"{first + pd.Timedelta(days=day):%Y-%m-%d}" for day in (33, 37)]
    monkeypatch.setattr(renewed, "FIRST", days[0])
    monkeypatch.setattr(renewed, "BEHIND", days[1])
    config = TrainingConfig(trees=20, leaves=6)
    monkeypatch.setattr(renewed, "Variant", lambda *of, **more: quality.Variant(*of, config=config, **more))
    _, _, line = renewed.lines(frame, 2, {"one delay": LabelRegime(reported="frauds-only")}, ())
    assert line.startswith("| one delay |")
    assert line.count("+0.00 [+0.00, +0.00]") == 2
    regime = LabelRegime(reported="frauds-only", early_share=0.5)
    from_us, to_us = (quality.us_of(day) for day in days)
    without, with_them, _ = renewed.measured(quality.Data(frame), regime, 2, from_us, to_us)
    assert without.shape == (len(quality.MEASURES), 4)
    assert not np.array_equal(without, with_them)
