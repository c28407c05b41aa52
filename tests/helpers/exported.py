"""Files as ``fraud-pipeline export`` writes them, without a cluster."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.exports.parquet_files import Origin, TopicFiles
from pipeline.exports.topic_export import row_format
from schemas.records import Record
from schemas.topics import Topic


def export(directory: Path, topic: Topic, values: Sequence[bytes], timestamps_ms: Sequence[int] | None = None) -> None:
    """Write records of one partition below ``directory``, by default all of 1970."""
    rows = row_format(topic)
    stamps = [0] * len(values) if timestamps_ms is None else timestamps_ms
    records = [
        Record(topic.name, 0, number, stamp, None, value)
        for number, (value, stamp) in enumerate(zip(values, stamps, strict=True))
    ]
    files = TopicFiles(directory / topic.name, Origin("cluster", topic.name, "id", 1), rows.schema)
    with files.held(), files.part(0, 0) as part:
        part.add(rows.rows(records))
        part.finish(len(records))
