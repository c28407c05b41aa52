"""Rules that are evaluated together hit the rows that each one's condition selects in DuckDB."""

import os
import random
from collections.abc import Sequence
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decision.rule_program import CodedTexts, RuleProgram
from pipeline.expressions.evaluate import evaluate
from pipeline.expressions.parse import parse_expression
from pipeline.expressions.trees import Condition, check_tree, text_of
from tests.helpers.expressions import FIELDS, Columns, columns_of, conditions, in_duckdb, many_rows

EXAMPLES = int(os.environ.get("RULE_EXAMPLES", "200"))
"""Sets of rules, over some twenty rows each; 50,000 are a million rows."""


@pytest.fixture(scope="module")
def connection() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("set ieee_floating_point_ops=false; set error_on_division_by_zero=false; set threads=1")
    return connection


def listed(columns: Columns) -> Columns:
    return {name: values if isinstance(values, np.ndarray) else values.to_pylist() for name, values in columns.items()}


def coded(columns: Columns) -> dict[str, Any]:
    """Return columns whose texts are numbers of a list of words, in which one may stand twice."""
    found: dict[str, Any] = listed(columns)
    for name, values in found.items():
        if not isinstance(values, np.ndarray):
            words = [*dict.fromkeys(values), "unused", *dict.fromkeys(values)]
            numbers = np.array([words.index(value) for value in values], np.int64)
            found[name] = CodedTexts(numbers + (numbers % 2) * (len(words) // 2 + 1), words)
    return found


@settings(max_examples=EXAMPLES)
@given(data=st.lists(conditions, min_size=1, max_size=4), batches=st.lists(many_rows, min_size=1, max_size=2))
def test_rules_hit_what_their_conditions_select_in_duckdb(
    connection: duckdb.DuckDBPyConnection, data: list[object], batches: list[list[tuple[object, ...]]]
) -> None:
    trees = [check_tree({"grammar": 1, "tree": each}, FIELDS) for each in data]
    program = RuleProgram(trees, FIELDS)
    for drawn in batches:
        columns = columns_of(drawn)

        hits = program.hits(listed(columns).__getitem__, len(drawn))

        assert np.array_equal(hits, program.hits(coded(columns).__getitem__, len(drawn)))
        for tree, found in zip(trees, hits.tolist(), strict=True):
            assert found == in_duckdb(connection, text_of(tree), columns).tolist(), text_of(tree)
            assert found == evaluate(tree, columns, len(drawn)).tolist(), text_of(tree)


def some_rows(number: int) -> list[tuple[object, ...]]:
    source = random.Random(7)
    texts = ["web", "app", "WEB", "", "a_b", "Émile", None]
    return [
        (source.choice([None, 0.0, 50.0, source.uniform(-99, 99)]), source.random(), *source.choices(texts, k=2))
        for _ in range(number)
    ]


@pytest.mark.parametrize("rows", [0, 1, 127, 128, 129, 1_000])
def test_each_row_is_tested_whatever_its_batch(rows: int) -> None:
    texts = ("amount > 10 and channel = 'web'", "country like 'a_%' or amount is null", "lower(channel) = 'web'")
    trees = [parse_expression(text, FIELDS) for text in texts]
    columns = columns_of(some_rows(rows))

    hits = RuleProgram(trees, FIELDS).hits(listed(columns).__getitem__, rows)

    assert hits.tolist() == [evaluate(tree, columns, rows).tolist() for tree in trees]


def test_texts_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.decision.rule_program._MOST_WORDS", 3)
    program = RuleProgram([parse_expression("channel like 'w%'", FIELDS)], FIELDS)

    def found(texts: Sequence[Any]) -> list[bool]:
        return program.hits({"channel": texts}.__getitem__, len(texts))[0].tolist()

    assert found(["web", "app", None]) == [True, False, False]
    assert found(["w", "web", "a"]) == [True, True, False]
    assert found(["app", "web", "wap", "x"]) == [False, True, True, False]
    assert found(["w", "web", "a", None]) == [True, True, False, False]


def test_words_are_tested_once_while_the_same_list_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tested: list[int] = []

    def counting(tree: Condition, columns: Columns, n: int) -> Any:
        tested.append(n)
        return evaluate(tree, columns, n)

    monkeypatch.setattr("pipeline.decision.rule_program.evaluate", counting)
    program = RuleProgram([parse_expression("channel like 'w%'", FIELDS)], FIELDS)
    words = ["web", "app", None]
    for numbers, hits in (([0, 1, 2, 0], [True, False, False, True]), ([2, 2, 1], [False] * 3), ([0], [True])):
        texts = CodedTexts(np.array(numbers), words)
        assert program.hits({"channel": texts}.__getitem__, len(texts))[0].tolist() == hits
        assert [*texts] == [words[number] for number in numbers]
    assert tested == [3, 3], "once for what is true of them, and once for what is not"
    other = CodedTexts(np.array([0]), ["app"])
    assert program.hits({"channel": other}.__getitem__, 1)[0].tolist() == [False]
