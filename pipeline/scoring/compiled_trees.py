"""The sum over a forest, compiled. Equal to LightGBM's to the last bit: same leaves, added in the same order."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.trees import SplitColumns, Tree, leaf_order

COMPILED_LEAVES: Final = 64
"""A tree's leaves are the bits of one integer; larger ones are left to LightGBM."""
_BLOCK: Final = 64
"""Rows that go through a tree together: their tests of one node are a few vector instructions."""
_LEAST: Final = 8
"""A vector of rows; fewer are filled up, because single ones take longer than a whole vector."""
_DE_BRUIJN: Final = 0x03F79D71B4CB0A89
_BIT: Final = np.zeros(64, np.int64)
for _i in range(64):
    _BIT[((_DE_BRUIJN << _i) & 0xFFFFFFFFFFFFFFFF) >> 58] = _i


class Forest(NamedTuple):
    """Trees as tests and bits, after Lucchese et al., "QuickScorer" (2015).

    A tree's leaves are numbered from left to right. Each inner node has a mask of the leaves that remain when its test
    fails, so that a row goes right; of the leaves that remain after all nodes, the row's own is the first.
    """

    node_column: NDArray[np.int32]
    """Shape (nodes,): index in ``columns``."""
    node_threshold: NDArray[np.float64]
    node_mask: NDArray[np.uint64]
    tree_node: NDArray[np.int64]
    """Shape (trees + 1,): where each tree's nodes begin."""
    tree_leaf: NDArray[np.int64]
    leaf_value: NDArray[np.float64]
    columns: NDArray[np.int32]
    """Shape (c,): feature of each column of tests."""
    column_missing: NDArray[np.float64]
    """Shape (c,): what a missing value counts as."""


def lay_out_forest(trees: Sequence[Tree]) -> Forest | None:
    """Trees as `forest_sums` takes them; None where they are sound but not for `Forest`."""
    if any(len(tree.leaf) > COMPILED_LEAVES or tree.takes_zero_for_missing for tree in trees):
        return None
    columns = SplitColumns()
    node_column, node_threshold, node_mask, leaf_value = [], [], [], []
    tree_node, tree_leaf = [0], [0]
    everything = (1 << COMPILED_LEAVES) - 1
    for tree in trees:
        order, ranges = leaf_order(tree)
        leaf_value += [tree.leaf[leaf] for leaf in order]
        for node, (first, end) in enumerate(ranges):
            node_column.append(columns.number(tree, node))
            node_threshold.append(tree.threshold[node])
            node_mask.append(everything ^ (((1 << (end - first)) - 1) << first))
        tree_node.append(len(node_column))
        tree_leaf.append(len(leaf_value))
    return Forest(
        np.array(node_column, np.int32),
        np.array(node_threshold, np.float64),
        np.array(node_mask, np.uint64),
        np.array(tree_node, np.int64),
        np.array(tree_leaf, np.int64),
        np.array(leaf_value, np.float64),
        columns.features,
        columns.missing,
    )


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
