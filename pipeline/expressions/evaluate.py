"""Evaluation of conditions over columns of transactions, row by row, as SQL evaluates them.

Conditions have three values: true, false and unknown. Only true selects a row. A missing value is NULL, and so is a
number that is not finite: NaN, a division by zero, an overflow. This is DuckDB's logic, in which only numbers differ:
DuckDB keeps infinities.

Numbers are columns of float64. A test of texts is made once for each distinct text of a column.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.expressions.trees import Condition, Node, is_list_test

Column: TypeAlias = NDArray[np.float64] | pa.Array | Sequence[str | None]
"""Values of a field: float64, in which NaN is NULL; or texts, as an array of pyarrow strings or a list with None."""
_LISTED: Final = 256
"""Rows up to which Python numbers the distinct texts of an array faster than pyarrow."""


def evaluate(tree: Condition, columns: Mapping[Any, Column], n: int) -> NDArray[np.bool_]:
    """Return which rows a condition selects.

    Args:
        tree: The condition.
        columns: Values of each field of the tree, shape (n,); and of each of its `lists_in` the truth: 1, 0 or NaN.
        n: Number of rows.

    Returns:
        True where the condition is true, shape (n,); false where it is false or unknown. A row's result depends on that
        row only.

    Raises:
        KeyError: A field has no column.
        ValueError: A column does not have n values.
    """
    with np.errstate(all="ignore"):
        selected = _selected(tree.root, True, _Rows(columns, n, {}))
    return selected if isinstance(selected, np.ndarray) else np.full(n, selected)


class _Texts(NamedTuple):
    """Texts of n rows."""

    codes: Any
    """Shape (n,): number of each row's text among the words; a scalar where all rows have the same."""
    words: Sequence[str | None]
    """None for NULL."""
    numbers: Mapping[str | None, int] | None = None
    """Number of each word, where all of them differ."""

    def tested(self, test: Callable[[str], bool]) -> Any:
        """Return which rows have a text that fulfils a test; NULL does not."""
        return np.array([word is not None and test(word) for word in self.words], np.bool_)[self.codes]

    def among(self, choices: Sequence[str], wanted: bool) -> Any:
        """Return which rows have one of some texts, or surely none of them."""
        if self.numbers is None:
            return self.tested(lambda word: (word in choices) is wanted)
        table = np.full(len(self.words), not wanted)
        for number in (self.numbers.get(choice) for choice in choices):
            if number is not None:
                table[number] = wanted
        if (null := self.numbers.get(None)) is not None:
            table[null] = False
        return table[self.codes]


class _Rows(NamedTuple):
    columns: Mapping[Any, Column]
    n: int
    known: dict[Any, Any]
    """Values of the fields that were read, by name."""

    def field(self, name: Any) -> Any:
        if name not in self.known:
            self.known[name] = self._read(name)
        return self.known[name]

    def _read(self, name: Any) -> Any:
        column = self.columns[name]
        if len(column) != self.n:
            raise ValueError(f"column {name} has {len(column)} values, not {self.n}")
        if isinstance(column, np.ndarray):
            return _finite(column)
        if isinstance(column, pa.Array):
            if self.n > _LISTED:
                encoded = column.dictionary_encode()
                words = [*encoded.dictionary.to_pylist(), None]
                codes = encoded.indices.fill_null(len(words) - 1).to_numpy(zero_copy_only=False)
                return _Texts(codes, words, {word: number for number, word in enumerate(words)})
            column = column.to_pylist()
        numbers = {word: number for number, word in enumerate(dict.fromkeys(column))}
        return _Texts(np.fromiter(map(numbers.__getitem__, column), np.intp, self.n), [*numbers], numbers)


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
    if is_list_test(node):
        return rows.field(node) == wanted
    first = _value(operands[0], rows)
    if name == "like":
        is_like = like(operands[1][1])
        return first.tested(is_like if wanted else lambda word: not is_like(word))
    if name == "is null":
        return _is_null(first) == wanted
    if name == "in":
        choices = [literal[1] for literal in operands[1:]]
        if isinstance(first, _Texts):
            return first.among(choices, wanted)
        found = _joined([first == choice for choice in choices], both=False)
        return found if wanted else ~found & ~np.isnan(first)
    if name in ("=", "<>") and isinstance(first, _Texts) and operands[1][0] == "text":
        return first.among([operands[1][1]], wanted is (name == "="))
    values = [_value(operand, rows) for operand in operands[1:]]
    if name == "between":
        low = _compared(">=" if wanted else "<", first, values[0])
        return _joined([low, _compared("<=" if wanted else ">", first, values[1])], wanted)
    return _compared(name if wanted else _OPPOSITES[name], first, values[0])


def _joined(masks: list[Any], both: bool) -> Any:
    joined = masks[0]
    for mask in masks[1:]:
        joined = joined & mask if both else joined | mask
    return joined


_OPPOSITES: Final = {"=": "<>", "<>": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_SIGNS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


def _value(node: Node, rows: _Rows) -> Any:
    """Return numbers as float64, or texts; a scalar if no field occurs."""
    name, *operands = node
    if name == "field":
        return rows.field(operands[0])
    if name == "number":
        return np.float64(operands[0])
    if name == "text":
        return _Texts(0, operands)
    if name == "case":
        whens = range(0, len(operands) - 1, 2)
        tests = [_selected(operands[at], True, rows) for at in whens]
        values = [_value(operands[at + 1], rows) for at in whens]
        otherwise = _value(operands[-1], rows) if len(operands) % 2 else _null_like(values[0])
        for test, value in zip(reversed(tests), reversed(values), strict=True):
            otherwise = _chosen(test, value, otherwise)
        return otherwise
    values = [_value(operand, rows) for operand in operands]
    if name == "coalesce":
        chosen = values[-1]
        for value in reversed(values[:-1]):
            chosen = _chosen(_is_null(value), chosen, value)
        return chosen
    if name == "lower":
        return _Texts(values[0].codes, [None if word is None else lower(word) for word in values[0].words])
    if name == "abs":
        return np.abs(values[0])
    if name == "negate":
        return -values[0]
    return _finite(_SIGNS[name](values[0], values[1]))


def _finite(numbers: Any) -> Any:
    """Return NaN, which is NULL, for what is not finite: an infinity minus itself is NaN."""
    return numbers + (numbers - numbers)


def _null_like(value: Any) -> Any:
    return _Texts(0, [None]) if isinstance(value, _Texts) else np.float64(np.nan)


def _chosen(test: Any, value: Any, otherwise: Any) -> Any:
    """Return ``value`` where a test holds, and ``otherwise`` elsewhere."""
    if isinstance(value, _Texts):
        codes = np.where(test, value.codes, otherwise.codes + len(value.words))[()]
        return _Texts(codes, [*value.words, *otherwise.words])
    return np.where(test, value, otherwise)[()]


def _is_null(value: Any) -> Any:
    if isinstance(value, _Texts):
        return np.array([word is None for word in value.words])[value.codes]
    return np.isnan(value)


def _compared(sign: str, left: Any, right: Any) -> Any:
    if not isinstance(left, _Texts):
        # Beside NaN all are false but this one.
        return (left < right) | (left > right) if sign == "<>" else _SIGNS[sign](left, right)
    compare, words = _SIGNS[sign], right.words
    if len(words) == 1 and (word := words[0]) is not None:
        return left.tested(lambda other: compare(other, word))
    pairs, rows = np.unique(left.codes * len(words) + right.codes, return_inverse=True)
    split = [(left.words[pair // len(words)], words[pair % len(words)]) for pair in pairs.tolist()]
    table = np.array([None not in words_of and compare(*words_of) for words_of in split], np.bool_)
    return table[rows.reshape(np.shape(left.codes + right.codes))]


@lru_cache(1_000)
def like(pattern: str) -> Callable[[str], bool]:
    """Return the test of whole texts for a pattern: ``%`` is any text, ``_`` any character; in linear steps.

    >>> like("gift%")("gift card"), like("g_ft")("gift"), like("ift")("gift")
    (True, True, False)
    """
    first, *rest = pattern.split("%")
    if "_" not in pattern:
        if not rest:
            return partial(operator.eq, first)
        if rest == [""]:
            return lambda text: text.startswith(first)
    last = rest.pop() if rest else None

    def test(text: str) -> bool:
        if last is None:
            return len(text) == len(first) and _fits(text, first, 0)
        at, end = len(first), len(text) - len(last)
        if end < at or not _fits(text, first, 0):
            return False
        for part in rest:
            while at + len(part) <= end and not _fits(text, part, at):
                at += 1
            at += len(part)
            if at > end:
                return False
        return _fits(text, last, end)

    return test


def _fits(text: str, part: str, at: int) -> bool:
    if "_" not in part:
        return text.startswith(part, at)
    return all(sign in ("_", text[at + number]) for number, sign in enumerate(part))


def lower(text: str) -> str:
    """Return a text in lower case, one character for each: a letter's own case, whatever stands beside it."""
    return text.lower() if text.isascii() else "".join(character.lower()[0] for character in text)
