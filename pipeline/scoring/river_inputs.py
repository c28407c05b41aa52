"""Inputs of the online model: the features that it reads, as numbers of similar size."""

from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.features.built_in import SILENCE_FEATURES
from pipeline.features.catalogue import ATTRIBUTE_FEATURES, DEFAULT_FEATURES, FEATURES, MEANINGS, WINDOW_FEATURES
from pipeline.features.compiled import compiled
from schemas.times import US_PER_DAY

OTHER_SILENCE: Final = {
    name for age_us, names in SILENCE_FEATURES.items() if age_us != 7 * US_PER_DAY for name in names
}
"""Silence of other ages than a week, among which trees choose; a residual needs one."""
OWN: Final = (*ATTRIBUTE_FEATURES, *WINDOW_FEATURES)
"""Declared fields and windows: numbers of any size and sign."""
LOGARITHMS: Final = tuple(
    name
    for name in FEATURES
    if (name in DEFAULT_FEATURES or name == "amount") and name not in ("hour", *OWN) and name not in OTHER_SILENCE
)
"""Features that enter as log1p of what is above 0; NaN enters as 0."""
MISSING: Final = tuple(
    name
    for name in ("card_regular_mean_30d", "card_seconds_since_outlier", "merchant_unreported_since_fraud")
    if name in LOGARITHMS
)
"""Features whose absence is an input of its own."""
ZERO: Final = tuple(name for name in ("card_merchant_count", "merchant_unreported_since_fraud") if name in LOGARITHMS)
"""Features whose being 0 is an input of its own."""
AMOUNT_EDGES: Final = (10.0, 30.0, 100.0, 300.0, 1000.0)
"""Amounts in the base currency's major unit; band i holds edge[i - 1] <= amount < edge[i]."""
HOUR_EDGES: Final = (4.0, 8.0, 12.0, 16.0, 20.0)
_HOURS: Final = ("hour",) if "hour" in FEATURES else ()

SOURCES: Final = (*LOGARITHMS, *_HOURS, *OWN)
"""The features that the inputs are made of."""
SOURCE_COLUMNS: Final = np.array([FEATURES.index(name) for name in SOURCES])


def _bands(edges: tuple[float, ...]) -> tuple[str, ...]:
    middle = tuple(f"{low:g} to {high:g}" for low, high in pairwise(edges))
    return (f"below {edges[0]:g}", *middle, f"from {edges[-1]:g}")


LOGIT: Final = "LightGBM's log-odds"
"""Name of the input that carries the log-odds as served; it stands beside `INPUTS`."""
INPUTS: Final = (
    *LOGARITHMS,
    *(f"no {name}" for name in MISSING),
    *(f"{name} is 0" for name in ZERO),
    *(f"amount {band}" for band in _bands(AMOUNT_EDGES)),
    *(f"hour {band}" for band in _bands(HOUR_EDGES) if _HOURS),
    *OWN,
    *(f"no {name}" for name in OWN),
)
"""Names of the inputs, in order. Declared fields and windows enter as the logarithm of 1 + their size, with their sign;
0 for none."""

INPUT_FEATURES: Final = (
    *LOGARITHMS,
    *MISSING,
    *ZERO,
    *("amount" for _ in _bands(AMOUNT_EDGES)),
    *("hour" for _ in _bands(HOUR_EDGES) if _HOURS),
    *OWN,
    *OWN,
)
"""The feature that each of `INPUTS` is made of."""

_CLASSIFIER_FLAGS: Final = (*MISSING, *OWN)
CLASSIFIER_INPUTS: Final = (LOGIT, *FEATURES, *(f"no {name}" for name in _CLASSIFIER_FLAGS))
"""Inputs of a configured classifier: every feature as it is, 0 where it has no value."""
_CLASSIFIER_MISSING: Final = np.array([FEATURES.index(name) for name in _CLASSIFIER_FLAGS])

_MISSING: Final = np.array([SOURCES.index(name) for name in MISSING], np.int64)
_ZERO: Final = np.array([SOURCES.index(name) for name in ZERO], np.int64)
_AMOUNT, _HOUR = SOURCES.index("amount"), SOURCES.index("hour") if _HOURS else -1
_FIRST_AMOUNT: Final = len(LOGARITHMS) + len(MISSING) + len(ZERO)
_FIRST_HOUR: Final = _FIRST_AMOUNT + len(AMOUNT_EDGES) + 1
_FIRST_OWN: Final = _FIRST_HOUR + len(_HOURS) * (len(HOUR_EDGES) + 1)
_LARGEST: Final = 1e18
"""Beyond what a logarithm is taken of; keeps infinities out."""


def river_inputs(sources: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inputs of n transactions, shape (n, len(INPUTS)), finite whatever the features are.

    Args:
        sources: Features of `SOURCES`, shape (n, len(SOURCES)).
    """
    inputs = np.zeros((len(sources), len(INPUTS)))
    _fill(np.ascontiguousarray(sources), inputs, len(LOGARITHMS), _MISSING, _ZERO, _AMOUNT, _HOUR)
    if OWN:
        own, end = sources[:, -len(OWN) :], _FIRST_OWN + len(OWN)
        finite = _finite(own)
        inputs[:, _FIRST_OWN:end] = np.sign(finite) * np.log1p(np.abs(finite))
        inputs[:, end:] = np.isnan(own)
    return inputs


def classifier_rows(features: NDArray[np.float64], logit: NDArray[np.float64]) -> list[dict[str, float]]:
    """Return the inputs of n transactions by name, all finite and in every row; arguments as `Scorer.logit`."""
    missing = np.isnan(features[:, _CLASSIFIER_MISSING]).astype(np.float64)
    rows = np.column_stack([logit, _finite(features), missing]).tolist()
    return [dict(zip(CLASSIFIER_INPUTS, row, strict=True)) for row in rows]


def _finite(features: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(np.nan_to_num(features, nan=0.0, posinf=_LARGEST, neginf=-_LARGEST), -_LARGEST, _LARGEST)


@compiled
def _fill(sources: Any, inputs: Any, logarithms: Any, missing: Any, zero: Any, amount_at: Any, hour_at: Any) -> None:
    # What follows from the declaration are arguments: compiled code is kept on disk for all declarations.
    for i in range(sources.shape[0]):
        for k in range(logarithms):
            value = sources[i, k]
            if value > 0:
                inputs[i, k] = np.log1p(min(value, _LARGEST))
        at = logarithms
        for k in range(missing.shape[0]):
            inputs[i, at] = 1.0 if np.isnan(sources[i, missing[k]]) else 0.0
            at += 1
        for k in range(zero.shape[0]):
            inputs[i, at] = 1.0 if sources[i, zero[k]] == 0 else 0.0
            at += 1
        first_hour = at + len(AMOUNT_EDGES) + 1
        for edge in AMOUNT_EDGES:
            at += 1 if sources[i, amount_at] >= edge else 0
        inputs[i, at] = 1.0
        if hour_at >= 0:
            for edge in HOUR_EDGES:
                first_hour += 1 if sources[i, hour_at] >= edge else 0
            inputs[i, first_hour] = 1.0


def describe(index: int) -> str:
    """Return an input in words, of transactions in the plural."""
    name = INPUTS[index]
    if _FIRST_OWN > index >= _FIRST_HOUR:
        return f"hours {name.removeprefix('hour ')}"
    if _FIRST_HOUR > index >= _FIRST_AMOUNT:
        return f"amounts {name.removeprefix('amount ')}"
    if (feature := name.removeprefix("no ")) != name:
        return f"no {MEANINGS[feature]}"
    if (feature := name.removesuffix(" is 0")) != name:
        return f"{MEANINGS[feature]} 0"
    return MEANINGS[name]
