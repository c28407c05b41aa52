"""Rows of a batch as columns, cut into blocks."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.encoding.blocks import (
    ALIGNMENT,
    FEATURE_BYTES,
    KIND,
    MOST_BYTES,
    MOST_ROWS,
    TRANSACTION,
    BlockSize,
    Layout,
    Sources,
    fixed_bytes,
    join_block,
)
from pipeline.engine.encoding.json_bytes import copy_bytes
from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.features.compiled import compiled
from schemas.records import Output
from schemas.topics import Topic

_BY_ROW: Final = ("partition", "wide", "narrow", "codes", "firsts", "lengths")
"""Arrays of `RowColumns` whose last axis is that of the rows."""


class RowColumns(NamedTuple):
    """n rows of a batch; the columns are those of `Block`."""

    layout: Layout
    partition: NDArray[np.int64]
    """Shape (n,): partition of the topic."""
    sources: Sources
    wide: NDArray[np.int64]
    features: NDArray[np.float64]
    narrow: NDArray[np.int32]
    codes: NDArray[np.uint8]
    text: bytes
    firsts: NDArray[np.int64]
    """Shape (len(layout.texts), n): where each text begins in ``text``."""
    lengths: NDArray[np.int32]

    def has_features(self) -> NDArray[np.bool_]:
        """Return which rows have features; shape (n,)."""
        return self.codes[KIND] == TRANSACTION if self.layout.kinds else np.ones(len(self.partition), np.bool_)

    def behind(self, before: "RowColumns") -> "RowColumns":
        """Return the rows of another, and these behind them."""
        later = self._replace(firsts=self.firsts + len(before.text))
        own: dict[str, Any] = {
            name: np.concatenate([getattr(before, name), getattr(later, name)], axis=-1) for name in _BY_ROW
        }
        sources: Any = zip(before.sources, self.sources, strict=True)
        return self._replace(
            sources=Sources(*map(np.concatenate, sources)),
            features=np.concatenate([before.features, self.features]),
            text=before.text + self.text,
            **own,
        )


def encode_blocks(
    topic: Topic, names: Sequence[bytes], rows: RowColumns, order: NDArray[np.intp] | None = None
) -> list[Output]:
    """Cut the rows of a batch into blocks, those of each partition in their order.

    Args:
        topic: Topic of the blocks.
        names: Names that stand in every block; the rows hold their numbers.
        rows: n rows, in any order of partitions.
        order: Shape (n,): numbers of the rows in the order in which they are written; None: as they stand.

    Returns:
        One record a block, by partition; each block is within `MOST_BYTES` unless a single row is larger, and has
        `MOST_ROWS` at most.
    """
    order = np.arange(len(rows.partition)) if order is None else order
    partition = rows.partition[order]
    if (partition != partition[:1]).any():
        # Of the smallest integers, which are sorted in one pass.
        by_partition = partition.astype(np.min_scalar_type(partition.max())).argsort(kind="stable")
        order, partition = order[by_partition], partition[by_partition]
    layout, has_features = rows.layout, rows.has_features()
    row_bytes = layout.row_bytes + rows.lengths.sum(axis=0, dtype=np.int64)
    row_bytes += has_features * (FEATURE_BYTES * rows.features.shape[1])
    ends = row_bytes[order].cumsum()
    cuts = [*_cuts(names, partition, ends)]
    transactions = [0, *has_features[order].cumsum().tolist()]
    total = [0, *ends.tolist()]
    sizes = [
        _size(
            layout,
            rows.features.shape[1],
            end - first,
            transactions[end] - transactions[first],
            total[end] - total[first],
        )
        for first, end in cuts
    ]
    bodies = _bodies(rows, order, has_features, cuts, sizes)
    sources = rows.sources.take(order)
    return [
        Output(
            topic,
            None,
            join_block(layout, KERNEL_VERSION, names, size, sources.take(slice(first, end)), body),
            partition=int(partition[first]),
        )
        for (first, end), size, body in zip(cuts, sizes, bodies, strict=True)
    ]


def _size(layout: Layout, features: int, rows: int, transactions: int, total_bytes: int) -> BlockSize:
    """Return the size of a block whose rows take ``total_bytes``, sources included."""
    text_bytes = total_bytes - layout.row_bytes * rows - FEATURE_BYTES * features * transactions
    return BlockSize(rows, transactions, features, text_bytes)


def _cuts(names: Sequence[bytes], partitions: NDArray[np.int64], ends: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield where blocks begin and end: rows of one partition, whose bytes end at ``ends``."""
    room, first = MOST_BYTES - fixed_bytes(KERNEL_VERSION, names), 0
    while first < len(partitions):
        before = int(ends[first - 1]) if first else 0
        fits = int(ends.searchsorted(before + room, "right"))
        same = int(partitions.searchsorted(partitions[first], "right"))
        end = min(max(fits, first + 1), same, first + MOST_ROWS)
        yield first, end
        first = end


def _bodies(
    rows: RowColumns,
    order: NDArray[np.intp],
    has_features: NDArray[np.bool_],
    cuts: Sequence[tuple[int, int]],
    sizes: Sequence[BlockSize],
) -> list[memoryview]:
    """Return the bodies of all blocks, which one call writes: a call for each column would cost more than a small body.

    Args:
        rows: All rows.
        order: Shape (n,): their numbers as they stand in the blocks.
        has_features: Shape (n,).
        cuts: Where blocks begin and end in ``order``.
        sizes: What each block holds.
    """
    lengths = [rows.layout.body_bytes(size) for size in sizes]
    begins = [0, *accumulate(length + -length % ALIGNMENT for length in lengths)]
    out = np.empty(begins[-1], np.uint8)
    _write_bodies(
        order, np.array(cuts, np.int64), np.array(begins, np.int64), has_features, has_features.cumsum() - 1,
        np.ascontiguousarray(rows.wide), np.ascontiguousarray(rows.features), rows.narrow, rows.lengths, rows.codes,
        np.ascontiguousarray(rows.firsts), np.frombuffer(rows.text, np.uint8), out.view(np.int64),
        out.view(np.float64), out.view(np.int32), out,
    )  # fmt: skip
    return [out.data[begin : begin + length] for begin, length in zip(begins, lengths, strict=False)]


@compiled
def _write_bodies(
    order: Any, cuts: Any, begins: Any, has_features: Any, feature_rows: Any, wide: Any, features: Any, narrow: Any,
    lengths: Any, codes: Any, firsts: Any, text: Any, words: Any, numbers: Any, halves: Any, out: Any,
) -> None:  # fmt: skip
    """Write the bodies into ``out``, of which ``words``, ``numbers`` and ``halves`` are views."""
    for block in range(len(cuts)):
        own = order[cuts[block, 0] : cuts[block, 1]]
        at = begins[block] // 8
        for column in range(wide.shape[0]):
            for row in own:
                words[at] = wide[column, row]
                at += 1
        for row in own:
            if has_features[row]:
                for column in range(features.shape[1]):
                    numbers[at] = features[feature_rows[row], column]
                    at += 1
        at *= 2
        for column in range(narrow.shape[0]):
            for row in own:
                halves[at] = narrow[column, row]
                at += 1
        for column in range(lengths.shape[0]):
            for row in own:
                halves[at] = lengths[column, row]
                at += 1
        at *= 4
        for column in range(codes.shape[0]):
            for row in own:
                out[at] = codes[column, row]
                at += 1
        end = np.uint64(at)
        for column in range(firsts.shape[0]):
            for row in own:
                first = firsts[column, row]
                end = copy_bytes(text, first, first + np.int64(lengths[column, row]), out, end)


def copied_texts(text: bytes, firsts: NDArray[np.int64], lengths: NDArray[np.int32]) -> bytes:
    """Return texts of some rows, column by column.

    Args:
        text: Holds the texts, in UTF-8.
        firsts: Shape (k, n): where each of the k texts of a row begins in ``text``; anything for an empty one.
        lengths: Shape (k, n): bytes of each.
    """
    out = np.empty(int(lengths.sum(dtype=np.int64)), np.uint8)
    # Of one layout, so that it is compiled once.
    _copy_texts(np.frombuffer(text, np.uint8), np.ascontiguousarray(firsts), np.ascontiguousarray(lengths), out)
    return out.tobytes()


@compiled
def _copy_texts(text: Any, firsts: Any, lengths: Any, out: Any) -> None:
    at = np.uint64(0)
    for column in range(firsts.shape[0]):
        for row in range(firsts.shape[1]):
            first = firsts[column, row]
            at = copy_bytes(text, first, first + np.int64(lengths[column, row]), out, at)
