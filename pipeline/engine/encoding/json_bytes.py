"""Bytes that compiled code copies as they stand."""

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline.features.compiled import inlined


@intrinsic  # type: ignore[untyped-decorator]
def _copy_memory(_typing: Any, source: Any, _first: Any, _size: Any, out: Any, _at: Any) -> Any:
    """Copy bytes that do not overlap, which a slice would allocate memory to make sure of."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        origin = context.make_array(signature.args[0])(context, builder, arguments[0])
        target = context.make_array(signature.args[3])(context, builder, arguments[3])
        position = builder.gep(target.data, [arguments[4]])
        cgutils.raw_memcpy(builder, position, builder.gep(origin.data, [arguments[1]]), arguments[2], 1)
        return context.get_dummy_value()

    return types.void(source, types.int64, types.int64, out, types.int64), generate


@inlined
def copy_bytes(source: Any, first: Any, last: Any, out: Any, at: Any) -> Any:
    """Copy bytes from one array to another that does not overlap it; return where they end.

    Args:
        source: Bytes, contiguous.
        first: Position of the first byte, as a signed integer.
        last: Position behind the last byte, likewise.
        out: Bytes, contiguous, with room behind ``at``, which nothing checks.
        at: Position in ``out`` to write from, of type uint64, as the one that is returned.
    """
    _copy_memory(source, first, last - first, out, np.int64(at))
    return at + np.uint64(last - first)
