"""Transactions as messages about them name them, as columns: texts as places in bytes, and whole numbers."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.records.columns import identities

TEXTS: Final = (
    "transaction_id", "card_id", "merchant_id", "case_id", "amount", "currency", "transaction_type", "rates_version",
    "source_topic", "input_topic",
)  # fmt: skip
"""Columns of text: ``amount`` as JSON, the others as they read."""
ID, CARD, MERCHANT, CASE, AMOUNT, CURRENCY, TYPE, RATES, SOURCE, INPUT = range(len(TEXTS))

WHOLES: Final = (
    "event_time_us", "amount_base_minor", "counts", "case_sequence", "ingested_at_us", "ingested_offset_min",
    "producer_us", "producer_offset_min", "source_partition", "source_offset", "input_partition", "input_offset",
    "log_partition", "log_offset", "log_row", "wait_us", "rates", "action", "selection", "versions",
)  # fmt: skip
"""Columns of whole numbers: ``producer`` is the event time with its offset as the producer wrote it; ``input`` where
the card agent read the record; ``log`` the position on ``profiled``; ``wait_us`` what the card agent's wait clock
showed, 0 where that is not known; ``rates`` is equal in rows of equal
``rates_version``. The last three have room for what is decided."""
(
    EVENT_US, AMOUNT_BASE, COUNTS, CASE_SEQUENCE, INGESTED_US, INGESTED_OFFSET, PRODUCER_US, PRODUCER_OFFSET,
    SOURCE_PARTITION, SOURCE_OFFSET, INPUT_PARTITION, INPUT_OFFSET, LOG_PARTITION, LOG_OFFSET, LOG_ROW, WAIT_US,
    SAME_RATES, ACTION, SELECTION, VERSIONS,
) = range(len(WHOLES))  # fmt: skip


class Subjects(NamedTuple):
    """Columns of n transactions."""

    text: bytes
    """UTF-8 into which spans point."""
    spans: NDArray[np.int64]
    """Shape (len(TEXTS), n, 2): where each text begins and ends."""
    wholes: NDArray[np.int64]
    """Shape (len(WHOLES), n)."""

    @classmethod
    def from_columns(cls, texts: Mapping[int, Sequence[bytes]], wholes: Mapping[int, NDArray[np.int64]]) -> "Subjects":
        """Put columns together; those that are not given are empty, or 0."""
        n = len(texts[ID])
        spans, numbers = np.zeros((len(TEXTS), n, 2), np.int64), np.zeros((len(WHOLES), n), np.int64)
        ends = np.cumsum([0, *map(len, chain.from_iterable(texts.values()))])
        spans[[*texts]] = np.stack([ends[:-1], ends[1:]], axis=1).reshape(len(texts), n, 2)
        for column, values in wholes.items():
            numbers[column] = values
        return cls(b"".join(chain.from_iterable(texts.values())), spans, numbers)

    @property
    def rows(self) -> int:
        """Number of rows."""
        rows: int = self.spans.shape[1]
        return rows

    def texts(self, column: int) -> list[bytes]:
        """Return the texts of a column."""
        text = self.text
        return [text[first:end] for first, end in self.spans[column].tolist()]

    def strings(self, column: int) -> list[str]:
        """Return the texts of a column as strings."""
        return [text.decode() for text in self.texts(column)]

    def take(self, rows: NDArray[np.intp]) -> "Subjects":
        """Return some rows."""
        return Subjects(self.text, self.spans[:, rows], self.wholes[:, rows])

    def identities(self) -> NDArray[np.uint64]:
        """Return the `transaction_hash` of each row; shape (n,)."""
        return identities(*(pa.array(self.texts(column), pa.binary()) for column in (CARD, ID)))
