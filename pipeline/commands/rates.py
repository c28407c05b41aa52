"""``fraud-pipeline rates``: publish rate tables, and list those that transactions may have been processed with."""

from pathlib import Path

import click

from pipeline.broker.running import find_cluster
from pipeline.models.published_files import RATES, PublishedFiles
from pipeline.observability.terminal import printable
from pipeline.settings import Settings


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def command(*, files: tuple[Path, ...]) -> None:
    """Publish the rate tables FILES, and list all that are published, each with its digest.

    A card worker publishes the table of its settings when it starts; a file has to be named here only where the topic
    has lost it. No record is processed with a table before a worker's FRAUD_PIPELINE_RATES_FILE names it.
    """
    settings = Settings()
    published = PublishedFiles(find_cluster(settings), settings)
    for file in files:
        published.publish(RATES, file.read_bytes())
    published.refresh()
    for version, digest in published.versions(RATES):
        click.echo(f"{digest}  {printable(version)}")
