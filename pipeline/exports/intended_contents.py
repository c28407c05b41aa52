"""The intended contents of a topic's directory: noted before its first file, so that a reader sees what is missing.

Names show which offsets a file holds, but not which files there were to be: a partition may have no record, and the
last file of one that was not read to its end looks like any other.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.exports.parquet_files import (
    ExportError,
    File,
    Origin,
    files_in,
    missing,
    origin_of,
    partition_directory,
    schema_of,
    unfinished,
)
from pipeline.state.durability import flush_directory, write_flushed


class Offsets(NamedTuple):
    """Offsets of a partition."""

    start: int
    end: int
    """Excluded."""


class Contents(msgspec.Struct, frozen=True):
    """The contents of a topic's directory once its export is complete."""

    origin: Origin
    offsets: dict[int, Offsets]
    """Offsets by partition; without those that have none."""


_AGAIN: Final = "give the command of the export again, which adds what is missing"


def contents_path(directory: Path) -> Path:
    """Return the path of the contents file: beside a topic's directory, so that it outlives the directory."""
    return directory.with_name(f"{directory.name}.json")


def contents_of(directory: Path) -> Contents | None:
    """Read the intended contents of a topic's directory; None if no file names them. Raises `ExportError`."""
    path = contents_path(directory)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Contents)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise ExportError(f"{path} does not tell what an export wrote ({error}): delete it; then {_AGAIN}") from error


def note_contents(directory: Path, contents: Contents) -> None:
    """Note what a topic's directory is to hold; durable when this returns."""
    path = contents_path(directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}")
    write_flushed(new, msgspec.json.encode(contents))
    new.rename(path)
    flush_directory(path.parent)


def check_whole(directory: Path) -> list[str]:
    """Refuse a topic's directory that an export wrote, and that lacks some of what it is to hold, or holds more.

    Returns warnings of what cannot be known. Says nothing of files that no export wrote. Raises `ExportError`.
    """
    paths = sorted(directory.rglob("*.parquet"))
    contents = contents_of(directory)
    origin = contents.origin if contents is not None else origin_of(schema_of(paths[0])) if paths else None
    if origin is None:
        return []
    found = {number: files_in(partition_directory(directory, number)) for number in range(origin.partitions)}
    own = {file.path for files in found.values() for file in files if origin_of(file.schema) == origin}
    strangers = set(paths) - own
    if strangers:
        raise ExportError(
            f"{min(strangers)} is no file of the export beside it, which is of topic {origin.topic} "
            f"({origin.topic_id}) of cluster {origin.cluster_id}: remove it, or export into another directory"
        )
    if contents is not None:
        for number, offsets in sorted(contents.offsets.items()):
            _refuse_gaps(directory, number, range(*offsets), found[number])
        return []
    if left := unfinished(directory):
        raise ExportError(f"{left[0]} is a file that was not finished: {_AGAIN}")
    for number, files in found.items():
        if files:
            _refuse_gaps(directory, number, range(files[0].offsets.start, files[-1].offsets.stop), files)
    empty = ", ".join(str(number) for number, files in found.items() if not files)
    return [
        f"{contents_path(directory)} is missing, and nothing else tells whether all files are there"
        + (f"; there is none of partition {empty}, of {origin.partitions}" if empty else "")
    ]


def _refuse_gaps(directory: Path, number: int, whole: range, files: list[File]) -> None:
    if gaps := missing(whole, [file.offsets for file in files]).ranges:
        raise ExportError(
            f"{directory} lacks offsets {gaps[0].start} to {gaps[0].stop} of partition {number}: the export ended "
            f"early, or files were removed; {_AGAIN}"
        )


_CHUNK_ROWS: Final = 65_536


def require_export(directory: Path, needed: Sequence[str], exported: Sequence[str]) -> None:
    """Raise `ExportError` if topics are missing below an export, or files of them are.

    Args:
        directory: Directory of the export.
        needed: Topics that must have files.
        exported: All topics that are read, for the text of the error; those that are there must be whole.
    """
    for topic in needed:
        if not _files(directory, topic):
            raise ExportError(
                f"{directory} holds no Parquet file below {topic}/: write them with `fraud-pipeline export {directory} "
                f"{' '.join(exported)}`"
            )
    for topic in exported:
        check_whole(directory / topic)


def export_batches(directory: Path, topic: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of an exported topic; none where it was not exported.

    Args:
        directory: Directory of the export.
        topic: Name of the topic, without the prefix.
        columns: Columns to read.

    Raises:
        ExportError: A file is damaged, or of something else.
    """
    for path in _files(directory, topic):
        try:
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(_CHUNK_ROWS, columns=columns)
        except (pa.ArrowInvalid, KeyError, OSError) as error:
            raise ExportError(f"{path} is no file of an export ({error}): delete it, and export again") from error


def _files(directory: Path, topic: str) -> list[Path]:
    return sorted((directory / topic).rglob("*.parquet"))
