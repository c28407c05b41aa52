"""Models of simulated history: LightGBM and a policy."""

from collections.abc import Callable
from typing import Final

import pandas as pd

from pipeline.backtest import frame_tables
from pipeline.backtest.training.training_history import read_history
from pipeline.demo.world import World
from pipeline.learning.regimes import LabelRegime
from pipeline.settings import Settings
from pipeline.settings.kernel_options import card_options
from pipeline.settings.rate_table import load_rates
from pipeline.training.cohorts import split_cohorts
from pipeline.training.fit import Trained, TrainingConfig, train
from schemas.times import US_PER_DAY

LABEL_DELAY_DAYS: Final = 7
VALIDATION_DAYS: Final = 14
"""Long enough for the frauds of a small population."""
CASES_PER_THOUSAND_CARDS: Final = 9.0
"""A day's budget; about as many cards have fraud, so that precision and recall can both be high."""


def train_on(
    history: pd.DataFrame,
    world: World,
    settings: Settings,
    report: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train on what was known when ``history`` ends, for a budget of alerts that suits the world's population.

    Raises ``ModelError`` when the history is too short or the population too small to learn from.
    """
    regime, options = LabelRegime(delay_days=LABEL_DELAY_DAYS), card_options(settings, load_rates(settings), 1)
    data = read_history(frame_tables(history), regime, options, report=report).training_set()
    return train(
        data,
        split_cohorts(
            data.event_time_us,
            label_delay_us=LABEL_DELAY_DAYS * US_PER_DAY,
            validation_us=VALIDATION_DAYS * US_PER_DAY,
        ),
        alerts_per_day=alerts_per_day(world),
        config=TrainingConfig(seed=world.seed),
        report=report,
    )


def alerts_per_day(world: World) -> float:
    """The budget of the world's analysts."""
    return CASES_PER_THOUSAND_CARDS * world.cards / 1_000
