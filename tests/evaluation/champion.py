"""The LightGBM version of an evaluation: trained by the project's own code on what was known by then."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.decision.policy import Policy
from pipeline.history.files import ColumnMapping
from pipeline.learning.regimes import LabelRegime
from pipeline.models.registry import LIGHTGBM, POLICY, Registry
from pipeline.training.cohorts import split_cohorts
from pipeline.training.fit import TrainingConfig, train
from schemas.times import EPOCH, US_PER_DAY
from tests.helpers.features import history_of
from tests.helpers.files import load_transactions


class Champion(NamedTuple):
    """The versions to evaluate, registered and active."""

    lightgbm: str
    policy: str
    details: dict[str, Any]


class Recipe(NamedTuple):
    """All that decides which LightGBM version comes out, beside the code."""

    file: Path
    mapping: ColumnMapping
    known_before: datetime
    label_delay_days: float
    validation_days: float
    alerts_per_day: float
    config: TrainingConfig


def champion(registry: Registry, recipe: Recipe) -> Champion:
    """Train by ``recipe``; raises ``ModelError``."""
    frame = load_transactions(recipe.file, recipe.mapping, end=recipe.known_before)
    data = history_of(frame, LabelRegime(delay_days=recipe.label_delay_days)).training_set()
    split = split_cohorts(
        data.event_time_us,
        label_delay_us=round(recipe.label_delay_days * US_PER_DAY),
        validation_us=round(recipe.validation_days * US_PER_DAY),
        known_before_us=(recipe.known_before - EPOCH) // timedelta(microseconds=1),
    )
    # The online model takes part in every score: what it adds is what is measured.
    policy = Policy(0.5, blend=1.0)
    trained = train(data, split, alerts_per_day=recipe.alerts_per_day, config=recipe.config, policy=policy)
    registered = registry.register(POLICY, trained.policy.to_payload())
    details = {"metrics": trained.metrics, "periods": trained.model.metadata["periods"]}
    lightgbm = registry.register(LIGHTGBM, trained.model.to_payload(), details)
    registry.activate(LIGHTGBM, lightgbm)
    registry.activate(POLICY, registered)
    return Champion(lightgbm, registered, details)
