"""The interface of a history: a file, a directory of exported topics, or the topics themselves."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

from pipeline.backtest.input.acceptance import Acceptance
from pipeline.backtest.input.label_book import LabelBook
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
        """Begin to read; what is refused goes to ``rejects``, what labels say to ``book``.

        Raises `RangeError`, `UnusableSource`, `pipeline.exports.files.ExportError`,
        `pipeline.kafka.cluster.errors.TopicError`.
        """


def note_late(rejects: list[Reject]) -> Any:
    """Return a function of a kind of rows that makes a function, which notes rows that arrived too late."""

    def noter(kind: str) -> Any:
        def note(rows: Transactions | Labels) -> None:
            text = "arrived later than the lateness within which records are put in order; raise --lateness"
            rejects.extend(Reject(kind, int(row), TOO_LATE, f"The record {text}.") for row in rows.row.tolist())

        return note

    return noter
