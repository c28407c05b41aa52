"""LightGBM's text of a model, read strictly: what is not a complete forest of plain numerical trees is refused.

LightGBM's own reader trusts the text: one that was cut short makes it read beyond the end of it and abort the process.
What passes here is safe to hand over, and is laid out for `pipeline.scoring.compiled_trees`.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.errors import ModelError

MOST_LEAVES: Final = 64
"""A tree's leaves are the bits of one integer; larger ones are left to LightGBM."""

_CATEGORICAL, _DEFAULT_LEFT = 1, 2
_MISSING_NONE, _MISSING_ZERO, _MISSING_NAN = 0, 1, 2


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
    """Shape (c,): what a missing value counts as: minus infinity goes left, NaN right, whatever the threshold."""


class _Tree(NamedTuple):
    feature: list[int]
    threshold: list[float]
    decision: list[int]
    left: list[int]
    right: list[int]
    leaf: list[float]


def read_forest(text: str, feature_names: tuple[str, ...]) -> Forest | None:
    """Check the whole text and lay its trees out; None where they are sound but not for `Forest`.

    Raises `ModelError` when the text is not a complete binary or regression model of ``feature_names``.
    """
    trees = [_read_tree(block, len(feature_names)) for block in _blocks(text, feature_names)]
    if any(len(tree.leaf) > MOST_LEAVES for tree in trees):
        return None
    if any((decision >> 2) & 3 == _MISSING_ZERO for tree in trees for decision in tree.decision):
        return None
    return _lay_out(trees)


def _broken(why: str) -> ModelError:
    return ModelError(f"the trees of this version cannot be read ({why}); publish or train it again")


def _blocks(text: str, feature_names: tuple[str, ...]) -> list[str]:
    """The text of each tree, found as LightGBM finds it: by the sizes in the header."""
    if not text.isascii():
        raise _broken("they hold characters that LightGBM does not write")
    start = text.find("\nTree=0\n") + 1
    if start == 0:
        raise _broken("there is no tree")
    header = {name: value for name, _, value in (line.partition("=") for line in text[:start].splitlines())}
    for name, wanted in (("version", "v4"), ("num_class", "1"), ("num_tree_per_iteration", "1")):
        if header.get(name) != wanted:
            raise _broken(f"{name} is {header.get(name)!r}, not {wanted!r}")
    if "average_output" in header:
        raise _broken("a random forest is not supported")
    if tuple(header.get("feature_names", "").split(" ")) != feature_names:
        raise _broken("they name other features than their payload says")
    if header.get("max_feature_idx") != str(len(feature_names) - 1):
        raise _broken("the number of features is wrong")
    blocks = []
    for number, size in enumerate(_integers(header.get("tree_sizes", ""))):
        block = text[start : start + size]
        if len(block) != size or size <= 0 or not block.startswith(f"Tree={number}\n") or block.count("Tree=") != 1:
            raise _broken(f"tree {number} is not where the header says")
        blocks.append(block)
        start += size
    if not text.startswith("end of trees", start):
        raise _broken("the end of the trees is missing")
    return blocks


def _read_tree(block: str, features: int) -> _Tree:
    fields = {name: value for name, _, value in (line.partition("=") for line in block.splitlines())}
    number = fields.get("Tree")
    if fields.get("num_cat") != "0" or fields.get("is_linear", "0") != "0":
        raise _broken(f"tree {number} has categories or linear leaves, which this pipeline does not train")
    tree = _Tree(
        feature=_integers(fields.get("split_feature", "")),
        threshold=_numbers(fields.get("threshold", "")),
        decision=_integers(fields.get("decision_type", "")),
        left=_integers(fields.get("left_child", "")),
        right=_integers(fields.get("right_child", "")),
        leaf=_numbers(fields.get("leaf_value", "")),
    )
    leaves = len(tree.leaf)
    if leaves == 0 or fields.get("num_leaves") != str(leaves):
        raise _broken(f"tree {number} has not as many leaves as it says")
    if any(len(values) != leaves - 1 for values in tree[:5]):
        raise _broken(f"tree {number} has not one inner node less than leaves")
    # LightGBM reads further lists by the same count: a shorter one would be read past its end.
    for name, count in (("split_gain", leaves - 1), ("internal_value", leaves - 1), ("internal_weight", leaves - 1),
                        ("internal_count", leaves - 1), ("leaf_weight", leaves), ("leaf_count", leaves)):  # fmt: skip
        if leaves > 1 and name in fields and len(_numbers(fields[name])) != count:
            raise _broken(f"tree {number} has not {count} values of {name}")
    if any(not 0 <= feature < features for feature in tree.feature):
        raise _broken(f"tree {number} asks for a feature that there is not")
    if any(decision & _CATEGORICAL or not 0 <= decision <= 15 for decision in tree.decision):
        raise _broken(f"tree {number} has a kind of decision that there is not")
    # An infinite threshold parts the missing values from all numbers.
    if not all(map(math.isfinite, tree.leaf)) or any(math.isnan(at) or at == -math.inf for at in tree.threshold):
        raise _broken(f"tree {number} has a value that is no number")
    _leaf_order(tree, number)
    return tree


def _leaf_order(tree: _Tree, number: str | None = None) -> tuple[list[int], list[tuple[int, int]]]:
    """Leaves from left to right, and for each node the range of them in its left part; checks that it is a tree."""
    inner = len(tree.left)
    order: list[int] = []
    ranges = [(0, 0)] * inner
    visited = 0
    # Depth first with an explicit stack; a node comes up twice, before and after its left part.
    stack: list[tuple[int, int]] = [(0 if inner else ~0, -1)]
    while stack:
        child, first = stack.pop()
        if child < 0:
            order.append(~child)
        elif first >= 0:
            ranges[child] = (first, len(order))
        else:
            visited += 1
            if visited > inner:
                break
            if not all(-inner - 1 <= below < inner for below in (tree.left[child], tree.right[child])):
                raise _broken(f"tree {number} names a node that there is not")
            stack += [(tree.right[child], -1), (child, len(order)), (tree.left[child], -1)]
    if visited != inner or sorted(order) != list(range(inner + 1)):
        raise _broken(f"tree {number} is no tree")
    return order, ranges


def _lay_out(trees: list[_Tree]) -> Forest:
    columns: dict[tuple[int, bool], int] = {}
    node_column, node_threshold, node_mask, leaf_value = [], [], [], []
    tree_node, tree_leaf = [0], [0]
    everything = (1 << MOST_LEAVES) - 1
    for tree in trees:
        order, ranges = _leaf_order(tree)
        leaf_value += [tree.leaf[leaf] for leaf in order]
        for feature, threshold, decision, (first, end) in zip(
            tree.feature, tree.threshold, tree.decision, ranges, strict=True
        ):
            # Where training saw no missing value of a feature, LightGBM takes one for 0.
            left = bool(decision & _DEFAULT_LEFT) if (decision >> 2) & 3 == _MISSING_NAN else threshold >= 0.0
            column = columns.setdefault((feature, left), len(columns))
            node_column.append(column)
            node_threshold.append(threshold)
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
        np.array([feature for feature, _ in columns], np.int32),
        np.array([-math.inf if left else math.nan for _, left in columns], np.float64),
    )


def _integers(values: str) -> list[int]:
    try:
        return [int(value) for value in values.split()]
    except ValueError as error:
        raise _broken(str(error)) from error


def _numbers(values: str) -> list[float]:
    try:
        return [float(value) for value in values.split()]
    except ValueError as error:
        raise _broken(str(error)) from error
