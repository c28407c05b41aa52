"""LightGBM's text of a model, read strictly: what is not a complete forest of plain numerical trees is refused.

LightGBM's own reader trusts the text: one that was cut short makes it read beyond the end of it and abort the process.
What passes here is safe to hand over, and is what `pipeline.scoring.compiled_trees` and
`pipeline.scoring.tree_paths` lay out.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.errors import ModelError

_CATEGORICAL, _DEFAULT_LEFT = 1, 2
_MISSING_NONE, _MISSING_ZERO, _MISSING_NAN = 0, 1, 2
_OF_NODES: Final = ("split_gain", "internal_value", "internal_weight")
_MOST_ROWS: Final = 2**31 - 1
"""LightGBM counts rows in 32 bits."""


class Tree(NamedTuple):
    """One tree as LightGBM numbers it: a child below 0 is the leaf ``~child``."""

    feature: list[int]
    threshold: list[float]
    decision: list[int]
    left: list[int]
    right: list[int]
    leaf: list[float]
    internal_count: list[int]
    """Rows of training that came through each inner node; empty where the text does not say."""
    leaf_count: list[int]

    @property
    def takes_zero_for_missing(self) -> bool:
        """Whether a test takes 0 for a missing value, which no column of `SplitColumns` says."""
        return any((decision >> 2) & 3 == _MISSING_ZERO for decision in self.decision)


class SplitColumns:
    """Columns of the values that nodes test: one for each feature and side to which its missing values go."""

    def __init__(self) -> None:
        self._columns: dict[tuple[int, bool], int] = {}

    def of(self, tree: Tree, node: int) -> int:
        """The column of a node's test."""
        decision = tree.decision[node]
        # Where training saw no missing value of a feature, LightGBM takes one for 0.
        has_missing = (decision >> 2) & 3 == _MISSING_NAN
        left = bool(decision & _DEFAULT_LEFT) if has_missing else tree.threshold[node] >= 0.0
        return self._columns.setdefault((tree.feature[node], left), len(self._columns))

    @property
    def features(self) -> NDArray[np.int32]:
        """Shape (columns,): the feature of each."""
        return np.array([feature for feature, _ in self._columns], np.int32)

    @property
    def missing(self) -> NDArray[np.float64]:
        """Shape (columns,): what a missing value counts as: minus infinity goes left, NaN right of any threshold."""
        return np.array([-math.inf if left else math.nan for _, left in self._columns], np.float64)


def read_trees(text: str, feature_names: tuple[str, ...]) -> list[Tree]:
    """The trees of the whole text, checked.

    Raises `ModelError` when the text is not a complete binary or regression model of ``feature_names``.
    """
    return [_read_tree(block, len(feature_names)) for block in _blocks(text, feature_names)]


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


def _read_tree(block: str, features: int) -> Tree:
    fields = {name: value for name, _, value in (line.partition("=") for line in block.splitlines())}
    number = fields.get("Tree")
    if fields.get("num_cat") != "0" or fields.get("is_linear", "0") != "0":
        raise _broken(f"tree {number} has categories or linear leaves, which this pipeline does not train")
    tree = Tree(
        feature=_integers(fields.get("split_feature", "")),
        threshold=_numbers(fields.get("threshold", "")),
        decision=_integers(fields.get("decision_type", "")),
        left=_integers(fields.get("left_child", "")),
        right=_integers(fields.get("right_child", "")),
        leaf=_numbers(fields.get("leaf_value", "")),
        internal_count=_integers(fields.get("internal_count", "")),
        leaf_count=_integers(fields.get("leaf_count", "")),
    )
    leaves = len(tree.leaf)
    if leaves == 0 or fields.get("num_leaves") != str(leaves):
        raise _broken(f"tree {number} has not as many leaves as it says")
    if any(len(values) != leaves - 1 for values in tree[:5]):
        raise _broken(f"tree {number} has not one inner node less than leaves")
    # LightGBM reads further lists by the same count: a shorter one would be read past its end.
    further: dict[str, tuple[Sequence[float], int]] = {
        "internal_count": (tree.internal_count, leaves - 1),
        "leaf_count": (tree.leaf_count, leaves),
        **{name: (_numbers(fields.get(name, "")), leaves - 1) for name in _OF_NODES},
        "leaf_weight": (_numbers(fields.get("leaf_weight", "")), leaves),
    }
    for name, (values, count) in further.items():
        if leaves > 1 and name in fields and len(values) != count:
            raise _broken(f"tree {number} has not {count} values of {name}")
    if any(abs(count) > _MOST_ROWS for count in (*tree.internal_count, *tree.leaf_count)):
        raise _broken(f"tree {number} counts more rows than LightGBM can")
    if any(not 0 <= feature < features for feature in tree.feature):
        raise _broken(f"tree {number} asks for a feature that there is not")
    if any(decision & _CATEGORICAL or not 0 <= decision <= 15 for decision in tree.decision):
        raise _broken(f"tree {number} has a kind of decision that there is not")
    # An infinite threshold parts the missing values from all numbers.
    if not all(map(math.isfinite, tree.leaf)) or any(math.isnan(at) or at == -math.inf for at in tree.threshold):
        raise _broken(f"tree {number} has a value that is no number")
    leaf_order(tree, number)
    return tree


def leaf_order(tree: Tree, number: str | None = None) -> tuple[list[int], list[tuple[int, int]]]:
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
