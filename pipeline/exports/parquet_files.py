"""Parquet files of a topic: each holds a range of offsets, is whole or not there, and names its origin."""

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.state.durability import flush_directory


class ExportError(ValueError):
    """The topics cannot be exported as it was asked, or what was exported is not whole; the text says what to do."""


FORMAT: Final = 1
"""Version of the layout; an export does not go on with a directory of another one."""
_DIRECTORY: Final = "kafka_partition"
"""Not the column's name: readers that find one name in path and file want both to have one type."""
_DIGITS: Final = 20
_ORIGIN: Final = b"fraud_pipeline.export"
_UNFINISHED: Final = ".unfinished"
_GROUP_BYTES: Final = 32 * 1024 * 1024
"""Rows are written once they are so large in memory, or so many as `_GROUP_ROWS`."""
_GROUP_ROWS: Final = 65_536


class Origin(msgspec.Struct, frozen=True):
    """The origin of the files of a topic's directory, written into each of them."""

    cluster_id: str
    topic: str
    """The full name."""
    topic_id: str
    """Kafka's; a topic that is made anew under the same name has another one."""
    partitions: int
    format: int = FORMAT


def origin_of(schema: pa.Schema) -> Origin | None:
    """Return the origin of a schema's file; None where no export wrote it."""
    origin_json = (schema.metadata or {}).get(_ORIGIN)
    return None if origin_json is None else msgspec.json.decode(origin_json, type=Origin)


class File(NamedTuple):
    """A file under its name."""

    path: Path
    offsets: range
    schema: pa.Schema


def partition_directory(directory: Path, number: int) -> Path:
    """Return the directory of a partition's files, below a topic's directory."""
    return directory / f"{_DIRECTORY}={number}"


def files_in(directory: Path) -> list[File]:
    """The files of a partition's directory, in the order of their offsets. Raises `ExportError` for what is none."""
    found = sorted(map(_named, directory.glob("*.parquet")), key=lambda file: file.offsets.start)
    for part, following in pairwise(found):
        if following.offsets.start < part.offsets.stop:
            raise ExportError(
                f"two files in {directory} hold offset {following.offsets.start}: remove what was put there, or name "
                "another directory"
            )
    return found


def _named(path: Path) -> File:
    first, dash, end = path.stem.partition("-")
    if not (dash and first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise ExportError(f"{path} is no file of an export: remove it, or name another directory")
    return File(path, range(int(first), int(end)), schema_of(path))


def schema_of(path: Path) -> pa.Schema:
    """The schema of a file. Raises `ExportError` where it cannot be read."""
    try:
        return pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ExportError(f"{path} is damaged ({error}): delete it, and export again") from error


def unfinished(directory: Path) -> list[Path]:
    """Files below a topic's directory that somebody writes, or wrote when he was killed."""
    return sorted(directory.rglob(f".*{_UNFINISHED}"))


class TopicFiles:
    """The directory of one topic, which no other process exports into meanwhile."""

    def __init__(self, directory: Path, origin: Origin, schema: pa.Schema) -> None:
        self.directory, self.origin = directory, origin
        self.schema = schema.with_metadata({_ORIGIN: msgspec.json.encode(origin)})

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep others out, and clear away what an export that was killed has not finished. Raises `ExportError`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ExportError(
                    f"another process exports into {self.directory}: wait for its end, or name another directory"
                ) from None
            for path in unfinished(self.directory):
                path.unlink()
            yield

    def covered(self, number: int) -> list[range]:
        """The offsets of a partition that files hold, ascending. Raises `ExportError` for a file that is not theirs."""
        return [self._checked(file) for file in files_in(partition_directory(self.directory, number))]

    def part(self, number: int, start: int) -> "Part":
        """A file of records from offset ``start`` on."""
        return Part(partition_directory(self.directory, number), start, self.schema)

    def _checked(self, file: File) -> range:
        origin = origin_of(file.schema)
        if origin is not None and origin != self.origin:
            contents = (
                f"topic {origin.topic} ({origin.topic_id}) of cluster {origin.cluster_id}, {origin.partitions} "
                f"partitions; this one is {self.origin.topic} ({self.origin.topic_id}) of cluster "
                f"{self.origin.cluster_id}, {self.origin.partitions} partitions"
            )
            raise ExportError(f"{self.directory} holds {contents}: name another directory")
        if origin is None or not file.schema.equals(self.schema):
            raise ExportError(
                f"{file.path} has other columns than this release writes: name another directory, and export all of it "
                "anew"
            )
        return file.offsets


class Part:
    """A file on its way; under its name only once it is whole.

    Args:
        directory: Directory of the partition; made where it is missing.
        start: First offset that the file covers.
        schema: Columns of the rows.
    """

    def __init__(self, directory: Path, start: int, schema: pa.Schema) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._start = directory, start
        self._path = directory / f".{start:0{_DIGITS}}{_UNFINISHED}"
        self._schema = schema
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = self._waiting_rows = 0
        self.rows = 0
        self._file = self._path.open("wb")
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._file.closed:
            # Closed here, or it would write its end when it is collected; a full disk was reported already.
            with suppress(OSError, pa.ArrowException):
                self._writer.close()
            self._file.close()
        self._path.unlink(missing_ok=True)

    def add(self, rows: pa.RecordBatch) -> None:
        """Append rows, of which there may be none."""
        if rows.num_rows:
            self._waiting.append(rows)
        self.rows += rows.num_rows
        self._waiting_rows += rows.num_rows
        self._waiting_bytes += rows.nbytes
        if self._waiting_rows >= _GROUP_ROWS or self._waiting_bytes >= _GROUP_BYTES:
            self._write()

    def finish(self, end: int) -> None:
        """Let it appear as the whole of what lies before offset ``end``; durable when this returns."""
        self._write()
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.rename(self._directory / f"{self._start:0{_DIGITS}}-{end:0{_DIGITS}}.parquet")
        for directory in (self._directory, self._directory.parent):
            flush_directory(directory)

    def _write(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting, self._schema))
        self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0


class Missing(NamedTuple):
    """The offsets that were asked for and that no file holds yet."""

    ranges: list[range]
    whole: bool
    """True if all that is held is one range of offsets once these are there."""


def missing(asked: range, covered: Sequence[range]) -> Missing:
    """Return the parts of ``asked`` that are not in ``covered`` (ascending, apart from each other).

    >>> missing(range(0, 10), [range(2, 4), range(4, 7)])
    Missing(ranges=[range(0, 2), range(7, 10)], whole=True)
    >>> missing(range(0, 10), [range(12, 14)]).whole
    False
    """
    found = []
    at = asked.start
    for held in covered:
        if at < min(held.start, asked.stop):
            found.append(range(at, min(held.start, asked.stop)))
        at = max(at, held.stop)
    if at < asked.stop:
        found.append(range(at, asked.stop))
    return Missing(found, _is_one(sorted((*found, *covered), key=lambda covered_range: covered_range.start)))


def _is_one(ranges: Iterable[range]) -> bool:
    at = None
    for part in ranges:
        if at is not None and part.start != at:
            return False
        at = part.stop
    return True
