"""The sum over a forest, compiled. Equal to LightGBM's to the last bit: same leaves, added in the same order."""

from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.trees import Forest

_BLOCK: Final = 64
"""Rows that go through a tree together: their tests of one node are a few vector instructions."""
_LEAST: Final = 8
"""A vector of rows; fewer are filled up, because single ones take longer than a whole vector."""
_DE_BRUIJN: Final = 0x03F79D71B4CB0A89
_BIT: Final = np.zeros(64, np.int64)
for _i in range(64):
    _BIT[((_DE_BRUIJN << _i) & 0xFFFFFFFFFFFFFFFF) >> 58] = _i


def forest_sums(forest: Forest, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Raw margins, shape (n,), of features of shape (n, number of features)."""
    out = np.empty(len(features))
    _sums(np.ascontiguousarray(features, np.float64), *forest, _BIT, out)
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _sums(
    features: NDArray[np.float64],
    node_column: NDArray[np.int32],
    node_threshold: NDArray[np.float64],
    node_mask: NDArray[np.uint64],
    tree_node: NDArray[np.int64],
    tree_leaf: NDArray[np.int64],
    leaf_value: NDArray[np.float64],
    columns: NDArray[np.int32],
    column_missing: NDArray[np.float64],
    bit: NDArray[np.int64],
    out: NDArray[np.float64],
) -> None:
    everything = np.uint64(0xFFFFFFFFFFFFFFFF)
    values = np.zeros((columns.shape[0], _BLOCK))
    alive = np.empty(_BLOCK, np.uint64)
    for start in range(0, features.shape[0], _BLOCK):
        rows = min(_BLOCK, features.shape[0] - start)
        width = max(rows, _LEAST)
        for c in range(columns.shape[0]):
            for r in range(rows):
                value = features[start + r, columns[c]]
                values[c, r] = column_missing[c] if np.isnan(value) else value
        for r in range(rows):
            out[start + r] = 0.0
        for tree in range(tree_leaf.shape[0] - 1):
            for r in range(width):
                alive[r] = everything
            for node in range(tree_node[tree], tree_node[tree + 1]):
                threshold, mask = node_threshold[node], node_mask[node]
                tested = values[node_column[node]]
                for r in range(width):
                    # NaN, a missing value that goes right, fails the test of every threshold.
                    alive[r] &= everything if tested[r] <= threshold else mask
            first = tree_leaf[tree]
            for r in range(rows):
                lowest = alive[r] & (~alive[r] + np.uint64(1))
                out[start + r] += leaf_value[first + bit[(lowest * np.uint64(_DE_BRUIJN)) >> np.uint64(58)]]
