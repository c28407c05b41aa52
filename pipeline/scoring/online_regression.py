"""A River logistic regression on standardized inputs beside given log-odds, which learns in bounded steps."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from river import linear_model, optim, utils

from pipeline.scoring.lightgbm_model import LOGIT_BOUND
from pipeline.scoring.river_inputs import LOGIT
from pipeline.scoring.river_layer import Scale, reciprocal_deviations, standardized
from pipeline.scoring.training_updates import importance_aware_weight

LEAST_WEIGHT: Final = 100.0
"""Weight of the examples that set the scale before the first of them is learned."""


class OnlineRegression:
    """Learns rows in their order; the same rows give the same numbers.

    Args:
        names: Names of the inputs.
        rate: Learning rate of weights and intercept.
        weights: Weights of the inputs, shape (len(names),).
        intercept: The intercept.
        scale: Moments of the inputs.
    """

    def __init__(
        self, names: Sequence[str], rate: float, weights: NDArray[np.float64], intercept: float, scale: Scale
    ) -> None:
        self._names, self._rate = names, rate
        self._weight = scale.weight
        self._means, self._squares = np.array(scale.means), np.array(scale.squares)
        self.river = linear_model.LogisticRegression(
            optimizer=optim.SGD(rate), intercept_lr=rate, intercept_init=intercept
        )
        # River has no public way to start from given weights; its own attribute holds them by input name. The weight of
        # the given log-odds is 1 and does not learn.
        self.river._weights = utils.VectorDict(dict(zip(names, weights.tolist(), strict=True)) | {LOGIT: 1.0})

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights of the inputs."""
        return tuple(float(self.river.weights.get(name, 0.0)) for name in self._names)

    @property
    def scale(self) -> Scale:
        """Moments of the inputs."""
        return Scale(weight=self._weight, means=tuple(self._means.tolist()), squares=tuple(self._squares.tolist()))

    def logit(self, row: NDArray[np.float64], logit: float) -> float:
        """Return the log-odds of a row, shape (len(names),), beside given log-odds."""
        return float(self.river._raw_dot_one(self._inputs(row, logit)[0]))

    def step(self, row: NDArray[np.float64], logit: float, target: bool, weight: float) -> None:
        """Learn a label; with a negative weight, undo its update.

        Args:
            row: The inputs, shape (len(names),).
            logit: The log-odds that are given.
            target: Whether the label is fraud.
            weight: Weight of the label.
        """
        if self._weight < LEAST_WEIGHT:
            return
        x, squared_norm = self._inputs(row, logit)
        current = self.river._raw_dot_one(x)
        self.river.learn_one(x, target, importance_aware_weight(current, target, weight, self._rate, squared_norm))
        self.river._weights[LOGIT] = 1.0

    def add_to_scale(self, row: NDArray[np.float64], weight: float) -> None:
        """Let a row take part in means and deviations."""
        # West, "Updating Mean and Variance Estimates: An Improved Method" (1979).
        self._weight += weight
        distance = row - self._means
        self._means += distance * (weight / self._weight)
        self._squares += weight * distance * (row - self._means)

    def _inputs(self, row: NDArray[np.float64], logit: float) -> tuple[dict[str, float], float]:
        inputs = standardized(row, self._means, reciprocal_deviations(self._weight, self._squares))
        x = dict(zip(self._names, inputs.tolist(), strict=True))
        x[LOGIT] = min(max(logit, -LOGIT_BOUND), LOGIT_BOUND)
        # The intercept learns at the same rate, as an input that is always 1.
        return x, 1.0 + float(inputs @ inputs)
