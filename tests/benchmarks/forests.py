"""Models of a given size for benchmarks: trained on the kernel's features of simulated days, kept below ``build/``."""

from datetime import date
from functools import cache
from pathlib import Path

import lightgbm
import numpy as np
from numpy.typing import NDArray

from pipeline.decision.policy import Policy
from pipeline.demo.world import World
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.features.catalogue import FEATURES, KERNEL_VERSION
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.river_factory import first_river
from tests.helpers.features import compute_features

BUILD = Path(__file__).parents[2] / "build" / "benchmarks"
TREES, LEAVES = 200, 63
ALERTED = 0.01
"""Share of transactions that the policy's threshold lets become alerts: 100 of the Handbook's 9,600 a day."""
_HELD_OUT = 0.2
_DAY = date(2018, 4, 1)


@cache
def training_matrix(cards: int = 1_000, days: int = 65) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(features (n, len(FEATURES)), fraud (n,)) of a simulated history."""
    frame = World(cards=cards, merchants=cards // 2, seed=5, history_days=days, start=_DAY).history()
    return compute_features(frame), frame["fraud"].to_numpy(float)


def forest(trees: int = TREES, leaves: int = LEAVES, *, cards: int = 1_000, days: int = 65) -> LightGBMModel:
    """A model with exactly ``trees`` trees of up to ``leaves`` leaves: no early stopping, so that its size is known."""
    path = BUILD / f"forest-{KERNEL_VERSION}-{trees}x{leaves}-{cards}x{days}.json"
    if path.exists():
        return LightGBMModel.from_payload(path.read_bytes())
    features, fraud = training_matrix(cards, days)
    parameters = {
        "objective": "binary", "num_leaves": leaves, "learning_rate": 0.03, "min_data_in_leaf": 20, "seed": 1,
        "feature_fraction": 0.6, "num_threads": 1, "deterministic": True, "verbosity": -1,
    }  # fmt: skip
    last = round(len(features) * (1 - _HELD_OUT))
    data = lightgbm.Dataset(
        features[:last], fraud[:last], feature_name=list(FEATURES), params={"verbosity": -1, "num_threads": 1}
    )
    booster = lightgbm.train(parameters, data, num_boost_round=trees)
    model = LightGBMModel(booster.model_to_string(), metadata={"made": "for benchmarks"})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.to_payload())
    return model


def champion(trees: int = TREES, leaves: int = LEAVES, *, cards: int = 1_000, days: int = 65) -> ActiveModels:
    """The model with a policy that alerts about `ALERTED` of simulated transactions, and River's first layer."""
    model = forest(trees, leaves, cards=cards, days=days)
    features, _ = training_matrix(cards, days)
    held_out = features[round(len(features) * (1 - _HELD_OUT)) :]
    threshold = float(np.quantile(sigmoid(model.logit(held_out)), 1 - ALERTED))
    # By LightGBM's score, for which the threshold is: what River has learned by then would move it, and soon nothing
    # would be alerted, nor explained.
    policy = Policy(threshold, blend=0.0, lightgbm_version=model.version)
    return ActiveModels(model, first_river(), policy)
