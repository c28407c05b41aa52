"""``fraud-pipeline backtest``: what models would have decided about history."""

import json
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple, Unpack

import click
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.backtest.api import Backtest
from pipeline.backtest.input.blocks import blocks
from pipeline.backtest.input.span import moment
from pipeline.backtest.labels.schedule import LabelMode
from pipeline.backtest.report import BacktestReport, ReportOptions, build_report
from pipeline.backtest.runner.arguments import LabelPolicy, Thresholds
from pipeline.backtest.runner.live_comparison import LiveComparison
from pipeline.backtest.runner.result import BacktestResult, TrainedVersion, Variant
from pipeline.backtest.training.variants import Training
from pipeline.cli import INTERRUPTED
from pipeline.commands.backtest_options import (
    SharedOptions,
    model_options,
    online_model,
    range_options,
    show_step,
    time_range,
)
from pipeline.commands.outputs import Write, refuse_unwritable, spreadsheet_safe, write_each
from pipeline.commands.progress import ProgressBar, failure, interrupts
from pipeline.commands.regime_options import RegimeOptions, regime_of, regime_options
from pipeline.commands.replay import Duration, Moment, file_mapping
from pipeline.engine.score import KernelMismatch
from pipeline.history.files import PRESETS
from pipeline.kafka.errors import ClusterUnreachable, TopicError
from pipeline.models.registry import RegistryError
from pipeline.observability.terminal import printable
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings

_DEFAULTS = ReportOptions()
_SHOWN = 10
"""Differences from live that the terminal shows; all of them go to the file."""


class _Options(SharedOptions, RegimeOptions):
    """Keywords of `pipeline.Backtest` that the command hands over as they are."""


@click.command("backtest")
@click.argument("history", required=False, type=click.Path(path_type=Path))
@range_options
@click.option("--compare", type=click.Choice(["live"]), help="Report every difference from the recorded decisions.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]VERSION",
    help="LightGBM version, or active; may be repeated.  [default: active; recorded: those that decisions name]",
)
@click.option(
    "--threshold",
    "thresholds",
    type=click.FloatRange(0, 1),
    multiple=True,
    help="In place of the policy's; may be repeated.",
)
@click.option(
    "--budget",
    "budgets",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    help="Alerts a day, for which a threshold is chosen on the days before the range; may be repeated.",
)
@click.option(
    "--pace",
    type=click.FloatRange(min=0, min_open=True),
    metavar="ALERTS_PER_DAY",
    help="Alerts a day, first ones of their cases, for which a threshold is set anew each hour of event time.",
)
@click.option(
    "--critical",
    type=click.FloatRange(0.02, 1),
    help="Scores from here on alert whatever the budget of --pace says.  [default: none does]",
)
@click.option(
    "--train",
    "trainings",
    multiple=True,
    metavar="NAME[=FEATURES]",
    help="Train a model before the range, and decide by it: on the default features, or on those that match "
    "card_*,-*_std_*; may be repeated.",
)
@click.option("--train-from", type=Moment(), help="Event time of the first transaction to train on.")
@click.option("--train-to", type=Moment(), help="Train by what was known then.  [default: begin of the range]")
@click.option(
    "--train-gap",
    type=Duration(),
    help="From the last transaction to train on to that time.  [default: label delay of a file; else maturity_days]",
)
@click.option(
    "--validation-days",
    type=click.FloatRange(min=0, min_open=True),
    default=7.0,
    show_default=True,
    help="Last days to train on, and before the range, on which thresholds are chosen.",
)
@click.option(
    "--early-reports/--no-early-reports",
    default=True,
    show_default=True,
    help="Train also on younger transactions, where a file's truth becomes labels: frauds as they are reported.",
)
@click.option(
    "--renew",
    "renew_days",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    metavar="DAYS",
    help="Beside each variant, one that is trained again after so many days within the range; may be repeated.",
)
@click.option(
    "--train-window",
    "window_days",
    type=click.FloatRange(min=0, min_open=True),
    metavar="DAYS",
    help="Leave out transactions that are older than that when a training ends.  [default: none]",
)
@click.option("--register", is_flag=True, help="Keep what was trained in the registry; it is not activated.")
@model_options
@click.option("--preset", type=click.Choice(sorted(PRESETS)), help="Column names; found by themselves when they fit.")
@click.option("--map", "changes", multiple=True, metavar="FIELD=COLUMN", help="Column of a field; may be repeated.")
@click.option("--currency", default="EUR", show_default=True, help="Currency of a file without such a column.")
@click.option("--time-zone", default="UTC", show_default=True, help="Zone of times without an offset.")
@click.option(
    "--label-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Labels of a file's transactions.",
)
@click.option(
    "--labels",
    type=click.Choice([mode.value for mode in LabelMode]),
    help="How labels come about.  [default: recorded; delay for a file with a column fraud and no label file]",
)
@click.option(
    "--label-delay", type=Duration(), default="7d", show_default=True, help="From a transaction to its truth."
)
@regime_options
@click.option(
    "--review-delay",
    type=Duration(),
    default="1d",
    show_default=True,
    help="From a transaction to what a simulated review of its alert says.",
)
@click.option("--top", type=click.IntRange(min=1), default=_DEFAULTS.top, show_default=True, help="Alerts a day.")
@click.option(
    "--review-cost", type=click.FloatRange(min=0), default=_DEFAULTS.review_cost, show_default=True, help="Of an alert."
)
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the report as an HTML page.")
@click.option("--json", "as_json", type=click.Path(dir_okay=False, path_type=Path), help="Write the report as JSON.")
@click.option(
    "--decisions", type=click.Path(file_okay=False, path_type=Path), help="Write each variant's decisions, as Parquet."
)
@click.option(
    "--differences", type=click.Path(dir_okay=False, path_type=Path), help="Write the differences from live, as CSV."
)
def command(
    history: Path | None,
    compare: str | None,
    models: tuple[str, ...],
    thresholds: tuple[float, ...],
    budgets: tuple[float, ...],
    pace: float | None,
    critical: float | None,
    trainings: tuple[str, ...],
    train_from: datetime | None,
    train_to: datetime | None,
    train_gap: float | None,
    validation_days: float,
    early_reports: bool,
    renew_days: tuple[float, ...],
    window_days: float | None,
    register: bool,
    preset: str | None,
    changes: tuple[str, ...],
    currency: str,
    time_zone: str,
    label_file: Path | None,
    labels: str | None,
    label_delay: float,
    review_delay: float,
    top: int,
    review_cost: float,
    report: Path | None,
    as_json: Path | None,
    decisions: Path | None,
    differences: Path | None,
    **shared: Unpack[_Options],
) -> None:
    """Decide history again: of the topics, of HISTORY (.parquet, .csv, .csv.gz), or of a directory of exported topics.

    What lies before the range fills the windows. Nothing is written to a topic, and no group's offsets move. Durations:
    90 (seconds), 30m, 12h, 7d. Ctrl-C ends early; the report then says that it is partial.
    """
    if differences is not None and compare is None:
        raise click.UsageError("--differences tells how decisions differ from live ones: add --compare live")
    refuse_unwritable((report, as_json, differences), decisions)
    stop = threading.Event()
    try:
        schedule = _Schedule(train_gap, renew_days, window_days, early_reports)
        training = _training(trainings, train_from, train_to, top, schedule, register=register)
        shown = ReportOptions(top=top, review_cost=review_cost)
        from_file = history is not None and history.is_file()
        mapping = file_mapping(history, changes, preset, currency, time_zone) if history and from_file else None
        asked = Backtest(
            history,
            range=time_range(shared, validation_days),
            models=_named(models),
            thresholds=Thresholds(fixed=thresholds, budgets=budgets, pace=pace, critical=critical),
            online=online_model(shared),
            policy=shared["policy"],
            labels=LabelPolicy(
                mode=labels,
                file=label_file,
                regime=regime_of(shared, label_delay),
                review_delay_s=review_delay,
                reviews_a_day=top,
            ),
            training=training,
            order=shared["order"],
            compare_live=compare is not None,
            mapping=mapping,
            settings=Settings(),
            bootstrap=shared["bootstrap"],
        )
        with interrupts(stop), ProgressBar("opening the history") as bar:
            result = asked.run(partial(show_step, bar), stop.is_set)
        made = build_report(result, shown)
    # Sources, ranges, orders and rate tables that may not be used are values that may not be used.
    except (TopicError, ClusterUnreachable, RegistryError, ModelError, KernelMismatch, ValueError) as error:
        raise failure(error, stop) from error
    click.echo(made.text, nl=False)
    for name, trained in asked.trained.items():
        click.echo(f"{name}: LightGBM {trained.model.version}, policy {trained.policy.version}", err=True)
    for variant in result.variants:
        for version in variant.versions[1:]:
            click.echo(_renewed(variant.name, version), err=True)
    if asked.comparison is not None:
        _print_comparison(asked.comparison, examples=differences is None)
    write_each(_writes(result, made, asked.comparison, report, as_json, decisions, differences))
    if result.partial:
        sys.exit(INTERRUPTED)


def _named(models: tuple[str, ...]) -> dict[str, str]:
    named = {}
    for model in models:
        name, _, version = model.rpartition("=")
        if (name or version) in named:
            raise click.BadParameter(f"{model!r} is named twice: write NAME=VERSION", param_hint="--model")
        named[name or version] = version
    return named


class _Schedule(NamedTuple):
    """Transactions that are trained on, and how often; as `Training` has it."""

    gap_s: float | None = None
    renew_days: tuple[float, ...] = ()
    window_days: float | None = None
    early_reports: bool = True


def _training(
    trainings: tuple[str, ...],
    train_from: datetime | None,
    train_to: datetime | None,
    alerts_per_day: float,
    schedule: _Schedule,
    *,
    register: bool,
) -> Training | None:
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


def _renewed(name: str, version: TrainedVersion) -> str:
    made = version.refused or f"LightGBM {version.lightgbm}, policy {version.policy}"
    return f"{name}, by what was known at {moment(version.known_us)}: {made}"


def _writes(
    result: BacktestResult,
    made: BacktestReport,
    comparison: LiveComparison | None,
    report: Path | None,
    as_json: Path | None,
    decisions: Path | None,
    differences: Path | None,
) -> Iterator[Write]:
    if differences is not None and comparison is not None:
        yield differences, partial(spreadsheet_safe(comparison.frame()).to_csv, index=False)
    if report is not None:
        yield report, lambda path: path.write_text(made.html, encoding="utf-8")
    if as_json is not None:
        yield as_json, lambda path: path.write_text(made.json, encoding="utf-8")
    if decisions is not None:
        yield decisions, partial(_write_all, result.variants)


def _write_all(variants: Sequence[Variant], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number, variant in enumerate(variants):
        _write(variant.decisions, directory / f"{number}.parquet")
    named = [{"name": variant.name, **variant.models} for variant in variants]
    (directory / "variants.json").write_text(json.dumps(named), encoding="utf-8")


def _write(frame: pd.DataFrame, path: Path) -> None:
    """A part at a time: a frame may be longer than what fits into memory."""
    schema = pa.Table.from_pandas(frame.iloc[:0], preserve_index=False).schema
    with pq.ParquetWriter(path, schema) as writer:
        for rows in blocks(len(frame)):
            writer.write_table(pa.Table.from_pandas(frame.iloc[rows], schema, preserve_index=False))


def _print_comparison(comparison: LiveComparison, *, examples: bool) -> None:
    click.echo(f"{comparison.compared:,} decisions compared with live: {len(comparison.differences):,} differ")
    for cause, count in comparison.causes.most_common():
        click.echo(f"  {count:,} {cause}")
    if not examples:
        return
    for difference in comparison.differences[:_SHOWN]:
        what = difference.differs or difference.action or difference.live_action
        click.echo(printable(f"  {difference.transaction_id} of {difference.card_id}: {difference.cause} ({what})"))
    if len(comparison.differences) > _SHOWN:
        click.echo("  ...; --differences FILE writes all of them")
