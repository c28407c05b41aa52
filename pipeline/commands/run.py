"""``fraud-pipeline run``: the whole pipeline on simulated transactions, with a live view."""

import sys

import click

from pipeline.commands.world_options import world_options
from pipeline.demo.controller import RunOptions, run
from pipeline.demo.world import World
from pipeline.settings import Settings

_DEFAULTS = RunOptions()


@click.command()
@click.option(
    "--days",
    type=click.IntRange(min=0),
    envvar="DAYS",
    default=_DEFAULTS.days,
    show_default=True,
    help="Simulated days to stream; 0 runs until stopped.  [env: DAYS]",
)
@click.option(
    "--day-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=_DEFAULTS.day_s,
    show_default=True,
    help="Real time that a simulated day takes.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), default=_DEFAULTS.workers, show_default=True, help="Worker processes."
)
@click.option("--keep", is_flag=True, help="At the end, let broker and topics stay for a look, until Ctrl-C.")
@world_options(_DEFAULTS.world)
@click.option(
    "--history-days",
    type=click.IntRange(min=30),
    default=_DEFAULTS.world.history_days,
    show_default=True,
    help="Simulated days before the first, from which the first model learns.",
)
def command(
    *, days: int, day_seconds: float, workers: int, keep: bool, cards: int, merchants: int, history_days: int, seed: int
) -> None:
    """Run everything on simulated transactions, and show it: broker, workers, first model, delayed labels, alerts.

    Ends by itself after --days, or on Ctrl-C, which stops all that was started. The last line on the standard output is
    one JSON object with the figures. On the embedded broker each run begins with empty topics; on a cluster of yours
    (KAFKA_BOOTSTRAP_SERVERS) its topics get a prefix of their own.
    """
    world = World(cards=cards, merchants=merchants, seed=seed, history_days=history_days)
    sys.exit(run(Settings(), RunOptions(days=days, workers=workers, day_s=day_seconds, world=world, keep=keep)))
