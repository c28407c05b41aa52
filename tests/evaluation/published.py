"""``python -m tests.evaluation.published FILE``: the Handbook's published baselines, through this project's metrics.

Le Borgne, Siblini, Lebichot, Bontempi, "Reproducible Machine Learning for Credit Card Fraud Detection", chapter 3,
"Baseline fraud detection system": the same features, the same split, the same models. Where the figures are those that
were published, AUC ROC, average precision and card precision mean here what they mean there.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from pipeline.backtest.metrics import known_cards
from pipeline.backtest.truth import NEVER
from pipeline.features.catalogue import US_PER_DAY
from pipeline.training.metrics import auc_roc, average_precision, card_precision

WINDOWS = (1, 7, 30)
DELAY_DAYS = 7
"""From a transaction to its label."""
TRAIN_DAYS = TEST_DAYS = 7
TRAIN_FROM = date(2018, 7, 25)
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
    "logistic regression": Figures(0.871, 0.606, 0.291),
}


def models() -> dict[str, Any]:
    """The classifiers, by the names of `PUBLISHED`; all take scaled features."""
    return {
        "decision tree of depth 2": DecisionTreeClassifier(max_depth=2, random_state=0),
        "logistic regression": LogisticRegression(random_state=0),
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


def baselines(frame: pd.DataFrame) -> dict[str, Figures]:
    """Figures of the models of `PUBLISHED`, trained from 25 to 31 July and tested from 8 to 14 August."""
    features = handbook_features(frame)
    time_us = frame["TX_DATETIME"].to_numpy("datetime64[us]").astype(np.int64)
    fraud, card = frame["TX_FRAUD"].to_numpy(bool), frame["CUSTOMER_ID"].to_numpy(np.int64)
    day = time_us // US_PER_DAY - (TRAIN_FROM - date(1970, 1, 1)).days
    train = (day >= 0) & (day < TRAIN_DAYS)
    # Only frauds since the training began make a card known, each once its label came.
    known_us = np.where(fraud & (day >= 0), time_us + DELAY_DAYS * US_PER_DAY, NEVER)
    first = TRAIN_DAYS + DELAY_DAYS
    test = (day >= first) & (day < first + TEST_DAYS) & ~known_cards(card, time_us, known_us)
    scaler = StandardScaler().fit(features[train])
    found = {}
    for name, model in models().items():
        model.fit(scaler.transform(features[train]), fraud[train])
        score = model.predict_proba(scaler.transform(features[test]))[:, 1]
        weight = np.ones(len(score))
        found[name] = Figures(
            auc_roc(fraud[test], score, weight),
            average_precision(fraud[test], score, weight),
            card_precision(fraud[test], score, time_us[test], card[test], TOP, remove_detected=True),
        )
    return found


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def command(file: Path) -> None:
    """Print the figures of FILE beside those that were published."""
    for name, figures in baselines(pd.read_parquet(file)).items():
        for who, one in (("here", figures), ("published", PUBLISHED[name])):
            click.echo(f"{name:26}{who:11}{one.auc_roc:7.3f}{one.average_precision:7.3f}{one.card_precision:7.3f}")


if __name__ == "__main__":
    command()
