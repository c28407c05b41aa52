"""Small models, matrices and examples for tests of scoring, decisions and training."""

import re
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import FEATURES, KERNEL_VERSION
from pipeline.models.registry import Registry
from pipeline.scoring.lightgbm_model import Calibration, LightGBMModel
from pipeline.scoring.trees import forest_text
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


def registered(registry: Registry, version: str) -> LightGBMModel:
    """Return a version of a registry."""
    return LightGBMModel.from_payload(registry.load("lightgbm", version))


def grown(leaves: int = 15, trees: int = 12, gaps: bool = True, **parameters: object) -> lightgbm.Booster:
    """A model of `truth`; ``gaps`` are missing values in training."""
    features = matrix(4_000, seed=21)
    fraud = truth(features)
    if not gaps:
        # Thresholds below 0 too: a missing value then counts as 0, which lies to their right.
        features = np.nan_to_num(features, nan=0.5) - 8.0
    return lightgbm.train(
        {
            "objective": "binary",
            "num_leaves": leaves,
            "verbosity": -1,
            "num_threads": 1,
            "min_data_in_leaf": 5,
            "seed": 1,
            **parameters,
        },
        lightgbm.Dataset(
            features, fraud.astype(float), feature_name=list(FEATURES), params={"verbosity": -1, **parameters}
        ),
        num_boost_round=trees,
    )


def hard_rows(booster: lightgbm.Booster, rows: int = 3_000) -> np.ndarray:
    """Rows with gaps everywhere, zeros, infinities, and values that are thresholds themselves and their neighbours."""
    random = np.random.default_rng(8)
    features = matrix(rows, seed=22) - 1.0
    thresholds = booster.trees_to_dataframe().dropna(subset=["threshold"])
    columns = thresholds["split_feature"].map(FEATURES.index).to_numpy()
    values = thresholds["threshold"].to_numpy(float)
    for row in range(0, rows, 2):
        at = random.integers(0, len(values), 20)
        features[row, columns[at]] = values[at]
        features[row, columns[at[:5]]] = np.nextafter(values[at[:5]], np.inf)
    for special in (np.nan, 0.0, -0.0, np.inf, -np.inf, 1e-36, 1e300):
        features[random.random(features.shape) < 0.05] = special
    return features


def edited_text(text: str, pattern: str, replacement: str) -> str:
    """A model's text with its first match replaced, and sizes in the header that fit: one thing wrong, not two."""
    text, found = re.subn(pattern, replacement, text, count=1, flags=re.MULTILINE)
    assert found
    starts = [match.start() for match in re.finditer("^Tree=", text, re.MULTILINE)]
    end = text.find("end of trees")
    sizes = [after - before for before, after in pairwise([*starts, end if end >= 0 else starts[-1]])]
    return re.sub("^tree_sizes=.*$", "tree_sizes=" + " ".join(map(str, sizes)), text, flags=re.MULTILINE)


def ask_lightgbm(text: str) -> NDArray[np.float64] | None:
    """Return LightGBM's margins of `matrix` from a text that `read_trees` takes; None where LightGBM refuses it.

    For child processes: a text that passes wrongly may end the process.
    """
    rows = matrix(20)
    try:
        booster = lightgbm.Booster(model_str=forest_text(text))
    except lightgbm.basic.LightGBMError:
        return None
    booster.predict(rows, pred_contrib=True, num_threads=1)
    return np.asarray(booster.predict(rows, raw_score=True, num_threads=1))


def tolerance(booster: lightgbm.Booster) -> float:
    """How far two exact computations of contributions may be apart, each rounding in its own way.

    A tree's contributions are differences of weighted means of its leaves, so that the numbers that are rounded are not
    larger than twice the largest leaf. This is about a hundred such roundings in each tree.
    """
    trees = booster.trees_to_dataframe()
    leaves = trees[trees["split_feature"].isna()]
    return 2e-14 * float(leaves["value"].abs().groupby(leaves["tree_index"]).max().sum())


def example(number: int = 0, **changes: Any) -> Example:
    """Return an example; ``changes`` are fields, or versions ``lightgbm`` and ``kernel``."""
    versions = Versions(
        lightgbm=changes.pop("lightgbm", "base"),
        river="r",
        policy="p",
        kernel=changes.pop("kernel", KERNEL_VERSION),
        rates="1",
    )
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
        "versions": versions,
        "log": LogPosition(partition=0, offset=number),
    }
    return Example(**{**fields, **changes})
