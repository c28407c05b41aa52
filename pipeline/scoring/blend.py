"""The blend of log-odds into the score."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def sigmoid(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of log-odds; any shape.

    >>> sigmoid(np.array([0.0])).tolist()
    [0.5]
    """
    # 40 is where a double's probability has long stopped moving, and exp is far from overflow.
    bounded: NDArray[np.float64] = np.minimum(np.maximum(logit, -40.0), 40.0)
    return 1.0 / (1.0 + np.exp(-bounded))


def blend(logits: NDArray[np.float64], weights: Sequence[float]) -> NDArray[np.float64]:
    """Return the score: the sigmoid of the weighted log-odds of all models; shape (n,). Arguments as `blended_logit`.

    >>> blend(np.array([[2.0, 0.0]]), [1.0]).tolist()
    [0.5]
    """
    return sigmoid(blended_logit(logits, weights))


def blended_logit(logits: NDArray[np.float64], weights: Sequence[float]) -> NDArray[np.float64]:
    """Return the weighted log-odds of all models; shape (n,).

    Args:
        logits: Shape (n, number of kinds); LightGBM's first.
        weights: Weights of the other kinds; LightGBM has what is left to 1. With a weight of 1 the online layer, which
            has LightGBM's log-odds as an input, decides alone; with 0 LightGBM does.

    >>> blended_logit(np.array([[2.0, 1.0]]), [0.25]).tolist()
    [1.75]
    """
    total = (1.0 - sum(weights)) * logits[:, 0]
    for column, weight in enumerate(weights, 1):
        total = total + weight * logits[:, column]
    return total
