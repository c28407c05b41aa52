"""``fraud-pipeline backtest-example``: a backtest of two models on simulated history, to learn from."""

import sys
from dataclasses import replace
from pathlib import Path

import click

from pipeline.commands.option_groups import declared_options
from pipeline.demo.backtest_example import run_example
from pipeline.demo.world import World
from pipeline.settings import Settings


@click.command("backtest-example")
@declared_options("world", World, without=("history_days",))
@click.option(
    "--days",
    type=click.IntRange(min=91),
    default=94,
    show_default=True,
    help="Simulated days; the last three weeks are decided again.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build"),
    show_default=True,
    help="Directory of the report.",
)
def command(*, world: World, days: int, output: Path) -> None:
    """Compare two models on simulated history, from topics: broker, history with labels, training, backtest, report.

    Ends by itself, or on Ctrl-C, and leaves nothing running. On the embedded broker each run begins with empty topics;
    on a cluster of yours (KAFKA_BOOTSTRAP_SERVERS) its topics get a prefix of their own.
    """
    sys.exit(run_example(Settings(), replace(world, history_days=days), output))
