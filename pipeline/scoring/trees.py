"""Strict reader of LightGBM's text format; refuses everything but a complete forest of plain numerical trees.

LightGBM's own parser trusts the text: it allocates what a count asks for, reads past the end of a line without ``=``,
and of a key that is there twice takes the last. Such a text aborts the process. The rules here leave the two parsers
nothing to differ in: printable ASCII and line feeds, known keys, each once, and numbers of one pattern separated by
single spaces. What follows the trees is not handed over at all (`forest_text`).

`pipeline.scoring.tree_layout` lays out what passes.
"""

import math
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from pipeline.scoring.errors import ModelError

_CATEGORICAL, _DEFAULT_LEFT = 1, 2
_MISSING_NONE, _MISSING_ZERO, _MISSING_NAN = 0, 1, 2
_OF_NODES: Final = ("internal_value", "internal_weight")
_MOST_ROWS: Final = 2**31 - 1
"""LightGBM counts rows in 32 bits."""
MOST_TREES: Final = 2_000
"""Trees of a version, in training too: with as many, a row takes three times as long as with the default 400."""
MOST_LEAVES: Final = 256
"""Leaves of a tree, in training too. LightGBM explains a row by recursion: its stack is deep enough for such trees."""
LARGEST_MARGIN: Final = 1e100
"""The largest leaves of all trees may add up to this, so that no sum or calibration becomes infinite."""

_ALPHABET: Final = re.compile(r"[ -~\n]*")
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,9})")
_NUMBER: Final = re.compile(r"-?(?:(?:0|[1-9][0-9]{0,19})(?:\.[0-9]{1,30})?(?:e[+-]?[0-9]{1,3})?|inf)|nan")
_OBJECTIVE: Final = re.compile(r"binary sigmoid:[0-9]{1,9}(?:\.[0-9]{1,9})?|regression|cross_entropy")
_HEADER_KEYS: Final = frozenset(
    {
        "version", "num_class", "num_tree_per_iteration", "label_index", "max_feature_idx", "objective",
        "feature_names", "monotone_constraints", "feature_infos", "tree_sizes",
    }
)  # fmt: skip
_TREE_KEYS: Final = frozenset(
    {
        "Tree", "num_leaves", "num_cat", "split_feature", "split_gain", "threshold", "decision_type", "left_child",
        "right_child", "leaf_value", "leaf_weight", "leaf_count", "internal_value", "internal_weight",
        "internal_count", "is_linear", "shrinkage",
    }
)  # fmt: skip
_END: Final = "end of trees\n"


class Tree(NamedTuple):
    """A tree as LightGBM numbers it: a child below 0 is the leaf ``~child``."""

    feature: list[int]
    threshold: list[float]
    decision: list[int]
    left: list[int]
    right: list[int]
    leaf: list[float]
    internal_count: list[int]
    """Rows of training that came through each inner node; empty where the text does not say."""
    leaf_count: list[int]
    gain: list[float]
    """Gain of each inner node's split; empty where the text does not say."""

    @property
    def takes_zero_for_missing(self) -> bool:
        """Return True if a test takes 0 for a missing value."""
        return any((decision >> 2) & 3 == _MISSING_ZERO for decision in self.decision)

    def sends_missing_left(self, node: int) -> bool:
        """Return to which side a node sends a missing value, where no test takes 0 for one."""
        if (self.decision[node] >> 2) & 3 == _MISSING_NAN:
            return bool(self.decision[node] & _DEFAULT_LEFT)
        # Where training saw no missing value of a feature, LightGBM takes one for 0.
        return self.threshold[node] >= 0.0


def read_trees(text: str, feature_names: tuple[str, ...]) -> list[Tree]:
    """Read and check all trees of a model.

    Args:
        text: What LightGBM's ``model_to_string`` wrote.
        feature_names: The features that the model must have been trained on, in order.

    Raises:
        ModelError: The text is not a complete binary or regression model of ``feature_names``, or has too many trees
            or leaves.
    """
    trees = [_read_tree(block, len(feature_names)) for block in _blocks(text, feature_names)]
    if sum(max(map(abs, tree.leaf)) for tree in trees) > LARGEST_MARGIN:
        raise _broken("the leaves add up to more than any margin")
    return trees


def gain_shares(trees: Sequence[Tree], feature_names: Sequence[str]) -> dict[str, float]:
    """Return the share of all splits' gain that falls to each feature the trees ask for.

    Where the text of the trees has no gains, each split counts as one.
    """
    gains = dict.fromkeys(feature_names, 0.0)
    for tree in trees:
        for feature, gain in zip(tree.feature, tree.gain or [1.0] * len(tree.feature), strict=True):
            gains[feature_names[feature]] += max(gain, 0.0) if math.isfinite(gain) else 0.0
    total = sum(gains.values())
    return {name: gain / total for name, gain in gains.items() if gain > 0.0}


def forest_text(text: str) -> str:
    """Return the part of a text that passed `read_trees` which LightGBM needs: the header and the trees.

    Importances, parameters and pandas categories follow, which LightGBM parses as trustingly as the rest.
    """
    return text[: text.index("\n" + _END) + 1] + _END


def _broken(why: str) -> ModelError:
    return ModelError(f"the trees of this version cannot be read ({why}); publish or train it again")


def _too_many(what: str, found: int, name: str, most: int) -> ModelError:
    return ModelError(
        f"this version would slow decisions: {what} has {found:,} {name}, and at most {most:,} are scored; train one "
        f"with fewer --{name}"
    )


def _blocks(text: str, feature_names: tuple[str, ...]) -> list[str]:
    """Return the text of each tree, found as LightGBM finds it: by the sizes in the header."""
    if _ALPHABET.fullmatch(text) is None:
        raise _broken("they hold characters that LightGBM does not write")
    start = text.find("\nTree=0\n") + 1
    if start == 0:
        raise _broken("there is no tree")
    if not text.startswith("tree\n"):
        raise _broken("the first line is not 'tree'")
    _check_header(header := _fields(text[len("tree\n") : start], _HEADER_KEYS, "the header"), feature_names)
    blocks, sizes = [], _integers(header.get("tree_sizes", ""))
    if len(sizes) > MOST_TREES:
        raise _too_many("it", len(sizes), "trees", MOST_TREES)
    for number, size in enumerate(sizes):
        block = text[start : start + size]
        if len(block) != size or size <= 0 or not block.startswith(f"Tree={number}\n"):
            raise _broken(f"tree {number} is not where the header says")
        blocks.append(block)
        start += size
    if not text.startswith(_END, start):
        raise _broken("the end of the trees is missing")
    return blocks


def _check_header(header: dict[str, str], feature_names: tuple[str, ...]) -> None:
    for name, wanted in (("version", "v4"), ("num_class", "1"), ("num_tree_per_iteration", "1")):
        if header.get(name) != wanted:
            raise _broken(f"{name} is {header.get(name)!r}, not {wanted!r}")
    if tuple(header.get("feature_names", "").split(" ")) != feature_names:
        raise _broken("they name other features than their payload says")
    if header.get("max_feature_idx") != str(len(feature_names) - 1):
        raise _broken("the number of features is wrong")
    if "objective" in header and _OBJECTIVE.fullmatch(header["objective"]) is None:
        raise _broken(f"the objective {header['objective'][:40]!r} is none of binary, regression and cross_entropy")
    _integers(header.get("label_index", ""))
    constraints = _integers(header.get("monotone_constraints", ""))
    if "monotone_constraints" in header and [abs(constraint) <= 1 for constraint in constraints] != [True] * len(
        feature_names
    ):
        raise _broken("the monotone constraints are not -1, 0 or 1 for each feature")
    infos = header.get("feature_infos", "").split(" ")
    if len(infos) != len(feature_names) or not all(infos):
        raise _broken("there is not one of feature_infos for each feature")


def _fields(text: str, keys: frozenset[str], where: str) -> dict[str, str]:
    """Return the values of ``key=value`` lines, which an empty line ends; nothing but empty lines follows it."""
    body, gap, rest = text.partition("\n\n")
    if not gap or rest.strip("\n"):
        raise _broken(f"{where} is not ended by an empty line")
    found: dict[str, str] = {}
    for line in body.split("\n"):
        key, equals, value = line.partition("=")
        if line == "average_output":
            raise _broken("a random forest is not supported")
        if key not in keys or not equals or "=" in value:
            raise _broken(f"{where} has the line {line[:40]!r}, which this pipeline does not know")
        if key in found:
            raise _broken(f"{where} has {key} twice")
        found[key] = value
    return found


def _read_tree(block: str, features: int) -> Tree:
    fields = _fields(block, _TREE_KEYS, block[: block.index("\n")])
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
        gain=_numbers(fields.get("split_gain", "")),
    )
    _numbers(fields.get("shrinkage", ""))
    leaves = len(tree.leaf)
    if leaves == 0 or fields.get("num_leaves") != str(leaves):
        raise _broken(f"tree {number} has not as many leaves as it says")
    if leaves > MOST_LEAVES:
        raise _too_many(f"its tree {number}", leaves, "leaves", MOST_LEAVES)
    if any(len(values) != leaves - 1 for values in tree[:5]):
        raise _broken(f"tree {number} has not one inner node less than leaves")
    # LightGBM reads further lists by the same count: a shorter one would be read past its end.
    further: dict[str, tuple[Sequence[float], int]] = {
        "internal_count": (tree.internal_count, leaves - 1),
        "leaf_count": (tree.leaf_count, leaves),
        "split_gain": (tree.gain, leaves - 1),
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
            if not all(-inner - 1 <= side < inner for side in (tree.left[child], tree.right[child])):
                raise _broken(f"tree {number} names a node that there is not")
            stack += [(tree.right[child], -1), (child, len(order)), (tree.left[child], -1)]
    if visited != inner or sorted(order) != list(range(inner + 1)):
        raise _broken(f"tree {number} is no tree")
    return order, ranges


def _integers(values: str) -> list[int]:
    return [int(value) for value in _split(values, _INTEGER)]


def _numbers(values: str) -> list[float]:
    return [float(value) for value in _split(values, _NUMBER)]


def _split(values: str, pattern: re.Pattern[str]) -> list[str]:
    found = values.split(" ") if values else []
    for value in found:
        if pattern.fullmatch(value) is None:
            raise _broken(f"{value[:40]!r} is no number as LightGBM writes one")
    return found
