"""Path-dependent TreeSHAP from its definition, in fractions: slow, exact, and from LightGBM's own reading of its trees.

A leaf contributes to a feature what the feature changes in the leaf's weight, averaged over all orders in which
features become known. With q features on its path, a set of f of the others is what is known before it with probability

    f! (q - 1 - f)! / q!

whatever other features there are (Lundberg et al., "From local explanations to global understanding with explainable AI
for trees", 2020).
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import comb
from typing import Any, NamedTuple

import lightgbm
import numpy as np
from numpy.typing import NDArray


class _Feature(NamedTuple):
    """A feature on the path to a leaf."""

    passes: bool
    """Whether the row passes all its tests."""
    cover: Fraction
    """Share of the training's rows that do, each of those that come to the test."""


_Path = dict[int, _Feature]


def contributions(booster: lightgbm.Booster, row: NDArray[np.float64]) -> list[Fraction]:
    """Each feature's contribution to the raw score of one row, and the base value last."""
    found = [Fraction(0)] * (booster.num_feature() + 1)
    for tree in booster.dump_model()["tree_info"]:
        root = tree["tree_structure"]
        total = root.get("internal_count", root.get("leaf_count"))
        for value, count, path in _leaves(root, row, {}):
            found[-1] += value * Fraction(count, total) if path else value
            for feature, (passes, cover) in path.items():
                others = [known for other, known in path.items() if other != feature]
                found[feature] += value * (passes - cover) * _mean_weight(others)
    return found


def _mean_weight(others: Sequence[_Feature]) -> Fraction:
    """Mean weight of a leaf over all orders in which a feature and ``others`` become known, when the feature does."""
    # By how many of the others are known: the sum, over the sets of so many, of the leaf's weight times ``scale``.
    weights, scale = [1], 1
    for passes, cover in others:
        known = [0, *(weight * passes * cover.denominator for weight in weights)]
        unknown = [*(weight * cover.numerator for weight in weights), 0]
        weights, scale = [a + b for a, b in zip(known, unknown, strict=True)], scale * cover.denominator
    n = len(others)
    return (
        sum((Fraction(weight, comb(n, known) * (n + 1)) for known, weight in enumerate(weights)), Fraction(0)) / scale
    )


def _leaves(node: dict[str, Any], row: NDArray[np.float64], path: _Path) -> Iterator[tuple[Fraction, int, _Path]]:
    """Value, rows of training and path of each leaf."""
    if "split_feature" not in node:
        yield Fraction(node["leaf_value"]), node.get("leaf_count", 0), path
        return
    feature, goes_left = node["split_feature"], _goes_left(node, float(row[node["split_feature"]]))
    for child, passes in ((node["left_child"], goes_left), (node["right_child"], not goes_left)):
        before = path.get(feature, _Feature(True, Fraction(1)))
        count = child.get("internal_count", child.get("leaf_count"))
        here = _Feature(before.passes and passes, before.cover * Fraction(count, node["internal_count"]))
        yield from _leaves(child, row, {**path, feature: here})


def _goes_left(node: dict[str, Any], value: float) -> bool:
    if np.isnan(value):
        if node["missing_type"] == "NaN":
            return bool(node["default_left"])
        value = 0.0
    # In JSON, an infinite threshold is 1e300.
    return value <= node["threshold"] or node["threshold"] == 1e300
