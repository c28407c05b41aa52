"""Feature distributions of a population: counts between quantiles, small enough to travel with a model."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import msgspec
import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import FEATURES

BINS: Final = 10
"""Number of equal shares of the population that set the edges."""


_BLOCK_ROWS: Final = 65_536
"""Rows that are copied at a time."""
MOST_EDGES: Final = 1_000
"""Most bins of a distribution that is read; bins are counted in a matrix as wide as the widest."""
LARGEST_COUNT: Final = 1e15


class FeatureDistribution(msgspec.Struct, frozen=True, kw_only=True):
    """The distribution of one feature."""

    name: str
    edges: tuple[float, ...]
    """Ascending and distinct; a value belongs behind the last edge that is not above it."""
    counts: tuple[float, ...]
    """Counts of the bins, from the one before the first edge on; the last one counts rows without a value."""


class BinCounter:
    """Counts what lies in given bins, rows by rows; memory is that of the bins."""

    def __init__(
        self, names: Sequence[str], edges: Sequence[NDArray[np.float64]], held: Sequence[str] = FEATURES
    ) -> None:
        """Begin with nothing counted.

        Args:
            names: The features to count.
            edges: Edges of each, ascending and distinct.
            held: The features that rows hold.
        """
        self._names = tuple(names)
        self._columns = np.array([held.index(name) for name in names], np.int64)
        self._sizes = np.array([len(feature_edges) for feature_edges in edges], np.int64)
        width = int(self._sizes.max(initial=0))
        self._edges = np.zeros((len(names), width))
        for row, feature_edges in zip(self._edges, edges, strict=True):
            row[: len(feature_edges)] = feature_edges
        self._counts = np.zeros((len(names), width + 2))

    @classmethod
    def like(cls, distributions: Sequence[FeatureDistribution]) -> "BinCounter":
        """Build an empty counter with the same bins."""
        return cls(
            [distribution.name for distribution in distributions],
            [np.array(distribution.edges) for distribution in distributions],
        )

    def add(self, features: NDArray[np.float64], weight: NDArray[np.float64] | None = None) -> None:
        """Count rows: features of shape (n, len(held)), NaN for no value; each stands for ``weight`` (n,) rows."""
        weight = np.ones(len(features)) if weight is None else weight
        _count(features, weight, self._columns, self._edges, self._sizes, self._counts)

    def distributions(self) -> tuple[FeatureDistribution, ...]:
        """Return the counts so far as distributions."""
        return tuple(
            FeatureDistribution(name=name, edges=tuple(edges[:size]), counts=tuple(counts[: size + 2]))
            for name, size, edges, counts in zip(
                self._names, self._sizes.tolist(), self._edges.tolist(), self._counts.tolist(), strict=True
            )
        )


def distributions_of(
    features: NDArray[np.float64],
    weight: NDArray[np.float64],
    names: Sequence[str] = FEATURES,
    rows: NDArray[np.intp] | None = None,
    held: Sequence[str] = FEATURES,
) -> tuple[FeatureDistribution, ...]:
    """Return how features are distributed, with bins of (about) equal shares.

    Args:
        features: Shape (n, len(held)), NaN for no value. It is never copied as a whole.
        weight: How many rows each stands for; shape (n,).
        names: The features.
        rows: The rows to look at; by default all.
        held: The features that rows hold.
    """
    rows = np.arange(len(features)) if rows is None else rows
    of_rows = weight[rows]
    edges = [_edges(features[rows, held.index(name)], of_rows) for name in names]
    counter = BinCounter(names, edges, held)
    for first in range(0, len(rows), _BLOCK_ROWS):
        block = slice(first, first + _BLOCK_ROWS)
        counter.add(features[rows[block]], of_rows[block])
    return counter.distributions()


def are_sound(distributions: Sequence[FeatureDistribution]) -> bool:
    """Return whether they can be read: known features, once each, edges in order, and a sensible count of each bin."""
    names = [distribution.name for distribution in distributions]
    return (
        len(set(names)) == len(names)
        and set(names) <= set(FEATURES)
        and all(
            len(distribution.counts) == len(distribution.edges) + 2
            and len(distribution.edges) <= MOST_EDGES
            and all(before < after for before, after in pairwise(distribution.edges))
            and all(0.0 <= count <= LARGEST_COUNT for count in distribution.counts)
            for distribution in distributions
        )
    )


def _edges(column: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    # An infinite edge could not be written.
    known = np.isfinite(column)
    if not (weight[known] > 0).any():
        return np.empty(0)
    shares = np.arange(1, BINS) / BINS
    values, of_values = column[known], weight[known]
    if (of_values != 1.0).any():
        return np.unique(np.quantile(values, shares, weights=of_values, method="inverted_cdf"))
    # The same order statistics without a sort, which took most of the time.
    at = np.searchsorted(np.arange(1, len(values) + 1) / len(values), shares)
    return np.unique(np.partition(values, at)[at])


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _count(
    features: NDArray[np.float64],
    weight: NDArray[np.float64],
    columns: NDArray[np.int64],
    edges: NDArray[np.float64],
    sizes: NDArray[np.int64],
    counts: NDArray[np.float64],
) -> None:
    for row in range(features.shape[0]):
        for at in range(columns.shape[0]):
            value = features[row, columns[at]]
            size = sizes[at]
            if np.isnan(value):
                counts[at, size + 1] += weight[row]
            else:
                inside = 0
                for edge in range(size):
                    inside += edges[at, edge] <= value
                counts[at, inside] += weight[row]
