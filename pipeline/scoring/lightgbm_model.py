"""A LightGBM version: trees as text, calibration, and the features that they were trained on. Immutable."""

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import FEATURES, KERNEL_VERSION
from pipeline.features.feature_set import is_comparable
from pipeline.scoring.compiled_contributions import path_contributions
from pipeline.scoring.compiled_trees import forest_sums
from pipeline.scoring.distributions import FeatureDistribution, are_sound
from pipeline.scoring.errors import ModelError
from pipeline.scoring.payload import (
    LARGEST_COEFFICIENT,
    VERSION_DIGITS,
    check_metadata,
    decode_payload,
    encode_payload,
    payload_digest,
)
from pipeline.scoring.tree_layout import lay_out_trees
from pipeline.scoring.trees import Tree, forest_text, gain_shares, read_trees

if TYPE_CHECKING:
    import lightgbm

LIGHTGBM_KIND: Final = "lightgbm"
LOGIT_BOUND: Final = 15.0
"""Calibrated log-odds are held within this (3 in ten million), so that one leaf cannot swamp what learns on them."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Platt scaling: calibrated log-odds = ``slope`` x raw margin + ``intercept``."""

    slope: float = 1.0
    intercept: float = 0.0


class _ForestPayload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    kind: str
    kernel: str
    feature_names: tuple[str, ...]
    calibration: Calibration
    metadata: dict[str, Any]
    text: str
    distributions: tuple[FeatureDistribution, ...] = ()


_PAYLOAD: Final = msgspec.json.Decoder(_ForestPayload)


class LightGBMModel:
    """An immutable scorer; ``version`` is the beginning of the payload's digest.

    Two models of the same content are the same version.
    """

    def __init__(
        self,
        text: str,
        calibration: Calibration | None = None,
        metadata: dict[str, Any] | None = None,
        *,
        distributions: tuple[FeatureDistribution, ...] = (),
    ) -> None:
        """Make a version for this kernel.

        Args:
            text: The trees, as LightGBM writes them; they must have been made from `FEATURES`.
            calibration: From raw margins to log-odds; None leaves them as they are.
            metadata: What describes the training, as JSON can hold it; None: nothing.
            distributions: Those of the features that the trees were trained on, and of no other; empty if unknown.

        Raises:
            ModelError: The trees are damaged or were made from other features, they ask for a feature that
                ``distributions`` leave out, a coefficient is out of bounds, or the metadata is too large.
        """
        content = _ForestPayload(
            kind=LIGHTGBM_KIND,
            kernel=KERNEL_VERSION,
            feature_names=FEATURES,
            calibration=calibration or Calibration(),
            metadata=metadata or {},
            text=text,
            distributions=distributions,
        )
        self._load(content, encode_payload(content))

    def _load(self, content: _ForestPayload, payload: bytes) -> None:
        if not is_comparable(content.kernel):
            raise ModelError(
                f"this LightGBM version does not fit the kernel: it is of kernel {content.kernel}, this is "
                f"{KERNEL_VERSION}. Train one with `fraud-pipeline train`"
            )
        slope, intercept = content.calibration.slope, content.calibration.intercept
        if not 0 < slope <= LARGEST_COEFFICIENT:
            raise ModelError(
                f"the calibration's slope is {slope}; it must be above 0, and at most {LARGEST_COEFFICIENT:g}: "
                "train again"
            )
        if not abs(intercept) <= LARGEST_COEFFICIENT:
            raise ModelError(
                f"the calibration's intercept is {intercept}, not a number within {LARGEST_COEFFICIENT:g}: train again"
            )
        check_metadata(content.metadata)
        # LightGBM does not survive a broken text: it must be known to be sound before.
        trees = _on_own_columns(content, read_trees(content.text, content.feature_names))
        _check_distributions(content.distributions, trees)
        self._text = content.text
        self._names = content.feature_names
        self.trees: int = len(trees)
        """Number of trees."""
        self.gain_shares: dict[str, float] = gain_shares(trees, FEATURES)
        """Share of all splits' gain, by feature that the trees ask for."""
        self._forest, self._paths = lay_out_trees(trees)
        if self._forest is None or self._paths is None:
            _ = self._booster  # built here, not while the first batch or the first alert waits
        # Compiled here, not while the first batch or the first alert waits.
        row = np.zeros((1, len(FEATURES)))
        if self._forest is not None:
            forest_sums(self._forest, row)
        if self._paths is not None:
            path_contributions(self._paths, row)
        self._payload = payload
        self.digest: str = payload_digest(payload)
        self.version: str = self.digest[:VERSION_DIGITS]
        self.calibration: Calibration = content.calibration
        self.metadata: dict[str, Any] = content.metadata
        self.distributions: tuple[FeatureDistribution, ...] = content.distributions

    @property
    def trained_on(self) -> tuple[str, ...]:
        """The features that the trees may ask for; all of them where the version names none."""
        return tuple(distribution.name for distribution in self.distributions) or FEATURES

    @property
    def compiled(self) -> bool:
        """True if the compiled sum scores; trees of more than 64 leaves are left to LightGBM, ten times slower."""
        return self._forest is not None

    @cached_property
    def _booster(self) -> "lightgbm.Booster":
        """LightGBM's own predictor, for trees that the compiled code cannot score or explain.

        Only they need LightGBM: with scikit-learn, which it imports, it takes a second and 80 MiB.
        """
        import lightgbm

        try:
            return lightgbm.Booster(model_str=forest_text(self._text))
        except lightgbm.basic.LightGBMError as error:
            raise ModelError(f"LightGBM cannot read the trees of this version ({error}); train it again") from error

    def margin(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Raw margins before calibration; ``features`` has shape (n, len(FEATURES)), the result (n,)."""
        if self._forest is not None:
            return forest_sums(self._forest, features)
        if len(features) == 0:
            return np.empty(0)
        margins: NDArray[np.float64] = self._booster.predict(self._named(features), raw_score=True, num_threads=1)
        return margins

    def logit(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated log-odds of fraud, within `LOGIT_BOUND`; shape (n,) for features of shape (n, len(FEATURES)).

        A row's value does not depend on the rows beside it.
        """
        logits = self.margin(features) * self.calibration.slope + self.calibration.intercept
        bounded: NDArray[np.float64] = np.minimum(np.maximum(logits, -LOGIT_BOUND), LOGIT_BOUND)
        return bounded

    def contributions(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return each feature's part of the calibrated log-odds (TreeSHAP), without the base value.

        Shape (n, len(FEATURES)). Hundreds of microseconds a row, milliseconds where it is left to LightGBM: for alerts,
        not for traffic.
        """
        return np.ascontiguousarray(self.contributions_and_base(features)[:, :-1])

    def contributions_and_base(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what `contributions` does, and in the last column the expected value of the calibrated log-odds.

        A row's sum is the log-odds before they are held within `LOGIT_BOUND`. Shape (n, len(FEATURES) + 1).
        """
        if self._paths is not None:
            values = path_contributions(self._paths, features)
        elif len(features) == 0:
            return np.empty((0, len(FEATURES) + 1))
        else:
            named = np.asarray(self._booster.predict(self._named(features), pred_contrib=True, num_threads=1))
            values = np.zeros((len(features), len(FEATURES) + 1))
            own = [(FEATURES.index(name), k) for k, name in enumerate(self._names) if name in FEATURES]
            values[:, [column for column, _ in own]] = named[:, [k for _, k in own]]
            values[:, -1] = named[:, -1]
        parts: NDArray[np.float64] = values * self.calibration.slope
        parts[:, -1] += self.calibration.intercept
        return parts

    def _named(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return features in the order in which the trees were trained; NaN for those that no tree asks for."""
        if self._names == FEATURES:
            return features
        rows = np.full((len(features), len(self._names)), np.nan)
        for column, name in enumerate(self._names):
            if name in FEATURES:
                rows[:, column] = features[:, FEATURES.index(name)]
        return rows

    def to_payload(self) -> bytes:
        """The version as one JSON object; ``digest`` is its SHA-256."""
        return self._payload

    @classmethod
    def from_payload(cls, payload: bytes) -> "LightGBMModel":
        """Read a version; raises `ModelError` when it does not fit this kernel or is damaged."""
        content = decode_payload(payload, _PAYLOAD, "a LightGBM version", LIGHTGBM_KIND)
        model = cls.__new__(cls)
        # The bytes as they came: encoding again could change the digest that others know this version by.
        model._load(content, bytes(payload))
        return model


def needed_features(payload: bytes) -> set[str]:
    """Return the names of the features that a version needs; raises `ModelError` for a payload that is none."""
    content = decode_payload(payload, _PAYLOAD, "a LightGBM version")
    return _needed(content, read_trees(content.text, content.feature_names))


def _needed(content: _ForestPayload, trees: list[Tree]) -> set[str]:
    described = {distribution.name for distribution in content.distributions}
    return described | {content.feature_names[feature] for tree in trees for feature in tree.feature}


def _on_own_columns(content: _ForestPayload, trees: list[Tree]) -> list[Tree]:
    """Return the trees with the columns of `FEATURES`, whatever declaration they were trained under."""
    names, needed = content.feature_names, _needed(content, trees)
    if missing := sorted(needed - {*FEATURES}):
        raise ModelError(
            f"this LightGBM version needs {', '.join(missing[:5])}, which this declaration of features lacks: declare "
            "it (docs/features.md), or train a version with `fraud-pipeline train`"
        )
    if names == FEATURES:
        return trees
    columns = [FEATURES.index(name) if name in needed else -1 for name in names]
    return [tree._replace(feature=[columns[feature] for feature in tree.feature]) for tree in trees]


def _check_distributions(distributions: tuple[FeatureDistribution, ...], trees: list[Tree]) -> None:
    if not are_sound(distributions):
        raise ModelError("the distributions of this version's features are damaged: publish or train it again")
    described = {FEATURES.index(distribution.name) for distribution in distributions}
    foreign = sorted({FEATURES[feature] for tree in trees for feature in tree.feature if feature not in described})
    if distributions and foreign:
        raise ModelError(
            f"the trees of this version ask for {', '.join(foreign[:5])}, which it says they were not trained on: "
            "publish or train it again"
        )
