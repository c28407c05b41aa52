"""Sampling rates of legitimate transactions to grow trees on: the higher, the more they look like fraud.

Where fraud is rare, an even sample has few of those transactions that fraud is easily confused with. Local
case-control sampling (Fithian and Hastie, "Local case-control sampling: efficient subsampling in imbalanced data sets",
2014) keeps a transaction in proportion to the score of a pilot model. Weights make up for it, so that a bad pilot costs
precision alone.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

EVEN_SHARE: Final = 0.5
"""Share of a sample that does not depend on scores: no weight grows far beyond that of an even sample."""
LEAST_SCORE: Final = 1e-12
"""Scores below it count as it: a sum of rates needs them above 0."""


def sampling_rates(score: NDArray[np.float64], rows: float) -> NDArray[np.float64]:
    """Return the probability at which each transaction is sampled, shape (n,): the smaller of 1 and a + b score.

    Args:
        score: Of the pilot for each transaction; shape (n,).
        rows: How many are to be sampled, on average; less than n. ``a`` n are `EVEN_SHARE` of them.
    """
    n, score = len(score), np.maximum(score, LEAST_SCORE)
    even = EVEN_SHARE * rows / n
    highest = np.sort(score)[::-1]
    # With the k highest sampled for certain, k = 0, 1, ...: what is left goes to the others by their scores.
    certain = np.arange(n)
    slope = (rows - certain - even * (n - certain)) / np.cumsum(highest[::-1])[::-1]
    fits = even + slope * highest <= 1.0
    return np.asarray(np.minimum(1.0, even + slope[np.argmax(fits)] * score), np.float64)
