"""Exports topics to files: missing offsets only, partition by partition."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.exports.feature_rows import FeatureRowFormat
from pipeline.exports.intended_contents import Contents, Offsets, note_contents
from pipeline.exports.parquet_files import ExportError, Origin, TopicFiles, missing
from pipeline.exports.rows import ERROR, OFFSET, RowFormat
from pipeline.kafka.cluster.admin import reached
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.cluster import topic_identities
from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.cluster.log_offsets import first_offsets, offsets_at, partition_numbers, stable_ends
from pipeline.kafka.readers.replay_reader import RangeReader
from pipeline.kafka.readers.topic_reader import READ_BATCH
from pipeline.settings import Settings
from schemas.topics import DECISION_FEATURES, TOPICS, TRANSACTIONS, Topic


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


FILE_ROWS: Final = 500_000
"""Rows of a file at most, by default; an export that is killed reads at most so many again."""

_FIRST_RECORDS: Final = 100
_BATCH_BYTES: Final = 16 * 1024 * 1024
"""Bytes of values that are read at a time; records of megabytes come one by one."""


class Named(NamedTuple):
    """A topic to be exported."""

    name: str
    """Without the prefix; also of its directory."""
    form: Topic
    """The topic of the pipeline whose messages it has."""


class Asked(NamedTuple):
    """Times of records, in milliseconds since 1970-01-01T00:00:00Z; None: as far as the topics go."""

    from_ms: int | None = None
    to_ms: int | None = None


EVERYTHING: Final = Asked()


class ExportProgress(NamedTuple):
    """The progress of an export."""

    topic: str
    records: int
    """Written so far."""
    elapsed_s: float
    share: float
    """Share of the offsets that were missing, 0 to 1."""


@dataclass(slots=True)
class Exported:
    """The result of exporting one topic."""

    topic: str
    """The full name."""
    directory: Path
    records: int = 0
    """Written by this export."""
    rows: int = 0
    """Rows of them: on ``features`` one for each decision."""
    undecoded: int = 0
    """Undecodable records among them, kept as bytes alone."""
    present: int = 0
    """Offsets that were exported before."""
    left: int = 0
    """Offsets that are still to be exported."""
    note: str | None = None
    """Why there is nothing."""


def named(text: str, topics: Iterable[Topic] = TOPICS) -> Named:
    """Parse ``NAME`` or ``NAME=TOPIC``: one of ``topics``, or one with the messages of another.

    Raises `ExportError`.
    """
    name, equals, form = text.partition("=")
    known = {topic.name: topic for topic in topics}
    if (form if equals else name) not in known or not name:
        raise ExportError(
            f"{text!r} is no topic of the pipeline: write one of {', '.join(known)}, or NAME=TOPIC for a topic of your "
            "own that has the messages of one of them"
        )
    return Named(name, known[form or name])


def row_format(topic: Topic, *, mapped: bool = False) -> RowFormat | FeatureRowFormat:
    """Return the format of the rows of a topic; ``mapped``: a mapping reads the bytes of transactions."""
    if topic == DECISION_FEATURES:
        return FeatureRowFormat()
    return RowFormat(topic, keeps_bytes=mapped and topic == TRANSACTIONS)


class TopicExport:
    """An export of some topics into a directory.

    Args:
        bootstrap: Addresses of brokers.
        settings: Give the prefix of topics and the client's configuration.
        directory: Has a directory for each topic.
        topics: The topics.
        asked: Times of the records.
        file_rows: Rows of a file at most.
    """

    def __init__(
        self,
        bootstrap: str,
        settings: Settings,
        directory: Path,
        topics: Sequence[Named],
        asked: Asked = EVERYTHING,
        file_rows: int = FILE_ROWS,
    ) -> None:
        self._bootstrap, self._settings, self._directory = bootstrap, settings, directory
        self._topics, self._asked, self._file_rows = topics, asked, file_rows

    def run(
        self, progress: Callable[[ExportProgress], None] = lambda _: None, stopped: Callable[[], bool] = lambda: False
    ) -> list[Exported]:
        """Write what is not there yet; once ``stopped`` says so, what was read is made whole, and the rest left.

        Raises `ExportError`, `TopicError`, `pipeline.kafka.cluster.errors.ClusterUnreachable`, ``KafkaException``.
        """
        from_ms, to_ms = self._asked
        if from_ms is not None and to_ms is not None and to_ms <= from_ms:
            raise ExportError("the range is empty: let it end later than it begins")
        reached(admin_client(self._bootstrap, settings=self._settings), self._bootstrap)
        with ExitStack() as stack:
            logs = [self._open(topic, stack) for topic in self._topics]
            if all(log.exported.note for log in logs):
                raise ExportError("\n".join(str(log.exported.note) for log in logs))
            # Of all topics before the first record: one that is not reached is not whole either.
            for log in logs:
                if log.exported.note is None:
                    note_contents(log.files.directory, Contents(log.files.origin, log.whole))
            run = _Run(self._bootstrap, self._settings, self._file_rows, progress, stopped)
            run.total = sum(len(offsets) for log in logs for _, offsets in log.missing)
            for log in logs:
                run.write(log)
            return [log.exported for log in logs]

    def _open(self, topic: Named, stack: ExitStack) -> "_TopicLog":
        name = self._settings.topic(topic.name)
        client = admin_client(self._bootstrap, settings=self._settings)
        numbers = partition_numbers(client, name)
        ids = topic_identities(client, [name])
        rows = row_format(topic.form, mapped=self._settings.mapping_file is not None)
        origin = Origin(ids.cluster_id, name, ids.topic_ids[name], len(numbers))
        files = TopicFiles(self._directory / topic.name, origin, rows.schema)
        begins = first_offsets(client, [(name, number) for number in numbers])
        asked, note = self._ranges(name, numbers, {number: begins[name, number] for number in numbers})
        log = _TopicLog(name, rows, files, [], {}, Exported(name, files.directory, note=note))
        if note is not None:
            return log
        stack.enter_context(files.held())
        for number, offsets in asked.items():
            covered = files.covered(number)
            log.exported.present += sum(map(len, covered))
            # What was exported may be gone from the topic by now.
            begin = (
                min([offsets.start, *(held.start for held in covered)])
                if self._asked.from_ms is None
                else offsets.start
            )
            found = self._missing(name, number, range(begin, offsets.stop), covered, begins[name, number])
            log.missing += [(number, gap) for gap in found]
            log.exported.left += sum(map(len, found))
            if parts := [*covered, *found]:
                log.whole[number] = Offsets(min(part.start for part in parts), max(part.stop for part in parts))
        return log

    def _missing(self, name: str, number: int, asked: range, covered: Sequence[range], first: int) -> list[range]:
        found, whole = missing(asked, covered)
        if gone := [offsets for offsets in found if offsets.start < first]:
            raise ExportError(
                f"topic {name} partition {number} no longer holds offsets {gone[0].start} to "
                f"{min(gone[0].stop, first)}, which were not exported in time: name another directory to go on with "
                "what it still holds"
            )
        if not whole:
            raise ExportError(
                f"topic {name} partition {number}: a hole would be left between what is asked for ({_span(asked)}) and "
                f"what the directory holds ({_span(range(covered[0].start, covered[-1].stop))}): choose a range that "
                "touches it, or name another directory"
            )
        if covered and covered[-1].stop > asked.stop:
            raise ExportError(
                f"the directory holds topic {name} partition {number} up to offset {covered[-1].stop}, beyond the "
                f"range that is asked for, which ends at {asked.stop}: name another directory"
            )
        return found

    def _ranges(self, name: str, numbers: Sequence[int], begins: dict[int, int]) -> tuple[dict[int, range], str | None]:
        """(offsets of each partition that are asked for, why there are none)."""
        client = admin_client(self._bootstrap, settings=self._settings)
        partitions = [(name, number) for number in numbers]
        starts, ends = dict(begins), stable_ends(self._bootstrap, self._settings, name, numbers)
        from_ms, to_ms = self._asked
        if all(ends[number] <= begins[number] for number in numbers):
            return {}, f"topic {name} holds no record: check the topic prefix, or export it once there are some"
        if from_ms is not None:
            found = offsets_at(client, partitions, max(from_ms, 0))
            starts = {number: min(found[name, number], ends[number]) for number in numbers}
        if to_ms is not None:
            found = offsets_at(client, partitions, max(to_ms, 0))
            ends = {number: min(ends[number], found[name, number]) for number in numbers}
            if all(ends[number] <= begins[number] for number in numbers):
                return {}, f"the range ends before the first record that topic {name} still holds: choose a later one"
        if all(ends[number] <= starts[number] for number in numbers):
            return {}, f"topic {name} has no record in the range: choose another one with --from and --to"
        return {number: range(starts[number], ends[number]) for number in numbers}, None


@dataclass(slots=True)
class _TopicLog:
    """A topic, and what of it is to be written."""

    name: str
    rows: RowFormat | FeatureRowFormat
    files: TopicFiles
    missing: list[tuple[int, range]]
    """Partitions and offsets."""
    whole: dict[int, Offsets]
    """Range of offsets of each partition that its files hold once these are there, without a hole."""
    exported: Exported


class _Interrupted(Exception):
    pass


@dataclass(slots=True)
class _Run:
    bootstrap: str
    settings: Settings
    file_rows: int
    progress: Callable[[ExportProgress], None]
    stopped: Callable[[], bool]
    total: int = 0
    passed: int = 0
    """Offsets."""
    records: int = 0
    started_s: float = 0.0

    def write(self, log: _TopicLog) -> None:
        """Write what of a topic is missing, file by file."""
        self.started_s = self.started_s or time.monotonic()
        for number, offsets in log.missing:
            reader = RangeReader(self.bootstrap, self.settings, log.name, number, offsets.start, self._interrupt)
            with closing(reader):
                pieces = Pieces(self._batches(log, number, reader, offsets.stop))
                at = offsets.start
                while at < offsets.stop and not self.stopped():
                    at = self._write_file(log, number, pieces, at, offsets.stop)

    def _write_file(self, log: _TopicLog, number: int, pieces: Pieces, start: int, end: int) -> int:
        """Write one file; return the offset behind it."""
        at = start
        with log.files.part(number, start) as part:
            with suppress(_Interrupted):
                while at < end and not self.stopped():
                    if (piece := pieces.take(self.file_rows, part.rows)) is None:
                        break
                    part.add(piece.rows)
                    at = piece.end
                    self._note(log, piece.rows, piece.records)
                    self._report_progress(log, at - start)
            if at > start:
                part.finish(at)
        self.passed += at - start
        log.exported.left -= at - start
        self._report_progress(log, 0)
        return at

    def _batches(
        self, log: _TopicLog, number: int, reader: RangeReader, end: int
    ) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Yield rows, and the offset behind their records, up to the end of the range."""
        most = min(_FIRST_RECORDS, self.file_rows)
        try:
            while records := reader.read_to(end, most):
                yield log.rows.rows(records), reader.position
                size = sum(len(record.value or b"") for record in records)
                most = max(min(2 * most, READ_BATCH, _BATCH_BYTES * len(records) // max(size, 1)), 1)
            yield log.rows.rows([]), end
        except TopicError as error:
            raise ExportError(
                f"topic {log.name} partition {number}: offset {reader.position} was deleted before it was read: name "
                "another directory to go on with what the topic still holds"
            ) from error

    def _interrupt(self) -> None:
        if self.stopped():
            raise _Interrupted

    def _note(self, log: _TopicLog, rows: pa.RecordBatch, records: int) -> None:
        self.records += records
        log.exported.records += records
        log.exported.rows += rows.num_rows
        if ERROR in rows.schema.names:
            log.exported.undecoded += rows.num_rows - rows.column(ERROR).null_count

    def _report_progress(self, log: _TopicLog, ahead: int) -> None:
        share = (self.passed + ahead) / self.total if self.total else 1.0
        self.progress(ExportProgress(log.name, self.records, time.monotonic() - self.started_s, share))


def _span(offsets: range) -> str:
    return f"offsets {offsets.start} to {offsets.stop}"
