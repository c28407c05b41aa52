"""Files as ``fraud-pipeline export`` writes them, without a cluster."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.exports.files import Origin, TopicFiles
from pipeline.exports.topics import row_format
from schemas.records import Record
from schemas.topics import Topic


def export(directory: Path, topic: Topic, values: Sequence[bytes]) -> None:
    """Write records of one partition below ``directory``."""
    rows = row_format(topic)
    records = [Record(topic.name, 0, number, 0, None, value) for number, value in enumerate(values)]
    files = TopicFiles(directory / topic.name, Origin("cluster", topic.name, "id", 1), rows.schema)
    with files.held(), files.part(0, 0) as part:
        part.add(rows.rows(records))
        part.finish(len(records))
