"""The sum over a forest, compiled. Equal to LightGBM's to the last bit: same leaves, added in the same order."""

from collections.abc import Callable
from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from pipeline.features.compiled import lowest_bit
from pipeline.scoring.tree_layout import NEAR_ZERO, Forest

_BLOCK: Final = 64
"""Rows that go through a tree together."""
_FEW: Final = 8
"""The same where few rows are left: a processor's widest vector."""
_MANY: Final = 40
"""So many rows take longer in blocks of few."""


def forest_sums(forest: Forest, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Raw margins, shape (n,), of features of shape (n, number of features)."""
    out = np.empty(len(features))
    _sums(np.ascontiguousarray(features, np.float64), *forest, out)
    return out


def _tests(rows: int) -> Callable[..., Any]:
    """Make the instructions that have ``rows`` rows go through the tests of a tree.

    What is left of each row's leaves stays in registers meanwhile. Numba's loop over an array of them loads and stores
    them at each test, which took half as long again, and three times as long for a single row.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def tests(
        _typing: Any, values: Any, column: Any, threshold: Any, mask: Any, first: Any, end: Any, alive: Any
    ) -> Any:
        """Write the leaves that remain after the tests ``first`` to ``end`` (not included) to ``alive[:rows]``.

        Args:
            _typing: Numba's typing context, which its compiler passes; callers leave it out.
            values: Shape (columns, _BLOCK): values of each column of tests.
            column: As ``node_column`` of `Forest`, and likewise the two behind it.
            threshold: NaN, a missing value that goes right, fails the test of every one.
            mask: Leaves that remain where a test fails.
            first: A node.
            end: Likewise.
            alive: Shape (_BLOCK,).
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            held = zip(signature.args, arguments, strict=True)
            data = [
                context.make_array(kind)(context, builder, array).data
                for kind, array in held
                if isinstance(kind, types.Array)
            ]
            word, numbers = ir.IntType(64), ir.VectorType(ir.DoubleType(), rows)
            words = ir.VectorType(word, rows)
            everything = ir.Constant(words, [ir.Constant(word, -1)] * rows)

            def spread(array: Any, node: Any, vector: Any) -> Any:
                none, index = ir.Constant(vector, ir.Undefined), ir.IntType(32)
                first_lane = builder.insert_element(
                    none, builder.load(builder.gep(array, [node])), ir.Constant(index, 0)
                )
                return builder.shuffle_vector(first_lane, none, ir.Constant(ir.VectorType(index, rows), None))

            left = cgutils.alloca_once_value(builder, everything)
            with cgutils.for_range_slice(builder, arguments[4], arguments[5], ir.Constant(word, 1), intp=word) as (
                node,
                _,
            ):
                at = builder.mul(
                    builder.zext(builder.load(builder.gep(data[1], [node])), word), ir.Constant(word, _BLOCK)
                )
                tested = builder.bitcast(builder.gep(data[0], [at]), numbers.as_pointer())
                passes = builder.fcmp_ordered("<=", builder.load(tested, align=8), spread(data[2], node, numbers))
                kept = builder.select(passes, everything, spread(data[3], node, words))
                builder.store(builder.and_(builder.load(left), kept), left)
            builder.store(builder.load(left), builder.bitcast(data[4], words.as_pointer()), align=8)
            return context.get_dummy_value()

        return types.void(values, column, threshold, mask, first, end, alive), generate

    return tests  # type: ignore[no-any-return]


_test_block, _test_few = _tests(_BLOCK), _tests(_FEW)


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
    out: NDArray[np.float64],
) -> None:
    values = np.zeros((columns.shape[0], _BLOCK))
    alive = np.empty(_BLOCK, np.uint64)
    start, n = 0, features.shape[0]
    while start < n:
        many = n - start >= _MANY
        rows = min(_BLOCK if many else _FEW, n - start)
        for c in range(columns.shape[0]):
            for r in range(rows):
                value = features[start + r, columns[c]]
                if np.isnan(value):
                    value = column_missing[c]
                elif abs(value) <= NEAR_ZERO:
                    value = 0.0
                values[c, r] = value
        for r in range(rows):
            out[start + r] = 0.0
        for tree in range(tree_leaf.shape[0] - 1):
            first, end = tree_node[tree], tree_node[tree + 1]
            if many:
                _test_block(values, node_column, node_threshold, node_mask, first, end, alive)
            else:
                _test_few(values, node_column, node_threshold, node_mask, first, end, alive)
            leaf = tree_leaf[tree]
            for r in range(rows):
                out[start + r] += leaf_value[leaf + lowest_bit(alive[r])]
        start += rows
