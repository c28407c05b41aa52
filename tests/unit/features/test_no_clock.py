"""No default feature tells the time: where nothing changes from day to day, no level grows with the calendar.

A model takes an age without end for a date, and fails on the days after its training.
"""

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from pipeline.features.catalogue import DEFAULT_FEATURES, FEATURES
from pipeline.history.canonical_columns import canonical_frame
from pipeline.learning.regimes import LabelRegime
from schemas.times import US_PER_DAY, US_PER_HOUR
from tests.helpers.features import history_of

FIRST_DAY = 19_800
"""Days from 1970 to the first one."""
DAYS = 110
SETTLED_DAYS = 45
"""From here on every window of 30 days is full, and so is what is known of its frauds seven days later."""
MOST_TREND = 0.1
CARDS, MERCHANTS, A_DAY = 250, 60, 400


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Transactions whose numbers, amounts, hours and frauds are drawn alike for every day."""
    generator = np.random.default_rng(5)
    n = DAYS * A_DAY
    day = FIRST_DAY + np.repeat(np.arange(DAYS), A_DAY)
    time_us = np.sort(day * US_PER_DAY + (generator.normal(14, 4, n) % 24 * US_PER_HOUR).astype(np.int64))
    card, merchant = generator.integers(CARDS, size=n), generator.integers(MERCHANTS, size=n)
    outlier = generator.random(n) < 0.02
    minor = np.rint(3_000 * np.exp(generator.normal(0, 0.5, n)) * np.where(outlier, 6, 1)).astype(np.int64)
    return canonical_frame(
        time_us,
        {
            "transaction_id": np.array([f"T{k}" for k in range(n)], object),
            "card_id": np.array([f"C{k}" for k in card], object),
            "merchant_id": np.array([f"M{k}" for k in merchant], object),
            "amount": minor / 100,
            "amount_minor": minor,
            "currency": np.full(n, "EUR", object),
            "fraud": generator.random(n) < 0.02,
        },
    )


def days_of(frame: pd.DataFrame) -> NDArray[np.float64]:
    days: NDArray[np.float64] = frame["event_time"].to_numpy("datetime64[us]").astype(np.int64) / US_PER_DAY - FIRST_DAY
    return days


def trend(day: NDArray[np.float64], value: NDArray[np.float64]) -> float:
    """Return the rank correlation of a feature with time, once windows are full; 0 for one that never changes."""
    settled = (day >= SETTLED_DAYS) & ~np.isnan(value)
    if len(np.unique(value[settled])) < 2:
        return 0.0
    return float(spearmanr(day[settled], value[settled]).statistic)


def test_no_default_feature_grows_with_the_calendar(frame: pd.DataFrame) -> None:
    features = history_of(frame, LabelRegime(reported="frauds-only", delay_days=7.0)).training_set().features
    day = days_of(frame)
    trends = {name: trend(day, features[:, FEATURES.index(name)].astype(np.float64)) for name in DEFAULT_FEATURES}
    assert {name: value for name, value in trends.items() if abs(value) > MOST_TREND} == {}
    assert sum(value != 0 for value in trends.values()) == len(DEFAULT_FEATURES), "each of them had values"


def test_ages_without_end_and_windows_that_fill_for_months_would_be_found(frame: pd.DataFrame) -> None:
    day = days_of(frame)
    age = day - pd.Series(day).groupby(frame["merchant_id"].to_numpy()).transform("min").to_numpy()
    visits = frame.groupby("card_id").cumcount().to_numpy(np.float64)
    for clock in (age, visits, np.minimum(age, 90.0)):
        assert trend(day, clock) > 0.5
