"""Reading exported topics back, column by column."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.exports.contents import check_whole
from pipeline.exports.errors import ExportError

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
