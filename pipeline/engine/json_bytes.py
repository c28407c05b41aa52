"""Bytes into JSON by compiled code: copied as they stand, or in base64."""

from typing import Any, Final

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from pipeline.features.compiled import compiled, inlined

ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_PADDING: Final = np.uint8(ord("="))


def _pairs() -> NDArray[np.uint8]:
    """The two characters of base64 for each 12 bits; shape (4096, 2)."""
    letters = np.frombuffer(ALPHABET, np.uint8)
    numbers = np.arange(1 << 12)
    return np.stack([letters[numbers >> 6], letters[numbers & 63]], axis=1)


PAIRS: Final = _pairs()


@compiled
def write_base64(rows: Any, row: Any, pairs: Any, out: Any, at: Any) -> Any:
    """Write the bytes of a row in base64; return where they end. ``pairs`` are `PAIRS`."""
    size = rows.shape[1]
    place = np.int64(at)
    whole = size - size % 3
    for k in range(0, whole, 3):
        bits = (np.int64(rows[row, k]) << 16) | (np.int64(rows[row, k + 1]) << 8) | np.int64(rows[row, k + 2])
        out[place], out[place + 1] = pairs[bits >> 12, 0], pairs[bits >> 12, 1]
        out[place + 2], out[place + 3] = pairs[bits & 4095, 0], pairs[bits & 4095, 1]
        place += 4
    if whole < size:
        bits = np.int64(rows[row, whole]) << 16
        if whole + 1 < size:
            bits |= np.int64(rows[row, whole + 1]) << 8
        out[place], out[place + 1] = pairs[bits >> 12, 0], pairs[bits >> 12, 1]
        out[place + 2] = pairs[bits & 4095, 0] if whole + 1 < size else _PADDING
        out[place + 3] = _PADDING
        place += 4
    return np.uint64(place)


@intrinsic  # type: ignore[untyped-decorator]
def _copy_memory(_typing: Any, source: Any, _first: Any, _size: Any, out: Any, _at: Any) -> Any:
    """Copy bytes that do not overlap, which a slice would allocate memory to make sure of."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        origin = context.make_array(signature.args[0])(context, builder, arguments[0])
        target = context.make_array(signature.args[3])(context, builder, arguments[3])
        place = builder.gep(target.data, [arguments[4]])
        cgutils.raw_memcpy(builder, place, builder.gep(origin.data, [arguments[1]]), arguments[2], 1)
        return context.get_dummy_value()

    return types.void(source, types.int64, types.int64, out, types.int64), generate


@inlined
def copy_bytes(source: Any, first: Any, last: Any, out: Any, at: Any) -> Any:
    """Copy the bytes from ``first`` to ``last``; return where they end."""
    _copy_memory(source, first, last - first, out, np.int64(at))
    return at + np.uint64(last - first)
