"""A history on the topics of a cluster."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

from pipeline.backtest.input.acceptance import Acceptance
from pipeline.backtest.input.label_book import LabelBook
from pipeline.backtest.input.merge import LogPart, Numbering
from pipeline.backtest.input.sources import OpenedHistory, opened_logs
from pipeline.backtest.input.span import EARLIEST_US, LATEST_US, ArrivalFilter, ArrivalRange, RangeError, Span
from pipeline.engine.records.accept import accept_labels
from pipeline.engine.records.columns import Labels, Reject, Transactions
from pipeline.features.built_in import LATENESS_US
from pipeline.kafka.cluster.admin import reached
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.cluster import stamped_by_producers
from pipeline.kafka.cluster.log_offsets import first_offsets, offsets_at, partition_numbers, stable_ends
from pipeline.kafka.readers.replay_reader import RangeReader, RecordColumns
from pipeline.kafka.readers.topic_reader import QUEUE_OF_BLOCKS, READ_BATCH
from pipeline.settings import Settings
from schemas.records import Record
from schemas.times import US_PER_MS, moment
from schemas.topics import TRANSACTIONS, Topic, topic_of_labels


@dataclass(frozen=True, slots=True)
class TopicSource:
    """The topics of transactions and labels, read without a group; nothing about them is written anywhere."""

    bootstrap: str
    settings: Settings
    lateness_us: int = LATENESS_US
    """Time after its event time at which a transaction may arrive; record times are looked for with this margin."""
    bears_truth: bool = False
    has_labels: bool = True
    time_zone: str = "UTC"

    @property
    def name(self) -> str:
        """The topic's name on the cluster."""
        return self.settings.topic(TRANSACTIONS.name)

    @property
    def numbering(self) -> Numbering:
        """Return how rows name records of ``transactions``. Raises `ClusterUnreachable`, `TopicError`."""
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

    def open(self, span: Span, acceptance: Acceptance, rejects: list[Reject], book: LabelBook) -> OpenedHistory:
        """Open like `Source`."""
        of_range = span.arrivals(acceptance.future_tolerance_us, self.lateness_us)
        until_now = span.arrivals(acceptance.future_tolerance_us, None)
        # Records bound their ends as well.
        sold = self.ranges(TRANSACTIONS, span, acceptance.future_tolerance_us, to_end=True)
        label_logs = [
            (topic, number, offsets)
            for topic in map(topic_of_labels, acceptance.sources.topics)
            for number, offsets in self.ranges(topic, span, acceptance.future_tolerance_us, to_end=True).items()
        ]
        self.refuse_lost(span, len(sold))
        numbering = Numbering(len(sold))

        of_labels = Numbering(len(label_logs))

        def accepted(topic: Topic, log: int, read: RecordColumns) -> LogPart[Labels]:
            """Accept labels of a partition, which is the ``log``-th of all topics of labels."""
            return labels_of(read._replace(partition=log), acceptance, of_labels, rejects, book, topic.name)

        readers = ExitStack()

        def begun(topic: Topic, number: int, offsets: range, arrivals: ArrivalRange) -> Iterator[RecordColumns]:
            reader = readers.enter_context(closing(self._reader(topic, number, offsets.start)))
            return columns_of(reader, offsets.stop, arrivals)

        transactions = [
            (
                transactions_of(read, acceptance, numbering, rejects)
                for read in begun(TRANSACTIONS, number, offsets, of_range)
            )
            for number, offsets in sold.items()
            if offsets
        ]
        labels = [
            map(partial(accepted, topic, log), begun(topic, number, offsets, until_now))
            for log, (topic, number, offsets) in enumerate(label_logs)
            if offsets
        ]
        return opened_logs(transactions, labels, span, self.lateness_us, rejects, readers.close)

    def ranges(self, topic: Topic, span: Span, tolerance_us: int, *, to_end: bool) -> dict[int, range]:
        """Return the offsets of each partition that may hold something of the span.

        Args:
            topic: Topic, whose name gets the prefix of the settings.
            span: Event times, the warm-up's included.
            tolerance_us: Microseconds by which an event time may be ahead of its record's arrival.
            to_end: Go on to the end of the topic; without, to what arrives later than ``lateness_us`` after the span.

        Returns:
            First offset, and the one behind the last, by partition.

        Raises:
            TopicError: The topic is missing.
        """
        client = admin_client(self.bootstrap, settings=self.settings)
        full = self.settings.topic(topic.name)
        numbers = partition_numbers(client, full)
        positions = [(full, number) for number in numbers]
        first_ms, end_ms = span.arrivals(tolerance_us, None if to_end else self.lateness_us)
        if first_ms > ArrivalRange().first_ms:
            starts = offsets_at(client, positions, first_ms)
        else:
            starts = first_offsets(client, positions)
        ends = stable_ends(self.bootstrap, self.settings, full, numbers)
        if end_ms < ArrivalRange().end_ms:
            found = offsets_at(client, positions, end_ms)
            ends = {number: min(ends[number], found[full, number]) for number in numbers}
        return {number: range(starts[full, number], ends[number]) for number in numbers}

    def refuse_lost(self, span: Span, partitions: int) -> None:
        """Raise `RangeError` where all of the range lies before what the topic still holds, or nothing is there."""
        client = admin_client(self.bootstrap, settings=self.settings)
        positions = [(self.name, number) for number in range(partitions)]
        begins = first_offsets(client, positions)
        ends = stable_ends(self.bootstrap, self.settings, self.name, range(partitions))
        if all(ends[number] <= begins[self.name, number] for number in range(partitions)):
            raise RangeError(f"topic {self.name} holds no record: send transactions first, or check the topic prefix")
        if span.to_us >= LATEST_US:
            return
        last_us = max(span.to_us + self.lateness_us, 0)
        behind = offsets_at(client, positions, last_us // US_PER_MS)
        if all(behind[position] <= begins[position] for position in positions):
            first_ms = [
                record.timestamp_ms
                for position in positions
                for records in self.read(TRANSACTIONS, position[1], range(begins[position], ends[position[1]]), most=1)
                for record in records
            ]
            raise RangeError(
                f"the range ends at {moment(span.to_us)}, before the first record that topic {self.name} still holds "
                f"({moment(min(first_ms) * US_PER_MS)}): choose a later range, give the topic a longer retention, or "
                "backtest a file of that time"
            )

    def read(
        self, topic: Topic, number: int, offsets: range, *, most: int | None = None, batch: int = READ_BATCH
    ) -> Iterator[list[Record]]:
        """Yield the committed records of some offsets of a partition.

        Args:
            topic: Topic, whose name gets the prefix of the settings.
            number: Partition.
            offsets: First offset, and the one behind the last.
            most: Yield a single batch of at most so many records. None: yield all.
            batch: Most records of a batch, where ``most`` is None.
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


def columns_of(reader: RangeReader, end: int, arrivals: ArrivalRange) -> Iterator[RecordColumns]:
    """The records below an offset that arrived in time, as `ArrivalFilter` says.

    Args:
        reader: Stands at the first record to look at; it is not closed here.
        end: Offset behind the last record.
        arrivals: Times of arrival, in milliseconds since 1970.

    Returns:
        Batches in the order of offsets, empty ones among them.
    """
    cut = ArrivalFilter(arrivals)
    while not cut.ended and (read := reader.read_columns(end)).values:
        rows = cut.rows(read.timestamp_ms)
        yield RecordColumns(read.partition, read.offset[rows], read.timestamp_ms[rows], read.values[rows])


def transactions_of(
    read: RecordColumns, acceptance: Acceptance, numbering: Numbering, rejects: list[Reject]
) -> LogPart[Transactions]:
    """Accepted transactions; what is refused goes to ``rejects``, as its dead letter tells it."""
    arrived_us = read.arrived_us
    rows, refused = acceptance.records(read.values, arrived_us)
    rejects += _numbered(refused, read, numbering)
    return numbering.part(rows, read.partition, read.offset, arrived_us)


def labels_of(
    read: RecordColumns,
    acceptance: Acceptance,
    numbering: Numbering,
    rejects: list[Reject],
    book: LabelBook,
    topic: str,
) -> LogPart[Labels]:
    """Accepted labels of some records.

    Args:
        read: Records; ``partition`` is a number below ``numbering.partitions``.
        acceptance: Rules of the labels.
        numbering: Numbers the partitions of all topics of labels.
        rejects: Refused labels are appended, as their dead letters tell it.
        book: Accepted labels are added.
        topic: Name of their topic without prefix; it must speak for a label's source.
    """
    arrived_us = read.arrived_us
    rows, refused = accept_labels(
        read.values,
        arrived_us,
        acceptance.future_tolerance_us,
        lambda _, label: acceptance.sources.check(topic, label.source),
    )
    rejects += _numbered(refused, read, numbering)
    return numbering.part(book.add_labels(rows), read.partition, read.offset, arrived_us)


def _numbered(refused: list[Reject], read: RecordColumns, numbering: Numbering) -> list[Reject]:
    return [reject._replace(row=numbering.row(read.partition, int(read.offset[reject.row]))) for reject in refused]
