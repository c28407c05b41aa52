"""The Handbook's published baselines, through this project's metrics.

Le Borgne, Siblini, Lebichot, Bontempi, "Reproducible Machine Learning for Credit Card Fraud Detection", chapter 3,
"Baseline fraud detection system": the same features, the same split, the same models. Where the figures are those that
were published, AUC ROC, average precision and card precision mean here what they mean there.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from pipeline.backtest.metrics.ranking import known_cards
from pipeline.learning.regimes import NEVER_US
from pipeline.training.score_metrics import auc_roc, average_precision, card_precision
from schemas.times import US_PER_DAY

WINDOWS = (1, 7, 30)
DELAY_DAYS = 7
"""From a transaction to its label."""
TRAIN_DAYS = TEST_DAYS = 7
TRAIN_FROM = datetime(2018, 7, 25, tzinfo=UTC)
TEST_FROM = TRAIN_FROM + timedelta(days=TRAIN_DAYS + DELAY_DAYS)
TEST_TO = TEST_FROM + timedelta(days=TEST_DAYS)
TOP = 100
LAST_HOUR_OF_NIGHT = 6
SATURDAY = 5


@dataclass(frozen=True, slots=True)
class Figures:
    """AUC ROC, average precision, and card precision at 100 with known cards removed."""

    auc_roc: float | None
    average_precision: float | None
    card_precision: float | None


PUBLISHED = {
    "decision tree of depth 2": Figures(0.763, 0.496, 0.241),
    "decision tree of any depth": Figures(0.788, 0.309, 0.243),
    "logistic regression": Figures(0.871, 0.606, 0.291),
    "random forest": Figures(0.867, 0.658, 0.287),
    "XGBoost": Figures(0.862, 0.639, 0.273),
}
"""All that the chapter has, of its test week."""


def models() -> dict[str, Any]:
    """The classifiers that are here too, by the names of `PUBLISHED`; all take scaled features."""
    return {
        "decision tree of depth 2": DecisionTreeClassifier(max_depth=2, random_state=0),
        "decision tree of any depth": DecisionTreeClassifier(random_state=0),
        "logistic regression": LogisticRegression(random_state=0),
        "random forest": RandomForestClassifier(random_state=0),
    }


def trailing(
    key: NDArray[np.int64], time_us: NDArray[np.int64], value: NDArray[np.float64], days: int, delay_days: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum and count of a key's ``value`` over (t - delay - days, t - delay], a transaction's own included.

    Of transactions at one instant those count that stand before, as rows do in the Handbook; all of shape (n,), in
    order of time.
    """
    order = np.argsort(key, kind="stable")
    key, time_us = key[order], time_us[order]
    # One ascending line of times, on which each key lies far behind the one before.
    far = int(time_us.max() - time_us.min()) + (max(WINDOWS) + DELAY_DAYS + 1) * US_PER_DAY
    line = key * far + time_us - time_us.min()
    totals = np.r_[0.0, np.cumsum(value[order])]
    end_us = line - delay_days * US_PER_DAY
    end = np.searchsorted(line, end_us, side="right") if delay_days else np.arange(1, len(line) + 1)
    begin = np.searchsorted(line, end_us - days * US_PER_DAY, side="right")
    sums, counts = np.empty(len(line)), np.empty(len(line), np.int64)
    sums[order], counts[order] = totals[end] - totals[begin], end - begin
    return sums, counts


def handbook_features(frame: pd.DataFrame) -> NDArray[np.float64]:
    """The 15 features of the Handbook's chapter 3, shape (n, 15), of a file in order of time."""
    times = frame["TX_DATETIME"]
    time_us = times.to_numpy("datetime64[us]").astype(np.int64)
    amount, fraud = frame["TX_AMOUNT"].to_numpy(float), frame["TX_FRAUD"].to_numpy(float)
    card, merchant = (frame[name].to_numpy(np.int64) for name in ("CUSTOMER_ID", "TERMINAL_ID"))
    columns = [amount, times.dt.day_of_week >= SATURDAY, times.dt.hour <= LAST_HOUR_OF_NIGHT]
    for days in WINDOWS:
        spent, count = trailing(card, time_us, amount, days)
        columns += [count, spent / count]
    for days in WINDOWS:
        frauds, count = trailing(merchant, time_us, fraud, days, DELAY_DAYS)
        columns += [count, np.divide(frauds, count, out=np.zeros(len(frame)), where=count > 0)]
    return np.column_stack([np.asarray(column, float) for column in columns])


FOLDS = 4
FOLDS_PUBLISHED = {
    "decision tree": Figures(0.823, 0.573, 0.268),
    "logistic regression": Figures(0.867, 0.613, 0.279),
    "random forest": Figures(0.88, 0.694, 0.289),
    "XGBoost": Figures(0.887, 0.708, 0.289),
}
"""Chapter 5, "Model selection": validation performance, each figure at the best of the parameters for it."""


class Weeks:
    """The weeks of training and of test, of a file in order of time.

    Args:
        frame: The file.
        train_from: Begin of the week of training; the week of test begins 14 days later.
    """

    def __init__(self, frame: pd.DataFrame, train_from: datetime = TRAIN_FROM) -> None:
        self._time_us = frame["TX_DATETIME"].to_numpy("datetime64[us]").astype(np.int64)
        self._fraud, self._card = frame["TX_FRAUD"].to_numpy(bool), frame["CUSTOMER_ID"].to_numpy(np.int64)
        day = self._time_us // US_PER_DAY - (train_from - datetime(1970, 1, 1, tzinfo=UTC)).days
        self.train = (day >= 0) & (day < TRAIN_DAYS)
        # Only frauds since the training began make a card known, each once its label came.
        known_us = np.where(self._fraud & (day >= 0), self._time_us + DELAY_DAYS * US_PER_DAY, NEVER_US)
        first = TRAIN_DAYS + DELAY_DAYS
        of_known = known_cards(self._card, self._time_us, known_us)
        self.test = (day >= first) & (day < first + TEST_DAYS) & ~of_known

    def fit(self, model: Any, features: NDArray[np.float64]) -> None:
        """Teach ``model`` the week of training, of features of all rows."""
        model.fit(features[self.train], self._fraud[self.train])

    def measure(self, score: NDArray[np.float64]) -> Figures:
        """Figures of scores of the rows in `test`."""
        fraud, weight = self._fraud[self.test], np.ones(len(score))
        return Figures(
            auc_roc(fraud, score, weight),
            average_precision(fraud, score, weight),
            card_precision(fraud, score, self._time_us[self.test], self._card[self.test], TOP, remove_detected=True),
        )


def baselines(frame: pd.DataFrame, train_from: datetime = TRAIN_FROM) -> dict[str, Figures]:
    """Figures of `models`, trained on the week from ``train_from`` on, and tested on that 14 days later."""
    weeks = Weeks(frame, train_from)
    features = handbook_features(frame)
    scaled = StandardScaler().fit(features[weeks.train]).transform(features)
    found = {}
    for name, model in models().items():
        weeks.fit(model, scaled)
        found[name] = weeks.measure(model.predict_proba(scaled[weeks.test])[:, 1])
    return found
