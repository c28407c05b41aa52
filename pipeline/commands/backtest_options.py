"""The options of backtests by groups, some of which reprocess has too, and their progress."""

from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple, TypedDict

import click

from pipeline.backtest.input.order import Order
from pipeline.backtest.input.span import moment
from pipeline.backtest.runner.arguments import OnlineModel, Thresholds, TimeRange
from pipeline.backtest.runner.statistics import BacktestProgress
from pipeline.backtest.training.variants import Training
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
        "--river", help="Online model: latest, untrained, or a version.  [default: latest; with --learn: untrained]"
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
threshold_options: Final = option_group(
    click.option(
        "--threshold",
        "thresholds",
        type=click.FloatRange(0, 1),
        multiple=True,
        help="In place of the policy's; may be repeated.",
    ),
    click.option(
        "--budget",
        "budgets",
        type=click.FloatRange(min=0, min_open=True),
        multiple=True,
        help="Alerts a day, for which a threshold is chosen on the days before the range; may be repeated.",
    ),
    click.option(
        "--pace",
        type=click.FloatRange(min=0, min_open=True),
        metavar="ALERTS_PER_DAY",
        help="Alerts a day, first ones of their cases, for which a threshold is set anew each hour of event time.",
    ),
    click.option(
        "--critical",
        type=click.FloatRange(0.02, 1),
        help="Scores from here on alert whatever the budget of --pace says.  [default: none does]",
    ),
)
"""The options for thresholds, whose values are `ThresholdOptions`."""
training_options: Final = option_group(
    click.option(
        "--train",
        "trainings",
        multiple=True,
        metavar="NAME[=FEATURES]",
        help="Train a model before the range, and decide by it: on the default features, or on those that match "
        "card_*,-*_std_*; may be repeated.",
    ),
    click.option("--train-from", type=Moment(), help="Event time of the first transaction to train on."),
    click.option("--train-to", type=Moment(), help="Train by what was known then.  [default: begin of the range]"),
    click.option(
        "--train-gap",
        type=Duration(),
        help="From the last transaction to train on to that time.  [default: label delay of a file; else "
        "maturity_days]",
    ),
    click.option(
        "--validation-days",
        type=click.FloatRange(min=0, min_open=True),
        default=7.0,
        show_default=True,
        help="Last days to train on, and before the range, on which thresholds are chosen.",
    ),
    click.option(
        "--early-reports/--no-early-reports",
        default=True,
        show_default=True,
        help="Train also on younger transactions, where a file's truth becomes labels: frauds as they are reported.",
    ),
    click.option(
        "--renew",
        "renew_days",
        type=click.FloatRange(min=0, min_open=True),
        multiple=True,
        metavar="DAYS",
        help="Beside each variant, one that is trained again after so many days within the range; may be repeated.",
    ),
    click.option(
        "--train-window",
        "window_days",
        type=click.FloatRange(min=0, min_open=True),
        metavar="DAYS",
        help="Leave out transactions that are older than that when a training ends.  [default: none]",
    ),
    click.option("--register", is_flag=True, help="Keep what was trained in the registry; it is not activated."),
)
"""The options for models that are trained before the range; their values are `TrainingOptions`."""
output_options: Final = option_group(
    click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the report as an HTML page."),
    click.option(
        "--json", "as_json", type=click.Path(dir_okay=False, path_type=Path), help="Write the report as JSON."
    ),
    click.option(
        "--decisions",
        type=click.Path(file_okay=False, path_type=Path),
        help="Write each variant's decisions, as Parquet.",
    ),
    click.option(
        "--differences",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write the differences from live, as CSV.",
    ),
)
"""The options for files to write, whose values are `OutputOptions`."""


class ThresholdOptions(TypedDict):
    """The values of `threshold_options`."""

    thresholds: tuple[float, ...]
    budgets: tuple[float, ...]
    pace: float | None
    critical: float | None


class TrainingOptions(TypedDict):
    """The values of `training_options`."""

    trainings: tuple[str, ...]
    train_from: datetime | None
    train_to: datetime | None
    train_gap: float | None
    validation_days: float
    early_reports: bool
    renew_days: tuple[float, ...]
    window_days: float | None
    register: bool


class OutputOptions(TypedDict):
    """The values of `output_options`."""

    report: Path | None
    as_json: Path | None
    decisions: Path | None
    differences: Path | None


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


def thresholds_of(options: ThresholdOptions) -> Thresholds:
    """Return the thresholds that a command's options name."""
    return Thresholds(
        fixed=options["thresholds"], budgets=options["budgets"], pace=options["pace"], critical=options["critical"]
    )


class _Schedule(NamedTuple):
    """Transactions that are trained on, and how often; as `Training` has it."""

    gap_s: float | None = None
    renew_days: tuple[float, ...] = ()
    window_days: float | None = None
    early_reports: bool = True


def training_of(options: TrainingOptions, alerts_per_day: float) -> Training | None:
    """Return the training that a command's options name, None where they name none.

    Args:
        options: Values of `training_options`.
        alerts_per_day: Budget that thresholds are chosen for.

    Raises:
        click.UsageError: An option says how to train, and none says what.
    """
    train_from, train_to, register = options["train_from"], options["train_to"], options["register"]
    schedule = _Schedule(options["train_gap"], options["renew_days"], options["window_days"], options["early_reports"])
    trainings = options["trainings"]
    if not trainings:
        if train_from or train_to or register or schedule._replace(early_reports=True) != _Schedule():
            raise click.UsageError("nothing is trained: name a variant with --train NAME, or leave its options out")
        return None
    if train_from is None:
        raise click.UsageError("--train needs to know where training begins: add --train-from")
    variants: dict[str, list[str]] = {}
    for training in trainings:
        name, _, patterns = training.partition("=")
        if not name or name in variants:
            raise click.BadParameter(f"{training!r} needs a name of its own: write NAME=FEATURES", param_hint="--train")
        variants[name] = patterns.split(",") if patterns else []
    return Training(
        variants=variants,
        start=train_from,
        end=train_to,
        alerts_per_day=alerts_per_day,
        register=register,
        **schedule._asdict(),
    )
