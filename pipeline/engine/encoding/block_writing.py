"""Cutting rows into blocks, and gathering their texts."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.encoding.blocks import MOST_BYTES, MOST_ROWS, fixed_bytes
from pipeline.engine.encoding.json_bytes import copy_bytes
from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.features.compiled import compiled


def block_cuts(
    names: Sequence[bytes], partitions: NDArray[np.int64], ends: NDArray[np.int64]
) -> Iterator[tuple[int, int]]:
    """Yield where blocks begin and end.

    Args:
        names: Names that each block has.
        partitions: Shape (n,): the partition of each row, ascending.
        ends: Shape (n,): bytes of the rows up to each.
    """
    room, first = MOST_BYTES - fixed_bytes(KERNEL_VERSION, names), 0
    while first < len(partitions):
        before = int(ends[first - 1]) if first else 0
        fits = int(np.searchsorted(ends, before + room, "right"))
        same = int(np.searchsorted(partitions, partitions[first], "right"))
        end = min(max(fits, first + 1), same, first + MOST_ROWS)
        yield first, end
        first = end


def copied_texts(text: bytes, firsts: NDArray[np.int64], lengths: NDArray[np.int32]) -> bytes:
    """Return texts of some rows, column by column.

    Args:
        text: All texts.
        firsts: Shape (k, n): where each begins in ``text``.
        lengths: Shape (k, n): bytes of each.
    """
    out = np.empty(int(lengths.sum(dtype=np.int64)), np.uint8)
    _copy_texts(np.frombuffer(text, np.uint8), firsts, lengths, out)
    return out.tobytes()


@compiled
def _copy_texts(text: Any, firsts: Any, lengths: Any, out: Any) -> None:
    at = np.uint64(0)
    for column in range(firsts.shape[0]):
        for row in range(firsts.shape[1]):
            first = firsts[column, row]
            at = copy_bytes(text, first, first + np.int64(lengths[column, row]), out, at)
