"""Fixtures of the tests of backtests: a registry with an active model, and a module's history as a file."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.settings import Settings
from pipeline.simulation.simulator import make_profiles, simulate_days
from tests.helpers.backtest_inputs import DAYS, with_a_champion


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return with_a_champion(tmp_path / "data")


@pytest.fixture(scope="module")
def history() -> pd.DataFrame:
    """A history of `DAYS` days; many modules have one of their own."""
    frame = simulate_days(make_profiles(np.random.default_rng(1), cards=150, merchants=200), 1, 0, DAYS)
    return frame.drop(columns="amount_minor")


@pytest.fixture(scope="module")
def start(history: pd.DataFrame) -> datetime:
    """The time at which it begins."""
    first: datetime = history["event_time"].iloc[0].to_pydatetime().replace(hour=0, minute=0, second=0, microsecond=0)
    return first.astimezone(UTC)


@pytest.fixture
def file(history: pd.DataFrame, tmp_path: Path) -> Path:
    path = tmp_path / "history.parquet"
    history.to_parquet(path, index=False)
    return path
