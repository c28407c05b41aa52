"""Rows on their way into files: whole records, and no more rows than a file takes."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.exports.rows import OFFSET


class RowPiece(NamedTuple):
    """Rows of some records that follow each other."""

    rows: pa.RecordBatch
    records: int
    end: int
    """Offset behind them."""


class Pieces:
    """Rows of a range of a partition's offsets, cut between records.

    Args:
        batches: Rows, and the offset behind their records. The last ones reach the end of the range; there may be none,
            where marks of transactions, or gaps that compaction left, stand behind the last record.
    """

    def __init__(self, batches: Iterator[tuple[pa.RecordBatch, int]]) -> None:
        self._batches = batches
        self._ahead: tuple[pa.RecordBatch, int] | None = None

    def take(self, most: int, written: int) -> RowPiece | None:
        """Return the next rows of a file that takes ``most``, of which ``written`` are there already.

        Returns:
            None once the file is full. A record of more than ``most`` rows has a file to itself.
        """
        if written >= most:
            return None
        rows, end = self._ahead or next(self._batches)
        self._ahead = None
        offsets = rows.column(OFFSET).to_numpy()
        left = most - written
        if len(offsets) > left:
            cut = int(np.searchsorted(offsets, offsets[left]))
            if not cut and written:
                self._ahead = rows, end
                return None
            cut = cut or int(np.searchsorted(offsets, offsets[0], "right"))
            if cut < len(offsets):
                self._ahead = rows.slice(cut), end
                rows, offsets, end = rows.slice(0, cut), offsets[:cut], int(offsets[cut])
        return RowPiece(rows, len(np.unique(offsets)), end)
