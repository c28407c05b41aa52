"""Comparisons of a feature with a number, as rules and audit strata make them."""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import FEATURES
from pipeline.scoring.errors import ModelError

_COMPARISONS: Final = {
    ">": np.greater,
    ">=": np.greater_equal,
    "<": np.less,
    "<=": np.less_equal,
    "==": np.equal,
    "!=": np.not_equal,
}
_COLUMNS: Final = {name: column for column, name in enumerate(FEATURES)}


def compared(features: NDArray[np.float64], feature: str, op: str, value: float) -> NDArray[np.bool_]:
    """Return where ``feature`` ``op`` ``value`` holds, shape (n,); a missing value never does.

    Args:
        features: Shape (n, len(FEATURES)), NaN for no value.
        feature: Name of one of `FEATURES`.
        op: ``>``, ``>=``, ``<``, ``<=``, ``==`` or ``!=``.
        value: In the unit of the feature.
    """
    column = features[:, _COLUMNS[feature]]
    matched: NDArray[np.bool_] = _COMPARISONS[op](column, value) & ~np.isnan(column)
    return matched


def check_comparison(owner: str, feature: str, op: str, value: float) -> None:
    """Raise `ModelError`, which begins with ``owner``, where a comparison makes no sense."""
    if feature not in _COLUMNS:
        raise ModelError(f"{owner} names {feature!r}, which is no feature; see docs/features.md")
    if op not in _COMPARISONS:
        raise ModelError(f"{owner} compares with {op!r}; use one of {', '.join(_COMPARISONS)}")
    if not math.isfinite(value):
        raise ModelError(f"{owner} compares with {value}, which is no number")
