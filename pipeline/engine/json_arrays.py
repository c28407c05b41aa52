"""JSON objects with the same names, a batch at once, as arrays of their values: the names are told once for all."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from pipeline.features.compiled import compiled, inlined

_CHUNK_ROWS: Final = 128
"""Rows that are read at once, so that what is written stays in the processor's cache until it is copied."""
_WORD_BYTES: Final = 8
"""Names are compared in words of so many bytes."""

_COMMA, _OPEN, _CLOSE, _END = (np.uint8(ord(sign)) for sign in ",[]}")
_LEAST_OF_A_NUMBER: Final = np.uint8(ord("+"))
"""Quotes and white space lie before."""
_OBJECT: Final = np.uint8(ord("{"))
_NONE: Final = np.uint64(0)
_ONE: Final = np.uint64(1)


class ObjectValues:
    """Takes the names out of objects that have just these, in this order, with numbers and nulls as their values."""

    def __init__(self, names: Sequence[str]) -> None:
        """``names``, of at least one column, are the objects' keys."""
        keys = [msgspec.json.encode(name) + b":" for name in names]
        parts = [(b"," if column else b"{") + key for column, key in enumerate(keys)]
        width = -(-max(map(len, parts)) // _WORD_BYTES) * _WORD_BYTES
        self._prefixes = _in_words([part.ljust(width, b"\x00") for part in parts])
        self._masks = _in_words([(b"\xff" * len(part)).ljust(width, b"\x00") for part in parts])
        self._prefix_bytes = np.array([len(part) for part in parts], np.uint64)
        self._padding = bytes(width)
        # Compiled here, not while the first batch waits.
        list(self.arrays([b"{}"]))

    def arrays(self, objects: Sequence[bytes | msgspec.Raw]) -> Iterator[msgspec.Raw]:
        """The values of each of ``objects``, as they stand there; the object as it is where it has other names.

        ``objects`` are bytes, or what holds some (`msgspec.Raw`), and must be JSON.

        >>> values = ObjectValues(["a", "b"])
        >>> [bytes(one) for one in values.arrays([b'{"a":2.0,"b":null}', b'{"a":2.0}'])]
        [b'[2.0,null]', b'{"a":2.0}']
        """
        for first in range(0, len(objects), _CHUNK_ROWS):
            part = objects[first : first + _CHUNK_ROWS]
            # What is compared with the last name may reach beyond the last object.
            text = np.frombuffer(b"".join((*part, self._padding)), np.uint8)
            ends = np.cumsum(np.fromiter(map(len, part), np.uint64, len(part)))
            out, written = np.empty(len(text), np.uint8), np.empty(len(part), np.uint64)
            take_values(text, ends, self._prefixes, self._masks, self._prefix_bytes, out, written)
            taken, start = out.data, 0
            for whole, end in zip(part, written.tolist(), strict=True):
                yield msgspec.Raw(taken[start:end] if end > start else whole)
                start = end


def _in_words(rows: Sequence[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(rows), np.uint64).reshape(len(rows), -1)


@intrinsic  # type: ignore[untyped-decorator]
def word_at(_typing: Any, text: Any, place: Any) -> Any:
    """Eight bytes from ``place`` on, wherever that is: bytes one by one took five times as long to compare."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.gep(held.data, [arguments[1]])
        return builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(text, place), generate


@compiled
def take_values(text: Any, ends: Any, prefixes: Any, masks: Any, prefix_bytes: Any, out: Any, written: Any) -> None:
    """Arrays of the objects that end at ``ends`` of ``text``, into ``out`` up to ``written``.

    Nothing is written for an object that has other names, or values that are no numbers. Places are unsigned: for a
    signed one Numba would ask each time whether it counts from the end.
    """
    start = at = _NONE
    for row in range(ends.shape[0]):
        at = _take_row(text, start, ends[row], prefixes, masks, prefix_bytes, out, at)
        written[row] = at
        start = ends[row]


@inlined
def _take_row(
    text: Any, place: Any, end: Any, prefixes: Any, masks: Any, prefix_bytes: Any, out: Any, start: Any
) -> Any:
    """Where what was written ends: at ``start`` where the object is another."""
    at = start
    for column in range(prefixes.shape[0]):
        differs = _NONE
        # All of the widest, word by word: faster than exactly as much as is needed.
        for part in range(prefixes.shape[1]):
            word, mask = word_at(text, place + np.uint64(part * _WORD_BYTES)), masks[column, part]
            differs |= (word ^ prefixes[column, part]) & mask
        place += prefix_bytes[column]
        if differs or place >= end:
            return start
        out[at] = _COMMA if column else _OPEN
        at += _ONE
        sign = text[place]
        while sign not in (_COMMA, _END):
            if sign < _LEAST_OF_A_NUMBER or sign in (_OPEN, _OBJECT):
                return start
            out[at] = sign
            at += _ONE
            place += _ONE
            sign = text[place]
    if place + _ONE != end:
        return start
    out[at] = _CLOSE
    return at + _ONE
