"""The interface of a history: a file, a directory of exported topics, or the topics themselves."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from pipeline.backtest.input.acceptance import Acceptance
from pipeline.backtest.input.label_book import LabelBook
from pipeline.backtest.input.merge import LogPart, by_time
from pipeline.backtest.input.span import SeenTimes, Span
from pipeline.engine.records.columns import Labels, Reject, Transactions

TOO_LATE: Final = "late_beyond_margin"
"""Code of records that stand further behind their time than the margin within which a source is put in order."""


class OpenedHistory(NamedTuple):
    """A history in the order of event time."""

    transactions: Iterator[Transactions]
    labels: Iterator[Labels]
    seen: SeenTimes
    close: Callable[[], None] = lambda: None
    """Lets go of what is read."""
    warnings: Sequence[str] = ()
    """Warnings about what may be missing."""


class Source(Protocol):
    """A history that can be read from a given time on."""

    @property
    def bears_truth(self) -> bool:
        """True if its transactions bear their final label (`Transactions.truth`), in place of label records."""

    @property
    def has_labels(self) -> bool:
        """True if labels were recorded with it, each with when it was known."""

    @property
    def time_zone(self) -> str:
        """Time zone of times without an offset."""

    @property
    def name(self) -> str:
        """Name that a reader sees."""

    @property
    def partitions(self) -> int:
        """Number of partitions of its topic, if any; else 1. Raises `ClusterUnreachable`, `TopicError`."""

    def open(self, span: Span, acceptance: Acceptance, rejects: list[Reject], book: LabelBook) -> OpenedHistory:
        """Begin to read.

        Args:
            span: Transactions are read from the warm-up's begin to the range's end; labels to the end of the history.
            acceptance: Rules of the rows.
            rejects: Refused rows are appended while the history is read.
            book: Accepted labels are added while it is read, and those that follow from a file's truth.

        Raises:
            RangeError: A topic holds no record, or only later ones than the range.
            UnusableSource: The input is no history, or cannot be read.
            pipeline.exports.parquet_files.ExportError: Files of an export are missing, or are of another one.
            pipeline.kafka.cluster.errors.TopicError: A topic is missing.
        """


def opened_logs(
    transactions: Sequence[Iterator[LogPart[Transactions]]],
    labels: Sequence[Iterator[LogPart[Labels]]],
    span: Span,
    lateness_us: int,
    rejects: list[Reject],
    close: Callable[[], None] = lambda: None,
    warnings: Sequence[str] = (),
) -> OpenedHistory:
    """Return the partitions of topics in the order of event time, what arrived later than ``lateness_us`` refused."""
    text = "The record arrived later than the lateness within which records are put in order; raise --lateness."

    def late(rows: Transactions | Labels) -> None:
        kind = "label" if isinstance(rows, Labels) else "transaction"
        rejects.extend(Reject(kind, row, TOO_LATE, text) for row in rows.row.tolist())

    seen = SeenTimes()
    inside = (seen.within(span, rows) for rows in by_time(transactions, lateness_us, late))
    return OpenedHistory(inside, by_time(labels, lateness_us, late), seen, close, warnings)
