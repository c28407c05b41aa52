"""The online model as the score agent uses it: LightGBM's log-odds plus a weighted sum of standardized inputs.

The weights are those of a River logistic regression (`pipeline.scoring.river_learner`). A version is the digest of its
configuration and an offset in ``examples``: the examples before that offset give the same numbers again. It corrects
whichever LightGBM version scores, and is kept when that changes.
"""

import hashlib
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.features.compiled import compiled
from pipeline.features.feature_set import is_comparable
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LOGIT_BOUND
from pipeline.scoring.payload import (
    LARGEST_COEFFICIENT,
    VERSION_DIGITS,
    Offset,
    decode_payload,
    encode_payload,
)
from pipeline.scoring.river_inputs import INPUTS, SOURCE_COLUMNS, describe, river_inputs

LAYER_KIND: Final = "river-residual"
LAYER_REVISION: Final = 3
"""Raised whenever a training update or an input changes its meaning without a change of its name."""
LEARNING_RATE: Final = 0.001
"""Decision 0042 says what other rates do."""
INPUT_BOUND: Final = 3.0
"""Standard deviations from the mean within which an input is taken."""
_ROWS_AT_ONCE: Final = 512
"""Inputs of so many rows stay in the cache from one step between features and log-odds to the next."""


class LayerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides what the examples make of the layer."""

    inputs: tuple[str, ...] = INPUTS
    learning_rate: float = LEARNING_RATE
    input_bound: float = INPUT_BOUND
    revision: int = LAYER_REVISION
    kernel: str = KERNEL_VERSION

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal."""
        return hashlib.sha256(encode_payload(self)).hexdigest()


class UpdateCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of examples by what became of them."""

    learned: int = 0
    corrections: int = 0
    """Number of undone training updates, each of a transaction learned before."""
    allowed_for: int = 0
    """The weights of others allow for them: frauds that were reported late, and labels of what was presumed."""
    held: int = 0
    """Part of a surge of labels."""
    other_kernel: int = 0
    """Their features were computed by another kernel."""
    rule: int = 0
    """Labelled by a rule."""
    unlabelled: int = 0
    """Neither fraud nor legitimate."""


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """Weighted moments of the inputs of the examples so far."""

    weight: float = 0.0
    means: tuple[float, ...] = (0.0,) * len(INPUTS)
    squares: tuple[float, ...] = (0.0,) * len(INPUTS)
    """Sums of weighted squared distances from the mean."""


class _LayerPayload(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    config: LayerConfig
    examples_offset: Offset
    weights: tuple[float, ...]
    intercept: float
    scale: Scale
    updates: UpdateCounts = msgspec.field(name="lessons")


_PAYLOAD: Final = msgspec.json.Decoder(_LayerPayload)
_LARGEST_MOMENT: Final = 1e18


def _by_name(inputs: tuple[str, ...], weights: tuple[float, ...], scale: Scale) -> tuple[tuple[float, ...], Scale]:
    """Return weights and moments of `INPUTS`, from those of other inputs: one that is new weighs nothing yet.

    Until it has values, it counts as one of mean 0 and deviation 1.
    """
    if inputs == INPUTS:
        return weights, scale
    held = dict(zip(inputs, zip(weights, scale.means, scale.squares, strict=True), strict=True))
    found = [held.get(name, (0.0, 0.0, scale.weight)) for name in INPUTS]
    own_weights, means, squares = zip(*found, strict=True)
    return own_weights, Scale(weight=scale.weight, means=means, squares=squares)


class RiverLayer:
    """An immutable scorer. Raises `ModelError` when its numbers do not fit this version of the inputs."""

    def __init__(
        self,
        config: LayerConfig,
        weights: tuple[float, ...],
        intercept: float,
        scale: Scale,
        examples_offset: int,
        updates: UpdateCounts | None = None,
    ) -> None:
        if config != LayerConfig(inputs=config.inputs, kernel=config.kernel) or not is_comparable(config.kernel):
            raise ModelError(
                "this River version was made with other inputs than this program's; run one release on all workers, "
                "or let the learn agent start a new layer"
            )
        if {len(weights), len(scale.means), len(scale.squares)} != {len(config.inputs)} or not (
            all(abs(number) <= LARGEST_COEFFICIENT for number in (*weights, intercept, *scale.means))
            and all(0.0 <= number <= _LARGEST_MOMENT for number in (scale.weight, *scale.squares))
        ):
            raise ModelError(
                f"a River layer has {len(config.inputs)} finite weights and means within {LARGEST_COEFFICIENT:g}; "
                "restore an earlier version"
            )
        content = _LayerPayload(
            kind=LAYER_KIND,
            config=config,
            examples_offset=examples_offset,
            weights=tuple(map(float, weights)),
            intercept=float(intercept),
            scale=scale,
            updates=updates or UpdateCounts(),
        )
        self.config = config
        self.intercept: float = content.intercept
        weights, scale = _by_name(config.inputs, weights, scale)
        self.scale = scale
        self.examples_offset = examples_offset
        self.updates = content.updates
        self._weights: NDArray[np.float64] = np.array(weights)
        self._weights.flags.writeable = False
        self._means = np.array(scale.means)
        self._factors = reciprocal_deviations(scale.weight, np.array(scale.squares))
        self.payload: bytes = encode_payload(content)
        self.version: str = f"{config.digest[:VERSION_DIGITS]}@{examples_offset}"

    @classmethod
    def identity(cls) -> "RiverLayer":
        """The layer before its first training update, which changes nothing."""
        return cls(LayerConfig(), (0.0,) * len(INPUTS), 0.0, Scale(), 0)

    @property
    def weights(self) -> NDArray[np.float64]:
        """Weights of `INPUTS`; read-only."""
        return self._weights

    def logit(self, features: NDArray[np.float64], base_logit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-odds, shape (n,), of features of shape (n, len(FEATURES)) and LightGBM's log-odds (n,).

        A row's value does not depend on the rows beside it.
        """
        total = np.minimum(np.maximum(base_logit, -LOGIT_BOUND), LOGIT_BOUND)
        for start in range(0, len(total), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            _add(self._inputs(features[rows]), self._weights, self.intercept, total[rows])
        return total

    def contributions(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the log-odds that each input adds; shape (n, len(INPUTS)), without the intercept."""
        products: NDArray[np.float64] = self._inputs(features) * self._weights
        return products

    def _inputs(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        return standardized(river_inputs(features[:, SOURCE_COLUMNS]), self._means, self._factors)

    def evidence(self, features: NDArray[np.float64], base_logit: NDArray[np.float64]) -> list[str]:
        """Return in words the input that raised each row most, or ``""``."""
        del base_logit
        parts = self.contributions(features)
        best = parts.argmax(axis=1) if len(parts) else np.empty(0, np.intp)
        return [describe(index) if row[index] > 0 else "" for row, index in zip(parts, best.tolist(), strict=True)]

    def to_payload(self) -> bytes:
        """The layer as one JSON object of numbers."""
        return self.payload

    @classmethod
    def from_payload(cls, payload: bytes) -> "RiverLayer":
        """Read a layer; raises `ModelError` when it is damaged or of other inputs."""
        content = decode_payload(payload, _PAYLOAD, "a River layer", LAYER_KIND)
        return cls(
            content.config, content.weights, content.intercept, content.scale, content.examples_offset, content.updates
        )


def reciprocal_deviations(weight: float, squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / standard deviation of each input, 0 for one that never varied; arguments as `Scale` has them."""
    deviation = np.sqrt(squares / max(weight, 1.0))
    varies = deviation > 1e-9
    return np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0)


def standardized(
    inputs: NDArray[np.float64], means: NDArray[np.float64], factors: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return inputs as standard deviations from the mean, within `INPUT_BOUND`; shape (n, len(INPUTS))."""
    # NumPy's clip costs more than the two where rows are few.
    scaled: NDArray[np.float64] = np.minimum(np.maximum((inputs - means) * factors, -INPUT_BOUND), INPUT_BOUND)
    return scaled


@compiled
def _add(inputs: Any, weights: Any, intercept: Any, total: Any) -> None:
    """Add the weighted sum of each row, in one order: a matrix product of BLAS does not promise one."""
    for i in range(inputs.shape[0]):
        sum_ = intercept
        for k in range(inputs.shape[1]):
            sum_ += weights[k] * inputs[i, k]
        total[i] += sum_
