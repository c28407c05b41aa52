"""Parser of conditions in SQL, for commands. A worker loads checked trees and never imports sqlglot.

The text is split into tokens here first: only the words and signs of the grammar pass, nesting is bounded, and a
quoted number stands in place of each field and literal. sqlglot then sees a small language, and gives the order in
which the operators bind.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pipeline.expressions.trees import (
    FUNCTIONS,
    GRAMMAR,
    KEYWORDS,
    MAX_NESTING,
    TOO_DEEP,
    Condition,
    ExpressionError,
    ValueKind,
    check_tree,
    unknown_field,
)
from schemas.toml_files import shown, suggestion

MAX_LENGTH: Final = 4_000
"""Longest text, in characters."""
_TOKEN: Final = re.compile(
    r"""(?u:\s*)(?:(?P<text>'(?:[^']|'')*+')|(?P<quoted>"(?:[^"]|"")*+")|(?P<word>[^\W\d]\w*)"""
    r"""|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?!\w))|(?P<refused>--|/\*|==|=>|=<|::|;|&&|\|\||[\u2018-\u201e`])"""
    r"""|(?P<sign><=|>=|<>|!=|[=<>+\-*/(),]))""",
    re.ASCII,
)
_REFUSED: Final = {
    **dict.fromkeys(("--", "/*"), "leave comments out"),
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u201c\u201d\u201e`", "write texts in straight single quotes"),
    "==": "write = to compare",
    "=>": "write >=",
    "=<": "write <=",
    "::": "texts are compared with texts, and numbers with numbers: leave it out",
    ";": "a rule is one condition: leave it out",
    "&&": "write and",
    "||": "write or between conditions",
}
_FOREIGN: Final = {
    **dict.fromkeys(("true", "false"), "write a condition, such as amount > 50"),
    "cast": "texts are compared with texts, and numbers with numbers",
    "ilike": "write lower(...) like '...'",
    "isnull": "write is null",
    "notnull": "write is not null",
}
"""What to write in place of words of other languages."""
_NAMES: Final = {
    "EQ": "=", "NEQ": "<>", "LT": "<", "LTE": "<=", "GT": ">", "GTE": ">=", "Like": "like",
    "Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "And": "and", "Or": "or", "Is": "is null",
    "Neg": "negate", "Not": "not", "Between": "between", "In": "in", "Abs": "abs", "Lower": "lower",
    "Coalesce": "coalesce", "Case": "case",
}  # fmt: skip
"""Operators of ours by the nodes of sqlglot that may occur."""
_ARGUMENTS: Final = {
    **dict.fromkeys(_NAMES, ("this", "expression")),
    **dict.fromkeys(("Neg", "Not", "Abs", "Lower", "Paren", "Column"), ("this",)),
    **dict.fromkeys(("In", "Coalesce"), ("this", "expressions")),
    "Between": ("this", "low", "high"),
    "Case": ("this", "ifs", "default"),
    "If": ("this", "true"),
}
"""Arguments that a node may have. Any other, such as the escape of like, is refused rather than ignored."""
_NULL: Final = "null is no value to compare with; write is null or is not null behind a field"
_IS: Final = "is stands before null and not null only; write = to compare"
_COMMA: Final = "a comma stands between the values of in and coalesce only; write 1000 for 1,000"
_OPEN: Final = {
    "case": "this case lacks its end; write end behind it",
    "between": "this between lacks its and; write it like between 1 and 5",
}
_CASE: Final = frozenset({"when", "then", "else", "end"})
_LIST: Final = "list"
_PREFIXES: Final = frozenset({"not", "-", "+"})
_BRACKETS: Final = {"(": 1, "case": 1, ")": -1, "end": -1}
_BEFORE_VALUE: Final = frozenset({"=", "<>", "!=", "<", "<=", ">", ">=", "+", "-", "*", "/"})
"""Signs after which `not` would nest without brackets."""
_NOT_READ: Final = "the condition cannot be read; write it like channel = 'web' and amount > 50"


class _Token(NamedTuple):
    sql: str
    """A word or sign of the grammar, or the number of this token in double quotes."""
    position: int
    """Number of its first character in the text."""
    leaf: list[Any] | None = None
    """Leaf of the tree; None for a word or sign."""


def parse_expression(text: str, fields: Mapping[str, ValueKind], *, lists: bool = False) -> Condition:
    """Parse a condition in SQL.

    Args:
        text: The condition, such as `channel = 'web' and amount > 50`. Keywords and functions may be upper case; names
            of fields are exact.
        fields: ValueKind of each field that may occur, TEXT or NUMBER.
        lists: Whether lists may occur, such as `country in list('home')`: in rules only.

    Returns:
        The checked tree. `text_of` writes it as SQL again.

    Raises:
        ExpressionError: The text is no condition over these fields, or too long. Its text is one sentence, and its
            ``position`` the character at fault.
    """
    if len(text) > MAX_LENGTH:
        error = f"the condition has {len(text):,} characters, and may have {MAX_LENGTH:,}"
        raise ExpressionError(error, position=MAX_LENGTH)
    if not text.strip():
        raise ExpressionError("the condition is empty; write one, such as amount > 50", position=0)
    tokens = _tokens(text, fields)
    _refuse_order(tokens)
    return _Parser(tokens).condition(fields, lists)


def _tokens(text: str, fields: Mapping[str, ValueKind]) -> list[_Token]:
    """Return the tokens of a text; refuse unknown ones, and nesting that is too deep."""
    tokens: list[_Token] = []
    brackets = prefixes = end = 0
    text = text.rstrip()
    while end < len(text):
        match = _TOKEN.match(text, end)
        position = end + len(text[end:]) - len(text[end:].lstrip())
        try:
            if match is None or match.lastgroup is None:
                raise _unreadable(text[position:])
            end = match.end()
            token = _token(match.lastgroup, match[match.lastgroup], text[end:].lstrip().startswith("("), fields)
            sign, before = token if isinstance(token, str) else "", tokens[-1].sql if tokens else ""
            if sign == "not" and before in _BEFORE_VALUE:
                raise ExpressionError(f"put what follows {before} in brackets: {before} (not ...)")
            prefixes = prefixes + 1 if sign in _PREFIXES else 0
            brackets += _BRACKETS.get(sign, 0)
            if brackets > MAX_NESTING or prefixes > MAX_NESTING:
                raise ExpressionError(TOO_DEEP)
        except ExpressionError as error:
            error.position = position
            raise
        leaf = token if isinstance(token, list) else None
        if [each.sql for each in tokens[-3:]] == ["in", _LIST, "("] and leaf is not None and leaf[0] == "text":
            # As the one value of a list in brackets, which is what sqlglot knows.
            del tokens[-2]
            leaf = ["list", leaf[1]]
        tokens.append(_Token(sign or f'"{len(tokens)}"', position, leaf))
    if strays := [token for token in tokens if token.sql == _LIST]:
        raise ExpressionError(
            f"write {_LIST} behind in, with a name: country in list('home')", None, strays[0].position
        )
    return tokens


def _unreadable(rest: str) -> ExpressionError:
    if rest[0] in "'\"":
        return ExpressionError(f"the quotation mark before {shown(rest[1:])} is not closed; close it")
    return ExpressionError(f"{shown(rest)} is not understood; use names of fields, numbers, and texts in single quotes")


def _token(kind: str, token: str, is_call: bool, fields: Mapping[str, ValueKind]) -> str | list[Any]:
    """Return a word or sign of the grammar, or the leaf of a field or literal."""
    if kind == "refused":
        raise ExpressionError(f"{token} is not understood; {_REFUSED[token]}")
    if kind == "sign":
        return token
    if kind == "number":
        return ["number", float(token)]
    name = token[1:-1].replace(token[0] * 2, token[0]) if kind in ("text", "quoted") else token
    if kind == "text":
        return ["text", name]
    if kind == "word" and name not in fields and (instead := _FOREIGN.get(name.lower())):
        raise ExpressionError(f"there is no {name}; {instead}")
    if kind == "word" and name not in fields and not is_call and name.lower() in FUNCTIONS:
        raise ExpressionError(f"{name} lacks its brackets; write it like {name.lower()}(...)")
    if kind == "word" and (name.lower() in KEYWORDS or (is_call and name.lower() in (*FUNCTIONS, _LIST))):
        return name.lower()
    if is_call:
        raise ExpressionError(f"there is no function {shown(name)}; {suggestion(name.lower(), FUNCTIONS)}")
    if name not in fields:
        error = unknown_field(name, fields)
        raise ExpressionError(f"{error}; write text in single quotes") if kind == "quoted" else error
    return ["field", name]


def _refuse_order(tokens: list[_Token]) -> None:
    """Refuse tokens that cannot follow each other, at the one at fault: the parser would stop somewhere behind it."""
    opened: list[tuple[str, _Token]] = []
    """What is to be closed, innermost last: brackets, each with the word before it, `case` and `between`."""
    before, wanted = "", True
    for token in tokens:
        sign, name = token.sql if token.leaf is None else "", opened[-1][0] if opened else ""
        try:
            if before == "in" and sign != "(":
                raise ExpressionError("in needs a list in brackets, such as in ('a', 'b')")
            if before in ("is", "is not"):
                if not (sign == "null" or (sign == "not" and before == "is")):
                    raise ExpressionError(_IS)
                wanted = sign == "not"
            elif sign == "null":
                raise ExpressionError(_NULL)
            elif before == "not " and sign not in ("in", "like", "between"):
                raise ExpressionError(
                    "an operator is missing before not; write and not, not in, not like or not between"
                )
            elif wanted:
                if sign and not (sign in ("(", "case", *_PREFIXES, *FUNCTIONS) or (before, sign) == ("case", "when")):
                    raise ExpressionError(f"a value is missing before {sign}; write one")
                wanted = bool(sign)
            elif not sign or sign in ("(", "case", *FUNCTIONS):
                raise ExpressionError("an operator is missing before this; write one, such as and")
            else:
                _refuse_unopened(sign, name)
                wanted = sign not in (")", "end", "not")
            if sign in (")", "end") or (sign, name) == ("and", "between"):
                opened.pop()
            elif sign in ("(", "case", "between"):
                opened.append((f"{before}(" if sign == "(" else sign, token))
        except ExpressionError as error:
            error.position = token.position
            raise
        # Behind a value, `not` belongs to the operator that follows.
        behind = sign == "not" and not wanted
        before = "is not" if (before, sign) == ("is", "not") else "not " if behind else sign
    if wanted or before == "not ":
        raise ExpressionError(
            f"the condition ends behind {before.strip()}; write what follows it", position=tokens[-1].position
        )
    if opened:
        name, token = opened[-1]
        raise ExpressionError(_OPEN.get(name, "this bracket is not closed; close it"), position=token.position)


def _refuse_unopened(sign: str, name: str) -> None:
    """Refuse a sign behind a value that belongs to something else than ``name``, which is open."""
    if name == "between" and sign in ("or", ")", ",", *_CASE):
        raise ExpressionError("the between before this lacks its and; write it like between 1 and 5")
    if sign in _CASE and name != "case":
        raise ExpressionError(f"{sign} belongs between case and end; write it there")
    if sign == "," and name not in ("in(", "coalesce("):
        raise ExpressionError(_COMMA)
    if sign == ")" and not name.endswith("("):
        raise ExpressionError(
            "the case before this bracket lacks its end; write end"
            if name == "case"
            else "this bracket closes none; leave it out"
        )


class _Parser:
    """Makes a tree of tokens.

    Args:
        tokens: At least one.
    """

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._positions: dict[int, int] = {}
        """Position of the first leaf of each node, by the node's identity."""

    def condition(self, fields: Mapping[str, ValueKind], lists: bool) -> Condition:
        import sqlglot
        from sqlglot.errors import SqlglotError

        tree: list[Any] = []
        try:
            tree = self._node(sqlglot.parse_one(" ".join(token.sql for token in self._tokens), dialect="duckdb"), 0)
            return check_tree({"grammar": GRAMMAR, "tree": tree}, fields, lists=lists)
        except (SqlglotError, RecursionError):
            raise ExpressionError(_NOT_READ, position=0) from None
        except ExpressionError as error:
            if error.position is None:
                error.position = self._positions.get(id(error.at), self._tokens[0].position)
            raise

    def _node(self, parsed: object, depth: int) -> list[Any]:
        """Return a node of sqlglot as one of ours; refuse what the grammar does not have."""
        try:
            node, first = self._made(parsed, depth)
        except ExpressionError as error:
            if error.position is None:
                error.position = self._first_position(parsed)
            raise
        self._positions[id(node)] = first
        return node

    def _first_position(self, parsed: Any) -> int | None:
        from sqlglot import expressions as exp

        columns = parsed.find_all(exp.Column) if isinstance(parsed, exp.Expr) else ()
        found = [int(column.name) for column in columns if column.name.isdecimal()]
        return self._tokens[min(found)].position if found else None

    def _made(self, parsed: object, depth: int) -> tuple[list[Any], int]:
        from sqlglot import expressions as exp

        if depth > 3 * MAX_NESTING:  # Brackets count here too; `check_tree` holds the tree itself to its limit.
            raise ExpressionError(TOO_DEEP)
        name = type(parsed).__name__
        if not isinstance(parsed, exp.Expr) or name not in _ARGUMENTS:
            raise ExpressionError(_NULL if isinstance(parsed, exp.Null) else _NOT_READ)
        arguments = {key for key, value in parsed.args.items() if value}
        if arguments - {"negate", *_ARGUMENTS[name]}:
            raise ExpressionError(_NOT_READ)
        if "negate" in arguments:  # This is how sqlglot writes not like; it has no such flag on in and between.
            operator, operands = "not", [type(parsed)(**{**parsed.args, "negate": False})]
        elif isinstance(parsed, exp.Paren):
            node = self._node(parsed.this, depth + 1)
            return node, self._positions[id(node)]
        elif isinstance(parsed, exp.Column):
            if not parsed.name.isdecimal():  # A keyword of ours where sqlglot takes it for a name.
                raise ExpressionError(_NOT_READ)
            token = self._tokens[int(parsed.name)]
            return list(token.leaf or ()), token.position
        else:
            operator, operands = self._operation(parsed, name)
        nodes = [self._node(operand, depth + 1) for operand in operands]
        first = self._positions[id(nodes[0])] if nodes else self._tokens[0].position
        if operator == "negate" and nodes[0][0] == "number" and isinstance(operands[0], exp.Column):
            return ["number", -nodes[0][1]], first
        return [operator, *nodes], first

    def _operation(self, parsed: Any, name: str) -> tuple[str, list[Any]]:
        """Return an operator of ours and its operands."""
        from sqlglot import expressions as exp

        if isinstance(parsed, exp.Is):
            if not isinstance(parsed.expression, exp.Null):
                raise ExpressionError(_IS)
            return "is null", [parsed.this]
        if isinstance(parsed, exp.And | exp.Or):
            return name.lower(), _chain(parsed)
        if isinstance(parsed, exp.Case):
            tests = [exp.EQ(this=parsed.this, expression=when.this) if parsed.this else when.this
                     for when in parsed.args["ifs"]]  # fmt: skip
            values = [when.args.get("true") for when in parsed.args["ifs"]]
            default = parsed.args.get("default")
            pairs = [part for pair in zip(tests, values, strict=True) for part in pair]
            return "case", [*pairs, *([] if default is None else [default])]
        operands = [parsed.args.get(key) for key in _ARGUMENTS[name]]
        return _NAMES[name], [
            each for operand in operands for each in (operand if isinstance(operand, list) else [operand])
        ]


def _chain(parsed: Any) -> list[object]:
    """Return the operands of `a and b and c`, which sqlglot nests to the left."""
    operands: list[object] = []
    left = parsed
    while type(left) is type(parsed):
        operands.append(left.expression)
        left = left.this
    return [left, *reversed(operands)]
