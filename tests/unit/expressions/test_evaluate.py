"""Conditions select the rows that DuckDB selects."""

import re

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.expressions.evaluate import evaluate
from pipeline.expressions.parse import parse_expression
from pipeline.expressions.trees import COMPARISONS, ExpressionError, check_tree, text_of
from tests.helpers.expressions import FIELDS, Columns, columns_of, conditions, in_duckdb, many_rows, rows

SOME = columns_of(
    [(60.0, 0.5, "web", "DE"), (60.0, None, None, "FR"), (None, 0.5, "web", "DE"), (40.0, 0.0, "app", "")]
)


@pytest.fixture(scope="module")
def connection() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("set ieee_floating_point_ops=false; set error_on_division_by_zero=false; set threads=1")
    return connection


def without_brackets(text: str, kept: list[bool]) -> str:
    """Return a condition without some of its pairs of brackets; those of calls and texts are left alone."""
    tokens = re.findall(r"'(?:[^']|'')*'|\w+\(|\w+ in \(|in \(|[()]|[^'()\w]+|\w+", text)
    opened: list[bool] = []
    written: list[str] = []
    for token in tokens:
        if token.endswith("("):
            keep = token != "(" or kept[len(written) % len(kept)]
            opened.append(keep)
        else:
            keep = token != ")" or opened.pop()
        written.append(token if keep else " ")
    return "".join(written)


@pytest.mark.parametrize("negation", ["", "not "])
@pytest.mark.parametrize(
    "test",
    [
        *(f"{{}} {sign} {{}}" for sign in sorted(COMPARISONS)),
        "{} between {} and {}",
        "{} not between {} and {}",
        "{} is null",
        "coalesce({}, {}) <> {}",
    ],
)
def test_each_test_of_a_missing_value_agrees_with_duckdb(
    connection: duckdb.DuckDBPyConnection, test: str, negation: str
) -> None:
    for operands in (("amount", "device_risk", "50"), ("channel", "country", "'web'"), ("50", "amount", "device_risk")):
        text = negation + test.format(*operands)
        selected = evaluate(parse_expression(text, FIELDS), SOME, 4)

        assert selected.tolist() == in_duckdb(connection, text, SOME).tolist(), text


@settings(max_examples=200)
@given(data=conditions, drawn=many_rows)
def test_conditions_select_what_duckdb_selects(
    connection: duckdb.DuckDBPyConnection, data: list[object], drawn: list[tuple[object, ...]]
) -> None:
    tree = check_tree({"grammar": 1, "tree": data}, FIELDS)
    columns = columns_of(drawn)

    selected = evaluate(tree, columns, len(drawn))

    assert selected.shape == (len(drawn),)
    assert selected.dtype == np.bool_
    assert selected.tolist() == in_duckdb(connection, text_of(tree), columns).tolist(), text_of(tree)


@settings(max_examples=200)
@given(data=conditions, drawn=many_rows, kept=st.lists(st.booleans(), min_size=10, max_size=10))
def test_operators_bind_as_in_duckdb(
    connection: duckdb.DuckDBPyConnection, data: list[object], drawn: list[tuple[object, ...]], kept: list[bool]
) -> None:
    text = without_brackets(text_of(check_tree({"grammar": 1, "tree": data}, FIELDS)), kept)
    columns = columns_of(drawn)
    try:
        tree = parse_expression(text, FIELDS)
    except ExpressionError:
        return

    selected = evaluate(tree, columns, len(drawn))

    assert selected.tolist() == in_duckdb(connection, text, columns).tolist(), text


@given(data=conditions, drawn=rows, cut=st.integers(0, 12))
def test_a_row_is_selected_whatever_its_batch(data: list[object], drawn: list[tuple[object, ...]], cut: int) -> None:
    tree = check_tree({"grammar": 1, "tree": data}, FIELDS)
    columns, cut = columns_of(drawn), min(cut, len(drawn))

    head = evaluate(tree, {name: values[:cut] for name, values in columns.items()}, cut)
    tail = evaluate(tree, {name: values[cut:] for name, values in columns.items()}, len(drawn) - cut)

    assert evaluate(tree, columns, len(drawn)).tolist() == [*head.tolist(), *tail.tolist()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("channel = 'web' and amount > 50", [True, False, False, False]),
        ("not (channel = 'web')", [False, False, False, True]),
        ("channel <> 'web' or amount > 50", [True, True, False, True]),
        ("amount / device_risk > 0", [True, False, False, False]),  # Neither NULL nor 40 / 0 is above 0.
        ("(amount / device_risk) is null", [False, True, True, True]),
        ("amount * 1e308 > 0", [False, False, False, False]),  # Too large for float64.
        ("(amount * 1e308) is null", [True, True, True, True]),
        ("1 < 2", [True, True, True, True]),
        ("lower('A') = 'a' and 'a' like 'a%'", [True, True, True, True]),
    ],
)
def test_missing_values_and_infinities_are_null(text: str, expected: list[bool]) -> None:
    assert evaluate(parse_expression(text, FIELDS), SOME, 4).tolist() == expected


@pytest.mark.parametrize(
    ("pattern", "expected"), [("a\\%", [True, False]), ("a\\_", [True, False]), ("%\\", [False, False])]
)
def test_a_backslash_in_a_pattern_is_a_character(pattern: str, expected: list[bool]) -> None:
    columns: Columns = {"channel": pa.array(["a\\b", "a%"])}

    assert evaluate(parse_expression(f"channel like '{pattern}'", FIELDS), columns, 2).tolist() == expected


def test_an_infinite_value_of_a_field_is_null() -> None:
    columns: Columns = {"amount": np.array([np.inf, -np.inf, np.nan, 1.0])}

    assert evaluate(parse_expression("amount is null", FIELDS), columns, 4).tolist() == [True, True, True, False]


def test_a_column_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="column channel has 1 values, not 2"):
        evaluate(parse_expression("channel = 'web'", FIELDS), {"channel": pa.array(["web"])}, 2)
