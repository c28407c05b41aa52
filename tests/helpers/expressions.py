"""Random trees of conditions, their rows, and their result in DuckDB."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.expressions.trees import COMPARISONS, ValueKind

FIELDS = {
    "amount": ValueKind.NUMBER,
    "device_risk": ValueKind.NUMBER,
    "channel": ValueKind.TEXT,
    "country": ValueKind.TEXT,
}

Columns = dict[str, Any]

TEXTS = st.one_of(
    st.sampled_from(["web", "app", "WEB", "", "it's", "%", "a_b", "a\\", "\\%", '"', "Émile", "ß", "東京"]),
    st.text("aAwb_%\\'\"é東👍\n ", max_size=4),
)
# Small, so that no product of a few is infinite: DuckDB keeps infinities, which are NULL here.
NUMBERS = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 50.0, 0.1, 0.2, 0.3]), st.floats(-1_000, 1_000, width=16))
PATTERNS = st.one_of(TEXTS, st.sampled_from(["w%", "%b", "_e_", "%e%", "a\\%", "%\\%", "_", "__%"]))


def _leaves(kind: ValueKind) -> st.SearchStrategy[list[Any]]:
    literal = TEXTS if kind is ValueKind.TEXT else NUMBERS
    names = sorted(name for name, of in FIELDS.items() if of is kind)
    return st.one_of(
        st.sampled_from(names).map(lambda name: ["field", name]),
        literal.map(lambda value: [str(kind), value]),
    )


def _node(*operands: Any) -> st.SearchStrategy[list[Any]]:
    return st.tuples(*(each if isinstance(each, st.SearchStrategy) else st.just(each) for each in operands)).map(list)


def _cases(values: st.SearchStrategy[list[Any]]) -> st.SearchStrategy[list[Any]]:
    tests = st.one_of(_node("is null", values), _node(st.sampled_from(["=", "<"]), values, values))
    pairs = st.lists(st.tuples(tests, values), min_size=1, max_size=2)
    drawn = st.tuples(pairs, st.none() | values)
    return drawn.map(
        lambda each: ["case", *(part for pair in each[0] for part in pair), *([each[1]] if each[1] else [])]
    )


numbers = st.recursive(
    _leaves(ValueKind.NUMBER),
    lambda inner: st.one_of(
        _cases(inner),
        _node(st.sampled_from("+-*/"), inner, inner),
        _node(st.sampled_from(["negate", "abs"]), inner),
        st.lists(inner, min_size=2, max_size=3).map(lambda each: ["coalesce", *each]),
    ),
    max_leaves=5,
)
texts = st.recursive(
    _leaves(ValueKind.TEXT),
    lambda inner: st.one_of(
        _cases(inner),
        _node("lower", inner),
        st.lists(inner, min_size=2, max_size=3).map(lambda each: ["coalesce", *each]),
    ),
    max_leaves=3,
)


def _tests(values: st.SearchStrategy[list[Any]], literals: st.SearchStrategy[list[Any]]) -> Any:
    return st.one_of(
        _node(st.sampled_from(sorted(COMPARISONS)), values, values),
        _node("between", values, values, values),
        _node("is null", values),
        st.tuples(values, st.lists(literals, min_size=1, max_size=4)).map(lambda drawn: ["in", drawn[0], *drawn[1]]),
    )


conditions = st.recursive(
    st.one_of(
        _tests(numbers, NUMBERS.map(lambda value: ["number", value])),
        _tests(texts, TEXTS.map(lambda value: ["text", value])),
        _node("like", texts, PATTERNS.map(lambda value: ["text", value])),
    ),
    lambda inner: st.one_of(
        _node("not", inner),
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3)).map(
            lambda drawn: [drawn[0], *drawn[1]]
        ),
    ),
    max_leaves=5,
)
"""Trees of boolean kind, as JSON data."""

_row = st.tuples(*(st.none() | (TEXTS if kind is ValueKind.TEXT else NUMBERS) for kind in FIELDS.values()))
rows = st.lists(_row, max_size=12)
"""Rows of the fields, with missing values."""
many_rows = st.lists(_row, min_size=6, max_size=12)
"""Rows enough that each example meets missing values."""


def columns_of(drawn: Sequence[Sequence[Any]]) -> Columns:
    """Return the columns of rows as `evaluate` takes them, NaN for a missing number."""
    columns: Columns = {}
    for position, (name, kind) in enumerate(FIELDS.items()):
        values = [row[position] for row in drawn]
        columns[name] = pa.array(values, pa.string()) if kind is ValueKind.TEXT else np.array(values, np.float64)
    return columns


def in_duckdb(connection: duckdb.DuckDBPyConnection, sql: str, columns: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return which rows a condition selects in DuckDB."""
    # A literal such as 0.1 is a decimal there.
    sql = re.sub(r"('(?:[^']|'')*')|(\d[\d.]*(?:e[+-]?\d+)?)", lambda m: m[1] or f"{m[2]}::double", sql)
    table = pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})
    connection.register("transactions", table)
    selected = connection.execute(f"select coalesce(({sql}), false) from transactions").fetchall()
    return np.array([row[0] for row in selected], np.bool_)
