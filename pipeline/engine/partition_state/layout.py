"""The layout of the kernels' state in a `Store` and in the values of a dump.

Raise `LAYOUT` when either changes, but for a new value whose default is what was so before.
"""

from typing import Final, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.times import US_PER_DAY

LAYOUT: Final = 16
DIGEST_BYTES: Final = 16


class _Values(Protocol):
    layout: int


T = TypeVar("T", bound=_Values)
Time = TypeVar("Time", int, NDArray[np.int64])


class OtherLayout(ValueError):
    """A dump was made by a release that lays its state out in another way; the state must be replayed from the log."""


def day_key(prefix: bytes, day: int, digest: bytes = b"") -> bytes:
    """A key that sorts by day since 1970.

    Args:
        prefix: Says what kind of key it is.
        day: Days before 1970 sort as that of 0.
        digest: Bytes behind the day, by which keys of one day sort; without them, the key is before all of its day.

    >>> day_key(b"d", 2) < day_key(b"d", 300) < day_key(b"d", 300, b"x") < day_key(b"d", 301)
    True
    """
    return prefix + max(day, 0).to_bytes(4, "big") + digest


def time_key(prefix: bytes, time_us: int, rest: bytes = b"") -> bytes:
    """A key that sorts by time.

    Args:
        prefix: Says what kind of key it is.
        time_us: Microseconds since 1970; times before sort as 0.
        rest: Bytes behind the time, by which keys of one time sort; without them, the key is before all of its time.
    """
    return prefix + max(time_us, 0).to_bytes(8, "big") + rest


def day_of(time_us: Time) -> Time:
    """Day since 1970 of a time in microseconds, or of each of several."""
    return time_us // US_PER_DAY


def forgotten_with(records: int) -> int:
    """Return how many entries a batch of so many records forgets: more than it adds, in a bounded time."""
    return 2 * records + 64


def decode_values(values: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """Return the values of a dump; raise `OtherLayout` where they are of another release.

    A decoder that its module has made: where several threads come upon a type for the first time, msgspec can crash.
    """
    try:
        found = decoder.decode(values)
    except msgspec.MsgspecError as error:
        raise OtherLayout(
            f"the saved state cannot be read by this release ({error}); let the state be replayed from the log"
        ) from error
    if found.layout != LAYOUT:
        raise OtherLayout(f"the saved state has layout {found.layout}, not {LAYOUT}; replay it from the log")
    return found
