"""The default online model while it learns: a River logistic regression on what LightGBM leaves unexplained."""

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from river import linear_model

from pipeline.scoring.online_regression import OnlineRegression
from pipeline.scoring.river_inputs import INPUTS, SOURCES, river_inputs
from pipeline.scoring.river_layer import LayerConfig, RiverLayer, UpdateCounts
from pipeline.scoring.training_updates import Update, add_counts, choose, example_sources
from schemas.messages import Example


class LayerLearner:
    """Learns examples, in the order of their log, with a ``river.linear_model.LogisticRegression``.

    The same examples from the same layer give the same numbers, however they are cut into batches.
    """

    sources: Final = SOURCES

    def __init__(self) -> None:
        """Start as the layer that changes nothing."""
        self._start_from(RiverLayer.identity())

    def _start_from(self, layer: RiverLayer) -> None:
        self.config: LayerConfig = layer.config
        self.updates: UpdateCounts = layer.updates
        rate = layer.config.learning_rate
        self._regression = OnlineRegression(INPUTS, rate, layer.weights, layer.intercept, layer.scale)

    @property
    def river(self) -> linear_model.LogisticRegression:
        """The River model itself, for inspection."""
        return self._regression.river

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
        """Be as it was at `save`; raises `ModelError` where that was another learner."""
        self.restore(saved)

    def numbers(self) -> bytes | None:
        """The same as `save`: a layer is numbers."""
        return self.save()
