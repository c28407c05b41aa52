"""The blend of log-odds into the score."""

import numpy as np
from numpy.typing import NDArray


def sigmoid(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of log-odds; any shape.

    >>> sigmoid(np.array([0.0])).tolist()
    [0.5]
    """
    # 40 is where a double's probability has long stopped moving, and exp is far from overflow.
    return 1.0 / (1.0 + np.exp(-np.clip(logit, -40.0, 40.0)))


def blend(lightgbm_logit: NDArray[np.float64], river_logit: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    """The score: sigmoid((1 - beta) x LightGBM's log-odds + beta x the online model's); shape (n,).

    With ``beta`` 1 the online layer, which has LightGBM's log-odds as an input, decides alone; with 0 LightGBM does.

    >>> blend(np.array([2.0]), np.array([0.0]), 1.0).tolist()
    [0.5]
    """
    return sigmoid((1.0 - beta) * lightgbm_logit + beta * river_logit)
