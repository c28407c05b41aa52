"""Feature contributions to the sum over a forest, compiled: path-dependent TreeSHAP, exact, by quadrature.

Shapley values are an integral (Owen, "Multilinear Extensions of Games", 1972): let every feature be known with
probability t, whatever the others are; a feature's value is how much the expected sum changes with its own probability,
from t = 0 to 1. In path-dependent TreeSHAP (Lundberg et al., "From local explanations to global understanding with
explainable AI for trees", 2020) a row reaches a leaf with the product, over the features on the leaf's path, of

    o t + z (1 - t)

where o is 1 if the row passes all tests of the feature on the path and 0 if not, and z, its cover, is the share of the
training's rows that pass them. A leaf of value v gives feature i

    v (o_i - z_i) x the integral of the product over the path's other features

and the product is a polynomial in t. Gauss-Legendre quadrature with m points is exact for degrees up to 2 m - 1, so m
points are enough for 2 m features on a path. At each point one pass down a tree makes the products, and one pass up
adds the leaves that share a factor: Wettenstein, Mitchell and Yu, "Quadrature-TreeSHAP" (arXiv:2605.04497, 2026). They
take 8 points for any depth; here a tree with more than 16 features on a path gets another 8, and again, to be exact.

No factor is 0 or above 1, and products are only multiplied and divided: digits are not lost with depth, as they are
where the weights of subsets are unwound from a path, which is TreeSHAP's own algorithm.
"""

import operator
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model
from numpy.typing import NDArray

from pipeline.scoring.tree_layout import NEAR_ZERO, POINTS, Paths


def path_contributions(paths: Paths, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each feature's part of each row's sum, and in the last column the base value; together they are the sum.

    Shape (n, number of features + 1) for features of shape (n, number of features), as LightGBM's ``pred_contrib``
    gives it. A row's result does not depend on the rows beside it. Working memory belongs to the call, so that threads
    may share ``paths``.
    """
    out = np.zeros((len(features), features.shape[1] + 1))
    _contributions(np.ascontiguousarray(features, np.float64), *paths, out)
    return out


# Numba leaves loops over a few elements scalar, because it turns LLVM's vectorizer of such code off. One value for all
# points of a pass, held in vector registers, makes the kernel twice as fast.
_VECTOR = ir.VectorType(ir.DoubleType(), POINTS)


class _Lanes(types.Type):  # type: ignore[misc]
    """The LLVM vector type with a number for each of `POINTS` quadrature points."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


_LANES = _Lanes()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, lanes: Any) -> None:
        super().__init__(manager, lanes, _VECTOR)


def _row(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Return the address of a row of a contiguous array of shape (rows, POINTS)."""
    data = context.make_array(array_type)(context, builder, array).data
    start = builder.gep(data, [builder.mul(index, ir.Constant(index.type, POINTS))])
    return builder.bitcast(start, _VECTOR.as_pointer())


# An array's rows are aligned as its elements are: to 8 bytes.
@intrinsic  # type: ignore[untyped-decorator]
def _load(_typing: Any, array: Any, _index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.load(_row(context, builder, signature.args[0], *given), align=8)

    return _LANES(array, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def _store(_typing: Any, array: Any, _index: Any, lanes: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        builder.store(given[2], _row(context, builder, signature.args[0], *given[:2]), align=8)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), generate


@intrinsic  # type: ignore[untyped-decorator]
def _all(_typing: Any, _number: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        undefined, zero = ir.Constant(_VECTOR, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        first = builder.insert_element(undefined, given[0], zero)
        return builder.shuffle_vector(
            first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), POINTS), [0] * POINTS)
        )

    return _LANES(types.float64), generate


def _by_lane(operation: Callable[..., Any], instruction: str) -> None:
    @intrinsic  # type: ignore[untyped-decorator]
    def apply(_typing: Any, a: Any, b: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
            return getattr(builder, instruction)(*given)

        return _LANES(a, b), generate

    def implement(a: Any, b: Any) -> Any:
        return apply(a, b)

    @overload(operation)  # type: ignore[untyped-decorator]
    def choose(a: Any, b: Any) -> Any:
        return implement if isinstance(a, _Lanes) and isinstance(b, _Lanes) else None


_by_lane(operator.add, "fadd")
_by_lane(operator.sub, "fsub")
_by_lane(operator.mul, "fmul")
_by_lane(operator.truediv, "fdiv")


@numba.njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _contributions(
    features: NDArray[np.float64],
    node_column: NDArray[np.int32],
    node_threshold: NDArray[np.float64],
    node_parent: NDArray[np.int32],
    node_previous: NDArray[np.int32],
    edge_cover: NDArray[np.float64],
    edge_value: NDArray[np.float64],
    tree_node: NDArray[np.int64],
    tree_rule: NDArray[np.int64],
    tree_passes: NDArray[np.int64],
    rule_point: NDArray[np.float64],
    rule_weight: NDArray[np.float64],
    columns: NDArray[np.int32],
    column_missing: NDArray[np.float64],
    base_value: float,
    out: NDArray[np.float64],
) -> None:
    edges = 1
    for tree in range(tree_passes.shape[0]):
        edges = max(edges, 2 * (tree_node[tree + 1] - tree_node[tree]) + 1)
    # By edge of a tree. `product` holds the factors down to it and, at a leaf, its value; on the way up, the sum of the
    # leaves below. `inverse` is one over the factor of the edge's feature, `passed` its o, `gap` its o - z.
    product, inverse = np.empty((edges, POINTS)), np.empty((edges, POINTS))
    passed, gap = np.empty(edges), np.empty(edges)
    # A feature without a test: its factor is 1, and it adds nothing.
    inverse[0], passed[0], gap[0] = 1.0, 1.0, 0.0
    values, added = np.empty(columns.shape[0]), np.empty((columns.shape[0], POINTS))
    ones = _all(1.0)
    for r in range(features.shape[0]):
        for c in range(columns.shape[0]):
            value = features[r, columns[c]]
            if np.isnan(value):
                value = column_missing[c]
            elif abs(value) <= NEAR_ZERO:
                value = 0.0
            values[c] = value
        added[:] = 0.0
        for tree in range(tree_passes.shape[0]):
            first, nodes = tree_node[tree], tree_node[tree + 1] - tree_node[tree]
            for rule in range(tree_rule[tree], tree_rule[tree] + tree_passes[tree]):
                known = _load(rule_point, rule)
                unknown = ones - known
                over_unknown = ones / unknown
                _store(product, 0, _load(rule_weight, rule))
                for n in range(nodes):
                    node = first + n
                    above, before = node_parent[node], node_previous[node]
                    # NaN, a missing value that goes right, fails the test of every threshold.
                    goes_right = 0 if values[node_column[node]] <= node_threshold[node] else 1
                    taken, other = 2 * n + 1 + goes_right, 2 * n + 2 - goes_right
                    taken_cover, taken_value = edge_cover[2 * first + taken], edge_value[2 * first + taken]
                    other_cover, other_value = edge_cover[2 * first + other], edge_value[2 * first + other]
                    passed[taken], passed[other] = passed[before], 0.0
                    gap[taken], gap[other] = passed[before] - taken_cover, -other_cover
                    rest = _load(product, above) * _load(inverse, before)
                    factor = _all(taken_cover) * unknown + _all(passed[before]) * known
                    _store(product, taken, rest * factor * _all(taken_value))
                    _store(inverse, taken, ones / factor)
                    _store(product, other, rest * unknown * _all(other_cover * other_value))
                    _store(inverse, other, over_unknown * _all(1.0 / other_cover))
                for n in range(nodes - 1, -1, -1):
                    node = first + n
                    above, before, column = node_parent[node], node_previous[node], node_column[node]
                    left, right = 2 * n + 1, 2 * n + 2
                    below_left, below_right = _load(product, left), _load(product, right)
                    below = below_left + below_right
                    # What an earlier test of the feature adds for these leaves, this one adds in its place.
                    _store(
                        added,
                        column,
                        _load(added, column)
                        + _all(gap[left]) * below_left * _load(inverse, left)
                        + _all(gap[right]) * below_right * _load(inverse, right)
                        - _all(gap[before]) * below * _load(inverse, before),
                    )
                    _store(product, above, below)
        for c in range(columns.shape[0]):
            for k in range(POINTS):
                out[r, columns[c]] += added[c, k]
        out[r, features.shape[1]] = base_value
