"""Many conditions over a batch at once: a program of steps over columns, run by compiled code.

It gives what `pipeline.expressions.evaluate` gives, which takes 40 us for each condition of a batch. Equal parts of
conditions are one step. Truth is a number: 0 for false, 1/2 for unknown and 1 for true, so that `and` is the smaller
and `or` the larger one. A text is the number of the literal that it equals; any other test of texts is made by
`evaluate`, once for each distinct text of a column.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from functools import partial
from itertools import chain, repeat
from threading import Lock
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.expressions.evaluate import evaluate
from pipeline.expressions.trees import Condition, Node, ValueKind, fields_in, is_list_test, lists_in
from pipeline.features.compiled import compiled

Texts = Sequence[str | None]


class CodedTexts(Sequence[str | None]):
    """Texts of n rows, of which each distinct one is tested once.

    Args:
        codes: Number of each row's text among the words, shape (n,).
        words: The texts; tests of a list of words are remembered while the same list comes again.
    """

    def __init__(self, codes: NDArray[np.integer[Any]], words: Sequence[str | None]) -> None:
        self.codes, self.words = codes, words

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: Any) -> Any:
        return self.words[self.codes[row]]

    def __iter__(self) -> Iterator[str | None]:
        return map(self.words.__getitem__, self.codes.tolist())


Read = Callable[[Any], Any]
"""Returns a column by its field's name: float64, or texts with None for no value.

By a test of a list, its truth: 1, 0, or NaN for unknown.
"""
_BLOCK_ROWS: Final = 128
"""Rows that pass through all steps together, so that what steps leave stays in the processor's cache."""
_MOST_WORDS: Final = 10_000
"""Texts of a field whose tests are remembered."""
_OTHER: Final = -1.0
"""Number of a text that no literal equals."""


class _Step(IntEnum):
    INPUT = 0
    CONSTANT = 1
    ADD = 2
    SUBTRACT = 3
    MULTIPLY = 4
    DIVIDE = 5
    ABS = 6
    NEGATE = 7
    EQUAL = 8
    DIFFERENT = 9
    LESS = 10
    LESS_EQUAL = 11
    AND = 12
    OR = 13
    NOT = 14
    IS_NULL = 15
    CHOOSE = 16
    """The second operand where the first is true, else the third."""


_DYADIC: Final = {
    "+": _Step.ADD, "-": _Step.SUBTRACT, "*": _Step.MULTIPLY, "/": _Step.DIVIDE, "=": _Step.EQUAL,
    "<>": _Step.DIFFERENT, "<": _Step.LESS, "<=": _Step.LESS_EQUAL,
}  # fmt: skip
_MONADIC: Final = {"abs": _Step.ABS, "negate": _Step.NEGATE, "not": _Step.NOT}
_MIRRORED: Final = {">": "<", ">=": "<="}
_TESTS: Final = frozenset({"=", "<>", "<", "<=", ">", ">=", "between", "in", "like", "is null"})


class RuleProgram:
    """Evaluates conditions together.

    Args:
        conditions: The conditions.
        kinds: Kind of each field that they read.
    """

    def __init__(self, conditions: Sequence[Condition], kinds: Mapping[str, ValueKind]) -> None:
        self._kinds = kinds
        self._steps: dict[tuple[int, ...], int] = {}
        self._constants: dict[float, int] = {}
        self._inputs: dict[Any, int] = {}
        """Number of each input: by a field's name, or by a test of texts."""
        self._words: dict[str, dict[str | None, float]] = {}
        """Numbers of the literals that a field of texts is compared with."""
        self._coded: dict[str, tuple[Texts, NDArray[Any]]] = {}
        """Words that came last for a field, and what was found of them: truth of its tests, or their numbers."""
        self._roots = np.array([self._step(condition.root) for condition in conditions], np.int64)
        self._program = np.array([*self._steps], np.int64).reshape(-1, 4)
        self.steps = len(self._program)
        """Number of steps: equal parts of conditions are one."""
        self._values = np.array([*self._constants], np.float64)
        self._read: dict[Any, tuple[Any, ...]] = {item: _read_by(item) for item in self._inputs}
        """Fields and lists that each input reads."""
        self._tests: dict[str, _TextTests] = {}
        """Tests that read one field of texts and nothing else, by the field."""
        for item, names in self._read.items():
            if isinstance(item, str) or is_list_test(item) or len(names) != 1 or kinds[names[0]] is not ValueKind.TEXT:
                continue
            self._tests.setdefault(names[0], _TextTests(names[0])).tests[item] = self._inputs[item]
        self._of_texts = frozenset(number for each in self._tests.values() for number in each.tests.values())

    def hits(self, read: Read, n: int) -> NDArray[np.bool_]:
        """Return which rows each condition selects; shape (number of conditions, n).

        Args:
            read: Returns the column of a field, shape (n,).
            n: Number of rows.
        """
        found = np.empty((len(self._roots), n), np.bool_)
        if not n:
            return found
        inputs = np.empty((len(self._inputs), n))
        columns = {name: read(name) for name in dict.fromkeys(chain.from_iterable(self._read.values()))}
        for name, tests in self._tests.items():
            inputs[[*tests.tests.values()]] = self._of_words(name, columns[name], tests.truths)
        for item, number in self._inputs.items():
            if not isinstance(item, str):
                if is_list_test(item):
                    inputs[number] = np.nan_to_num(columns[item], nan=0.5)
                elif number not in self._of_texts:
                    inputs[number] = _truth(item, columns, n)
            elif self._kinds[item] is ValueKind.TEXT:
                inputs[number] = self._of_words(f"={item}", columns[item], partial(self._numbers, item))
            else:
                inputs[number] = columns[item]
        run_program(self._program, self._values, inputs, self._roots, np.empty((self.steps, _BLOCK_ROWS)), found)
        return found

    def _numbers(self, field: str, texts: Texts) -> NDArray[np.float64]:
        return np.fromiter(map(self._words[field].get, texts, repeat(_OTHER)), np.float64, len(texts))

    def _of_words(self, key: str, column: Texts, find: Callable[[Texts], NDArray[Any]]) -> NDArray[Any]:
        """Return what is found of each text; of coded ones, once for each word."""
        if not isinstance(column, CodedTexts):
            return find(column)
        words, found = self._coded.get(key, (None, np.empty(0)))
        if words is not column.words:
            words, found = self._coded[key] = column.words, find(column.words)
        return found[..., column.codes]

    def _step(self, node: Node) -> int:
        """Return the number of the step that makes a node's value; steps before it make its operands'."""
        name, *operands = node
        if name in _TESTS and self._is_text(operands[0]):
            return self._text_test(node)
        if name == "field":
            return self._input(operands[0])
        if name == "number":
            return self._constant(operands[0])
        if name in _MIRRORED:
            return self._step((_MIRRORED[name], operands[1], operands[0]))
        if name == "between":
            return self._joined(_Step.AND, [("<=", operands[1], operands[0]), ("<=", operands[0], operands[2])])
        if name == "in":
            return self._joined(_Step.OR, [("=", operands[0], literal) for literal in operands[1:]])
        if name in ("and", "or"):
            return self._joined(_Step[name.upper()], operands)
        if name == "is null":
            return self._add(_Step.IS_NULL, self._step(operands[0]))
        if name == "coalesce":
            chosen = self._step(operands[-1])
            for operand in reversed(operands[:-1]):
                value = self._step(operand)
                chosen = self._add(_Step.CHOOSE, self._add(_Step.IS_NULL, value), chosen, value)
            return chosen
        if name == "case":
            chosen = self._step(operands[-1]) if len(operands) % 2 else self._constant(np.nan)
            for at in range(len(operands) - len(operands) % 2 - 2, -1, -2):
                chosen = self._add(_Step.CHOOSE, self._step(operands[at]), self._step(operands[at + 1]), chosen)
            return chosen
        if name in _MONADIC:
            return self._add(_MONADIC[name], self._step(operands[0]))
        return self._add(_DYADIC[name], self._step(operands[0]), self._step(operands[1]))

    def _text_test(self, node: Node) -> int:
        name, first, *others = node
        if first[0] == "field" and name in ("=", "<>", "in", "is null") and all(each[0] == "text" for each in others):
            column, words = self._input(first[1]), self._words.setdefault(first[1], {None: np.nan})
            if name == "is null":
                return self._add(_Step.IS_NULL, column)
            step = _Step.DIFFERENT if name == "<>" else _Step.EQUAL
            tests = [
                self._add(step, column, self._constant(float(words.setdefault(other[1], len(words)))))
                for other in others
            ]
            found = tests[0]
            for test in tests[1:]:
                found = self._add(_Step.OR, found, test)
            return found
        return self._input(node)

    def _is_text(self, node: Node) -> bool:
        name, *operands = node
        if name == "field":
            return self._kinds[operands[0]] is ValueKind.TEXT
        if name in ("coalesce", "case"):
            return self._is_text(operands[name == "case"])
        return name in ("text", "lower")

    def _joined(self, step: _Step, nodes: Sequence[Node]) -> int:
        found = self._step(nodes[0])
        for node in nodes[1:]:
            found = self._add(step, found, self._step(node))
        return found

    def _input(self, item: Any) -> int:
        return self._add(_Step.INPUT, self._inputs.setdefault(item, len(self._inputs)))

    def _constant(self, value: float) -> int:
        return self._add(_Step.CONSTANT, self._constants.setdefault(value, len(self._constants)))

    def _add(self, *step: int) -> int:
        return self._steps.setdefault((*map(int, step), *[0] * (4 - len(step))), len(self._steps))


def _read_by(item: Any) -> tuple[Any, ...]:
    """Return the fields and lists that an input reads; a list is no test of a text alone, but of the time too."""
    if isinstance(item, str) or is_list_test(item):
        return (item,)
    tree = Condition(item)
    return (*fields_in(tree), *lists_in(tree))


class _TextTests:
    """Tests of one field of texts; the truth of each is remembered for each text, whatever thread asks.

    Args:
        field: The field.
    """

    def __init__(self, field: str) -> None:
        self._field = field
        self.tests: dict[Node, int] = {}
        """Numbers of their inputs."""
        self._known: tuple[dict[str | None, int], NDArray[np.float16]] = ({}, np.empty((0, 0), np.float16))
        """Number of each text, and the truth of each test, shape (tests, texts)."""
        self._lock = Lock()

    def truths(self, column: Texts) -> NDArray[np.float16]:
        """Return the truth of each test; shape (number of tests, n)."""
        numbers, truths = self._known
        try:
            return truths[:, np.fromiter(map(numbers.__getitem__, column), np.intp, len(column))]
        except KeyError:
            with self._lock:
                numbers, truths = self._learn([*dict.fromkeys(column)])
        return truths[:, np.fromiter(map(numbers.__getitem__, column), np.intp, len(column))]

    def _learn(self, words: Texts) -> tuple[dict[str | None, int], NDArray[np.float16]]:
        """Remember words; those of before go where they were too many. What another thread holds stays as it is."""
        numbers, truths = self._known
        new = [word for word in words if word not in numbers]
        if len(numbers) + len(new) > truths.shape[1]:
            room = max(_MOST_WORDS, len(words))
            numbers, truths, new = {}, np.empty((len(self.tests), room), np.float16), [*words]
        for row, test in enumerate(self.tests):
            truths[row, len(numbers) : len(numbers) + len(new)] = _truth(test, {self._field: new}, len(new))
        # A thread that finds a number finds its truths.
        numbers.update(zip(new, range(len(numbers), len(numbers) + len(new)), strict=True))
        self._known = numbers, truths
        return self._known


def _truth(test: Node, columns: Mapping[Any, Any], n: int) -> NDArray[np.float64]:
    true, false = (evaluate(Condition(each), columns, n) for each in (test, ("not", test)))
    return 0.5 + 0.5 * true - 0.5 * false


_INPUT, _CONSTANT, _ADD, _SUBTRACT, _MULTIPLY, _DIVIDE, _ABS, _NEGATE, _EQUAL, _DIFFERENT = map(int, [*_Step][:10])
_LESS, _LESS_EQUAL, _AND, _OR, _NOT, _IS_NULL, _CHOOSE = map(int, [*_Step][10:])


@compiled
def run_program(program: Any, constants: Any, inputs: Any, roots: Any, values: Any, found: Any) -> None:
    """Run the steps over all rows, some at a time.

    ``program`` (s, 4) has a step and its operands, which are numbers of steps before it, of an input or of a constant;
    ``inputs`` (i, n); ``roots`` (c,): the steps whose truth ``found`` (c, n) gets; ``values`` (s, b) is room.
    """
    b = values.shape[1]
    for start in range(0, found.shape[1], b):
        rows = min(b, found.shape[1] - start)
        for number in range(program.shape[0]):
            step, a, other, third = program[number, 0], program[number, 1], program[number, 2], program[number, 3]
            out = values[number]
            if step == _CONSTANT:
                for row in range(rows):
                    out[row] = constants[a]
            elif step == _INPUT:
                for row in range(rows):
                    value = inputs[a, start + row]
                    out[row] = value + (value - value)
            elif step <= _NEGATE:
                for row in range(rows):
                    x, y = values[a, row], values[other, row]
                    if step == _ADD:
                        x = x + y
                    elif step == _SUBTRACT:
                        x = x - y
                    elif step == _MULTIPLY:
                        x = x * y
                    elif step == _DIVIDE:
                        x = x / y
                    elif step == _ABS:
                        x = abs(x)
                    else:
                        x = -x
                    out[row] = x + (x - x)
            elif step <= _LESS_EQUAL:
                for row in range(rows):
                    x, y = values[a, row], values[other, row]
                    if step == _EQUAL:
                        holds = x == y
                    elif step == _DIFFERENT:
                        holds = (x < y) | (x > y)
                    elif step == _LESS:
                        holds = x < y
                    else:
                        holds = x <= y
                    out[row] = 0.5 if np.isnan(x) | np.isnan(y) else 1.0 if holds else 0.0
            elif step == _AND:
                for row in range(rows):
                    out[row] = min(values[a, row], values[other, row])
            elif step == _OR:
                for row in range(rows):
                    out[row] = max(values[a, row], values[other, row])
            elif step == _NOT:
                for row in range(rows):
                    out[row] = 1.0 - values[a, row]
            elif step == _IS_NULL:
                for row in range(rows):
                    out[row] = 1.0 if np.isnan(values[a, row]) else 0.0
            else:
                for row in range(rows):
                    out[row] = values[other, row] if values[a, row] == 1.0 else values[third, row]
        for condition in range(roots.shape[0]):
            for row in range(rows):
                found[condition, start + row] = values[roots[condition], row] == 1.0
