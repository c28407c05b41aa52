"""JSON objects of one shape, a batch at once from columns: byte for byte what msgspec writes."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.engine.encoding.json_bytes import copy_bytes
from pipeline.engine.encoding.json_numbers import LONGEST_VALUE, POWERS, write_number, write_time, write_whole
from pipeline.features.compiled import compiled

_CHUNK_ROWS: Final = 128
"""Rows that are written at once, so that what is written stays in the processor's cache until it is copied."""
_PART_BYTES: Final = 16
"""Bytes of the parts in which the text between values is copied."""
_TEXT, _ENCODED, _WHOLE, _TIME, _NUMBER, _SAME, _ONE_OF, _NOTHING = range(8)
_SPACE, _QUOTE, _BACKSLASH = (np.uint8(ord(sign)) for sign in ' "\\')
_NONE: Final = np.uint64(0)
_STRINGS: Final = frozenset({_TEXT, _TIME})
_encode = msgspec.json.encode


class Field(NamedTuple):
    """The value of a member of an object: which column of which kind."""

    kind: int
    column: int


text = partial(Field, _TEXT)
"""A string, from ``spans[column]``."""
encoded = partial(Field, _ENCODED)
"""JSON that is copied as it stands, from ``spans[column]``."""
whole = partial(Field, _WHOLE)
"""A whole number, from ``wholes[column]``."""
timestamp = partial(Field, _TIME)
"""A time: microseconds since 1970 from ``wholes[column]``, minutes of offset from the column behind it."""
number = partial(Field, _NUMBER)
"""A number, from ``numbers[:, column]``; null for what is not finite."""
same = partial(Field, _SAME)
"""JSON that is the same in all rows, from ``constants[column]``."""
one_of = partial(Field, _ONE_OF)
"""One of ``constants``: the one whose number stands in ``wholes[column]``."""

Shape = Mapping[str, Any]
"""The members of an object in their order: a `Field`, bytes of JSON that never change, the shape of an object, or a
tuple of fields and bytes that make one string. A field without a name holds whole members, each behind a comma, or
nothing; it is not the first one."""


class Rows(NamedTuple):
    """Columns of n rows."""

    text: bytes
    """UTF-8 into which spans point."""
    spans: NDArray[np.int64]
    """Shape (k, n, 2): where a row's text begins and ends."""
    wholes: NDArray[np.int64]
    """Shape (w, n)."""
    numbers: NDArray[np.float64]
    """Shape (n, m)."""
    constants: Sequence[bytes] = ()


class RowWriter:
    """Writes rows as JSON objects of one shape."""

    def __init__(self, shape: Shape) -> None:
        """Lay out an object of ``shape``, which has at least one member."""
        parts = _flat(shape)
        fields = [field for _, field in parts]
        self._strings = np.array(sorted({field.column for field in fields if field.kind == _TEXT}), np.int64)
        prefixes = [prefix for prefix, _ in parts]
        width = -(-max(map(len, prefixes)) // _PART_BYTES) * _PART_BYTES
        padded = np.frombuffer(b"".join(part.ljust(width) for part in prefixes), np.uint8)
        self._prefixes = padded.reshape(len(parts), -1, _PART_BYTES)
        self._steps = np.array([(len(prefix), *field) for prefix, field in parts], np.int64)
        spans = [field.column for field in fields if field.kind in (_TEXT, _ENCODED)]
        self._spans = np.array(spans, np.int64)
        self._repeated = Counter(field.column for field in fields if field.kind == _TEXT)
        self._constants = sum(field.kind in (_SAME, _ONE_OF) for field in fields)
        self._row_bytes = sum(map(len, prefixes)) + (len(parts) - len(spans)) * LONGEST_VALUE + width
        # Compiled here, not while the first batch waits.
        list(self.write(_nothing(fields)))

    def write(self, rows: Rows) -> Iterator[bytes]:
        """Write one JSON object a row.

        >>> writer = RowWriter({"a": number(0), "b": {"c": text(0)}})
        >>> spans, wholes = np.array([[[0, 3], [3, 6]]]), np.empty((0, 2), np.int64)
        >>> list(writer.write(Rows(b"onetwo", spans, wholes, np.array([[2.0], [np.nan]]))))
        [b'{"a":2.0,"b":{"c":"one"}}', b'{"a":null,"b":{"c":"two"}}']
        """
        text_bytes = np.empty(len(rows.numbers), np.int64)
        source, spans = self._escaped(rows, text_bytes)
        numbers = np.require(rows.numbers, np.float64, ("C", "W"))
        bits, wholes = numbers.view(np.uint64), np.ascontiguousarray(rows.wholes, np.int64)
        constants = np.frombuffer(b"".join(rows.constants), np.uint8)
        constant_ends = np.cumsum([0, *map(len, rows.constants)])
        row_bytes = self._row_bytes + self._constants * max(map(len, rows.constants), default=0)
        out, ends = np.empty(0, np.uint8), np.empty(_CHUNK_ROWS, np.int64)
        for first in range(0, len(numbers), _CHUNK_ROWS):
            last = min(first + _CHUNK_ROWS, len(numbers))
            needed = (last - first) * row_bytes + int(text_bytes[first:last].sum())
            if len(out) < needed:
                out = np.empty(needed, np.uint8)
            write_rows(
                source, spans, wholes, numbers, bits, constants, constant_ends, self._prefixes, self._steps, POWERS,
                first, last, out, ends,
            )  # fmt: skip
            bounds = ends[: last - first].tolist()
            # Slices of bytes take half the time of slices of other memory.
            written, start = out[: bounds[-1]].tobytes(), 0
            for end in bounds:
                yield written[start:end]
                start = end

    def _escaped(self, rows: Rows, text_bytes: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The texts as JSON has them between quotes, which nearly all are already; fills the bytes of each row's."""
        source, spans = np.frombuffer(rows.text, np.uint8), np.ascontiguousarray(rows.spans, np.int64)
        odd = np.empty(len(rows.numbers), np.bool_)
        if not find_odd(source, spans, self._strings, self._spans, odd, text_bytes):
            return source, spans
        spans, added, end = spans.copy(), [rows.text], len(rows.text)
        for row in np.flatnonzero(odd).tolist():
            for column in self._strings.tolist():
                first, last = spans[column, row].tolist()
                added.append(_encode(rows.text[first:last].decode())[1:-1])
                text_bytes[row] += self._repeated[column] * (len(added[-1]) - (last - first))
                spans[column, row] = end, end + len(added[-1])
                end += len(added[-1])
        return np.frombuffer(b"".join(added), np.uint8), spans


def _flat(shape: Shape) -> list[tuple[bytes, Field]]:
    """Return the text before each value, and the value; the last of them is none."""
    parts: list[tuple[bytes, Field]] = []
    before = b""

    def lay_out(members: Shape) -> None:
        nonlocal before
        for position, (name, value) in enumerate(members.items()):
            if name:
                before += (b"," if position else b"{") + _encode(name) + b":"
            if isinstance(value, Field):
                quote = b'"' if value.kind in _STRINGS else b""
                parts.append((before + quote, value))
                before = quote
            elif isinstance(value, bytes):
                before += value
            elif isinstance(value, tuple):
                before += b'"'
                for part in value:
                    if isinstance(part, Field):
                        parts.append((before, part))
                        before = b""
                    else:
                        before += part
                before += b'"'
            else:
                lay_out(value)
        before += b"}"

    lay_out(shape)
    return [*parts, (before, Field(_NOTHING, 0))]


def _nothing(fields: Sequence[Field]) -> Rows:
    """A row for ``fields``, so that a writer can be compiled."""

    def columns(*kinds: int) -> int:
        return max((field.column for field in fields if field.kind in kinds), default=-1) + 2

    return Rows(
        b"",
        np.zeros((columns(_TEXT, _ENCODED), 1, 2), np.int64),
        np.zeros((columns(_WHOLE, _TIME, _ONE_OF), 1), np.int64),
        np.zeros((1, columns(_NUMBER))),
        [b""] * columns(_SAME),
    )


@compiled
def find_odd(source: Any, spans: Any, columns: Any, copied: Any, odd: Any, text_bytes: Any) -> Any:
    """Mark the rows of which a text has quotes, backslashes or control characters; return whether there are any.

    ``text_bytes`` gets the bytes that a row has in the columns ``copied``.
    """
    found = False
    for row in range(spans.shape[1]):
        total = 0
        for column in copied:
            total += spans[column, row, 1] - spans[column, row, 0]
        text_bytes[row] = total
        signs = 0
        for column in columns:
            for position in range(spans[column, row, 0], spans[column, row, 1]):
                sign = source[position]
                signs += (sign < _SPACE) | (sign == _QUOTE) | (sign == _BACKSLASH)
        odd[row] = signs > 0
        found |= signs > 0
    return found


@compiled
def write_rows(
    source: Any, spans: Any, wholes: Any, numbers: Any, bits: Any, constants: Any, constant_ends: Any, prefixes: Any,
    steps: Any, powers: Any, first: Any, last: Any, out: Any, ends: Any,
) -> None:  # fmt: skip
    """Rows from ``first`` to ``last`` into ``out``; ``ends`` are the rows' ends.

    ``bits`` is the memory of ``numbers`` as uint64. ``steps`` (p, 3): bytes of the prefix, kind and column of the value
    behind it. Places are unsigned: for a signed one Numba would ask each time whether it
    counts from the end.
    """
    at = _NONE
    for row in range(first, last):
        for step in range(steps.shape[0]):
            length, kind, column = steps[step, 0], steps[step, 1], steps[step, 2]
            # In whole parts: faster than exactly as much as is needed.
            for part in range((length + _PART_BYTES - 1) // _PART_BYTES):
                for k in range(_PART_BYTES):
                    out[at + np.uint64(part * _PART_BYTES + k)] = prefixes[step, part, k]
            at += np.uint64(length)
            if kind == _NUMBER:
                at = write_number(numbers[row, column], bits[row, column], powers, out, at)
            elif kind in (_TEXT, _ENCODED):
                at = copy_bytes(source, spans[column, row, 0], spans[column, row, 1], out, at)
            elif kind == _WHOLE:
                at = write_whole(wholes[column, row], out, at)
            elif kind == _TIME:
                at = write_time(wholes[column, row], wholes[column + 1, row], out, at)
            elif kind != _NOTHING:
                constant = column if kind == _SAME else wholes[column, row]
                at = copy_bytes(constants, constant_ends[constant], constant_ends[constant + 1], out, at)
        ends[row - first] = at
