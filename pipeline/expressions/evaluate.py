"""Evaluation of conditions over columns of transactions, row by row, as SQL evaluates them.

Conditions have three values: true, false and unknown. Only true selects a row. A missing value is NULL, and so is a
number that is not finite: NaN, a division by zero, an overflow. This is DuckDB's logic, in which only numbers differ:
DuckDB keeps infinities.
"""

import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.expressions.trees import COMPARISONS, Condition, Node

Column: TypeAlias = NDArray[np.float64] | pa.Array
"""Values of a field: float64, in which NaN is NULL, or an array of pyarrow strings."""


def evaluate(tree: Condition, columns: Mapping[str, Column], n: int) -> NDArray[np.bool_]:
    """Return which rows a condition selects.

    Args:
        tree: The condition.
        columns: Values of each field of the tree, shape (n,): float64 for numbers, pyarrow strings for texts.
        n: Number of rows.

    Returns:
        True where the condition is true, shape (n,); false where it is false or unknown. A row's result depends on that
        row only.

    Raises:
        KeyError: A field has no column.
        ValueError: A column does not have n values.
    """
    rows = _Rows(columns, n)
    with np.errstate(all="ignore"):
        selected = _selected(tree.root, True, rows)
    return selected if isinstance(selected, np.ndarray) else np.full(n, selected)


class _Rows(NamedTuple):
    columns: Mapping[str, Column]
    n: int


def _selected(node: Node, wanted: bool, rows: _Rows) -> Any:
    """Return where a condition is surely true, or where it is surely false (`wanted`); a scalar if no field counts.

    Where it is unknown, it is neither. So `not` asks its operand for the opposite, and no mask of NULLs is needed.
    """
    name, *operands = node
    if name == "not":
        return _selected(operands[0], not wanted, rows)
    if name in ("and", "or"):
        both = (name == "and") is wanted
        masks = [_selected(operand, wanted, rows) for operand in operands]
        return _joined(masks, both)
    values = [_value(operand, rows) for operand in operands]
    if name == "between":
        low = _compared(">=" if wanted else "<", values[0], values[1])
        return _joined([low, _compared("<=" if wanted else ">", values[0], values[2])], wanted)
    if name in COMPARISONS:
        return _compared(name if wanted else _OPPOSITES[name], values[0], values[1])
    if name == "is null":
        return _known(values[0]) ^ wanted
    found = _in(values[0], operands[1:]) if name == "in" else _like(values[0], operands[1][1])
    return found if wanted else ~found & _known(values[0])


def _joined(masks: list[Any], both: bool) -> Any:
    joined = masks[0]
    for mask in masks[1:]:
        joined = joined & mask if both else joined | mask
    return joined


_OPPOSITES: Final = {"=": "<>", "<>": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_NUMBERS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "=": operator.eq,
    "<>": lambda left, right: (left < right) | (left > right),  # Unlike !=, false beside NaN.
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_FALSE: Final = pa.scalar(False)
_TEXTS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "=": pc.equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def _value(node: Node, rows: _Rows) -> Any:
    """Return numbers as float64 or texts of pyarrow; a scalar if no field occurs."""
    name, *operands = node
    if name == "field":
        column = rows.columns[operands[0]]
        if len(column) != rows.n:
            raise ValueError(f"column {operands[0]} has {len(column)} values, not {rows.n}")
        return _finite(column) if isinstance(column, np.ndarray) else column
    if name == "number":
        return np.float64(operands[0])
    if name == "text":
        return _text(operands[0])
    values = [_value(operand, rows) for operand in operands]
    if name == "coalesce":
        return _coalesced(values)
    if name == "lower":
        return pc.utf8_lower(values[0])
    if name == "abs":
        return np.abs(values[0])
    if name == "negate":
        return -values[0]
    return _finite(_NUMBERS[name](values[0], values[1]))


@lru_cache(1_000)
def _text(literal: str) -> Any:
    """Return a text of pyarrow. Making one takes as long as comparing 500 rows with it."""
    return pa.scalar(literal)


def _finite(numbers: Any) -> Any:
    """Return NaN, which is NULL, for what is not finite: an infinity minus itself is NaN."""
    return numbers + (numbers - numbers)


def _is_number(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.float64)


def _coalesced(values: list[Any]) -> Any:
    if not _is_number(values[0]):
        return pc.coalesce(*values)
    first = values[0]
    for value in values[1:]:
        first = np.where(np.isnan(first), value, first)[()]
    return first


def _compared(sign: str, left: Any, right: Any) -> Any:
    return _NUMBERS[sign](left, right) if _is_number(left) else _mask(_TEXTS[sign](left, right))


def _known(value: Any) -> Any:
    return ~np.isnan(value) if _is_number(value) else _mask(pc.is_valid(value))


def _in(value: Any, literals: list[Node]) -> Any:
    choices = [literal[1] for literal in literals]
    if not _is_number(value):
        return _mask(pc.is_in(value, value_set=pa.array(choices, value.type)))
    return np.isin(value, choices)[()]


def _like(value: Any, pattern: str) -> Any:
    # SQL has no escape unless one is declared; pyarrow always has the backslash.
    return _mask(pc.match_like(value, pattern.replace("\\", "\\\\")))


def _mask(result: Any) -> Any:
    """Return conditions of pyarrow as booleans, unknown as false."""
    if isinstance(result, pa.Scalar):
        return np.bool_(result.as_py() or False)
    known = pc.coalesce(result, _FALSE) if result.null_count else result
    return known.to_numpy(zero_copy_only=False)
