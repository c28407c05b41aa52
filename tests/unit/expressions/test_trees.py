"""Trees from outside are checked before they are evaluated."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.expressions.trees import ExpressionError, check_tree, fields_in
from tests.helpers.expressions import FIELDS, conditions

AMOUNT = ["field", "amount"]
LARGE = [">", AMOUNT, ["number", 50]]


def nested(levels: int) -> list[object]:
    tree: list[object] = LARGE
    for _ in range(levels - 2):
        tree = ["not", tree]
    return tree


@given(data=conditions)
def test_a_tree_survives_json(data: list[object]) -> None:
    tree = check_tree({"grammar": 1, "tree": data}, FIELDS)

    assert check_tree(json.loads(json.dumps(tree.data())), FIELDS) == tree


def test_fields_of_a_tree() -> None:
    data = ["or", LARGE, ["in", ["lower", ["field", "channel"]], ["text", "country"]]]

    assert fields_in(check_tree({"grammar": 1, "tree": data}, FIELDS)) == {"amount", "channel"}


def test_limits_can_be_reached() -> None:
    in_list = ["in", AMOUNT, *([["number", 1]] * 100)]

    check_tree({"grammar": 1, "tree": nested(20)}, FIELDS)
    check_tree({"grammar": 1, "tree": ["and", in_list, *[LARGE] * 32]}, FIELDS)
    check_tree({"grammar": 1, "tree": ["=", ["field", "channel"], ["text", "x" * 200]]}, FIELDS)


@pytest.mark.parametrize(
    ("tree", "error"),
    [
        (nested(21), "nested deeper than 20"),
        (nested(100_000), "nested deeper than 20"),
        (["or", *[LARGE] * 66, ["is null", AMOUNT]], "more than 200 parts"),
        (["in", AMOUNT, *([["number", 1]] * 101)], "more than 100 values"),
        (["=", ["field", "channel"], ["text", "x" * 201]], "has 201 characters, and may have 200"),
        (["=", ["field", "channel"], ["text", "\ud800"]], "cannot hold"),
        (["=", ["field", "channel"], ["text", "\0"]], "cannot hold"),
        (["=", ["field", "channel"], ["text", 5]], "takes a text"),
        (["=", AMOUNT, ["number", True]], "takes a number"),
        (["=", AMOUNT, ["number", "5"]], "takes a number"),
        (["=", AMOUNT, ["number", float("nan")]], "too large"),
        (["=", AMOUNT, ["number", 10**400]], "too large"),
        (["=", AMOUNT, ["number"]], "takes one value"),
        (["=", AMOUNT, ["number", 1], ["number", 1]], "= takes 2 operands, and has 3"),
        (["and", LARGE], "and takes at least 2 operands, and has 1"),
        (["and", LARGE, AMOUNT], "and takes a condition; amount is a number"),
        (["is null", LARGE], "is null takes a text or a number; amount > 50 is a condition"),
        (["=", AMOUNT, ["text", "5"]], "= mixes"),
        (["+", AMOUNT, ["field", "channel"]], "+ takes a number; channel is a text"),
        (["lower", AMOUNT], "lower takes a text; amount is a number"),
        (["in", AMOUNT, AMOUNT], "no fields and no calculations"),
        (["like", ["field", "channel"], ["field", "country"]], "no fields and no calculations"),
        (["between", AMOUNT, ["number", 1], ["text", "2"]], "between mixes"),
        (["beetween", AMOUNT], "there is no operator beetween; did you mean between?"),
        (["=", ["field", "amout"], ["number", 1]], "there is no field amout; did you mean amount?"),
        (["field", ["amount"]], "there is no field ['amount']"),
        (AMOUNT, "amount is a number; write a condition"),
        ([], "a list that begins with an operator"),
        (None, "a list that begins with an operator"),
        ([["="], 1, 2], "a list that begins with an operator"),
    ],
)
def test_trees_that_do_not_fit_are_refused(tree: object, error: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        check_tree({"grammar": 1, "tree": tree}, FIELDS)

    assert error in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        LARGE,
        {"tree": LARGE},
        {"grammar": 2, "tree": LARGE},
        {"grammar": True, "tree": LARGE},
        {"grammar": 1, "tree": LARGE, "x": 1},
    ],
)
def test_another_form_or_version_is_refused(data: object) -> None:
    with pytest.raises(ExpressionError, match="grammar"):
        check_tree(data, FIELDS)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.sampled_from(["=", "and", "in", "not", "field", "number"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
)


@given(tree=JSON)
def test_any_json_gives_a_tree_or_a_sentence(tree: object) -> None:
    with suppress(ExpressionError):
        check_tree({"grammar": 1, "tree": tree}, FIELDS)
