"""Fixtures of the tests of backtests: a registry with an active model, and a module's history as a file."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.settings import Settings
from tests.helpers.backtest_inputs import with_a_champion


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return with_a_champion(tmp_path / "data")


@pytest.fixture
def file(history: pd.DataFrame, tmp_path: Path) -> Path:
    path = tmp_path / "history.parquet"
    history.to_parquet(path, index=False)
    return path
