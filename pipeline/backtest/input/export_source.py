"""A history in a directory of exported topics."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.backtest.input.acceptance import Acceptance, accept_labels, accept_transactions
from pipeline.backtest.input.label_book import LabelBook
from pipeline.backtest.input.merge import LogPart, Numbering, Rows
from pipeline.backtest.input.sources import OpenedHistory, opened_logs
from pipeline.backtest.input.span import ArrivalFilter, ArrivalRange, Span
from pipeline.engine.encoding.json_scanner import NO_TIME
from pipeline.engine.records.columns import Labels, Reject, Transactions
from pipeline.exports.intended_contents import check_whole
from pipeline.exports.parquet_files import origin_of, schema_of
from pipeline.features.built_in import LATENESS_US
from pipeline.history import table_columns
from pipeline.history.canonical_columns import UnusableSource
from pipeline.history.files import CHUNK_ROWS, STAMP
from schemas.times import US_PER_MS
from schemas.topics import TRANSACTIONS, Topic, topic_of_labels

_MOST_PARTITIONS: Final = 2**16
"""Limit of an export's partition numbers; its partitions are not counted."""


class ExportLog(NamedTuple):
    """A partition of an exported topic: the files that hold records of it, as they follow each other."""

    number: int
    paths: list[Path]

    def tables(self, arrivals: ArrivalRange) -> Iterator[pa.Table]:
        """The records that arrived then, in their order."""
        cut = ArrivalFilter(arrivals)
        for path in self.paths:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(CHUNK_ROWS):
                    table = pa.Table.from_batches([batch])
                    table = table.filter(pc.equal(table.column("partition"), self.number))
                    stamps_us, _ = table_columns.times_us(table_columns.column(table, STAMP), "UTC")
                    # What has no stamp may be of any time.
                    rows = cut.rows(np.where(stamps_us == NO_TIME, arrivals.first_ms, stamps_us // US_PER_MS))
                    yield table.slice(rows.start, rows.stop - rows.start)
                    if cut.ended:
                        return


@dataclass(frozen=True, slots=True)
class ExportSource:
    """A directory of exported topics: ``transactions/`` and perhaps those of labels, Parquet files below each.

    The columns are those of the wire contract, and ``timestamp``, ``partition`` and ``offset`` of each record; each
    partition's records stand in their order in the files as their names sort.
    """

    directory: Path
    lateness_us: int = LATENESS_US
    bears_truth: bool = False
    has_labels: bool = True
    time_zone: str = "UTC"

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.directory.name

    @property
    def partitions(self) -> int:
        """Those of the topic, as `fraud-pipeline export` notes them; 1 where nothing does."""
        origins = (origin_of(schema_of(path)) for path in self._files(TRANSACTIONS)[:1])
        return next((origin.partitions for origin in origins if origin is not None), 1)

    def open(self, span: Span, acceptance: Acceptance, rejects: list[Reject], book: LabelBook) -> OpenedHistory:
        """Open like `Source`."""
        if not self._files(TRANSACTIONS):
            raise UnusableSource(
                f"{self.directory} holds no Parquet file below {TRANSACTIONS.name}/: name a directory into which "
                "topics were exported, or a file"
            )
        of_labels = [topic_of_labels(name) for name in acceptance.sources.topics]
        warnings = [text for topic in (TRANSACTIONS, *of_labels) for text in check_whole(self.directory / topic.name)]
        if missing := [f"{topic.name}/" for topic in of_labels if not self._files(topic)]:
            what_follows = (
                "nothing is learned, and no decision can be evaluated"
                if len(missing) == len(of_labels)
                else "labels are missing"
            )
            warnings.append(f"{self.directory} holds no {', '.join(missing)}: {what_follows}; export that topic too")
        of_range = span.arrivals(acceptance.future_tolerance_us, self.lateness_us)
        until_now = span.arrivals(acceptance.future_tolerance_us, None)
        sold = [self._transactions(log, of_range, acceptance, rejects) for log in self._logs(TRANSACTIONS)]
        logs = [(topic.name, log) for topic in of_labels for log in self._logs(topic)]
        label_parts = [
            self._labels(topic, log, number, until_now, acceptance, rejects, book)
            for number, (topic, log) in enumerate(logs)
        ]
        return opened_logs(sold, label_parts, span, self.lateness_us, rejects, warnings=warnings)

    def _files(self, topic: Topic) -> list[Path]:
        return sorted((self.directory / topic.name).rglob("*.parquet"))

    def _logs(self, topic: Topic) -> list[ExportLog]:
        """Return the files that hold records, by partition."""
        numbers: dict[int, list[Path]] = {}
        for path in self._files(topic):
            columns = pq.read_schema(path).names
            missing = [name for name in (STAMP, "partition", "offset") if name not in columns]
            if missing:
                raise UnusableSource(f"{path} has no column {', '.join(missing)}: it is no export of a topic")
            for number in pc.unique(pq.read_table(path, columns=["partition"]).column("partition")).to_pylist():
                numbers.setdefault(int(number), []).append(path)
        return [ExportLog(number, paths) for number, paths in sorted(numbers.items())]

    def _transactions(
        self, log: ExportLog, arrivals: ArrivalRange, acceptance: Acceptance, rejects: list[Reject]
    ) -> Iterator[LogPart[Transactions]]:
        for table in log.tables(arrivals):
            rows, refused = accept_transactions(table, acceptance)
            rejects += refused
            yield _numbered(rows, table, log.number)

    def _labels(
        self,
        topic: str,
        log: ExportLog,
        number: int,
        arrivals: ArrivalRange,
        acceptance: Acceptance,
        rejects: list[Reject],
        book: LabelBook,
    ) -> Iterator[LogPart[Labels]]:
        for table in log.tables(arrivals):
            rows, refused = accept_labels(table, acceptance, topic=topic)
            rejects += refused
            yield _numbered(book.add_labels(rows), table, number)


def _numbered(rows: Rows, table: pa.Table, number: int) -> LogPart[Rows]:
    stamps_us, _ = table_columns.times_us(table_columns.column(table, STAMP), "UTC")
    return Numbering(_MOST_PARTITIONS).part(rows, number, table.column("offset").to_numpy(), stamps_us)
