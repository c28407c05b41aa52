"""Texts of conditions become trees, or one sentence that says what to change."""

import os
import random
import re
import subprocess
import sys

import pytest
from hypothesis import given

from pipeline.expressions.parse import MAX_LENGTH, parse_expression
from pipeline.expressions.trees import Condition, ExpressionError, ValueKind, check_tree, text_of
from tests.helpers.expressions import FIELDS, conditions
from tests.helpers.waiting import TIMEOUT_S

WEB = ["=", ["field", "channel"], ["text", "web"]]
LARGE = [">", ["field", "amount"], ["number", 50.0]]
RISKY = [">", ["field", "device_risk"], ["number", 0.5]]


@given(data=conditions)
def test_a_tree_survives_its_text(data: list[object]) -> None:
    tree = check_tree({"grammar": 1, "tree": data}, FIELDS)

    assert parse_expression(text_of(tree), FIELDS) == tree


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("channel = 'web' and amount > 50", ["and", WEB, LARGE]),
        ("\"channel\" = 'web' AND\n\tamount > 5e1", ["and", WEB, LARGE]),
        ("channel = 'web' or amount > 50 and device_risk > .5", ["or", WEB, ["and", LARGE, RISKY]]),
        ("(channel = 'web' or amount > 50) and device_risk > .5", ["and", ["or", WEB, LARGE], RISKY]),
        ("channel = 'web' and amount > 50 and device_risk > .5", ["and", WEB, LARGE, RISKY]),
        ("channel = 'web' and (amount > 50 and device_risk > .5)", ["and", WEB, ["and", LARGE, RISKY]]),
        ("(channel = 'web' and amount > 50) and device_risk > .5", ["and", ["and", WEB, LARGE], RISKY]),
        ("not channel = 'web' and amount > 50", ["and", ["not", WEB], LARGE]),
        ("channel not like 'w%'", ["not", ["like", ["field", "channel"], ["text", "w%"]]]),
        ("not channel not like 'w%'", ["not", ["not", ["like", ["field", "channel"], ["text", "w%"]]]]),
        ("channel NOT IN ('it''s')", ["not", ["in", ["field", "channel"], ["text", "it's"]]]),
        ("amount is not null", ["not", ["is null", ["field", "amount"]]]),
        (
            "amount between -1 and 1 + 2 and channel != 'web'",
            [
                "and",
                ["between", ["field", "amount"], ["number", -1.0], ["+", ["number", 1.0], ["number", 2.0]]],
                ["<>", *WEB[1:]],
            ],
        ),
        (
            "amount - 1 - 2 * 3 > -amount",
            [
                ">",
                ["-", ["-", ["field", "amount"], ["number", 1.0]], ["*", ["number", 2.0], ["number", 3.0]]],
                ["negate", ["field", "amount"]],
            ],
        ),
        (
            "CASE channel WHEN 'web' THEN 1 END > 0 or case when amount > 50 then 'a' else country end = 'web'",
            [
                "or",
                [">", ["case", WEB, ["number", 1.0]], ["number", 0.0]],
                ["=", ["case", LARGE, ["text", "a"], ["field", "country"]], ["text", "web"]],
            ],
        ),
        ("COALESCE(amount, 0) < 1", ["<", ["coalesce", ["field", "amount"], ["number", 0.0]], ["number", 1.0]]),
    ],
)
def test_operators_bind_as_in_sql(text: str, tree: list[object]) -> None:
    parsed = parse_expression(text, FIELDS)

    assert parsed.data() == {"grammar": 1, "tree": tree}
    assert parse_expression(text_of(parsed), FIELDS) == parsed


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "the condition is empty; write one, such as amount > 50"),
        ("amout > 50", "there is no field amout; did you mean amount?"),
        ("Amount > 50", "there is no field Amount; did you mean amount?"),
        ('channel = "web"', "write text in single quotes"),
        ("channel = 'web", "the quotation mark before web is not closed; close it"),
        ("channel = 5", "= mixes channel, a text, and 5, a number; give both the same kind"),
        ("amount = '5'", "= mixes amount, a number, and '5', a text; give both the same kind"),
        ("amount", "amount is a number; write a condition, such as amount > 50"),
        ("amount = null", "null is no value to compare with; write is null or is not null behind a field"),
        ("amount in (1, null)", "null is no value to compare with; write is null or is not null behind a field"),
        ("null is null", "null is no value to compare with; write is null or is not null behind a field"),
        ("amount in ()", "a value is missing before ); write one"),
        ("amount in (1, 2,)", "a value is missing before ); write one"),
        ("coalesce(amount,, 1) > 1", "a value is missing before ,; write one"),
        ("amount > 1,000", "a comma stands between the values of in and coalesce only; write 1000 for 1,000"),
        ("amount in 5", "in needs a list in brackets, such as in ('a', 'b')"),
        ("amount between 1 or amount > 5", "the between before this lacks its and; write it like between 1 and 5"),
        ("(amount between 1)", "the between before this lacks its and; write it like between 1 and 5"),
        ("amount between 1", "this between lacks its and; write it like between 1 and 5"),
        ("case when amount > 1 then 1", "this case lacks its end; write end behind it"),
        ("(case when amount > 1 then 1) > 1", "the case before this bracket lacks its end; write end"),
        ("amount > 1)", "this bracket closes none; leave it out"),
        ("(amount > 1", "this bracket is not closed; close it"),
        ("amount > 1 end", "end belongs between case and end; write it there"),
        ("amount not = 5", "an operator is missing before not; write and not, not in, not like or not between"),
        ("amount not", "the condition ends behind not; write what follows it"),
        ("amount > 5 and", "the condition ends behind and; write what follows it"),
        ("true", "there is no true; write a condition, such as amount > 50"),
        ("amount::text = '5'", ":: is not understood; texts are compared with texts, and numbers with numbers"),
        ("cast(amount as text) = '5'", "there is no cast; texts are compared with texts, and numbers with numbers"),
        ("channel = \u201cweb\u201d", "\u201c is not understood; write texts in straight single quotes"),
        ("amount => 5", "=> is not understood; write >="),
        ("abs amount > 5", "abs lacks its brackets; write it like abs(...)"),
        ("channel in ('a', country)", "in takes texts or numbers on its right"),
        ("channel like country", "like takes texts or numbers on its right"),
        ("amount is 5", "is stands before null and not null only; write = to compare"),
        ("amount == 5", "== is not understood; write = to compare"),
        ("amount > 5 -- large", "-- is not understood; leave comments out"),
        ("amount > 5 /* large */", "/* is not understood; leave comments out"),
        ("amount > 5; drop table x", "; is not understood; a rule is one condition: leave it out"),
        ("upper(channel) = 'WEB'", "there is no function upper; there are abs, coalesce, lower"),
        ("amount(5) > 1", "there is no function amount"),
        ("abs(amount, 1) > 1", "a comma stands between the values of in and coalesce only"),
        ("amount > 1e400", "a number is too large; write one below 1e308"),
        ("amount < 2 < 3", "< takes a text or a number; amount < 2 is a condition"),
        ("amount = 1 = 1", "= takes a text or a number; amount = 1 is a condition"),
        ("amount = 1 is null", "is null takes a text or a number; amount = 1 is a condition"),
        ("amount = not amount = 1", "put what follows = in brackets: = (not ...)"),
        ("channel 'a'", "an operator is missing before this; write one, such as and"),
        ("channel = 'a' 'b'", "an operator is missing before this; write one, such as and"),
        ("channel = e'a'", "there is no field e;"),
        ("amount > 1" + " and amount > 1" * 300, "the condition has 4,510 characters, and may have 4,000"),
        ("(" * 21 + "amount > 1" + ")" * 21, "nested deeper than 20 levels, and each + of a row is one; simplify it"),
        ("amount > " + "- " * 21 + "1", "nested deeper than 20 levels, and each + of a row is one; simplify it"),
        ("not " * 21 + "amount > 1", "nested deeper than 20 levels, and each + of a row is one; simplify it"),
        ("amount = 1" + " + 1" * 30, "nested deeper than 20 levels, and each + of a row is one; simplify it"),
        ("amount=1" + " or amount=1" * 299, "the condition has more than 200 parts; shorten it"),
        ("amount in (" + "1," * 101 + "1)", "a list of in has more than 100 values; shorten it"),
        ("channel = '" + "x" * 201 + "'", "a text has 201 characters, and may have 200"),
    ],
)
def test_errors_say_what_to_change(text: str, error: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse_expression(text, FIELDS)

    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


PIECES = [
    *re.findall(
        r"\S+", "amount channel country abs( lower( coalesce( ( ) , = <> < >= + - * / 'web' '' 50 .5 1e9 and or not in"
    ),
    *re.findall(
        r"\S+", "is null between like select case when cast exists interval date array struct map lambda x -> :: [ ]"
    ),
    *re.findall(
        r"\S+", "{ } ; -- /* */ || ? $1 $$ @ # ` ' \" e' 1e999 9999999999999999999999 from where union distinct ∞ 👍"
    ),
    *("\\", "\0", "\ud800", "\n", " ", "is not null"),
]


def hostile_text(source: random.Random) -> str:
    """Return a text of known pieces, of one piece many times, of any characters, or a valid one with a fault."""
    form = source.randrange(4)
    if form == 0:
        return " ".join(source.choices(PIECES, k=source.randrange(1, 30)))
    if form == 1:
        return "".join(source.choices(PIECES, k=source.randrange(1, 4))) * source.randrange(1, 300)
    if form == 2:
        return "".join(chr(source.randrange(0x110000)) for _ in range(source.randrange(40)))
    valid = list("not (channel in ('web', 'app') and -amount / 2 between 1 and 50) or lower(country) is not null")
    for _ in range(source.randrange(1, 5)):
        valid[source.randrange(len(valid))] = source.choice(PIECES)
    return "".join(valid)


HOSTILE = int(os.environ.get("HOSTILE_TEXTS", "2000"))
"""Texts; the number of a release is 10,000."""


def test_hostile_texts_give_a_tree_or_a_sentence_that_points_at_a_character() -> None:
    source = random.Random(20261201)
    trees, refused = 0, list[tuple[str, ExpressionError]]()
    for _ in range(HOSTILE):
        text = hostile_text(source)
        try:
            tree = parse_expression(text, FIELDS)
            assert parse_expression(text_of(tree), FIELDS) == tree, text
            trees += 1
        except ExpressionError as error:
            refused.append((text, error))
    for text, error in refused:
        assert error.position is not None, text
        assert 0 <= error.position <= len(text), text
        assert "\n" not in str(error), text
    assert trees, "some of them are valid"


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("amount > 5 and chanel = 'x'", "chanel"),
        ("amount > 5 and\n (channel = 3)", "3)"),
        ("case when amount > 1 then 1 else 'a' end = 1", "'a'"),
        ("amount > 5 and or", "or"),
        ("amount > 5 and (channel = 'a' or", "or"),
        ("amount in (1, 2,)", ")"),
        ("amount > 1 and (amount > 2", "("),
        ("amount > 1) and amount > 2", ")"),
        ("amount > 1 and amount is 5", "5"),
        ("amount = null", "null"),
        ("amount > 1 and channel 'a'", "'a'"),
        ("amount between 1 or amount > 5", "or"),
        ("amount > 0 and case when amount > 1 then 1", "case"),
        ("amount > 5 -- large", "--"),
        ("amount in (1, channel)", "channel"),
        ("channel like country", "country"),
        ("not amount", "amount"),
        ("amount > 1 and " + "(" * 21 + "amount > 1" + ")" * 21, "(amount > 1"),
        ("amount > 1e400 or amount > 1", "1e400"),
    ],
)
def test_errors_point_at_the_character_at_fault(text: str, at: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse_expression(text, FIELDS)

    assert caught.value.position == text.index(at)


@pytest.mark.parametrize(
    "piece", ["not ", "- ", "(", "coalesce(1, ", "abs(", "1 in (", "not 1 = ", "1 between ", "1 = "]
)
def test_nesting_is_refused_in_a_sentence(piece: str) -> None:
    with pytest.raises(ExpressionError):
        parse_expression(piece * (MAX_LENGTH // len(piece)), FIELDS)


def test_names_of_fields_that_are_keywords_are_quoted() -> None:
    fields = {"in": ValueKind.NUMBER, 'a "b"': ValueKind.NUMBER, "order": ValueKind.NUMBER}
    text = '"in" > 1 and "a ""b""" > 1 and order > 1'

    tree = parse_expression(text, fields)

    assert isinstance(tree, Condition)
    assert text_of(tree) == text


def test_only_the_parser_imports_sqlglot() -> None:
    program = (
        "import sys, pipeline.expressions.trees, pipeline.expressions.evaluate, pipeline.expressions.parse\n"
        "assert 'sqlglot' not in sys.modules\n"
        "from pipeline.expressions.trees import ValueKind\n"
        "pipeline.expressions.parse.parse_expression('a > 1', {'a': ValueKind.NUMBER})\n"
        "assert 'sqlglot' in sys.modules\n"
    )

    subprocess.run([sys.executable, "-c", program], check=True, timeout=TIMEOUT_S)
