"""Fit, calibrate and measure a LightGBM version from matrices. Deterministic for a seed and a number of threads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import lightgbm
import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.decision.policy import Policy
from pipeline.features.catalogue import FEATURES, KERNEL_VERSION, US_PER_DAY
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.distributions import distributions_of
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.training.calibration import fit_platt
from pipeline.training.cohorts import Split
from pipeline.training.metrics import auc_roc, average_precision, budget_threshold, card_precision

TOP_CARDS: Final = 100
"""Cards a day of the card precision that is reported."""
LEAST_FRAUDS: Final = 10


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Transactions with what they turned out to be; arrays of n rows."""

    features: NDArray[np.float64]
    """Shape (n, len(FEATURES))."""
    fraud: NDArray[np.bool_]
    weight: NDArray[np.float64]
    """How many transactions each row stands for."""
    event_time_us: NDArray[np.int64]
    card: NDArray[np.int64]
    """The card as any integer."""


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the trees are grown. The defaults suit some 10 frauds a day and more; see ``docs/models.md``."""

    trees: int = 200
    leaves: int = 31
    learning_rate: float = 0.07
    rows_per_leaf: int = 100
    feature_fraction: float = 0.6
    row_fraction: float = 0.8
    l2: float = 5.0
    early_stopping_rounds: int = 30
    threads: int = 1
    """LightGBM's threads spin while they wait: more of them than free cores are slower than one."""
    seed: int = 20_180_401


@dataclass(frozen=True, slots=True)
class Trained:
    """A LightGBM version with a policy made for it, and how it did on the validation period."""

    model: LightGBMModel
    policy: Policy
    metrics: dict[str, Any]


def train(
    data: TrainingSet,
    split: Split,
    *,
    alerts_per_day: float = 100.0,
    config: TrainingConfig | None = None,
    policy: Policy | None = None,
    features: Sequence[str] = FEATURES,
    details: dict[str, Any] | None = None,
) -> Trained:
    """Train on the first rows of ``split``, stop, calibrate and set the threshold on the later ones.

    ``policy`` gives blend, audit rate and rules of the new policy. Trees ask for ``features`` alone, and the model
    keeps how these are distributed in the first rows; ``details`` goes into its metadata. The validation period chooses
    the number of trees, the calibration and the threshold, so its metrics flatter a little: a backtest on later days is
    the measure. Raises `ModelError` when a period holds too few frauds.
    """
    config = config or TrainingConfig()
    for name, rows in (("training", split.training), ("validation", split.validation)):
        frauds = int(data.fraud[rows].sum())
        if frauds < LEAST_FRAUDS or frauds == len(rows):
            raise ModelError(
                f"the {name} period holds {frauds} frauds among {len(rows)} labelled transactions; at least "
                f"{LEAST_FRAUDS} of each kind are needed: choose a longer period (--train-from, --validation-days)"
            )
    booster = _grow(data, split, config, features)
    checked = split.validation
    margin = np.asarray(booster.predict(data.features[checked], raw_score=True, num_threads=config.threads))
    fraud, weight = data.fraud[checked], data.weight[checked]
    calibration = fit_platt(margin, fraud, weight)
    metadata = {
        "training": msgspec.to_builtins(config),
        "periods": split.describe(data.event_time_us),
        "frauds": {"training": int(data.fraud[split.training].sum()), "validation": int(fraud.sum())},
        **(details or {}),
    }
    grown_on = split.training
    distributions = distributions_of(data.features[grown_on], data.weight[grown_on], features)
    model = LightGBMModel(booster.model_to_string(), calibration, metadata, distributions=distributions)
    score = sigmoid(model.logit(data.features[checked]))
    days = split.validation_us / US_PER_DAY
    threshold = budget_threshold(score, weight, days, alerts_per_day)
    metrics = _measure(data, split, score, threshold, days) | {"trees": model.trees}
    base = policy or Policy(0.5)
    new_policy = base.replace(
        threshold=threshold,
        lightgbm_version=model.version,
        metadata={"alerts_per_day": alerts_per_day, "validation_days": days},
    )
    return Trained(model, new_policy, metrics)


def _grow(data: TrainingSet, split: Split, config: TrainingConfig, features: Sequence[str]) -> lightgbm.Booster:
    # A column of one value is never asked for: the trees are those of a kernel with all its features all the same.
    others = [column for column, name in enumerate(FEATURES) if name not in features]
    parameters = {
        "objective": "binary",
        "metric": "average_precision",
        "num_leaves": config.leaves,
        "learning_rate": config.learning_rate,
        "min_data_in_leaf": config.rows_per_leaf,
        "feature_fraction": config.feature_fraction,
        "bagging_fraction": config.row_fraction,
        "bagging_freq": 1,
        "lambda_l2": config.l2,
        "num_threads": config.threads,
        "seed": config.seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }

    def dataset(rows: NDArray[np.intp], reference: lightgbm.Dataset | None = None) -> lightgbm.Dataset:
        columns = data.features[rows]
        columns[:, others] = 0.0
        return lightgbm.Dataset(
            columns,
            data.fraud[rows].astype(np.float64),
            weight=data.weight[rows],
            feature_name=list(FEATURES),
            reference=reference,
            params={"verbosity": -1},
        )

    training = dataset(split.training)
    booster = lightgbm.train(
        parameters,
        training,
        num_boost_round=config.trees,
        valid_sets=[dataset(split.validation, training)],
        callbacks=[lightgbm.early_stopping(config.early_stopping_rounds, verbose=False)],
    )
    # The text of the best iteration alone: what comes after it is not part of the version.
    return lightgbm.Booster(model_str=booster.model_to_string(num_iteration=booster.best_iteration))


def _measure(
    data: TrainingSet, split: Split, score: NDArray[np.float64], threshold: float, days: float
) -> dict[str, Any]:
    rows = split.validation
    fraud, weight = data.fraud[rows], data.weight[rows]
    alerts = score >= threshold
    alerted = float(weight[alerts].sum())
    return {
        "auc_roc": auc_roc(fraud, score, weight),
        "average_precision": average_precision(fraud, score, weight),
        f"card_precision_{TOP_CARDS}": card_precision(
            fraud, score, data.event_time_us[rows], data.card[rows], TOP_CARDS
        ),
        "threshold": threshold,
        "alerts_per_day": alerted / days,
        "alert_rate": alerted / float(weight.sum()),
        "alert_precision": float(weight[alerts & fraud].sum()) / alerted if alerted else None,
        "alert_recall": float(weight[alerts & fraud].sum() / weight[fraud].sum()),
        "expected_to_observed_frauds": float((weight * score).sum() / weight[fraud].sum()),
        "kernel": KERNEL_VERSION,
    }
