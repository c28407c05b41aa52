"""Which partition a card belongs to: the rule of Java's default partitioner, whatever the producer used."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.features.compiled import compiled

_SEED: Final = np.uint64(0x9747B28C)
_MULTIPLIER: Final = np.uint64(0x5BD1E995)
_MASK: Final = np.uint64(0xFFFFFFFF)
_POSITIVE: Final = np.uint32(0x7FFFFFFF)
_WORD_BYTES: Final = 4


def murmur2(names: Sequence[bytes]) -> list[int]:
    """32 bits of each name, unsigned, as `org.apache.kafka.common.utils.Utils.murmur2` computes them (there signed).

    >>> murmur2([b"foobar"])[0] - 2**32
    -790332482
    """
    hashes: list[int] = _hashes(names).tolist()
    return hashes


def partitions_of(card_ids: Sequence[str], partitions: int) -> list[int]:
    """The partition, of ``partitions``, to which the records of each card belong.

    >>> partitions_of(["foobar"], 7)
    [0]
    """
    if partitions == 1:
        return [0] * len(card_ids)
    hashes = _hashes([card_id.encode("utf-8", "surrogatepass") for card_id in card_ids])
    numbers: list[int] = ((hashes & _POSITIVE) % np.uint32(partitions)).tolist()
    return numbers


def partition_of(card_id: str, partitions: int) -> int:
    """The same for one card.

    >>> partition_of("foobar", 7)
    0
    """
    return partitions_of([card_id], partitions)[0]


def _hashes(names: Sequence[bytes]) -> NDArray[np.uint32]:
    hashes = np.empty(len(names), np.uint32)
    data = np.frombuffer(b"".join([*names, b"\x00"]), np.uint8)  # an empty one could not be looked at
    _hash_all(data, np.array([len(name) for name in names], np.int64), hashes)
    return hashes


@compiled
def _hash_all(data: Any, lengths: Any, hashes: Any) -> None:
    start = 0
    for i in range(len(lengths)):
        length = lengths[i]
        value = _SEED ^ np.uint64(length)
        end = start + length
        place = start
        while place + _WORD_BYTES <= end:
            mixed = (_word(data, place, _WORD_BYTES) * _MULTIPLIER) & _MASK
            mixed = ((mixed ^ (mixed >> np.uint64(24))) * _MULTIPLIER) & _MASK
            value = ((value * _MULTIPLIER) & _MASK) ^ mixed
            place += _WORD_BYTES
        if place < end:
            value = ((value ^ _word(data, place, end - place)) * _MULTIPLIER) & _MASK
        value = ((value ^ (value >> np.uint64(13))) * _MULTIPLIER) & _MASK
        hashes[i] = value ^ (value >> np.uint64(15))
        start = end


@compiled
def _word(data: Any, place: Any, count: Any) -> Any:
    """Up to four bytes as a little-endian number."""
    word = np.uint64(0)
    for k in range(count):
        word |= np.uint64(data[place + k]) << np.uint64(8 * k)
    return word
