"""The first model of a run: LightGBM and a policy, learned from simulated history and put in force."""

from dataclasses import dataclass
from typing import Final

from pipeline.commands.train import publish_champion
from pipeline.demo.world import World
from pipeline.features.catalogue import US_PER_DAY
from pipeline.registry import LIGHTGBM, POLICY, Registry
from pipeline.scoring.river_factory import first_river
from pipeline.settings import Settings
from pipeline.training.cohorts import split_cohorts
from pipeline.training.datasets import from_history
from pipeline.training.fit import TrainingConfig, train

LABEL_DELAY_DAYS: Final = 7
VALIDATION_DAYS: Final = 14
"""Long enough for the frauds of a small population."""
ALERTS_PER_THOUSAND_CARDS: Final = 15.0
"""A day's budget; about as many frauds happen, so that precision and recall can both be high."""


@dataclass(frozen=True, slots=True)
class FirstModel:
    """What was put in force."""

    lightgbm: str
    policy: str
    river: str
    """The online model before its first lesson."""
    trees: int
    precision: float | None
    """Of the alerts of the validation period."""
    transactions: int


def train_first_model(settings: Settings, bootstrap: str, world: World, *, threads: int = 1) -> FirstModel:
    """Simulate the history, train on it, register the versions and publish them to ``models``.

    One thread by default: beside workers and a broker, LightGBM's threads lose more by waiting for each other than they
    gain. Raises ``ModelError`` when the history is too short or the population too small to learn from.
    """
    frame = world.history()
    data = from_history(frame, label_delay_s=LABEL_DELAY_DAYS * 86_400.0)
    trained = train(
        data,
        split_cohorts(
            data.event_time_us,
            label_delay_us=LABEL_DELAY_DAYS * US_PER_DAY,
            validation_us=VALIDATION_DAYS * US_PER_DAY,
        ),
        alerts_per_day=ALERTS_PER_THOUSAND_CARDS * world.cards / 1_000,
        config=TrainingConfig(threads=threads, seed=world.seed),
    )
    registry = Registry(settings.registry_path)
    for name, version, payload in (
        (LIGHTGBM, trained.model.version, trained.model.to_payload()),
        (POLICY, trained.policy.version, trained.policy.to_payload()),
    ):
        registry.register(name, payload, {"metrics": trained.metrics})
        registry.activate(name, version)
    publish_champion(bootstrap, settings, trained.model, trained.policy)
    precision = trained.metrics["alert_precision"]
    return FirstModel(
        lightgbm=trained.model.version,
        policy=trained.policy.version,
        river=first_river(trained.model.version, settings.river_classifier).version,
        trees=trained.model.trees,
        precision=None if precision is None else float(precision),
        transactions=len(frame),
    )
