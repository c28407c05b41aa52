"""``fraud-pipeline run``: the whole pipeline on simulated transactions, with a live view."""

import sys
from dataclasses import replace

import click

from pipeline.commands.option_groups import declared_options
from pipeline.demo.controller import RunOptions, run
from pipeline.settings import Settings


@click.command()
@declared_options("options", RunOptions)
@click.option(
    "--history-days",
    type=click.IntRange(min=30),
    default=RunOptions().world.history_days,
    show_default=True,
    help="Simulated days before the first, from which the first model learns.",
)
def command(*, options: RunOptions, history_days: int) -> None:
    """Run everything on simulated transactions, and show it: broker, workers, first model, delayed labels, alerts.

    Ends by itself after --days, or on Ctrl-C, which stops all that was started. The last line on the standard output is
    one JSON object with the figures. On the embedded broker each run begins with empty topics; on a cluster of yours
    (KAFKA_BOOTSTRAP_SERVERS) its topics get a prefix of their own.
    """
    world = replace(options.world, history_days=history_days)
    sys.exit(run(Settings(), replace(options, world=world)))
