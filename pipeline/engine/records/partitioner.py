"""The partition of a card: the rule of Java's default partitioner, whatever the producer used."""

from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.records.columns import text_buffers
from pipeline.features.compiled import compiled

_SEED: Final = np.uint64(0x9747B28C)
_MULTIPLIER: Final = np.uint64(0x5BD1E995)
_MASK: Final = np.uint64(0xFFFFFFFF)
_POSITIVE: Final = np.uint64(0x7FFFFFFF)
_WORD_BYTES: Final = 4


def partitions_of(card_ids: pa.Array, partitions: int) -> NDArray[np.int64]:
    """Return the partition, of ``partitions``, to which the records of each of n cards belong; shape (n,).

    The hash is that of `org.apache.kafka.common.utils.Utils.murmur2`.

    >>> partitions_of(pa.array(["foobar"]), 7).tolist()
    [0]
    """
    if partitions == 1:
        return np.zeros(len(card_ids), np.int64)
    numbers = np.empty(len(card_ids), np.int64)
    _assign_partitions(*text_buffers(card_ids), np.uint64(partitions), numbers)
    return numbers


def partition_of(card_id: str, partitions: int) -> int:
    """Return the same for one card.

    >>> partition_of("foobar", 7)
    0
    """
    return int(partitions_of(pa.array([card_id], pa.string()), partitions)[0])


@compiled
def _assign_partitions(data: Any, offsets: Any, partitions: Any, numbers: Any) -> None:
    for i in range(len(numbers)):
        position, end = np.int64(offsets[i]), np.int64(offsets[i + 1])
        value = _SEED ^ np.uint64(end - position)
        while position + _WORD_BYTES <= end:
            mixed = (_word(data, position, _WORD_BYTES) * _MULTIPLIER) & _MASK
            mixed = ((mixed ^ (mixed >> np.uint64(24))) * _MULTIPLIER) & _MASK
            value = ((value * _MULTIPLIER) & _MASK) ^ mixed
            position += _WORD_BYTES
        if position < end:
            value = ((value ^ _word(data, position, end - position)) * _MULTIPLIER) & _MASK
        value = ((value ^ (value >> np.uint64(13))) * _MULTIPLIER) & _MASK
        numbers[i] = ((value ^ (value >> np.uint64(15))) & _POSITIVE) % partitions


@compiled
def _word(data: Any, position: Any, count: Any) -> Any:
    """Up to four bytes as a little-endian number."""
    word = np.uint64(0)
    for k in range(count):
        word |= np.uint64(data[position + k]) << np.uint64(8 * k)
    return word
