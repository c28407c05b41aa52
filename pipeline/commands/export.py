"""``fraud-pipeline export``: topics as Parquet files."""

import sys
import threading
from datetime import datetime
from pathlib import Path

import click

from pipeline.cli import INTERRUPTED
from pipeline.commands.option_types import Moment
from pipeline.commands.progress import ProgressBar, interrupts
from pipeline.commands.shared_options import named_servers
from pipeline.exports.topic_export import FILE_ROWS, Asked, Exported, ExportProgress, TopicExport, named
from pipeline.settings import Settings
from schemas.codec import timestamp_us
from schemas.times import US_PER_MS
from schemas.topics import TRANSACTIONS


@click.command("export")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.argument("topics", nargs=-1, metavar="[TOPIC]...")
@click.option("--bootstrap", help="Cluster whose topics are read.  [default: KAFKA_BOOTSTRAP_SERVERS]")
@click.option("--from", "start", type=Moment(), help="From the first record of this time on.")
@click.option("--to", "end", type=Moment(), help="Up to the first record of this time.")
@click.option(
    "--file-rows", type=click.IntRange(min=1), default=FILE_ROWS, show_default=True, help="Rows of a file, at most."
)
def command(
    directory: Path,
    topics: tuple[str, ...],
    bootstrap: str | None,
    start: datetime | None,
    end: datetime | None,
    file_rows: int,
) -> None:
    """Write topics to Parquet files below DIRECTORY, by topic and partition; transactions and labels by default.

    TOPIC is one of the pipeline's, or NAME=TOPIC for one that has the messages of another, such as backtest writes.
    Committed records are read without a group. What files hold already is not read again, so that an export that ended
    early, or topics that have grown, are gone on with by the same command. Ctrl-C leaves what was read.
    """
    settings = Settings()
    servers = named_servers(bootstrap, settings)
    stop = threading.Event()
    wanted = [
        named(text, settings.topics) for text in dict.fromkeys(topics or (TRANSACTIONS.name, *settings.label_topics))
    ]
    first_ms, end_ms = (None if at is None else timestamp_us(at) // US_PER_MS for at in (start, end))
    export = TopicExport(servers, settings, directory, wanted, Asked(first_ms, end_ms), file_rows)
    with interrupts(stop), ProgressBar("looking at the topics") as bar:

        def show(step: ExportProgress) -> None:
            bar.show(step.topic, step.records, "records", step.elapsed_s, step.share)

        exported = export.run(show, stop.is_set)
    for topic_export in exported:
        click.echo(_summary(topic_export))
    if any(topic_export.left for topic_export in exported):
        click.echo("stopped before the end: the same command goes on from here")
        sys.exit(INTERRUPTED)


def _summary(exported: Exported) -> str:
    if exported.note is not None:
        return exported.note
    text = f"{exported.topic}: {exported.records:,} records written to {exported.directory}"
    if exported.rows != exported.records:
        text += f" as {exported.rows:,} rows"
    if exported.undecoded:
        text += f", {exported.undecoded:,} of which could not be decoded and are kept as bytes"
    return text + (f"; {exported.present:,} offsets were there already" if exported.present else "")
