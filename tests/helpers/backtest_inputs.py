"""What backtests read: simulated history, and a registry with a model in force."""

from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from pipeline.decision.policy import Policy
from pipeline.demo.world import World
from pipeline.registry import LIGHTGBM, POLICY, Registry
from pipeline.settings import Settings
from tests.helpers.champion import policy
from tests.unit.model_helpers import small_model

START = datetime(2024, 3, 1, tzinfo=UTC)
"""When `simulated_days` begin."""


def simulated_days(days: int, *, cards: int = 40, merchants: int = 20, seed: int = 3) -> pd.DataFrame:
    """So many days of a small world, with the columns that a file has."""
    world = World(cards=cards, merchants=merchants, seed=seed, history_days=days, start=START.date())
    return pd.concat(list(world.days(0, days)), ignore_index=True).drop(columns="amount_minor")


def with_a_champion(data_dir: Path, of: Policy | None = None) -> Settings:
    """Settings whose registry has one model in force, which tells no distributions, and a policy."""
    settings = Settings(data_dir=data_dir, kafka_bootstrap_servers=None, timestamps="producer")
    registry = Registry(settings.registry_path)
    registry.activate(LIGHTGBM, registry.register(LIGHTGBM, small_model().to_payload()))
    registry.activate(POLICY, registry.register(POLICY, (of or policy()).to_payload()))
    return settings
