"""``fraud-pipeline reprocess``: history decided again, into a topic beside the live decisions."""

import sys
import threading
from functools import partial
from typing import Any

import click

from pipeline.backtest.api import Backtest
from pipeline.backtest.reprocess.reprocess import reprocess
from pipeline.backtest.reprocess.written_runs import features_topic
from pipeline.backtest.runner.arguments import Thresholds
from pipeline.cli import INTERRUPTED
from pipeline.commands.backtest_options import show_step
from pipeline.commands.option_groups import declared_options
from pipeline.commands.progress import ProgressBar, failure, interrupts
from pipeline.engine.blocks import KernelMismatch
from pipeline.kafka.errors import ClusterUnreachable, TopicError
from pipeline.kafka.producer import DeliveryFailed
from pipeline.models.registry import RegistryError
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings


@click.command("reprocess")
@click.option(
    "--into",
    required=True,
    metavar="TOPIC",
    help="Topic to write to, without the prefix; made if missing, as is TOPIC-features.",
)
@click.option(
    "--replace", is_flag=True, help="Delete what another run has written to both topics, once this one writes."
)
@click.option(
    "--model",
    metavar="VERSION",
    help="LightGBM version, or active.  [default: active; recorded: those that decisions name]",
)
@click.option("--threshold", type=click.FloatRange(0, 1), help="In place of the policy's.")
@declared_options(
    "asked",
    Backtest,
    {Backtest: dict},
    without=("models", "thresholds", "training", "compare_live", "labels", "validation_days"),
)
def command(
    into: str,
    replace: bool,
    model: str | None,
    threshold: float | None,
    asked: dict[str, Any],
) -> None:
    """Decide a range of the topics again, as backtest does, into topics of its own: never into decisions.

    TOPIC gets messages in the form of decisions, TOPIC-features the features of all of them in the form of features,
    both with headers that name the run. A run that ended early goes on when the same
    command is given again. Durations: 90 (seconds), 30m, 12h, 7d. Ctrl-C ends early.
    """
    stop = threading.Event()
    try:
        models = [] if model is None else [model]
        thresholds = Thresholds(fixed=[] if threshold is None else [threshold])
        backtest = Backtest(models=models, thresholds=thresholds, settings=Settings(), **asked)
        with interrupts(stop), ProgressBar("looking at the topics") as bar:
            done = reprocess(backtest, into, replace=replace, progress=partial(show_step, bar), stopped=stop.is_set)
    # Names, ranges and orders that may not be used are values that may not be used.
    except (
        TopicError, ClusterUnreachable, RegistryError, ModelError, KernelMismatch, DeliveryFailed, ValueError,
    ) as error:  # fmt: skip
        raise failure(error, stop) from error
    for warning in done.warnings:
        click.echo(f"warning: {warning}", err=True)
    there = f", behind {done.present:,} that were there" if done.present else ""
    click.echo(f"{done.topic}: {done.written:,} decisions of run {done.run} written{there}")
    click.echo(f"their features: {features_topic(done.topic)}")
    click.echo("the run is complete" if done.complete else "stopped before the end: the same command goes on from here")
    if not done.complete:
        sys.exit(INTERRUPTED)
