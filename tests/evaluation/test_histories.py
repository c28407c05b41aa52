"""Trainings on features that are computed once, against backtests of the same days."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.learning.regimes import LabelRegime
from pipeline.training.fit import TrainingConfig
from tests.evaluation import detection
from tests.evaluation.detection import Data, Variant, at, scored
from tests.evaluation.histories import RIVER_WARM_UP, History
from tests.helpers.handbook import handbook_frame

SMALL = TrainingConfig(trees=20, leaves=6)
REGIME = LabelRegime(reported="frauds-only", early_share=0.5)


def test_versions_and_scores_are_those_of_a_backtest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = handbook_frame(40, seed=3)
    first = frame["TX_DATETIME"].min().normalize()
    monkeypatch.setattr(detection, "TRAIN_FROM", f"{first:%Y-%m-%d}")
    frame.to_parquet(path := tmp_path / "transactions.parquet")
    data = Data(path)
    start = at(f"{first + pd.Timedelta(days=36):%Y-%m-%d}")
    end = start + timedelta(days=3)
    variant = Variant("once", REGIME, config=SMALL, renewed_days=(1,), learns=True, early_reports=True)
    backtest = scored(data, variant, start, end)

    history = History(data, REGIME)
    days = [start + timedelta(days=day) for day in range(3)]
    versions = [history.version(day, config=SMALL, early=True) for day in days]
    rows = [history.rows(day, day + timedelta(days=1)) for day in days]
    daily = [history.logit(model, row) for (model, _), row in zip(versions, rows, strict=True)]
    source = backtest["once every day"]
    np.testing.assert_array_equal(np.concatenate(source.rows), np.concatenate(rows))
    np.testing.assert_array_equal(np.concatenate(source.scores), np.concatenate(daily))
    assert not np.array_equal(daily[1], history.logit(versions[0][0], rows[1]))
    once = [history.logit(versions[0][0], row) for row in rows]
    np.testing.assert_array_equal(np.concatenate(backtest["once"].scores), np.concatenate(once))

    warm_up = history.rows(start - RIVER_WARM_UP, start)
    before = history.logit(versions[0][0], warm_up)
    river = history.corrected(np.concatenate([warm_up, *rows]), np.concatenate([before, *daily]), start)
    found = np.concatenate(backtest["once every day, with River"].scores)
    assert np.abs(river - np.concatenate(daily)).max() > 1e-3
    # Of what becomes known within an hour, a backtest learns in another order.
    np.testing.assert_allclose(river, found, atol=0.05)
