"""The default online model while it learns: a River logistic regression on what LightGBM leaves unexplained."""

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from river import linear_model, optim, utils

from pipeline.scoring.lessons import Update, add_lessons, choose, example_inputs, importance_aware_weight
from pipeline.scoring.lightgbm_model import LOGIT_BOUND
from pipeline.scoring.river_inputs import INPUTS, LOGIT
from pipeline.scoring.river_layer import LayerConfig, Lessons, RiverLayer, Scale, reciprocal_deviations, standardized
from schemas.messages import Example

LEAST_WEIGHT: Final = 100.0
"""Weight of the examples that set the scale before the first of them is learned."""


class LayerLearner:
    """Learns examples, in the order of their log, with a ``river.linear_model.LogisticRegression``.

    The same examples from the same layer give the same numbers, however they are cut into batches.
    """

    def __init__(self) -> None:
        """Start as the layer that changes nothing."""
        self._start_from(RiverLayer.identity())

    def _start_from(self, layer: RiverLayer) -> None:
        self.config: LayerConfig = layer.config
        self.lessons: Lessons = layer.lessons
        self._weight = layer.scale.weight
        self._means, self._squares = np.array(layer.scale.means), np.array(layer.scale.squares)
        rate = layer.config.learning_rate
        self._river = linear_model.LogisticRegression(
            optimizer=optim.SGD(rate), intercept_lr=rate, intercept_init=layer.intercept
        )
        # River has no public way to start from given weights; its own attribute holds them by input name. The weight of
        # LightGBM's log-odds is 1 and does not learn.
        weights = dict(zip(INPUTS, layer.weights.tolist(), strict=True)) | {LOGIT: 1.0}
        self._river._weights = utils.VectorDict(weights)

    @property
    def river(self) -> linear_model.LogisticRegression:
        """The River model itself, for inspection."""
        return self._river

    def learn_examples(self, examples: Iterable[Example]) -> Mapping[str, int]:
        """Learn examples in order; returns what became of them (`pipeline.scoring.lessons.choose`)."""
        chosen, counts = choose(examples)
        if chosen:
            inputs = example_inputs([update.example.features for update in chosen])
            for row, update in zip(inputs, chosen, strict=True):
                self._learn(row, update)
        self.lessons = add_lessons(self.lessons, counts)
        return counts

    def _learn(self, row: NDArray[np.float64], update: Update) -> None:
        if update.former is not None:
            # The transaction is in the scale already.
            self._step(row, update.example.logit, update.former, -update.former_weight)
        if update.target is not None:
            self._step(row, update.example.logit, update.target, update.weight)
            if update.former is None:
                self._add_to_scale(row, update.weight)

    def _step(self, row: NDArray[np.float64], logit: float, target: bool, weight: float) -> None:
        """Learn a label; with a negative weight, undo what it taught."""
        if self._weight < LEAST_WEIGHT:
            return
        river, rate = self._river, self.config.learning_rate
        inputs = standardized(row, self._means, reciprocal_deviations(self._weight, self._squares))
        x = dict(zip(INPUTS, inputs.tolist(), strict=True))
        x[LOGIT] = min(max(logit, -LOGIT_BOUND), LOGIT_BOUND)
        # The intercept learns at the same rate, as an input that is always 1.
        squared_norm = 1.0 + float(inputs @ inputs)
        current = river._raw_dot_one(x)
        river.learn_one(x, target, importance_aware_weight(current, target, weight, rate, squared_norm))
        river._weights[LOGIT] = 1.0

    def _add_to_scale(self, row: NDArray[np.float64], weight: float) -> None:
        # West, "Updating Mean and Variance Estimates: An Improved Method" (1979).
        self._weight += weight
        distance = row - self._means
        self._means += distance * (weight / self._weight)
        self._squares += weight * distance * (row - self._means)

    def snapshot(self, examples_offset: int) -> RiverLayer:
        """The layer as it is now; ``examples_offset`` says how many examples it has been given."""
        weights = self._river.weights
        return RiverLayer(
            self.config,
            tuple(float(weights.get(name, 0.0)) for name in INPUTS),
            float(self._river.intercept),
            Scale(weight=self._weight, means=tuple(self._means.tolist()), squares=tuple(self._squares.tolist())),
            examples_offset,
            self.lessons,
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
        """Be as it was at `save`; raises `ModelError` where that was another learner."""
        self.restore(saved)

    def numbers(self) -> bytes | None:
        """The same as `save`: a layer is numbers."""
        return self.save()
