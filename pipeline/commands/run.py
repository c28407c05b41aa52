"""``fraud-pipeline run``: the whole pipeline on simulated transactions, with a live view."""

import sys

import click

from pipeline.commands.option_groups import declared_options
from pipeline.demo.controller import RunOptions, run
from pipeline.settings import Settings


@click.command()
@declared_options("options", RunOptions)
def command(*, options: RunOptions) -> None:
    """Run everything on simulated transactions, and show it: broker, workers, first model, delayed labels, alerts.

    Ends by itself after --days, or on Ctrl-C, which stops all that was started. The last line on the standard output is
    one JSON object with the figures. On the embedded broker each run begins with empty topics; on a cluster of yours
    (KAFKA_BOOTSTRAP_SERVERS) its topics get a prefix of their own.
    """
    sys.exit(run(Settings(), options))
