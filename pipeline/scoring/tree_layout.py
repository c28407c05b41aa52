"""Trees as arrays: what `pipeline.scoring.compiled_trees` adds them up by, and `compiled_contributions` explains them.

Nodes of a tree stand in preorder.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.trees import Tree, leaf_order

COMPILED_LEAVES: Final = 64
"""A tree's leaves are the bits of one integer; the sum over larger ones is left to LightGBM."""
NEAR_ZERO: Final = float(np.float32(1e-35))
"""LightGBM takes values of this size and below, of either sign, as 0."""
POINTS: Final = 8
"""Quadrature points that go through a tree together; one pass of them is exact for 16 features on a path."""


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


class Paths(NamedTuple):
    """Trees as edges: node n of a tree, in preorder, has edge 2 n + 1 to its left and edge 2 n + 2 to its right.

    Edge 0 leads to the root, and stands for no edge where a feature has not been tested before.
    """

    node_column: NDArray[np.int32]
    """Shape (nodes,): index in ``columns``."""
    node_threshold: NDArray[np.float64]
    node_parent: NDArray[np.int32]
    """The edge that leads to the node."""
    node_previous: NDArray[np.int32]
    """The last edge above the node that comes from a test of the same feature; 0 for none."""
    edge_cover: NDArray[np.float64]
    """Share of the training's rows that pass all tests of the edge's feature down to it, each of those that come to it.

    Shape (2 x nodes + 1,): edge e of a tree whose nodes begin at f is at 2 f + e.
    """
    edge_value: NDArray[np.float64]
    """The value of the leaf that the edge leads to; 1 where it leads to a node."""
    tree_node: NDArray[np.int64]
    """Shape (trees + 1,): where each tree's nodes begin."""
    tree_rule: NDArray[np.int64]
    """Shape (trees,): where the rule begins that is exact for the tree."""
    tree_passes: NDArray[np.int64]
    """Shape (trees,): how many rows that rule has."""
    rule_point: NDArray[np.float64]
    """Shape (rows, POINTS): Gauss-Legendre points between 0 and 1: a rule of one row, one of two rows, and so on."""
    rule_weight: NDArray[np.float64]
    columns: NDArray[np.int32]
    """Shape (c,): feature of each column of tests."""
    column_missing: NDArray[np.float64]
    """Shape (c,): what a missing value counts as."""
    base_value: float
    """Expected sum when nothing is known: the mean over the training's rows."""


def lay_out_trees(trees: Sequence[Tree]) -> tuple[Forest | None, Paths | None]:
    """Return trees as `forest_sums` and as `path_contributions` take them; None where they are sound but not for it.

    Neither has trees that take 0 for a missing value. `Forest` has none of more than `COMPILED_LEAVES` leaves. `Paths`
    has none that do not say how many rows of the training came to each node and leaf: one at least, and no more than to
    the node above, or else no cover follows from it.
    """
    if any(tree.takes_zero_for_missing for tree in trees):
        return None, None
    is_small = all(len(tree.leaf) <= COMPILED_LEAVES for tree in trees)
    columns: dict[tuple[int, bool], int] = {}
    """Columns of the values that nodes test, by feature and whether a missing value goes left."""
    node_column: list[int] = []
    node_threshold: list[float] = []
    node_mask: list[int] = []
    leaf_value: list[float] = []
    tree_node, tree_leaf = [0], [0]
    walked = [_edges(tree) for tree in trees]
    for tree, edges in zip(trees, walked, strict=True):
        for node in edges.node:
            tested = tree.feature[node], tree.sends_missing_left(node)
            node_column.append(columns.setdefault(tested, len(columns)))
        node_threshold += [tree.threshold[node] for node in edges.node]
        order, ranges = leaf_order(tree)
        node_mask += [_remaining(*ranges[node]) for node in edges.node if is_small]
        leaf_value += [tree.leaf[leaf] for leaf in order]
        tree_node.append(len(node_column))
        tree_leaf.append(len(leaf_value))
    tests = np.array(node_column, np.int32), np.array(node_threshold, np.float64)
    begins = np.array(tree_node, np.int64)
    # Minus infinity goes left, NaN right of any threshold.
    missing = [-math.inf if left else math.nan for _, left in columns]
    sides = np.array([feature for feature, _ in columns], np.int32), np.array(missing, np.float64)
    leaves = np.array(tree_leaf, np.int64), np.array(leaf_value, np.float64)
    forest = Forest(*tests, np.array(node_mask, np.uint64), begins, *leaves, *sides) if is_small else None
    if not all(edges.is_covered for edges in walked):
        return forest, None
    passes = [-(-edges.most_features // (2 * POINTS)) for edges in walked]
    rules = [_rule(number) for number in range(1, max(passes, default=0) + 1)]
    return forest, Paths(
        *tests,
        np.array([parent for edges in walked for parent in edges.parent], np.int32),
        np.array([previous for edges in walked for previous in edges.previous], np.int32),
        # Nothing reads edge 0 of the first tree; it is there so that no index needs a subtraction.
        np.array([1.0, *(cover for edges in walked for cover in edges.cover)], np.float64),
        np.array([1.0, *(value for edges in walked for value in edges.value)], np.float64),
        begins,
        np.array([number * (number - 1) // 2 for number in passes], np.int64),
        np.array(passes, np.int64),
        np.array([row for points, _ in rules for row in points], np.float64).reshape(-1, POINTS),
        np.array([row for _, weights in rules for row in weights], np.float64).reshape(-1, POINTS),
        *sides,
        sum(_expected(tree) for tree in trees),
    )


def _remaining(first: int, end: int) -> int:
    """Return the mask without the leaves of a range."""
    return ((1 << COMPILED_LEAVES) - 1) ^ (((1 << (end - first)) - 1) << first)


class _Edges(NamedTuple):
    """The part of `Paths` that belongs to one tree, by its nodes in preorder."""

    node: list[int]
    parent: list[int]
    previous: list[int]
    cover: list[float]
    value: list[float]
    is_covered: bool
    """True if covers follow from the counts of rows."""
    most_features: int
    """The most different features that are tested on one path."""


def _is_covered(tree: Tree) -> bool:
    inner = len(tree.left)
    if inner == 0:
        return True
    if len(tree.internal_count) != inner or len(tree.leaf_count) != inner + 1:
        return False
    return all(
        0 < _count(tree, child) <= tree.internal_count[node]
        for node in range(inner)
        for child in (tree.left[node], tree.right[node])
    )


def _count(tree: Tree, child: int) -> int:
    return tree.internal_count[child] if child >= 0 else tree.leaf_count[~child]


def _expected(tree: Tree) -> float:
    if not tree.left:
        return tree.leaf[0]
    return sum(count / tree.internal_count[0] * value for count, value in zip(tree.leaf_count, tree.leaf, strict=True))


def _edges(tree: Tree) -> _Edges:
    found = _Edges([], [], [], [], [], _is_covered(tree), 0)
    features: list[int] = []
    """Number of different features tested down to each node."""
    stack = [(0, 0)] if tree.left else []
    while stack:
        node, parent = stack.pop()
        feature, number = tree.feature[node], len(found.node)
        previous = parent
        while previous and tree.feature[found.node[_from(previous)]] != feature:
            previous = found.parent[_from(previous)]
        features.append((features[_from(parent)] if parent else 0) + (previous == 0))
        found.node.append(node)
        found.parent.append(parent)
        found.previous.append(previous)
        covered = found.cover[previous - 1] if previous else 1.0
        for child in (tree.left[node], tree.right[node]):
            share = _count(tree, child) / tree.internal_count[node] if found.is_covered else 0.0
            found.cover.append(covered * share)
            found.value.append(1.0 if child >= 0 else tree.leaf[~child])
        if tree.right[node] >= 0:
            stack.append((tree.right[node], 2 * number + 2))
        if tree.left[node] >= 0:
            stack.append((tree.left[node], 2 * number + 1))
    return found._replace(most_features=max(features, default=0))


def _from(edge: int) -> int:
    return (edge - 1) >> 1


def _rule(passes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and weights of the Gauss-Legendre rule between 0 and 1, shape (passes, POINTS) each."""
    point, weight = np.polynomial.legendre.leggauss(passes * POINTS)
    return ((point + 1.0) / 2.0).reshape(passes, POINTS), (weight / 2.0).reshape(passes, POINTS)
