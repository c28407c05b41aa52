"""Trees of conditions: the numbered format, its checks, and the SQL text of a tree.

A tree is plain JSON data: `{"grammar": 1, "tree": ["=", ["field", "channel"], ["text", "web"]]}`. Numbers are
float64. There are no casts: a text never equals a number.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from schemas.toml_files import shown, suggestion

GRAMMAR: Final = 1
"""Version of the format. A tree of another version is refused."""
MAX_NODES: Final = 200
MAX_NESTING: Final = 20
MAX_TEXT: Final = 200
MAX_LIST: Final = 100
TOO_DEEP: Final = f"the condition is nested deeper than {MAX_NESTING} levels, and each + of a row is one; simplify it"
_TOO_LONG: Final = f"the condition has more than {MAX_NODES} parts; shorten it"

type_name = {"text": "a text", "number": "a number", "boolean": "a condition"}.__getitem__


class ExpressionError(ValueError):
    """A condition that cannot be used; the text says what to change.

    Attributes:
        at: The part of the tree at fault, as `check_tree` was given it; None where no part is.
        position: Number of the character of the text at which the fault lies, from 0; None where no text was parsed.
    """

    def __init__(self, text: str, at: object = None, position: int | None = None) -> None:
        super().__init__(text)
        self.at, self.position = at, position


class ValueKind(StrEnum):
    """ValueKind of a value. Fields are texts or numbers; only inner nodes are boolean."""

    TEXT = "text"
    NUMBER = "number"
    BOOLEAN = "boolean"


Node = tuple[Any, ...]
"""Operator and its operands; a leaf is `("field", name)`, `("number", float)`, `("text", str)` or `("list", name)`."""


@dataclass(frozen=True)
class Condition:
    """A checked tree. Made by `check_tree` only."""

    root: Node

    def data(self) -> dict[str, Any]:
        """Return the tree as JSON data, which `check_tree` reads."""
        return {"grammar": GRAMMAR, "tree": _lists(self.root)}


@dataclass(frozen=True)
class Operator:
    """Operands and result of an operator.

    Attributes:
        operands: ValueKind of the operands; of several kinds, all operands have the same.
        result: ValueKind of the result, or None for the kind of the operands.
        least: Fewest operands.
        most: Most operands.
        level: Binding strength in SQL, from 1 (`or`) to 8 (a call).
    """

    operands: frozenset[ValueKind]
    result: ValueKind | None
    least: int
    most: int
    level: int


_VALUES: Final = frozenset({ValueKind.TEXT, ValueKind.NUMBER})
_NUMBERS: Final = frozenset({ValueKind.NUMBER})
_TEXTS: Final = frozenset({ValueKind.TEXT})
_CONDITIONS: Final = frozenset({ValueKind.BOOLEAN})
_COMPARISON: Final = Operator(_VALUES, ValueKind.BOOLEAN, 2, 2, 4)
COMPARISONS: Final = frozenset({"=", "<>", "<", "<=", ">", ">="})
FUNCTIONS: Final = {
    "abs": Operator(_NUMBERS, ValueKind.NUMBER, 1, 1, 8),
    "coalesce": Operator(_VALUES, None, 2, MAX_NODES, 8),
    "lower": Operator(_TEXTS, ValueKind.TEXT, 1, 1, 8),
}
OPERATORS: Final = {
    "or": Operator(_CONDITIONS, ValueKind.BOOLEAN, 2, MAX_NODES, 1),
    "and": Operator(_CONDITIONS, ValueKind.BOOLEAN, 2, MAX_NODES, 2),
    "not": Operator(_CONDITIONS, ValueKind.BOOLEAN, 1, 1, 3),
    **dict.fromkeys(sorted(COMPARISONS), _COMPARISON),
    "between": Operator(_VALUES, ValueKind.BOOLEAN, 3, 3, 4),
    "in": Operator(_VALUES, ValueKind.BOOLEAN, 2, MAX_LIST + 1, 4),
    "like": Operator(_TEXTS, ValueKind.BOOLEAN, 2, 2, 4),
    "is null": Operator(_VALUES, ValueKind.BOOLEAN, 1, 1, 4),
    "+": Operator(_NUMBERS, ValueKind.NUMBER, 2, 2, 5),
    "-": Operator(_NUMBERS, ValueKind.NUMBER, 2, 2, 5),
    "*": Operator(_NUMBERS, ValueKind.NUMBER, 2, 2, 6),
    "/": Operator(_NUMBERS, ValueKind.NUMBER, 2, 2, 6),
    "negate": Operator(_NUMBERS, ValueKind.NUMBER, 1, 1, 7),
    "case": Operator(_VALUES, None, 2, MAX_NODES, 8),
    **FUNCTIONS,
}
"""Operators of the grammar. What follows the first operand of `in` and `like` are literals. Operands of `case` are a
condition and its value, again and again, and then the value of `else` if there is one: without it, NULL. A list stands
in rules only, behind `in` and a field of text: `country in list('home')`."""
KEYWORDS: Final = frozenset(
    {"and", "or", "not", "in", "is", "null", "between", "like", "case", "when", "then", "else", "end"}
)


def check_tree(data: object, fields: Mapping[str, ValueKind], *, lists: bool = False) -> Condition:
    """Check JSON data and return its tree, without sqlglot.

    Args:
        data: Decoded JSON, as `Condition.data` returns it.
        fields: ValueKind of each field that may occur, TEXT or NUMBER.
        lists: Whether lists may occur: in rules only.

    Returns:
        The tree, with numbers as floats.

    Raises:
        ExpressionError: The version is unknown, an operator, a field or an operand does not fit, or a limit is passed.

    >>> check_tree({"grammar": 1, "tree": [">", ["field", "amount"], ["number", 5]]}, {"amount": ValueKind.NUMBER}).root
    ('>', ('field', 'amount'), ('number', 5.0))
    """
    if not isinstance(data, dict) or set(data) != {"grammar", "tree"} or type(data["grammar"]) is not int:
        raise ExpressionError('a tree has the form {"grammar": 1, "tree": [...]}')
    if data["grammar"] != GRAMMAR:
        raise ExpressionError(f"grammar {shown(str(data['grammar']))} is unknown here; this version reads {GRAMMAR}")
    root, kind = _Checker(fields, lists).node(data["tree"], 1)
    if kind is not ValueKind.BOOLEAN:
        raise ExpressionError(f"{_part(root)} is {type_name(kind)}; write a condition, such as amount > 50")
    return Condition(root)


def fields_in(tree: Condition) -> frozenset[str]:
    """Return the names of the fields that a tree reads."""
    return frozenset(node[1] for node in _nodes(tree.root) if node[0] == "field")


def lists_in(tree: Condition) -> frozenset[Node]:
    """Return the tests of lists in a tree: `("in", ("field", name), ("list", name))`."""
    return frozenset(node for node in _nodes(tree.root) if is_list_test(node))


def list_fields_in(trees: Iterable[Condition]) -> frozenset[tuple[str, str]]:
    """Return the names of the lists that trees read, each with the field that they look for there."""
    return frozenset((name, field) for tree in trees for _, (_, field), (_, name) in lists_in(tree))


def doubts_about(tree: Condition, shares: Collection[str]) -> Iterator[str]:
    """Yield a sentence on each part of a tree that its author can hardly have meant.

    Args:
        tree: The condition.
        shares: Fields whose numbers lie between 0 and 1.
    """
    for node in _nodes(tree.root):
        if node[0] not in OPERATORS or OPERATORS[node[0]].result is not ValueKind.BOOLEAN:
            continue
        leaves = [operand for operand in node[1:] if operand[0] not in OPERATORS]
        share = next((value for kind, value in leaves if kind == "field" and value in shares), None)
        if share is not None and any(kind == "number" and not 0 <= value <= 1 for kind, value in leaves):
            yield f"{_part(node)}: {share} lies between 0 and 1"
        ends = [end[1] for end in node[2:] if end[0] in ("number", "text")]
        if node[0] == "between" and len(ends) == 2 and ends[0] > ends[1]:
            yield f"{_part(node)} is never true: write the smaller value first"


def is_list_test(node: Node) -> bool:
    """Return whether a node asks if a field is in a list."""
    return bool(node[0] == "in" and node[2][0] == "list")


def text_of(tree: Condition) -> str:
    """Return a tree as SQL, in one canonical form.

    >>> field = ["field", "channel"]
    >>> text_of(check_tree({"grammar": 1, "tree": ["not", ["is null", field]]}, {"channel": ValueKind.TEXT}))
    'channel is not null'
    """
    return _sql(tree.root)[0]


def lines_of(tree: Condition) -> list[str]:
    """Return a tree as SQL, with a line for each operand of its outermost `and` or `or`."""
    name, *operands = tree.root
    if name not in ("and", "or"):
        return [text_of(tree)]
    first, *others = (_inside(operand, OPERATORS[name].level + 1) for operand in operands)
    return [first, *(f"{name} {other}" for other in others)]


class _Checker:
    """One check: the fields, and how many nodes it has met."""

    def __init__(self, fields: Mapping[str, ValueKind], lists: bool) -> None:
        self._fields, self._lists = fields, lists
        self._count = 0

    def node(self, data: object, depth: int) -> tuple[Node, ValueKind]:
        """Return a node and its kind; an error names the innermost part at fault."""
        try:
            return self._node(data, depth)
        except ExpressionError as error:
            error.at = data if error.at is None else error.at
            raise

    def _node(self, data: object, depth: int) -> tuple[Node, ValueKind]:
        self._count += 1
        if self._count > MAX_NODES:
            raise ExpressionError(_TOO_LONG)
        if depth > MAX_NESTING:
            raise ExpressionError(TOO_DEEP)
        if not isinstance(data, list | tuple) or not data or not isinstance(data[0], str):
            raise ExpressionError("each node of a tree is a list that begins with an operator")
        if leaf := self._LEAVES.get(data[0]):
            if len(data) != 2:
                raise ExpressionError(f"{data[0]} in a tree takes one value")
            return leaf(self, data[1])
        if data[0] not in OPERATORS:
            raise ExpressionError(f"there is no operator {shown(data[0])}; {suggestion(data[0], OPERATORS)}")
        return self._operation(data[0], data[1:], depth)

    def _operation(self, name: str, operands: Sequence[object], depth: int) -> tuple[Node, ValueKind]:
        operator = OPERATORS[name]
        if name == "in" and len(operands) - 1 > MAX_LIST:
            raise ExpressionError(f"a list of in has more than {MAX_LIST} values; shorten it")
        if len(operands) > MAX_NODES:
            raise ExpressionError(_TOO_LONG)
        if not operator.least <= len(operands) <= operator.most:
            wanted = f"{operator.least}" if operator.least == operator.most else f"at least {operator.least}"
            raise ExpressionError(f"{name} takes {wanted} operands, and has {len(operands)}")
        nodes, kinds = zip(*(self.node(operand, depth + 1) for operand in operands), strict=True)
        kinds_of_nodes = [node[0] for node in nodes]
        if "list" in kinds_of_nodes and (name, kinds_of_nodes) != ("in", ["field", "list"]):
            raise ExpressionError("a list stands alone behind a field and in: country in list('home')", operands[-1])
        values = _values_of(name, len(nodes))
        first = values[0]
        for at, (node, kind) in enumerate(zip(nodes, kinds, strict=True)):
            allowed = operator.operands if at in values else _CONDITIONS
            if kind not in allowed:
                wanted = " or ".join(type_name(each) for each in sorted(allowed, reverse=True))
                raise ExpressionError(f"{name} takes {wanted}; {_part(node)} is {type_name(kind)}", operands[at])
            if at in values and kind is not kinds[first]:
                raise ExpressionError(
                    f"{name} mixes {_part(nodes[first])}, {type_name(kinds[first])}, and {_part(node)}, "
                    f"{type_name(kind)}; give both the same kind",
                    operands[at],
                )
        if name in ("in", "like"):
            for node, operand in zip(nodes[1:], operands[1:], strict=True):
                if node[0] not in ("text", "number", "list"):
                    text = f"{name} takes texts or numbers on its right, no fields and no calculations"
                    raise ExpressionError(text, operand)
        return (name, *nodes), operator.result or kinds[first]

    def _field(self, name: object) -> tuple[Node, ValueKind]:
        if not isinstance(name, str) or name not in self._fields:
            raise unknown_field(str(name), self._fields)
        return ("field", name), self._fields[name]

    def _number(self, value: object) -> tuple[Node, ValueKind]:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ExpressionError("number in a tree takes a number")
        try:
            number = float(value) + 0.0  # No negative zero: it has no text of its own.
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise ExpressionError("a number is too large; write one below 1e308")
        return ("number", number), ValueKind.NUMBER

    def _text(self, value: object) -> tuple[Node, ValueKind]:
        if not isinstance(value, str):
            raise ExpressionError("text in a tree takes a text")
        if len(value) > MAX_TEXT:
            raise ExpressionError(f"a text has {len(value)} characters, and may have {MAX_TEXT}")
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise ExpressionError("a text holds a character that UTF-8 text cannot hold; remove it")
        return ("text", value), ValueKind.TEXT

    def _list(self, name: object) -> tuple[Node, ValueKind]:
        if not self._lists:
            raise ExpressionError("lists are for rules only: features and audits read none")
        return ("list", self._text(name)[0][1]), ValueKind.TEXT

    _LEAVES: Final[dict[str, Callable[["_Checker", object], tuple[Node, ValueKind]]]] = {
        "field": _field,
        "number": _number,
        "text": _text,
        "list": _list,
    }


def unknown_field(name: str, fields: Mapping[str, ValueKind]) -> ExpressionError:
    """Return the error for a name that is no field."""
    words = suggestion(name.lower(), fields) if fields else "there are none"
    return ExpressionError(f"there is no field {shown(name)}; {words}")


def _values_of(name: str, count: int) -> range | list[int]:
    """Return which of an operator's operands have its kind; the others, of `case` alone, are conditions."""
    return range(count) if name != "case" else [*range(1, count, 2), *([count - 1] if count % 2 else [])]


def _lists(node: Node) -> list[Any]:
    return [_lists(part) if isinstance(part, tuple) else part for part in node]


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for part in node[1:]:
        if isinstance(part, tuple):
            yield from _nodes(part)


def _part(node: Node) -> str:
    return shown(_sql(node)[0])


def _sql(node: Node) -> tuple[str, int]:
    """Return a node's SQL and its binding strength."""
    name, *operands = node
    if name == "field":
        plain = operands[0].isidentifier() and operands[0].isascii() and operands[0].lower() not in KEYWORDS
        return operands[0] if plain else '"' + operands[0].replace('"', '""') + '"', 8
    if name == "text":
        return "'" + operands[0].replace("'", "''") + "'", 8
    if name == "list":
        return f"list({_sql(('text', operands[0]))[0]})", 8
    if name == "number":
        return repr(operands[0]).removesuffix(".0"), 8 if operands[0] >= 0 else 7
    level = OPERATORS[name].level
    if name == "case":
        parts = [_sql(operand)[0] for operand in operands]
        whens = [f" when {parts[at]} then {parts[at + 1]}" for at in range(0, len(parts) - 1, 2)]
        otherwise = f" else {parts[-1]}" if len(parts) % 2 else ""
        return f"case{''.join(whens)}{otherwise} end", level
    if name in FUNCTIONS:
        return f"{name}({', '.join(_sql(operand)[0] for operand in operands)})", level
    if name == "negate":
        # In brackets, or a negated number were a negative one.
        return "-" + (operands[0][1] if operands[0][0] == "field" else f"({_sql(operands[0])[0]})"), level
    if name == "not":
        inner = operands[0]
        return _postfix(inner, " not") if inner[0] in _POSTFIX else (f"not {_inside(inner, level)}", level)
    if name in _POSTFIX:
        return _postfix(node, "")
    # Operators of one strength are read from the left; and, or and comparisons do not nest without brackets.
    left = level if level in (5, 6) else level + 1
    return f" {name} ".join([_inside(operands[0], left), *(_inside(each, level + 1) for each in operands[1:])]), level


_POSTFIX: Final = frozenset({"between", "in", "like", "is null"})


def _postfix(node: Node, negation: str) -> tuple[str, int]:
    name, first, *rest = node
    subject = _inside(first, 5)
    if name == "is null":
        return f"{subject} is{negation} null", 4
    operands = [_inside(operand, 5) for operand in rest]
    if name == "in" and not is_list_test(node):
        return f"{subject}{negation} in ({', '.join(operands)})", 4
    return f"{subject}{negation} {name} {' and '.join(operands)}", 4


def _inside(node: Node, least: int) -> str:
    text, level = _sql(node)
    return text if level >= least else f"({text})"
