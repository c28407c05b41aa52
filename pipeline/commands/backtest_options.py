"""The options that backtest and reprocess share, and their progress."""

from datetime import datetime
from typing import Final, TypedDict

import click

from pipeline.backtest.input.order import Order
from pipeline.backtest.input.span import moment
from pipeline.backtest.runner.arguments import OnlineModel, TimeRange
from pipeline.backtest.runner.statistics import BacktestProgress
from pipeline.commands.option_groups import option_group
from pipeline.commands.progress import ProgressBar
from pipeline.commands.times import Duration, Moment


class SharedOptions(TypedDict):
    """The values of `range_options` and `model_options`, in the units of `pipeline.Backtest`."""

    bootstrap: str | None
    start: datetime | None
    end: datetime | None
    warm_up_s: float | None
    lateness_s: float
    order: str
    policy: str | None
    river: str | None
    learn: bool
    publish_every_s: float
    blend: float | None


range_options: Final = option_group(
    click.option("--bootstrap", help="Cluster whose topics are read.  [default: KAFKA_BOOTSTRAP_SERVERS]"),
    click.option("--from", "start", type=Moment(), help="First event time."),
    click.option("--to", "end", type=Moment(), help="Event time to end before."),
    click.option(
        "--warm-up",
        "warm_up_s",
        type=Duration(),
        help="History before the range that fills the windows.  [default: 60d and the labels' delay; recorded: what a "
        "restore reads]",
    ),
    click.option(
        "--lateness",
        "lateness_s",
        type=Duration(),
        default="7d",
        show_default=True,
        help="From an event to its record, at most.",
    ),
    click.option(
        "--order",
        type=click.Choice([order.value for order in Order]),
        default=Order.EVENT_TIME.value,
        show_default=True,
        help="All partitions by event time, or the logs as they are.",
    ),
)
"""The options for the range that is read, and its order."""
model_options: Final = option_group(
    click.option("--policy", help="Policy version.  [default: the one that was made for the model]"),
    click.option(
        "--river", help="Online model: latest, untaught, or a version.  [default: latest; with --learn: untaught]"
    ),
    click.option("--learn", is_flag=True, help="Let the online model learn from there on."),
    click.option(
        "--publish-every",
        "publish_every_s",
        type=Duration(),
        default="1h",
        show_default=True,
        help="Event time between two versions of an online model that learns.",
    ),
    click.option(
        "--blend",
        type=click.FloatRange(0, 1),
        help="Weight of the online model in the score.  [default: the policy's; with --learn, reported frauds decide]",
    ),
)
"""The options for the policy and the online model."""


def time_range(options: SharedOptions, validation_days: float = TimeRange().validation_days) -> TimeRange:
    """Return the range that a command's options name."""
    return TimeRange(options["start"], options["end"], options["warm_up_s"], validation_days, options["lateness_s"])


def online_model(options: SharedOptions) -> OnlineModel:
    """Return the online model that a command's options name."""
    return OnlineModel(
        version=options["river"],
        learn=options["learn"],
        publish_every_s=options["publish_every_s"],
        blend=options["blend"],
    )


def show_step(bar: ProgressBar, step: BacktestProgress) -> None:
    """Report the progress of a backtest."""
    where = f"{moment(step.event_time_us)}  {step.stage}".rstrip()
    bar.show(where, step.transactions, "transactions", step.elapsed_s, step.share)
