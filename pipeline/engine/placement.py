"""Which partition a card belongs to: the rule of Java's default partitioner, whatever the producer used."""

import struct
from collections.abc import Callable
from functools import cache
from typing import Final

_SEED: Final = 0x9747B28C
_MULTIPLIER: Final = 0x5BD1E995
_MASK: Final = 0xFFFFFFFF


@cache
def _words(count: int) -> Callable[[bytes], tuple[int, ...]]:
    return struct.Struct(f"<{count}I").unpack_from


def murmur2(data: bytes) -> int:
    """32 bits, unsigned, as `org.apache.kafka.common.utils.Utils.murmur2` computes them (there they are signed).

    >>> murmur2(b"foobar") - 2**32
    -790332482
    """
    length = len(data)
    value = _SEED ^ length
    for word in _words(length >> 2)(data):
        mixed = (word * _MULTIPLIER) & _MASK
        mixed = ((mixed ^ (mixed >> 24)) * _MULTIPLIER) & _MASK
        value = ((value * _MULTIPLIER) & _MASK) ^ mixed
    tail = data[length & ~3 :]
    if tail:
        value = ((value ^ int.from_bytes(tail, "little")) * _MULTIPLIER) & _MASK
    value = ((value ^ (value >> 13)) * _MULTIPLIER) & _MASK
    return value ^ (value >> 15)


def partition_of(card_id: str, partitions: int) -> int:
    """The partition, of ``partitions``, to which the records of a card belong.

    >>> partition_of("foobar", 7)
    0
    """
    if partitions == 1:
        return 0
    return (murmur2(card_id.encode("utf-8", "surrogatepass")) & 0x7FFFFFFF) % partitions
