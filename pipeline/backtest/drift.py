"""How far the features of a range have moved from those that a model was trained on."""

from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

BINS: Final = 10
"""Of equal shares of the reference."""
_LEAST_SHARE: Final = 1e-4
"""Stands for a share of none, whose logarithm there is not."""


class FeatureBins(NamedTuple):
    """Bins of each feature by the quantiles of a reference; the last bin holds what has no value."""

    edges: tuple[NDArray[np.float64], ...]
    """Of each feature, ascending and distinct; a value belongs behind the last edge that is not above it."""

    @classmethod
    def of(cls, reference: NDArray[np.float64], bins: int = BINS) -> Self:
        """Bins of (about) equal shares of ``reference``, shape (n, features), NaN for no value."""
        edges = []
        for column in reference.T:
            values = column[~np.isnan(column)]
            inner = np.quantile(values, np.arange(1, bins) / bins, method="lower") if len(values) else np.empty(0)
            edges.append(np.unique(inner))
        return cls(tuple(edges))

    def counts(self, features: NDArray[np.float64]) -> tuple[NDArray[np.int64], ...]:
        """How many rows of ``features``, shape (n, features), lie in each bin; of each feature, to be added up."""
        found = []
        for edges, column in zip(self.edges, features.T, strict=True):
            missing = np.isnan(column)
            bins = np.where(missing, len(edges) + 1, np.searchsorted(edges, column, side="right"))
            found.append(np.bincount(bins, minlength=len(edges) + 2))
        return tuple(found)


class Drift(NamedTuple):
    """Counts of the same bins over two populations; all tuples go by feature."""

    features: tuple[str, ...]
    bins: FeatureBins
    reference: tuple[NDArray[np.int64], ...]
    """Counts of `FeatureBins.counts` over the training."""
    current: tuple[NDArray[np.int64], ...]
    """Counts over the range."""
    reference_name: str = "training"
    """What the reference is."""

    def stability_index(self) -> NDArray[np.float64]:
        """The population stability index of each feature, shape (features,); NaN where a population is empty.

        The symmetric Kullback-Leibler divergence of the binned shares p and q, the sum of (p - q) ln(p / q), as it is
        used in credit scoring (Siddiqi, "Credit Risk Scorecards", 2006); below 0.1 is commonly read as stable, above
        0.25 as moved.
        """
        return np.array([_divergence(one, other) for one, other in zip(self.reference, self.current, strict=True)])

    def missing(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The share of rows without a value in the reference and in the range, each of shape (features,)."""
        return tuple(  # type: ignore[return-value]
            np.array([counts[-1] / counts.sum() if counts.sum() else np.nan for counts in of])
            for of in (self.reference, self.current)
        )


def _divergence(reference: NDArray[np.int64], current: NDArray[np.int64]) -> float:
    if not reference.sum() or not current.sum():
        return float("nan")
    p, q = (np.maximum(counts / counts.sum(), _LEAST_SHARE) for counts in (reference, current))
    return float(np.sum((p - q) * np.log(p / q)))
