"""JSON objects with the same names, a batch at once, as arrays of their values: the names are told once for all."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from pipeline.features.compiled import compiled

_CHUNK_ROWS: Final = 128
"""Rows that are read at once, so that what is written stays in the processor's cache until it is copied."""
_PART_BYTES: Final = 16
"""Names are compared in parts of so many bytes."""

_COMMA, _OPEN, _CLOSE, _END = (np.uint8(ord(sign)) for sign in ",[]}")
_LEAST_OF_A_NUMBER: Final = np.uint8(ord("+"))
"""Quotes and white space lie before."""
_OBJECT: Final = np.uint8(ord("{"))


class ObjectValues:
    """Takes the names out of objects that have just these, in this order, with numbers and nulls as their values."""

    def __init__(self, names: Sequence[str]) -> None:
        """``names``, of at least one column, are the objects' keys."""
        keys = [msgspec.json.encode(name) + b":" for name in names]
        parts = [(b"," if column else b"{") + key for column, key in enumerate(keys)]
        width = -(-max(map(len, parts)) // _PART_BYTES) * _PART_BYTES
        self._prefixes = _in_parts([part.ljust(width, b"\x00") for part in parts])
        self._masks = _in_parts([(b"\xff" * len(part)).ljust(width, b"\x00") for part in parts])
        self._prefix_bytes = np.array([len(part) for part in parts], np.int64)
        self._padding = bytes(width)
        # Compiled here, not while the first batch waits.
        list(self.arrays([b"{}"]))

    def arrays(self, objects: Sequence[bytes]) -> Iterator[msgspec.Raw]:
        """The values of each of ``objects``, which must be JSON, as they stand there; as it is where it has other names.

        >>> values = ObjectValues(["a", "b"])
        >>> [bytes(one) for one in values.arrays([b'{"a":2.0,"b":null}', b'{"a":2.0}'])]
        [b'[2.0,null]', b'{"a":2.0}']
        """
        for first in range(0, len(objects), _CHUNK_ROWS):
            part = objects[first : first + _CHUNK_ROWS]
            # What is compared with the last name may reach beyond the last object.
            text = np.frombuffer(b"".join((*part, self._padding)), np.uint8)
            ends = np.cumsum(np.fromiter(map(len, part), np.int64, len(part)))
            out, written = np.empty(len(text), np.uint8), np.empty(len(part), np.int64)
            take_values(text, ends, self._prefixes, self._masks, self._prefix_bytes, out, written)
            taken, start = out.data, 0
            for whole, end in zip(part, written.tolist(), strict=True):
                yield msgspec.Raw(taken[start:end] if end > start else whole)
                start = end


def _in_parts(rows: Sequence[bytes]) -> Any:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1, _PART_BYTES)


@compiled
def take_values(text: Any, ends: Any, prefixes: Any, masks: Any, prefix_bytes: Any, out: Any, written: Any) -> None:
    """Arrays of the objects that end at ``ends`` of ``text``, into ``out`` up to ``written``.

    Nothing is written for an object that has other names, or values that are no numbers.
    """
    start, at = np.int64(0), np.int64(0)
    for row in range(ends.shape[0]):
        end = ends[row]
        length = _take_row(text, start, end, prefixes, masks, prefix_bytes, out, at)
        at += length
        written[row] = at
        start = end


@compiled
def _take_row(
    text: Any, place: Any, end: Any, prefixes: Any, masks: Any, prefix_bytes: Any, out: Any, start: Any
) -> Any:
    """How many bytes were written; 0 where the object is another."""
    at = start
    for column in range(prefixes.shape[0]):
        differs = np.uint8(0)
        for part in range(prefixes.shape[1]):
            # All of the widest, part by part: faster than exactly as much as is needed.
            for k in range(_PART_BYTES):
                differs |= (text[place + part * _PART_BYTES + k] ^ prefixes[column, part, k]) & masks[column, part, k]
        place += prefix_bytes[column]
        if differs or place >= end:
            return np.int64(0)
        out[at] = _COMMA if column else _OPEN
        at += 1
        while True:
            sign = text[place]
            if sign == _COMMA or sign == _END:
                break
            if sign < _LEAST_OF_A_NUMBER or sign == _OPEN or sign == _OBJECT:
                return np.int64(0)
            out[at] = sign
            at += 1
            place += 1
    if place + 1 != end:
        return np.int64(0)
    out[at] = _CLOSE
    return at + 1 - start
