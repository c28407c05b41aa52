"""Models that a user would take instead of the product, trained on what the product is trained on."""

from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import lightgbm
import numpy as np
from numpy.typing import NDArray

from tests.evaluation.detection import FRAUDS, VALIDATION_DAYS, Data
from tests.evaluation.histories import History
from tests.evaluation.worlds.afternoon import HANDBOOK, afternoon_features

Floats = NDArray[np.float64]
DEFAULT: Final = "default"
AMOUNT: Final = "amount alone"
FIFTEEN: Final = "Handbook's 15, LightGBM"
AFTERNOON: Final = "afternoon's 27, LightGBM"
_LEGITIMATE_SHARE: Final = 0.25
"""Share of the legitimate rows to train on; weights make up for it."""
_PARAMETERS: Final[dict[str, Any]] = {
    "objective": "binary", "metric": "average_precision", "num_leaves": 31, "learning_rate": 0.05,
    "min_data_in_leaf": 20, "num_threads": 1, "seed": 1, "force_row_wise": True, "verbosity": -1,
}  # fmt: skip
_TREES: Final = 300
_STOPPING_ROUNDS: Final = 30


class Task(NamedTuple):
    """Rows to train on, to choose the number of trees on, and to score; seven days lie before those to score."""

    training: NDArray[np.int64]
    validation: NDArray[np.int64]
    scored: NDArray[np.int64]

    @classmethod
    def of(cls, history: History, train_from: datetime, start: datetime, end: datetime) -> "Task":
        """Return the task of scoring some days by frauds that are reported after seven."""
        known = start - timedelta(days=FRAUDS.maturity_days)
        checked = known - timedelta(days=VALIDATION_DAYS)
        return cls(history.rows(train_from, checked), history.rows(checked, known), history.rows(start, end))


def scores(history: History, train_from: datetime, start: datetime, end: datetime) -> dict[str, Floats]:
    """Return the scores of each model for some days, by its name; the product's first.

    Args:
        history: Features and reports of a world, under `detection.FRAUDS`.
        train_from: The first day that is trained on.
        start: The first day that is scored.
        end: The day after the last one.
    """
    task = Task.of(history, train_from, start, end)
    model, _ = history.version(start)
    features = afternoon_features(history.data.frame)
    return {
        DEFAULT: history.logit(model, task.scored),
        FIFTEEN: _boosted(history.data, features[:, : len(HANDBOOK)], task),
        AFTERNOON: _boosted(history.data, features, task),
        AMOUNT: features[task.scored, 0],
    }


def _boosted(data: Data, features: Floats, task: Task) -> Floats:
    """Return scores of LightGBM, with as many trees as are best on the validation rows."""
    sampled = data.fraud | (np.random.default_rng(0).random(len(data.fraud)) < _LEGITIMATE_SHARE)
    weight = np.where(data.fraud, 1.0, 1.0 / _LEGITIMATE_SHARE)
    training, validation = (rows[sampled[rows]] for rows in (task.training, task.validation))

    def of(rows: NDArray[np.int64], reference: lightgbm.Dataset | None = None) -> lightgbm.Dataset:
        return lightgbm.Dataset(features[rows], data.fraud[rows], reference=reference, weight=weight[rows])

    grown, stop = of(training), lightgbm.early_stopping(_STOPPING_ROUNDS, verbose=False)
    checked = lightgbm.train(_PARAMETERS, grown, _TREES, valid_sets=[of(validation, reference=grown)], callbacks=[stop])
    both = np.concatenate([training, validation])
    booster = lightgbm.train(_PARAMETERS, of(both), max(checked.best_iteration, 1))
    return np.asarray(booster.predict(features[task.scored], raw_score=True, num_threads=1), np.float64)
