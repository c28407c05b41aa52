"""The default online model while it learns: a River logistic regression on what LightGBM leaves unexplained."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from river import linear_model, optim, utils

from pipeline.scoring.lightgbm_model import LOGIT_BOUND
from pipeline.scoring.river_inputs import INPUTS, LOGIT, SOURCES, river_inputs
from pipeline.scoring.river_layer import (
    LayerConfig,
    RiverLayer,
    Scale,
    UpdateCounts,
    reciprocal_deviations,
    standardized,
)
from pipeline.scoring.training_updates import Update, add_counts, choose, example_sources, importance_aware_weight
from schemas.messages import Example

LEAST_WEIGHT: Final = 100.0
"""Weight of the examples that set the scale before the first of them is learned."""


class OnlineRegression:
    """A River logistic regression on standardized inputs beside given log-odds, which learns in bounded steps.

    The same rows in the same order give the same numbers. Weights have shape (len(names),); they and the intercept
    learn at one rate.
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
        """Learn a label of a row; nothing is learned before the scale has a weight of `LEAST_WEIGHT`.

        Args:
            row: Inputs before they are standardized, shape (len(names),).
            logit: Log-odds given beside them, taken within `LOGIT_BOUND`.
            target: True for fraud.
            weight: Number of rows that it stands for. A negative one undoes the update of the positive one.
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


class LayerLearner:
    """Learns examples, in the order of their log, with a ``river.linear_model.LogisticRegression``.

    The same examples from the same layer give the same numbers, however they are cut into batches.
    """

    sources: Final = SOURCES

    def __init__(self) -> None:
        """Start as the layer that changes nothing."""
        self._start_from(RiverLayer.identity())

    def _start_from(self, layer: RiverLayer) -> None:
        self.config: LayerConfig = LayerConfig()
        self.updates: UpdateCounts = layer.updates
        rate = layer.config.learning_rate
        self._regression = OnlineRegression(INPUTS, rate, layer.weights, layer.intercept, layer.scale)

    def learn_examples(self, examples: Iterable[Example]) -> Mapping[str, int]:
        """Learn examples in order; returns what became of them (`pipeline.scoring.training_updates.choose`)."""
        chosen, counts = choose(examples)
        if chosen:
            inputs = river_inputs(example_sources([update.example.features for update in chosen], SOURCES))
            for row, update in zip(inputs, chosen, strict=True):
                self._learn(row, update)
        self.updates = add_counts(self.updates, counts)
        return counts

    def _learn(self, row: NDArray[np.float64], update: Update) -> None:
        regression, logit = self._regression, update.example.logit
        if update.former is not None:
            regression.step(row, logit, update.former, -update.former_weight)
        if update.target is not None:
            regression.step(row, logit, update.target, update.weight)
            if update.former is None:
                # One that is corrected takes part in the scale already.
                regression.add_to_scale(row, update.weight)

    def snapshot(self, examples_offset: int) -> RiverLayer:
        """The layer as it is now; ``examples_offset`` says how many examples it has been given."""
        regression = self._regression
        return RiverLayer(
            self.config,
            regression.weights,
            float(regression.river.intercept),
            regression.scale,
            examples_offset,
            self.updates,
        )

    def restore(self, payload: bytes) -> int:
        """Continue from a layer's payload; returns the offset that it was taken at.

        Raises:
            ModelError: The layer is damaged or was made with other settings.
        """
        layer = RiverLayer.from_payload(payload)
        self._start_from(layer)
        return layer.examples_offset

    def save(self) -> bytes:
        """All that it has learned, as the payload of a layer."""
        return self.snapshot(0).payload

    def go_back(self, saved: bytes) -> None:
        """Be as it was at `save`."""
        self.restore(saved)
