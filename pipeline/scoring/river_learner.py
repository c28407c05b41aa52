"""The default online model while it learns: a River logistic regression that starts as LightGBM itself."""

from collections.abc import Iterable, Mapping

from river import linear_model, optim, utils

from pipeline.scoring.errors import ModelError
from pipeline.scoring.layer_inputs import LAYER_INPUTS, NEW_TO_MERCHANT, SURGE, Inputs
from pipeline.scoring.lessons import TARGETS, add_lessons, choose, example_inputs, importance_aware_weight, iterate
from pipeline.scoring.river_layer import LayerConfig, Lessons, RiverLayer
from schemas.messages import Example


class LayerLearner:
    """Folds examples, in the order of their log, into a ``river.linear_model.LogisticRegression``.

    Folding the same examples from the same layer gives the same numbers, however they are cut into batches.
    """

    def __init__(self, lightgbm_version: str, examples_start: int = 0) -> None:
        """Start as the layer that changes nothing of the LightGBM version ``lightgbm_version``.

        ``examples_start`` is the offset of the first example that it will be given.
        """
        self._start_from(RiverLayer.identity(lightgbm_version, examples_start))

    def _start_from(self, layer: RiverLayer) -> None:
        self.config: LayerConfig = layer.config
        self.lessons: Lessons = layer.lessons
        rate = layer.config.learning_rate
        self._river = linear_model.LogisticRegression(
            optimizer=optim.SGD(rate), intercept_lr=rate, intercept_init=layer.intercept
        )
        # River has no public way to start from given weights; its own attribute holds them by input name.
        self._river._weights = utils.VectorDict(dict(zip(LAYER_INPUTS, layer.weights.tolist(), strict=True)))

    @property
    def lightgbm_version(self) -> str:
        """The LightGBM version that the layer stands on."""
        return self.config.lightgbm_version

    @property
    def river(self) -> linear_model.LogisticRegression:
        """The River model itself, for inspection."""
        return self._river

    def learn(self, features: Mapping[str, float | None], base_logit: float, target: bool, weight: float = 1.0) -> None:
        """One lesson: features by name (null is unknown), LightGBM's log-odds as scored, fraud or not."""
        self._learn(example_inputs([(features, base_logit)]), [target], [weight])
        self.lessons = add_lessons(self.lessons, {"learned": 1})

    def learn_examples(self, examples: Iterable[Example]) -> Mapping[str, int]:
        """Fold examples in order; returns what became of them (`pipeline.scoring.lessons.choose`)."""
        chosen, counts = choose(examples, self.lightgbm_version)
        if chosen:
            self._learn(
                example_inputs([(example.features, example.logit) for example in chosen]),
                [TARGETS[example.label] for example in chosen],
                [example.weight for example in chosen],
            )
        self.lessons = add_lessons(self.lessons, counts)
        return counts

    def _learn(self, inputs: Inputs, targets: list[bool], weights: list[float]) -> None:
        river, rate = self._river, self.config.learning_rate
        for (logit, amount, hour, new, surge), target, weight in zip(iterate(inputs), targets, weights, strict=True):
            x = {LAYER_INPUTS[0]: logit, LAYER_INPUTS[amount]: 1.0, LAYER_INPUTS[hour]: 1.0}
            if new:
                x[LAYER_INPUTS[NEW_TO_MERCHANT]] = new
            if surge:
                x[LAYER_INPUTS[SURGE]] = surge
            # The intercept learns at the same rate, as an input that is always 1.
            squared_norm = 3.0 + logit * logit + new * new + surge * surge
            current = river._raw_dot_one(x)
            river.learn_one(x, target, importance_aware_weight(current, target, weight, rate, squared_norm))

    def snapshot(self, examples_offset: int) -> RiverLayer:
        """The layer as it is now; ``examples_offset`` says how far the fold has come."""
        weights = self._river.weights
        return RiverLayer(
            self.config,
            tuple(float(weights.get(name, 0.0)) for name in LAYER_INPUTS),
            float(self._river.intercept),
            examples_offset,
            self.lessons,
        )

    def restore(self, payload: bytes) -> int:
        """Continue from a layer's payload, wherever that began; returns the offset that it was taken at.

        Raises `ModelError` when the layer stands on another LightGBM version or learned with another rate.
        """
        layer = RiverLayer.from_payload(payload)
        if layer.config.starting_at(0) != self.config.starting_at(0):
            raise ModelError(
                f"layer {layer.version} was made for LightGBM {layer.lightgbm_version} or with other settings; this "
                f"learner is for {self.lightgbm_version}: start a new layer for it"
            )
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
