"""Contributions of any small model are LightGBM's, and those of the definition."""

import lightgbm
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.catalogue import FEATURES
from pipeline.scoring.compiled_contributions import path_contributions
from pipeline.scoring.tree_layout import lay_out_trees
from pipeline.scoring.trees import read_trees
from tests.helpers.models import tolerance
from tests.reference import shapley


@given(
    seed=st.integers(0, 2**32 - 1),
    used=st.integers(1, 12),
    rows=st.integers(20, 300),
    levels=st.sampled_from([2, 5, 1_000]),
    gaps=st.sampled_from([0.0, 0.3]),
    leaves=st.integers(2, 40),
    trees=st.integers(1, 4),
    use_missing=st.booleans(),
)
def test_contributions_of_any_model(
    seed: int,
    used: int,
    rows: int,
    levels: int,
    gaps: float,
    leaves: int,
    trees: int,
    use_missing: bool,
) -> None:
    random = np.random.default_rng(seed)
    features = np.zeros((rows, len(FEATURES)))
    columns = random.permutation(len(FEATURES))[:used]
    features[:, columns] = random.integers(0, levels, (rows, used)) - levels // 2
    target = (features.sum(axis=1) + random.normal(0, 1 + levels / 4, rows) > 0).astype(float)
    features[random.random(features.shape) < gaps] = np.nan
    parameters = {"verbosity": -1, "min_data_in_bin": 1, "use_missing": use_missing}
    booster = lightgbm.train(
        {
            **parameters,
            # For others LightGBM estimates how many rows a split parts, and fails where it parts none.
            "objective": "regression",
            "num_leaves": leaves,
            "num_threads": 1,
            "min_data_in_leaf": 1,
            "min_sum_hessian_in_leaf": 0.0,
            "learning_rate": 0.5,
        },
        lightgbm.Dataset(features, target, feature_name=list(FEATURES), params=parameters),
        num_boost_round=trees,
    )
    _, paths = lay_out_trees(read_trees(booster.model_to_string(), FEATURES))
    assert paths is not None
    explained = features[:10].copy()
    for special in (np.nan, np.inf, -np.inf, 0.0, -0.0):
        explained[random.random(explained.shape) < 0.04] = special
    found, near = path_contributions(paths, explained), tolerance(booster)
    np.testing.assert_allclose(found, booster.predict(explained, pred_contrib=True), rtol=0, atol=near)
    np.testing.assert_allclose(found.sum(axis=1), booster.predict(explained, raw_score=True), rtol=0, atol=near)
    exact = [float(part) for part in shapley.contributions(booster, explained[0])]
    np.testing.assert_allclose(found[0], exact, rtol=0, atol=near)
