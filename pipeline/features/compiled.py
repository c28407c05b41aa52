"""Decorators that compile functions, and the instructions that Python has no syntax for.

Numba's cache notices changes of a function's own file only: where a compiled function of another module is called, a
change of that module needs an empty cache.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile with Numba, without the interpreter lock, cached on disk.

    And without counting references: the caller holds all arrays, nothing is allocated inside, and counting them
    in atomic steps at every call between the small functions took two thirds of the time.
    """
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False)(function))


def inlined(function: F) -> F:
    """The same, for small functions that are called for every row: the call would cost more than what they do."""
    options = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False, "forceinline": True}
    return cast(F, numba.njit(**options)(function))


@intrinsic  # type: ignore[untyped-decorator]
def wide_product(_typing: Any, a: Any, b: Any) -> Any:
    """128-bit product (high, low) of two unsigned 64-bit integers: one instruction, which Python's syntax has not.

    Args:
        _typing: Numba's typing context, which its compiler passes; callers leave it out.
        a: Of type uint64, as both words of the product.
        b: Of type uint64.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide, word = ir.IntType(128), ir.IntType(64)
        product = builder.mul(builder.zext(arguments[0], wide), builder.zext(arguments[1], wide))
        high = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), word)
        return context.make_tuple(builder, signature.return_type, (high, builder.trunc(product, word)))

    return types.UniTuple(a, 2)(a, b), generate


@intrinsic  # type: ignore[untyped-decorator]
def lowest_bit(_typing: Any, word: Any) -> Any:
    """Return the number of the lowest bit that is set, from 0.

    Args:
        _typing: Numba's typing context, which its compiler passes; callers leave it out.
        word: Of type uint64, not 0.
    """

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(word), generate


@intrinsic  # type: ignore[untyped-decorator]
def word_at(_typing: Any, text: Any, position: Any) -> Any:
    """Return eight bytes of an array of bytes from ``position`` on, aligned or not, as a little-endian number.

    Byte by byte a comparison took five times as long.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.gep(held.data, [arguments[1]])
        return builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(text, position), generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(_typing: Any, array: Any, index: Any) -> Any:
    """Have the cache line of an item of an array fetched, without waiting for it.

    Args:
        _typing: Numba's typing context, which its compiler passes; callers leave it out.
        array: Of one dimension, contiguous.
        index: Number of the item, 0 or more; an item behind the last one is no error, because nothing is read.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.bitcast(builder.gep(held.data, [arguments[1]]), ir.IntType(8).as_pointer())
        flag = ir.IntType(32)
        fetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [address.type], ir.FunctionType(ir.VoidType(), [address.type, flag, flag, flag])
        )
        # To read, to be kept in all caches, of data.
        builder.call(fetch, [address, ir.Constant(flag, 0), ir.Constant(flag, 3), ir.Constant(flag, 1)])
        return context.get_dummy_value()

    return types.void(array, index), generate
