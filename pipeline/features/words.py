"""Reading of memory by compiled code that Numba's own indexing has no fast form of."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

WORD_BYTES: Final = 8


def masked_words(parts: Sequence[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return parts as words, for comparison with `word_at`, and masks of the bits that count; shape (parts, words)."""
    width = -(-max(map(len, parts)) // WORD_BYTES) * WORD_BYTES

    def in_words(rows: Sequence[bytes]) -> NDArray[np.uint64]:
        padded = b"".join(row.ljust(width, b"\x00") for row in rows)
        return np.frombuffer(padded, np.uint64).reshape(len(parts), -1)

    return in_words(parts), in_words([b"\xff" * len(part) for part in parts])


@intrinsic  # type: ignore[untyped-decorator]
def word_at(_typing: Any, text: Any, place: Any) -> Any:
    """Return eight bytes of an array of bytes from ``place`` on, aligned or not, as a little-endian number.

    Byte by byte a comparison took five times as long.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.gep(held.data, [arguments[1]])
        return builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(text, place), generate
