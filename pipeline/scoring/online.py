"""What every online model offers to the score agent."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class OnlineModel(Protocol):
    """An immutable scorer on top of one LightGBM version."""

    @property
    def version(self) -> str:
        """``<first digits of the configuration's digest>@<offset in examples>``."""
        ...

    @property
    def lightgbm(self) -> str:
        """The LightGBM version whose log-odds it takes."""
        ...

    @property
    def logit_weight(self) -> float:
        """How much of LightGBM's log-odds is in its own."""
        ...

    def logit(self, features: NDArray[np.float64], base_logit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-odds, shape (n,), of features of shape (n, len(FEATURES)) and LightGBM's log-odds (n,)."""
        ...

    def evidence(self, features: NDArray[np.float64], base_logit: NDArray[np.float64]) -> list[str]:
        """For each row, what it saw that raised its log-odds most, in words; empty where nothing did."""
        ...

    def to_payload(self) -> bytes:
        """The model as one JSON object, without code."""
        ...
