"""Where a backtest's history comes from: a file, a directory of exported topics, or the topics themselves."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.backtest import wire
from pipeline.backtest.accept import LABEL_FIELDS, STAMP, Acceptance, accept_labels, accept_transactions
from pipeline.backtest.arrivals import Arrivals, Cut
from pipeline.backtest.blocks import blocks, texts
from pipeline.backtest.labelling import REPORT_SOURCE
from pipeline.backtest.merged import Part, by_time
from pipeline.backtest.records import Numbering, labels_of, transactions_of
from pipeline.backtest.spill import NumberColumn, TextColumn, WordColumn, mapped_frame
from pipeline.backtest.tables import CHUNK_ROWS, file_tables, frauds, label_tables
from pipeline.engine.columns import Labels, Reject, Transactions
from pipeline.engine.scanned import NO_TIME
from pipeline.exports.contents import check_whole
from pipeline.exports.files import origin_of, schema_of
from pipeline.features.catalogue import LATENESS_US, US_PER_SECOND
from pipeline.kafka.admin import reached
from pipeline.kafka.clients import (
    QUEUE_OF_BLOCKS,
    READ_BATCH,
    admin_client,
    first_offsets,
    offsets_at,
    partition_numbers,
    patiently,
    settled_ends,
)
from pipeline.kafka.cluster import stamped_by_producers
from pipeline.kafka.fold import RangeReader, RecordColumns
from pipeline.learning.labels import FRAUD, KNOWN, LEGITIMATE
from pipeline.settings import Settings
from pipeline.sources import ColumnMapping, UnusableSource
from schemas.messages import Label
from schemas.records import Record
from schemas.topics import TRANSACTIONS, Topic, topic_of_labels

TOO_LATE: Final = "late_beyond_margin"
"""Code of records that stand further behind their time than the margin within which a source is put in order."""
EARLIEST_US: Final = -(2**61)
LATEST_US: Final = 2**61
_US_PER_MS: Final = 1_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class RangeError(ValueError):
    """There is no transaction to decide in the range that was asked for; the text says what there is."""


class Span(NamedTuple):
    """Event times, in microseconds since 1970-01-01T00:00:00Z."""

    warm_up_from_us: int
    from_us: int
    to_us: int

    def arrivals(self, tolerance_us: int, lateness_us: int | None) -> Arrivals:
        """When the records arrived that may hold something of it.

        It may be ahead of its record by ``tolerance_us``, and behind it by ``lateness_us``; None: by any time.
        """
        found = Arrivals()
        if self.warm_up_from_us > EARLIEST_US:
            found = found._replace(first_ms=max(self.warm_up_from_us - tolerance_us, 0) // _US_PER_MS)
        if self.to_us < LATEST_US and lateness_us is not None:
            found = found._replace(end_ms=max(self.to_us + lateness_us, 0) // _US_PER_MS + 1)
        return found


@dataclass(slots=True)
class Seen:
    """Event times of the transactions that a source held, as far as it was read."""

    first_us: int = LATEST_US
    last_us: int = EARLIEST_US

    def within(self, span: Span, rows: Transactions) -> Transactions:
        """Those of the warm-up and of the range, after all were noted."""
        if len(rows):
            self.first_us = min(self.first_us, int(rows.event_time_us.min()))
            self.last_us = max(self.last_us, int(rows.event_time_us.max()))
        inside = (rows.event_time_us >= span.warm_up_from_us) & (rows.event_time_us < span.to_us)
        return rows if inside.all() else rows.take(inside)


class LabelBook:
    """What was said about transactions, kept on disk for whoever measures decisions."""

    def __init__(self) -> None:
        self._texts = {name: TextColumn() for name in ("transaction_id", "card_id")}
        self._words = {name: WordColumn() for name in ("label", "source", "fraud_type")}
        self._known_at_us = NumberColumn(np.int64)

    def add(
        self, ids: pa.Array, cards: pa.Array, labels: pa.Array, sources: pa.Array, known_at_us: NDArray[np.int64],
        fraud_types: pa.Array,
    ) -> None:  # fmt: skip
        """Note labels, with when they became known."""
        for column, texts_of in zip(self._texts.values(), (ids, cards), strict=True):
            column.add(texts_of)
        for words, words_of in zip(self._words.values(), (labels, sources, fraud_types), strict=True):
            words.add(words_of)
        self._known_at_us.add(known_at_us)

    def add_truth(self, rows: Transactions, delay_us: int, sources: pa.Array, fraud_types: pa.Array) -> None:
        """Note what transactions bear of themselves, `Transactions.truth`, as known ``delay_us`` after each."""
        truth = np.zeros(0, np.int8) if rows.truth is None else rows.truth
        words = pa.array(KNOWN).take(pa.array(truth))
        self.add(rows.transaction_id, rows.card_id, words, sources, rows.event_time_us + delay_us, fraud_types)

    def whole(self) -> pd.DataFrame:
        """All labels, in the order in which they were told. Nothing can be added any more."""
        return mapped_frame(self._told)

    def of(self, transaction_ids: "pd.Series[str]") -> pd.DataFrame:
        """The labels of some transactions, in the order in which they were told. Nothing can be added any more."""
        told = self._told
        ids = told["transaction_id"]
        asked = np.zeros(len(ids), np.bool_)
        for of in blocks(len(transaction_ids)):
            wanted = texts(transaction_ids, of)
            for rows in blocks(len(ids)):
                asked[rows] |= pc.is_in(ids[rows], value_set=wanted).to_numpy(zero_copy_only=False)
        if not asked.all():
            told = {name: _picked(column, asked) for name, column in told.items()}
        return mapped_frame(told)

    @cached_property
    def _told(self) -> dict[str, pa.Array]:
        columns = {name: column.finish() for name, column in (self._texts | self._words).items()}
        columns["labelled_at"] = pa.array(self._known_at_us.finish()).view(pa.timestamp("us", "UTC"))
        return {name: columns[name] for name in (*LABEL_FIELDS, "fraud_type")}


def _picked(column: pa.Array, asked: NDArray[np.bool_]) -> pa.Array:
    """Some rows of a column of labels, on disk as well."""
    picked = TextColumn() if pa.types.is_large_string(column.type) else None
    parts = []
    for rows in blocks(len(column)):
        part = column[rows].filter(pa.array(asked[rows]))
        if picked is None:
            parts.append(part)
        else:
            picked.add(part)
    return pa.concat_arrays(parts) if picked is None else picked.finish()


class Opened(NamedTuple):
    """A history in the order of event time."""

    transactions: Iterator[Transactions]
    labels: Iterator[Labels]
    seen: Seen
    close: Callable[[], None] = lambda: None
    """Lets go of what is read."""
    warnings: Sequence[str] = ()
    """What may be missing of it."""


class Source(Protocol):
    """A history that can be read from a given time on."""

    @property
    def bears_truth(self) -> bool:
        """Whether its transactions bear what they turned out to be (`Transactions.truth`), in place of labels."""

    @property
    def tells_labels(self) -> bool:
        """Whether labels were recorded with it, each with when it was known."""

    @property
    def time_zone(self) -> str:
        """Of times without an offset."""

    @property
    def name(self) -> str:
        """What a reader calls it."""

    @property
    def partitions(self) -> int:
        """Of the topic that it is, or was made of; else 1. Raises `ClusterUnreachable`, `TopicError`."""

    def open(self, span: Span, rules: Acceptance, rejects: list[Reject], book: LabelBook) -> Opened:
        """Begin to read; what is refused goes to ``rejects``, what labels say to ``book``.

        Raises `RangeError`, `UnusableSource`, `pipeline.exports.errors.ExportError`,
        `pipeline.kafka.clients.TopicError`.
        """


@dataclass(frozen=True, slots=True)
class FileSource:
    """A Parquet or CSV file of transactions, in the order of event time, with labels of its own or in a second file."""

    path: Path
    mapping: ColumnMapping
    label_file: Path | None = None
    label_delay_s: float = 7 * 86_400.0
    """From a transaction to the label that the file's truth becomes."""
    partitions: int = 1

    @property
    def time_zone(self) -> str:
        """The mapping's."""
        return self.mapping.time_zone

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def bears_truth(self) -> bool:
        """A column for it, where there is no file of labels."""
        return self.label_file is None and "fraud" in self.mapping.columns

    @property
    def tells_labels(self) -> bool:
        """A file of them."""
        return self.label_file is not None

    def open(self, span: Span, rules: Acceptance, rejects: list[Reject], book: LabelBook) -> Opened:
        """As `Source`."""
        seen = Seen()
        labels = iter(()) if self.label_file is None else self._told(self.label_file, rules, rejects, book)
        return Opened(self._until_end(span, rules, rejects, book, seen), labels, seen)

    def _until_end(
        self, span: Span, rules: Acceptance, rejects: list[Reject], book: LabelBook, seen: Seen
    ) -> Iterator[Transactions]:
        first = 0
        for table in file_tables(self.path, self.mapping):
            rows, refused = accept_transactions(table, rules, first)
            rejects += refused
            rows = seen.within(span, rows)
            if self.bears_truth:
                of = rows.row - first
                rows = replace(rows, truth=_borne(table, of))
                sources, delay_us = pa.repeat(REPORT_SOURCE, len(rows)), round(self.label_delay_s * US_PER_SECOND)
                book.add_truth(rows, delay_us, sources, _fraud_types(table, of))
            yield rows
            # In order: behind the end there is nothing more.
            if seen.last_us >= span.to_us:
                return
            first += table.num_rows

    def _told(self, path: Path, rules: Acceptance, rejects: list[Reject], book: LabelBook) -> Iterator[Labels]:
        first = 0
        for table in label_tables(path):
            rows, refused = accept_labels(table, rules, first)
            rejects += refused
            yield _noted(rows, table, first, book)
            first += table.num_rows


class ExportLog(NamedTuple):
    """One partition of an exported topic: the files that hold records of it, as they follow each other."""

    number: int
    paths: list[Path]

    def tables(self, arrivals: Arrivals) -> Iterator[pa.Table]:
        """The records that arrived then, in their order."""
        cut = Cut(arrivals)
        for path in self.paths:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(CHUNK_ROWS):
                    table = pa.Table.from_batches([batch])
                    table = table.filter(pc.equal(table.column("partition"), self.number))
                    stamps_us, _ = wire.times_us(wire.column(table, STAMP), "UTC")
                    # What has no stamp may be of any time.
                    of = cut.of(np.where(stamps_us == NO_TIME, arrivals.first_ms, stamps_us // _US_PER_MS))
                    yield table.slice(of.start, of.stop - of.start)
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
    tells_labels: bool = True
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

    def open(self, span: Span, rules: Acceptance, rejects: list[Reject], book: LabelBook) -> Opened:
        """As `Source`."""
        if not self._files(TRANSACTIONS):
            raise UnusableSource(
                f"{self.directory} holds no Parquet file below {TRANSACTIONS.name}/: name a directory into which "
                "topics were exported, or a file"
            )
        of_labels = [topic_of_labels(name) for name in rules.sources.topics]
        warnings = [text for topic in (TRANSACTIONS, *of_labels) for text in check_whole(self.directory / topic.name)]
        if missing := [f"{topic.name}/" for topic in of_labels if not self._files(topic)]:
            what_follows = (
                "nothing is learned, and no decision can be judged"
                if len(missing) == len(of_labels)
                else "labels are missing"
            )
            warnings.append(f"{self.directory} holds no {', '.join(missing)}: {what_follows}; export that topic too")
        late = _noting_late(rejects)
        of_range = span.arrivals(rules.future_tolerance_us, self.lateness_us)
        until_now = span.arrivals(rules.future_tolerance_us, None)
        sold = [self._transactions(log, of_range, rules, rejects) for log in self._logs(TRANSACTIONS)]
        logs = [(topic.name, log) for topic in of_labels for log in self._logs(topic)]
        told = [
            self._labels(topic, log, number, until_now, rules, rejects, book)
            for number, (topic, log) in enumerate(logs)
        ]
        seen = Seen()
        return Opened(
            (seen.within(span, rows) for rows in by_time(sold, self.lateness_us, late("transaction"))),
            by_time(told, self.lateness_us, late("label")),
            seen,
            warnings=warnings,
        )

    def _files(self, topic: Topic) -> list[Path]:
        return sorted((self.directory / topic.name).rglob("*.parquet"))

    def _logs(self, topic: Topic) -> list[ExportLog]:
        """Of each partition the files that hold records of it."""
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
        self, log: ExportLog, arrivals: Arrivals, rules: Acceptance, rejects: list[Reject]
    ) -> Iterator[Part[Transactions]]:
        for table in log.tables(arrivals):
            rows, refused = accept_transactions(table, rules)
            rejects += refused
            yield _placed(rows, table, log.number)

    def _labels(
        self,
        topic: str,
        log: ExportLog,
        number: int,
        arrivals: Arrivals,
        rules: Acceptance,
        rejects: list[Reject],
        book: LabelBook,
    ) -> Iterator[Part[Labels]]:
        for table in log.tables(arrivals):
            rows, refused = accept_labels(table, rules, topic=topic)
            rejects += refused
            yield _placed(_noted(rows, table, 0, book), table, number)


_MOST_PARTITIONS: Final = 2**16
"""Of an export, whose partitions are not counted."""


def _placed(rows: Any, table: pa.Table, number: int) -> Part[Any]:
    """Rows by their place in the log, and when they arrived."""
    offsets = table.column("offset").to_numpy()[rows.row]
    stamps, _ = wire.times_us(wire.column(table, STAMP), "UTC")
    arrived_us = stamps[rows.row]
    moved = {name: getattr(rows, name) for name in rows.__dataclass_fields__}
    return Part(type(rows)(**{**moved, "row": offsets * _MOST_PARTITIONS + number}), arrived_us)


@dataclass(frozen=True, slots=True)
class TopicSource:
    """The topics of transactions and labels, read without a group; nothing about them is written anywhere."""

    bootstrap: str
    settings: Settings
    lateness_us: int = LATENESS_US
    """How long after its event time a transaction may arrive; record times are looked for with this margin."""
    bears_truth: bool = False
    tells_labels: bool = True
    time_zone: str = "UTC"

    @property
    def name(self) -> str:
        """The topic's name on the cluster."""
        return self.settings.topic(TRANSACTIONS.name)

    @property
    def numbering(self) -> Numbering:
        """How rows name records of ``transactions``. Raises `ClusterUnreachable`, `TopicError`."""
        client = admin_client(self.bootstrap, settings=self.settings)
        reached(client, self.bootstrap)
        return Numbering(len(partition_numbers(client, self.name)))

    @property
    def partitions(self) -> int:
        """The topic's. Raises `ClusterUnreachable`, `TopicError`."""
        return self.numbering.partitions

    def written_in(self, span: Span) -> Span:
        """The span in which agents' outputs are looked for, whose records bear the time of writing.

        Where ``transactions`` keep their producers' clock, which may be a simulated one, it tells nothing.
        """
        client = admin_client(self.bootstrap, settings=self.settings)
        simulated = stamped_by_producers(client, self.name, self.settings.timestamps == "producer")
        return Span(EARLIEST_US, EARLIEST_US, LATEST_US) if simulated else span

    def open(self, span: Span, rules: Acceptance, rejects: list[Reject], book: LabelBook) -> Opened:
        """As `Source`."""
        late = _noting_late(rejects)
        of_range = span.arrivals(rules.future_tolerance_us, self.lateness_us)
        until_now = span.arrivals(rules.future_tolerance_us, None)
        # Their ends as well are told by records.
        sold = self.ranges(TRANSACTIONS, span, rules.future_tolerance_us, to_end=True)
        told = [
            (topic, number, of)
            for topic in map(topic_of_labels, rules.sources.topics)
            for number, of in self.ranges(topic, span, rules.future_tolerance_us, to_end=True).items()
        ]
        self.refuse_lost(span, len(sold))
        numbering = Numbering(len(sold))

        def note(items: Sequence[Label], known_at_us: Sequence[int]) -> None:
            names = ("transaction_id", "card_id", "label", "source", "fraud_type")
            ids, cards, words, by, types = (
                pa.array([getattr(item, name) for item in items], pa.string()) for name in names
            )
            book.add(ids, cards, words, by, np.array(known_at_us, np.int64), types)

        of_labels = Numbering(len(told))

        def accepted(topic: Topic, log: int, read: RecordColumns) -> Part[Labels]:
            """Accept labels of a partition, which is the ``log``-th of all topics of labels."""
            return labels_of(read._replace(partition=log), rules, of_labels, rejects, note, topic.name)

        readers = ExitStack()

        def begun(topic: Topic, number: int, of: range, arrivals: Arrivals) -> Iterator[RecordColumns]:
            reader = readers.enter_context(closing(self._reader(topic, number, of.start)))
            # All at once: a client's first record takes half a second.
            reader.begin()
            return columns_of(reader, of.stop, arrivals)

        transactions = [
            (transactions_of(read, rules, numbering, rejects) for read in begun(TRANSACTIONS, number, of, of_range))
            for number, of in sold.items()
            if of
        ]
        labels = [
            map(partial(accepted, topic, log), begun(topic, number, of, until_now))
            for log, (topic, number, of) in enumerate(told)
            if of
        ]
        seen = Seen()
        return Opened(
            (seen.within(span, rows) for rows in by_time(transactions, self.lateness_us, late("transaction"))),
            by_time(labels, self.lateness_us, late("label")),
            seen,
            readers.close,
        )

    def ranges(self, topic: Topic, span: Span, tolerance_us: int, *, to_end: bool) -> dict[int, range]:
        """Of each partition the offsets that may hold something of the span. Raises `TopicError`."""
        client = admin_client(self.bootstrap, settings=self.settings)
        full = self.settings.topic(topic.name)
        numbers = partition_numbers(client, full)
        places = [(full, number) for number in numbers]
        first_ms, end_ms = span.arrivals(tolerance_us, None if to_end else self.lateness_us)
        if first_ms > Arrivals().first_ms:
            starts = patiently(lambda: offsets_at(client, places, first_ms))
        else:
            starts = patiently(lambda: first_offsets(client, places))
        ends = settled_ends(self.bootstrap, self.settings, full, numbers)
        if end_ms < Arrivals().end_ms:
            found = patiently(lambda: offsets_at(client, places, end_ms))
            ends = {number: min(ends[number], found[full, number]) for number in numbers}
        return {number: range(starts[full, number], ends[number]) for number in numbers}

    def refuse_lost(self, span: Span, partitions: int) -> None:
        """Raise `RangeError` where all of the range lies before what the topic still holds, or nothing is there."""
        client = admin_client(self.bootstrap, settings=self.settings)
        places = [(self.name, number) for number in range(partitions)]
        begins = patiently(lambda: first_offsets(client, places))
        ends = settled_ends(self.bootstrap, self.settings, self.name, range(partitions))
        if all(ends[number] <= begins[self.name, number] for number in range(partitions)):
            raise RangeError(f"topic {self.name} holds no record: send transactions first, or check the topic prefix")
        if span.to_us >= LATEST_US:
            return
        last_us = max(span.to_us + self.lateness_us, 0)
        behind = patiently(lambda: offsets_at(client, places, last_us // _US_PER_MS))
        if all(behind[place] <= begins[place] for place in places):
            first_ms = [
                record.timestamp_ms
                for place in places
                for records in self.read(TRANSACTIONS, place[1], range(begins[place], ends[place[1]]), most=1)
                for record in records
            ]
            raise RangeError(
                f"the range ends at {moment(span.to_us)}, before the first record that topic {self.name} still holds "
                f"({moment(min(first_ms) * _US_PER_MS)}): choose a later range, give the topic a longer retention, or "
                "backtest a file of that time"
            )

    def read(
        self, topic: Topic, number: int, offsets: range, *, most: int | None = None, batch: int = READ_BATCH
    ) -> Iterator[list[Record]]:
        """Yield the committed records of some offsets of a partition.

        Args:
            topic: The topic.
            number: The partition.
            offsets: Offsets to read.
            most: Records after which to end.
            batch: Records to yield at a time, at most.
        """
        with closing(self._reader(topic, number, offsets.start)) as reader:
            while records := reader.read_to(offsets.stop, most or batch):
                yield records
                if most is not None:
                    return

    def _reader(self, topic: Topic, number: int, start: int) -> RangeReader:
        name = self.settings.topic(topic.name)
        tuning = QUEUE_OF_BLOCKS if topic.holds_blocks else None
        return RangeReader(self.bootstrap, self.settings, name, number, start, tuning=tuning)


def columns_of(reader: RangeReader, end: int, arrivals: Arrivals) -> Iterator[RecordColumns]:
    """The records below offset ``end`` that arrived then."""
    cut = Cut(arrivals)
    while not cut.ended and (read := reader.read_columns(end)).values:
        of = cut.of(read.timestamp_ms)
        yield RecordColumns(read.partition, read.offset[of], read.timestamp_ms[of], read.values[of])


def moment(time_us: int) -> str:
    """A time as a person writes it, in UTC."""
    return f"{_EPOCH + timedelta(microseconds=time_us):%Y-%m-%d %H:%M:%S}"


def time_us(at: datetime | None, otherwise: int) -> int:
    """Microseconds since 1970 of a time, which is of UTC where it has no offset."""
    if at is None:
        return otherwise
    return ((at if at.tzinfo is not None else at.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)


def _noted(rows: Labels, table: pa.Table, first: int, book: LabelBook) -> Labels:
    of = rows.row - first
    words = wire.texts(wire.column(table, "label"))[0].take(pa.array(of))
    book.add(rows.transaction_id, rows.card_id, words, rows.source, rows.known_at_us, _fraud_types(table, of))
    return rows


def _fraud_types(table: pa.Table, of: NDArray[np.int64]) -> pa.Array:
    """What some rows tell of the type of their fraud."""
    if "fraud_type" not in table.column_names:
        return pa.nulls(len(of), pa.string())
    told = wire.column(table, "fraud_type").take(pa.array(of)).dictionary_encode()
    words = [None if word is None else str(word) for word in told.dictionary.to_pylist()]
    return pa.array(words, pa.string()).take(told.indices)


def _borne(table: pa.Table, of: NDArray[np.int64]) -> NDArray[np.int8]:
    """What some rows of a file turned out to be, by its column ``fraud``. Raises `UnusableSource`."""
    told = frauds(table.select(["fraud"]).take(pa.array(of)))
    return np.where(told, KNOWN.index(FRAUD), KNOWN.index(LEGITIMATE)).astype(np.int8)


def _noting_late(rejects: list[Reject]) -> Any:
    def of(kind: str) -> Any:
        def note(rows: Transactions | Labels) -> None:
            text = "arrived later than the lateness within which records are put in order; raise --lateness"
            rejects.extend(Reject(kind, int(row), TOO_LATE, f"The record {text}.") for row in rows.row.tolist())

        return note

    return of
