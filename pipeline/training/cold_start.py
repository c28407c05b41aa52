"""A LightGBM version without trees, with which the online model alone scores until there are labels to train on."""

from typing import Final

import lightgbm
import numpy as np

from pipeline.decision.policy import Policy
from pipeline.features.catalogue import DEFAULT_FEATURES, FEATURES
from pipeline.models.recipes import TREELESS
from pipeline.scoring.distributions import FeatureDistribution
from pipeline.scoring.lightgbm_model import Calibration, LightGBMModel

_SILENT: Final = {"verbosity": -1}


def treeless_model(fraud_share: float) -> LightGBMModel:
    """Return a version that gives every transaction the log-odds of the same share of frauds.

    The online model adds to these log-odds, so that its own inputs alone distinguish transactions. A training by the
    recipe of this version grows trees on the default features.

    >>> model = treeless_model(0.5)
    >>> model.logit(np.zeros((1, len(FEATURES)))).tolist()
    [0.0]
    """
    # Of constant features LightGBM makes a single leaf, whose value is 0 where both classes are as frequent.
    data = lightgbm.Dataset(
        np.zeros((2, len(FEATURES))), np.array([0.0, 1.0]), feature_name=list(FEATURES), params=_SILENT
    )
    booster = lightgbm.train({"objective": "binary", "num_threads": 1, **_SILENT}, data, num_boost_round=1)
    return LightGBMModel(
        booster.model_to_string(),
        Calibration(intercept=float(np.log(fraud_share / (1.0 - fraud_share)))),
        {TREELESS: {"fraud_share": fraud_share}},
        # Everything in one bin: nothing is known of the features, so that nothing can have drifted.
        distributions=tuple(FeatureDistribution(name=name, edges=(), counts=(1.0, 0.0)) for name in DEFAULT_FEATURES),
    )


def cold_start(fraud_share: float, threshold: float, audit_rate: float) -> tuple[LightGBMModel, Policy]:
    """Return a version without trees and a policy for it, by which the online model scores alone.

    Args:
        fraud_share: Share of frauds that is expected, above 0 and below 1.
        threshold: Score from which on there is an alert, 0 to 1.
        audit_rate: Share of the other transactions that are selected at random, 0 to 1.
    """
    model = treeless_model(fraud_share)
    # Nothing but the online model distinguishes transactions: it does not wait for the gate.
    return model, Policy(threshold, blend=1.0, audit_rate=audit_rate, lightgbm_version=model.version)
