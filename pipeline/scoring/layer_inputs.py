"""What the River layer sees of a transaction: LightGBM's log-odds and a few bounded indicators."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import FEATURES
from pipeline.scoring.lightgbm_model import LOGIT_BOUND

LOGIT_SCALE: Final = 4.0
"""The log-odds enter divided by this and with this weight at the start: exact, because it is a power of two."""

AMOUNT_EDGES: Final = (10.0, 30.0, 100.0, 300.0, 1000.0)
"""Amounts in the base currency's major unit; band i holds edge[i - 1] <= amount < edge[i]."""
HOUR_EDGES: Final = (4.0, 8.0, 12.0, 16.0, 20.0)
SURGE_BOUND: Final = 8.0
"""Times its usual traffic beyond which a surge at a merchant says no more."""


def _bands(edges: tuple[float, ...]) -> tuple[str, ...]:
    middle = tuple(f"{low:g} to {high:g}" for low, high in pairwise(edges))
    return (f"below {edges[0]:g}", *middle, f"from {edges[-1]:g}")


LAYER_INPUTS: Final = (
    "logit",
    *(f"amount {band}" for band in _bands(AMOUNT_EDGES)),
    *(f"hour {band}" for band in _bands(HOUR_EDGES)),
    "card new to merchant",
    "surge at merchant",
)
"""Names of the inputs, in order; an input beyond the first is between 0 and 1."""

SOURCE_FEATURES: Final = ("amount", "hour", "card_merchant_count", "merchant_surge")
"""The features that the inputs are made of."""
_SOURCE_COLUMNS: Final = tuple(FEATURES.index(name) for name in SOURCE_FEATURES)

FIRST_AMOUNT: Final = 1
FIRST_HOUR: Final = FIRST_AMOUNT + len(AMOUNT_EDGES) + 1
NEW_TO_MERCHANT: Final = FIRST_HOUR + len(HOUR_EDGES) + 1
SURGE: Final = NEW_TO_MERCHANT + 1


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of n transactions, bands as indices; every array has shape (n,)."""

    logit: NDArray[np.float64]
    """LightGBM's log-odds / `LOGIT_SCALE`."""
    amount_input: NDArray[np.intp]
    """Index in `LAYER_INPUTS` of the one amount input that is 1."""
    hour_input: NDArray[np.intp]
    new_to_merchant: NDArray[np.float64]
    surge: NDArray[np.float64]


def compact_inputs(
    amount: NDArray[np.float64],
    hour: NDArray[np.float64],
    card_merchant_count: NDArray[np.float64],
    merchant_surge: NDArray[np.float64],
    base_logit: NDArray[np.float64],
) -> Inputs:
    """Inputs from columns of shape (n,). A NaN means "nothing unusual": amount and hour 0, no surge, not new."""
    # NumPy's clip and nan_to_num cost more than all else here where rows are few.
    surge = np.minimum(np.maximum(_or_0(merchant_surge), 0.0), SURGE_BOUND)
    return Inputs(
        logit=np.minimum(np.maximum(_or_0(base_logit), -LOGIT_BOUND), LOGIT_BOUND) / LOGIT_SCALE,
        amount_input=_AMOUNT_EDGES.searchsorted(_or_0(amount), side="right") + FIRST_AMOUNT,
        hour_input=_HOUR_EDGES.searchsorted(_or_0(hour), side="right") + FIRST_HOUR,
        new_to_merchant=(card_merchant_count == 0).astype(np.float64),
        surge=np.log1p(surge) / _SURGE_LOG,
    )


def _or_0(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isnan(values), 0.0, values)


def feature_inputs(features: NDArray[np.float64], base_logit: NDArray[np.float64]) -> Inputs:
    """Inputs of features of shape (n, len(FEATURES))."""
    amount, hour, count, surge = (features[:, column] for column in _SOURCE_COLUMNS)
    return compact_inputs(amount, hour, count, surge, base_logit)


def layer_inputs(features: NDArray[np.float64], base_logit: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inputs as a matrix of shape (n, len(LAYER_INPUTS)), bands one-hot."""
    inputs = feature_inputs(features, base_logit)
    matrix = np.zeros((len(base_logit), len(LAYER_INPUTS)))
    rows = np.arange(len(base_logit))
    matrix[:, 0] = inputs.logit
    matrix[rows, inputs.amount_input] = 1.0
    matrix[rows, inputs.hour_input] = 1.0
    matrix[:, NEW_TO_MERCHANT] = inputs.new_to_merchant
    matrix[:, SURGE] = inputs.surge
    return matrix


_AMOUNT_EDGES: Final = np.array(AMOUNT_EDGES)
_HOUR_EDGES: Final = np.array(HOUR_EDGES)
_SURGE_LOG: Final = float(np.log1p(SURGE_BOUND))
