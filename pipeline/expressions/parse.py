"""Parser of conditions in SQL, for commands. A worker loads checked trees and never imports sqlglot.

The text is split into tokens here first: only the words and signs of the grammar pass, fields are quoted, and
nesting is bounded. sqlglot then sees a small language, and gives the order in which the operators bind.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from pipeline.expressions.trees import (
    FUNCTIONS,
    GRAMMAR,
    KEYWORDS,
    MAX_NESTING,
    Condition,
    ExpressionError,
    ValueKind,
    check_tree,
    unknown_field,
)
from schemas.toml_files import shown, suggestion

MAX_LENGTH: Final = 1_000
"""Longest text, in characters."""
_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*+')|(?P<quoted>"(?:[^"]|"")*+")|(?P<word>[^\W\d]\w*)"""
    r"""|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?!\w))|(?P<refused>--|/\*|==)"""
    r"""|(?P<sign><=|>=|<>|!=|[=<>+\-*/(),]))""",
    re.ASCII,
)
_REFUSED: Final = {"--": "leave comments out", "/*": "leave comments out", "==": "write = to compare"}
_NAMES: Final = {
    "EQ": "=", "NEQ": "<>", "LT": "<", "LTE": "<=", "GT": ">", "GTE": ">=", "Like": "like",
    "Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "And": "and", "Or": "or", "Is": "is null",
    "Neg": "negate", "Not": "not", "Between": "between", "In": "in", "Abs": "abs", "Lower": "lower",
    "Coalesce": "coalesce",
}  # fmt: skip
"""Operators of ours by the nodes of sqlglot that may occur."""
_ARGUMENTS: Final = {
    **dict.fromkeys(_NAMES, ("this", "expression")),
    **dict.fromkeys(("Neg", "Not", "Abs", "Lower", "Paren", "Column"), ("this",)),
    **dict.fromkeys(("In", "Coalesce"), ("this", "expressions")),
    "Between": ("this", "low", "high"),
    "Literal": ("this", "is_string"),
}
"""Arguments that a node may have. Any other, such as the escape of like, is refused rather than ignored."""
_NULL: Final = "a comparison with null is never true; write is null or is not null"
_NOT: Final = frozenset({"not"})
_PREFIXES: Final = frozenset({"not", "-", "+"})
_BRACKETS: Final = {"(": 1, ")": -1}
_BEFORE_VALUE: Final = frozenset({"=", "<>", "!=", "<", "<=", ">", ">=", "+", "-", "*", "/"})
"""Signs after which `not` would nest without brackets."""
_NOT_READ: Final = "the condition cannot be read; write it like channel = 'web' and amount > 50"
_TOO_DEEP: Final = f"the condition is nested deeper than {MAX_NESTING} levels; simplify it"


def parse_expression(text: str, fields: Mapping[str, ValueKind]) -> Condition:
    """Parse a condition in SQL.

    Args:
        text: The condition, such as `channel = 'web' and amount > 50`. Keywords and functions may be upper case; names
            of fields are exact.
        fields: ValueKind of each field that may occur, TEXT or NUMBER.

    Returns:
        The checked tree. `text_of` writes it as SQL again.

    Raises:
        ExpressionError: The text is no condition over these fields, or too long. Its text is one sentence.
    """
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"the condition has {len(text):,} characters, and may have {MAX_LENGTH:,}")
    if not text.strip():
        raise ExpressionError("the condition is empty; write one, such as amount > 50")
    sql = _restricted_sql(text, fields)

    import sqlglot
    from sqlglot.errors import SqlglotError

    try:
        parsed = sqlglot.parse_one(sql, dialect="duckdb")
    except (SqlglotError, RecursionError):
        raise ExpressionError(_NOT_READ) from None
    return check_tree({"grammar": GRAMMAR, "tree": _node(parsed, 0)}, fields)


def _restricted_sql(text: str, fields: Mapping[str, ValueKind]) -> str:
    """Return SQL of known tokens only, joined by spaces; refuse any other, and nesting that is too deep."""
    tokens: list[str] = []
    brackets = prefixes = position = 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise _unreadable(text[position:].lstrip())
        position = match.end()
        kind, token = match.lastgroup, match[match.lastgroup]
        if kind == "refused":
            raise ExpressionError(f"{token} is not understood; {_REFUSED[token]}")
        if kind in ("word", "quoted"):
            token = _name(token, text[position:].lstrip().startswith("("), fields)
        elif kind == "number":
            token = repr(float(token)) if float(token) < float("inf") else "1e999"
        if token in _NOT and tokens and tokens[-1] in _BEFORE_VALUE:
            raise ExpressionError(f"put what follows {tokens[-1]} in brackets: {tokens[-1]} (not ...)")
        prefixes = prefixes + 1 if token in _PREFIXES else 0
        brackets += _BRACKETS.get(token, 0)
        if brackets > MAX_NESTING or prefixes > MAX_NESTING:
            raise ExpressionError(_TOO_DEEP)
        tokens.append(token)
    return " ".join(tokens)


def _unreadable(rest: str) -> ExpressionError:
    if rest[0] in "'\"":
        return ExpressionError(f"the quotation mark before {shown(rest[1:])} is not closed; close it")
    return ExpressionError(f"{shown(rest)} is not understood; use names of fields, numbers, and texts in single quotes")


def _name(token: str, is_call: bool, fields: Mapping[str, ValueKind]) -> str:
    """Return the token of a keyword, a function or a field, the last in double quotes."""
    quoted = token.startswith('"')
    name = token[1:-1].replace('""', '"') if quoted else token
    if not quoted and (name.lower() in KEYWORDS or (is_call and name.lower() in FUNCTIONS)):
        return name.lower()
    if is_call:
        raise ExpressionError(f"there is no function {shown(name)}; {suggestion(name.lower(), FUNCTIONS)}")
    if name not in fields:
        error = unknown_field(name, fields)
        raise ExpressionError(f"{error}; write text in single quotes") if quoted else error
    return '"' + name.replace('"', '""') + '"'


def _node(parsed: object, depth: int) -> list[Any]:
    """Return a node of sqlglot as one of ours; refuse what the grammar does not have."""
    from sqlglot import expressions as exp

    if depth > 3 * MAX_NESTING:  # Brackets count here too; `check_tree` holds the tree itself to its limit.
        raise ExpressionError(_TOO_DEEP)
    name = type(parsed).__name__
    if not isinstance(parsed, exp.Expr) or name not in _ARGUMENTS:
        raise ExpressionError(_NULL if isinstance(parsed, exp.Null) else _NOT_READ)
    arguments = {key for key, value in parsed.args.items() if value}
    if arguments - {"negate", *_ARGUMENTS[name]}:
        raise ExpressionError(_NOT_READ)
    if "negate" in arguments:  # This is how sqlglot writes not like; it has no such flag on in and between.
        return ["not", _node(type(parsed)(**{**parsed.args, "negate": False}), depth)]
    if isinstance(parsed, exp.Paren):
        return _node(parsed.this, depth + 1)
    if isinstance(parsed, exp.Column):
        return ["field", parsed.name]
    if isinstance(parsed, exp.Literal):
        return ["text", parsed.this] if parsed.is_string else ["number", float(parsed.this)]
    if isinstance(parsed, exp.Neg) and isinstance(parsed.this, exp.Literal) and not parsed.this.is_string:
        return ["number", -float(parsed.this.this)]
    if isinstance(parsed, exp.Is):
        if not isinstance(parsed.expression, exp.Null):
            raise ExpressionError("is stands before null and not null only; write = to compare")
        return ["is null", _node(parsed.this, depth + 1)]
    if isinstance(parsed, exp.And | exp.Or):
        return [name.lower(), *(_node(operand, depth + 1) for operand in _chain(parsed))]
    operands = [parsed.args.get(key) for key in _ARGUMENTS[name]]
    flat = [each for operand in operands for each in (operand if isinstance(operand, list) else [operand])]
    return [_NAMES[name], *(_node(operand, depth + 1) for operand in flat)]


def _chain(parsed: Any) -> list[object]:
    """Return the operands of `a and b and c`, which sqlglot nests to the left."""
    operands: list[object] = []
    left = parsed
    while type(left) is type(parsed):
        operands.append(left.expression)
        left = left.this
    return [left, *reversed(operands)]
