"""Models that a user would take instead of the product, trained on what the product is trained on.

`RIVALS` has a row for each. A rival gets a `Task` and returns a score for each row to score, or NaN where it is too
slow to score them all.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, NamedTuple

import lightgbm
import numpy as np
import xgboost
from numpy.typing import NDArray
from river import anomaly, forest, preprocessing

from pipeline.training.cohorts import Split
from schemas.times import US_PER_DAY
from tests.evaluation.detection import FRAUDS, VALIDATION_DAYS
from tests.evaluation.histories import History
from tests.evaluation.worlds.afternoon import FURTHER, HANDBOOK, afternoon_features

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Example = dict[str, float]
_LEGITIMATE_SHARE: Final = 0.25
"""Share of the legitimate rows to train on; weights make up for it."""
_TREES: Final = 300
_STOPPING_ROUNDS: Final = 30
_LIGHTGBM: Final[dict[str, Any]] = {
    "objective": "binary", "metric": "average_precision", "num_leaves": 31, "learning_rate": 0.05,
    "min_data_in_leaf": 20, "num_threads": 1, "seed": 1, "force_row_wise": True, "verbosity": -1,
}  # fmt: skip
_XGBOOST: Final[dict[str, Any]] = {
    "objective": "binary:logistic", "eval_metric": "aucpr", "max_depth": 6, "learning_rate": 0.05,
    "tree_method": "hist", "nthread": 1, "seed": 1, "verbosity": 0,
}  # fmt: skip
_RIVER_EXAMPLES: Final = 5_000
"""About so many legitimate rows are learned one by one, and all frauds; a forest takes 3 ms for each."""
_RIVER_SCORES: Final = 20_000
"""Most rows to score; of more, every second day is scored, or every third, and so on."""


class Task(NamedTuple):
    """Rows to train on, to choose the number of trees on, and to score, and what is known of them.

    Attributes:
        history: Features and reports of all rows, under `detection.FRAUDS`.
        features: `HANDBOOK` and `FURTHER` of all rows, shape (n, 27).
        past: Rows before those to score, from the first that is trained on.
        training: Some of them whose frauds are known, with all frauds.
        validation: The same of the seven days behind them.
        scored: Rows to score.
        weight: Rows that each row of ``training`` and ``validation`` stands for, shape (n,).
    """

    history: History
    features: Floats
    past: Ints
    training: Ints
    validation: Ints
    scored: Ints
    weight: Floats

    @classmethod
    def of(cls, history: History, train_from: datetime, start: datetime, end: datetime) -> "Task":
        """Return the task of scoring the days from ``start`` to ``end``."""
        fraud = history.data.fraud
        known = start - timedelta(days=FRAUDS.maturity_days)
        checked = known - timedelta(days=VALIDATION_DAYS)
        sampled = fraud | (np.random.default_rng(0).random(len(fraud)) < _LEGITIMATE_SHARE)
        training, validation = (history.rows(train_from, checked), history.rows(checked, known))
        return cls(
            history=history,
            features=afternoon_features(history.data.frame),
            past=history.rows(train_from, start),
            training=training[sampled[training]],
            validation=validation[sampled[validation]],
            scored=history.rows(start, end),
            weight=np.where(fraud, 1.0, 1.0 / _LEGITIMATE_SHARE),
        )


def _lightgbm(task: Task, columns: int) -> Floats:
    """Return scores of LightGBM on the first columns, with as many trees as are best on the validation rows."""
    features, fraud, weight = task.features[:, :columns], task.history.data.fraud, task.weight

    def of(rows: Ints, reference: lightgbm.Dataset | None = None) -> lightgbm.Dataset:
        return lightgbm.Dataset(features[rows], fraud[rows], reference=reference, weight=weight[rows])

    grown, stop = of(task.training), lightgbm.early_stopping(_STOPPING_ROUNDS, verbose=False)
    validation = of(task.validation, reference=grown)
    checked = lightgbm.train(_LIGHTGBM, grown, _TREES, valid_sets=[validation], callbacks=[stop])
    both = of(np.concatenate([task.training, task.validation]))
    booster = lightgbm.train(_LIGHTGBM, both, max(checked.best_iteration, 1))
    return np.asarray(booster.predict(features[task.scored], raw_score=True, num_threads=1), np.float64)


def _xgboost(task: Task, columns: int) -> Floats:
    """Return the same of XGBoost."""
    features, fraud, weight = task.features[:, :columns], task.history.data.fraud, task.weight

    def of(rows: Ints) -> xgboost.DMatrix:
        return xgboost.DMatrix(features[rows], fraud[rows], weight=weight[rows])

    checked = xgboost.train(
        _XGBOOST, of(task.training), _TREES, evals=[(of(task.validation), "validation")],
        early_stopping_rounds=_STOPPING_ROUNDS, verbose_eval=False,
    )  # fmt: skip
    both = of(np.concatenate([task.training, task.validation]))
    booster = xgboost.train(_XGBOOST, both, checked.best_iteration + 1)
    return np.asarray(booster.predict(xgboost.DMatrix(features[task.scored]), output_margin=True), np.float64)


def _forest(task: Task) -> Floats:
    """Return scores of River's adaptive random forest."""
    model = forest.ARFClassifier(seed=1)
    return _prequential(task, model.learn_one, lambda row: model.predict_proba_one(row).get(True, 0.0))


def _half_space_trees(task: Task) -> Floats:
    """Return how unusual rows are to River's half-space trees, which learn the legitimate ones."""
    model = preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(seed=1)

    def learn(row: Example, fraud: bool) -> None:
        if not fraud:
            model.learn_one(row)

    return _prequential(task, learn, model.score_one)


def _prequential(task: Task, learn: Callable[[Example, bool], None], score: Callable[[Example], float]) -> Floats:
    """Return scores of the Handbook's features by a model that learns each row seven days later."""
    data, names = task.history.data, HANDBOOK

    def example(row: int) -> Example:
        return dict(zip(names, task.features[row].tolist(), strict=False))

    rows = np.concatenate([task.past, task.scored])
    chosen = np.random.default_rng(0).random(len(rows)) < _RIVER_EXAMPLES / len(rows)
    examples = rows[data.fraud[rows] | chosen]
    known_us = data.times[examples] + round(FRAUDS.maturity_days * US_PER_DAY)
    until = np.searchsorted(known_us, data.times[task.scored], side="right")
    day = data.times[task.scored] // US_PER_DAY
    of_days = (day[-1] - day) % -(-len(day) // _RIVER_SCORES) == 0
    found, learned = np.full(len(day), np.nan), 0
    for number in np.flatnonzero(of_days).tolist():
        for row in examples[learned : until[number]].tolist():
            learn(example(row), bool(data.fraud[row]))
        learned = int(until[number])
        found[number] = score(example(task.scored[number]))
    return found


def _ceiling(task: Task) -> Floats:
    """Return scores of the default features and settings, of even days by a model of odd ones and of the past."""
    day = task.history.data.times[task.scored] // US_PER_DAY
    found = np.empty(len(day))
    for parity in (0, 1):
        held = day % 2 == parity
        others = task.scored[~held]
        model = task.history.fitted(Split(task.past, others, len(np.unique(day[~held])) * US_PER_DAY))
        found[held] = task.history.logit(model, task.scored[held])
    return found


RIVALS: Final[dict[str, Callable[[Task], Floats]]] = {
    "Handbook's 15, LightGBM": partial(_lightgbm, columns=len(HANDBOOK)),
    "Handbook's 15, XGBoost": partial(_xgboost, columns=len(HANDBOOK)),
    "Handbook's 15, River's adaptive forest": _forest,
    "Handbook's 15, River's half-space trees": _half_space_trees,
    "afternoon's 27, LightGBM": partial(_lightgbm, columns=len(HANDBOOK + FURTHER)),
    "amount alone": lambda task: task.features[task.scored, 0],
    "ceiling": _ceiling,
}
