"""The River layer as the score agent uses it: numbers, and one vectorised sum.

The numbers are those of a River logistic regression (`pipeline.scoring.river_learner`); a test holds the sum to
River's own prediction. A version is the digest of its configuration, the first example that it was taught included,
and an offset in ``examples``: folding the examples from the one up to the other gives the same numbers again.
"""

import hashlib
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.errors import ModelError
from pipeline.scoring.layer_inputs import (
    FIRST_AMOUNT,
    FIRST_HOUR,
    LAYER_INPUTS,
    LOGIT_SCALE,
    NEW_TO_MERCHANT,
    SURGE,
    feature_inputs,
    layer_inputs,
)
from pipeline.scoring.payload import (
    LARGEST_COEFFICIENT,
    VERSION_DIGITS,
    Offset,
    decode_payload,
    encode_payload,
    payload_digest,
)

LAYER_KIND: Final = "river-layer"
LAYER_REVISION: Final = 1
"""Raised whenever a lesson or an input changes its meaning without a change of its name."""
LEARNING_RATE: Final = 0.05
"""Measured in ``docs/models.md``: the best or nearly so against every attack tried, and loses least without one."""


class LayerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides what a fold of examples gives."""

    lightgbm_version: str
    inputs: tuple[str, ...] = LAYER_INPUTS
    logit_scale: float = LOGIT_SCALE
    learning_rate: float = LEARNING_RATE
    revision: int = LAYER_REVISION
    examples_start: Offset | msgspec.UnsetType = msgspec.UNSET
    """The first example that the fold has; left out where that is the first of all."""

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal."""
        return hashlib.sha256(encode_payload(self)).hexdigest()

    def starting_at(self, examples_start: int) -> "LayerConfig":
        """The same for a fold that begins at the example ``examples_start``."""
        return msgspec.structs.replace(self, examples_start=examples_start or msgspec.UNSET)


class Lessons(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the examples that were folded."""

    learned: int = 0
    corrections: int = 0
    """Later lessons of a transaction that had one."""
    other_base: int = 0
    """Scored under another LightGBM version."""
    rule: int = 0
    """Labelled by a rule."""
    unlabelled: int = 0
    """Neither fraud nor legitimate."""


class _Payload(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    config: LayerConfig
    examples_offset: Offset
    weights: tuple[float, ...]
    intercept: float
    lessons: Lessons


_PAYLOAD: Final = msgspec.json.Decoder(_Payload)


class RiverLayer:
    """An immutable scorer. ``weights`` has one number for each of `LAYER_INPUTS`.

    Raises `ModelError` when the numbers do not fit this version of the inputs.
    """

    __slots__ = ("_weights", "config", "digest", "examples_offset", "intercept", "lessons", "payload", "version")

    def __init__(
        self,
        config: LayerConfig,
        weights: tuple[float, ...],
        intercept: float,
        examples_offset: int,
        lessons: Lessons | None = None,
    ) -> None:
        if config.inputs != LAYER_INPUTS or config.logit_scale != LOGIT_SCALE or config.revision != LAYER_REVISION:
            raise ModelError(
                "this River version was made with other inputs than this program's; run one release on all workers, "
                "or let the learn agent start a new layer"
            )
        if len(weights) != len(LAYER_INPUTS) or not all(
            abs(number) <= LARGEST_COEFFICIENT for number in (*weights, intercept)
        ):
            raise ModelError(
                f"a River layer has {len(LAYER_INPUTS)} finite weights within {LARGEST_COEFFICIENT:g}; "
                "restore an earlier version"
            )
        content = _Payload(
            kind=LAYER_KIND,
            config=config,
            examples_offset=examples_offset,
            weights=tuple(map(float, weights)),
            intercept=float(intercept),
            lessons=lessons or Lessons(),
        )
        self.config = config
        self.intercept: float = content.intercept
        self.examples_offset = examples_offset
        self.lessons = content.lessons
        self._weights: NDArray[np.float64] = np.array(content.weights)
        self._weights.flags.writeable = False
        self.payload: bytes = encode_payload(content)
        self.digest: str = payload_digest(self.payload)
        self.version: str = f"{config.digest[:VERSION_DIGITS]}@{examples_offset}"

    @classmethod
    def identity(cls, lightgbm_version: str, examples_start: int = 0) -> "RiverLayer":
        """The layer that changes nothing, which every new LightGBM version starts with, at ``examples_start``."""
        weights = (LOGIT_SCALE, *(0.0 for _ in LAYER_INPUTS[1:]))
        config = LayerConfig(lightgbm_version=lightgbm_version).starting_at(examples_start)
        return cls(config, weights, 0.0, examples_start)

    @property
    def lightgbm_version(self) -> str:
        """The LightGBM version whose log-odds it takes."""
        return self.config.lightgbm_version

    @property
    def logit_weight(self) -> float:
        """How much of LightGBM's log-odds is in its own; 1 at the start."""
        return float(self._weights[0]) / LOGIT_SCALE

    @property
    def weights(self) -> NDArray[np.float64]:
        """One for each of `LAYER_INPUTS`; read-only."""
        return self._weights

    def logit(self, features: NDArray[np.float64], base_logit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-odds, shape (n,), of features of shape (n, len(FEATURES)) and LightGBM's log-odds (n,).

        A row's value does not depend on the rows beside it: products and sums go by element, in one order, which
        a matrix product of BLAS does not promise.
        """
        inputs = feature_inputs(features, base_logit)
        weights = self._weights
        total: NDArray[np.float64] = inputs.logit * weights[0]
        total += weights[inputs.amount_input]
        total += weights[inputs.hour_input]
        total += inputs.new_to_merchant * weights[NEW_TO_MERCHANT]
        total += inputs.surge * weights[SURGE]
        total += self.intercept
        return total

    def contributions(self, features: NDArray[np.float64], base_logit: NDArray[np.float64]) -> NDArray[np.float64]:
        """What each input added to the log-odds; shape (n, len(LAYER_INPUTS)), without the intercept."""
        products: NDArray[np.float64] = layer_inputs(features, base_logit) * self._weights
        return products

    def evidence(self, features: NDArray[np.float64], base_logit: NDArray[np.float64]) -> list[str]:
        """For each row the input beyond LightGBM's log-odds that raised it most, in words, or ``""``."""
        parts = self.contributions(features, base_logit)[:, 1:]
        best = parts.argmax(axis=1) if len(parts) else np.empty(0, np.intp)
        return [_words(index + 1) if row[index] > 0 else "" for row, index in zip(parts, best, strict=True)]

    def to_payload(self) -> bytes:
        """The layer as one JSON object of numbers; ``digest`` is its SHA-256."""
        return self.payload

    @classmethod
    def from_payload(cls, payload: bytes) -> "RiverLayer":
        """Read a layer; raises `ModelError` when it is damaged or of other inputs."""
        content = decode_payload(payload, _PAYLOAD, "a River layer")
        if content.kind != LAYER_KIND:
            raise ModelError(f"the payload is a {content.kind!r}, not a River layer; look at what was published")
        return cls(content.config, content.weights, content.intercept, content.examples_offset, content.lessons)


def _words(index: int) -> str:
    name = LAYER_INPUTS[index]
    if FIRST_AMOUNT <= index < FIRST_HOUR:
        return f"amounts {name.removeprefix('amount ')}"
    if FIRST_HOUR <= index < NEW_TO_MERCHANT:
        return f"hours {name.removeprefix('hour ')}"
    return "cards new to their merchant" if index == NEW_TO_MERCHANT else "merchants with more traffic than usual"
