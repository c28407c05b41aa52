"""Small models, matrices and examples for tests of scoring, decisions and training."""

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import FEATURES, KERNEL_VERSION
from pipeline.scoring.lightgbm_model import Calibration, LightGBMModel
from schemas.messages import Example, LogPosition, Versions

COLUMN = {name: column for column, name in enumerate(FEATURES)}
START = datetime(2024, 3, 1, tzinfo=UTC)


def matrix(rows: int, seed: int = 0) -> NDArray[np.float64]:
    """Features that look like features: positive, skewed, with gaps."""
    random = np.random.default_rng(seed)
    features = np.round(random.lognormal(2.0, 1.2, (rows, len(FEATURES))), 2)
    features[:, COLUMN["hour"]] = random.uniform(0, 24, rows)
    features[:, COLUMN["weekday"]] = random.integers(0, 7, rows)
    features[:, COLUMN["card_merchant_count"]] = random.integers(0, 4, rows)
    features[:, COLUMN["merchant_newest_label"]] = random.integers(0, 2, rows)
    for name in ("card_usual_amount", "card_amount_to_usual", "merchant_surge", "merchant_newest_label"):
        features[random.random(rows) < 0.2, COLUMN[name]] = np.nan
    return features


def truth(features: NDArray[np.float64], seed: int = 1) -> NDArray[np.bool_]:
    """Fraud that depends on a few features, with noise."""
    random = np.random.default_rng(seed)
    signal = np.log(features[:, COLUMN["amount"]]) + 2.0 * (np.nan_to_num(features[:, COLUMN["merchant_newest_label"]]))
    signal += 0.7 * np.log1p(np.nan_to_num(features[:, COLUMN["card_amount_to_usual"]]))
    return signal + random.normal(0, 0.8, len(features)) > 7.0


@cache
def small_model() -> LightGBMModel:
    """Some trees, calibrated away from 1 and 0 so that a forgotten calibration shows."""
    features = matrix(3_000)
    booster = lightgbm.train(
        {"objective": "binary", "num_leaves": 15, "verbosity": -1, "num_threads": 1, "deterministic": True, "seed": 3},
        lightgbm.Dataset(
            features, truth(features).astype(float), feature_name=list(FEATURES), params={"verbosity": -1}
        ),
        num_boost_round=25,
    )
    return LightGBMModel(booster.model_to_string(), Calibration(slope=0.8, intercept=-0.3), {"made": "for tests"})


def example(number: int = 0, **changes: Any) -> Example:
    """One example; ``changes`` are fields, or ``lightgbm`` for the version that scored it."""
    lightgbm_version = changes.pop("lightgbm", "base")
    row = matrix(1, seed=number)[0]
    fields: dict[str, Any] = {
        "transaction_id": f"t{number}",
        "card_id": f"c{number % 7}",
        "merchant_id": "m",
        "event_time": START + timedelta(minutes=number),
        "amount_base": 10.0,
        "label": "fraud" if number % 5 == 0 else "legitimate",
        "label_source": "analyst",
        "known_at": START + timedelta(days=1, minutes=number),
        "weight": 1.0 if number % 5 == 0 else 10.0,
        "revision": 0,
        "features": {
            name: None if np.isnan(value) else float(value) for name, value in zip(FEATURES, row, strict=True)
        },
        "logit": float(np.random.default_rng(number).normal(-4, 2)),
        "score": 0.1,
        "versions": Versions(lightgbm=lightgbm_version, river="r", policy="p", kernel=KERNEL_VERSION, rates="1"),
        "log": LogPosition(partition=0, offset=number),
    }
    return Example(**{**fields, **changes})
