"""Inputs of backtests: simulated history, and a registry with an active model."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.backtest.api import Backtest
from pipeline.backtest.runner.arguments import LabelPolicy, OnlineModel, Thresholds, TimeRange
from pipeline.decision.policy import Policy
from pipeline.demo.world import World
from pipeline.learning.regimes import LabelRegime
from pipeline.models.registry import LIGHTGBM, POLICY, Registry
from pipeline.settings import Settings
from tests.helpers.champion import policy
from tests.helpers.models import small_model

START = datetime(2024, 3, 1, tzinfo=UTC)
"""When `simulated_days` begin."""
DAYS = 34
"""Days of the history that trained models get."""


def backtest_of(history: str | Path | None = None, **options: Any) -> Backtest:
    """A backtest by options that are named as the fields of its arguments are, without their groups.

    ``labels``, ``label_file`` and ``river`` stand for the label policy's mode and file, and the online model's version;
    ``label_delay_s`` for the regime's delay.
    """

    def taken(source: type, **names: str) -> dict[str, Any]:
        fields = {names.get(field, field): field for field in source.__annotations__}
        return {fields[name]: options.pop(name) for name in fields.keys() & options.keys()}

    delay = {"delay_days": options.pop("label_delay_s") / 86_400.0} if "label_delay_s" in options else {}
    regime = LabelRegime(**delay, **taken(LabelRegime))
    return Backtest(
        history,
        range=TimeRange(**taken(TimeRange)),
        thresholds=Thresholds(**taken(Thresholds, fixed="thresholds")),
        online=OnlineModel(**taken(OnlineModel, version="river")),
        labels=LabelPolicy(regime=regime, **taken(LabelPolicy, mode="labels", file="label_file")),
        **options,
    )


def simulated_days(days: int, *, cards: int = 40, merchants: int = 20, seed: int = 3) -> pd.DataFrame:
    """So many days of a small world, with the columns that a file has."""
    world = World(cards=cards, merchants=merchants, seed=seed, history_days=days, start=START.date())
    return pd.concat(list(world.days(0, days)), ignore_index=True).drop(columns="amount_minor")


def with_a_champion(data_dir: Path, source: Policy | None = None) -> Settings:
    """Settings whose registry has one active model, which tells no distributions, and a policy."""
    settings = Settings(data_dir=data_dir, kafka_bootstrap_servers=None, timestamps="producer")
    registry = Registry(settings.registry_path)
    registry.activate(LIGHTGBM, registry.register(LIGHTGBM, small_model().to_payload()))
    registry.activate(POLICY, registry.register(POLICY, (source or policy()).to_payload()))
    return settings
