"""``fraud-pipeline backtest``: what models would have decided about history."""

import json
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

import click
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.backtest.api import Backtest
from pipeline.backtest.input.blocks import blocks
from pipeline.backtest.input.span import moment
from pipeline.backtest.labels.schedule import LabelMode
from pipeline.backtest.report import BacktestReport, ReportOptions, build_report
from pipeline.backtest.runner.arguments import LabelPolicy
from pipeline.backtest.runner.live_comparison import LiveComparison
from pipeline.backtest.runner.result import BacktestResult, TrainedVersion, Variant
from pipeline.cli import INTERRUPTED
from pipeline.commands.backtest_options import (
    OutputOptions,
    SharedOptions,
    ThresholdOptions,
    TrainingOptions,
    model_options,
    online_model,
    output_options,
    range_options,
    show_step,
    threshold_options,
    thresholds_of,
    time_range,
    training_of,
    training_options,
)
from pipeline.commands.column_options import ColumnOptions, column_options, file_mapping
from pipeline.commands.outputs import Write, refuse_unwritable, spreadsheet_safe, write_each
from pipeline.commands.progress import ProgressBar, failure, interrupts
from pipeline.commands.regime_options import RegimeOptions, regime_of, regime_options
from pipeline.commands.times import Duration
from pipeline.engine.blocks import KernelMismatch
from pipeline.kafka.errors import ClusterUnreachable, TopicError
from pipeline.models.registry import RegistryError
from pipeline.observability.terminal import printable
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings

_DEFAULTS = ReportOptions()
_SHOWN = 10
"""Differences from live that the terminal shows; all of them go to the file."""


class BacktestOptions(SharedOptions, ThresholdOptions, TrainingOptions, ColumnOptions, RegimeOptions, OutputOptions):
    """Options of the command by groups."""


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
@threshold_options
@training_options
@model_options
@column_options
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
@output_options
def command(
    history: Path | None,
    compare: str | None,
    models: tuple[str, ...],
    label_file: Path | None,
    labels: str | None,
    label_delay: float,
    review_delay: float,
    top: int,
    review_cost: float,
    **shared: Unpack[BacktestOptions],
) -> None:
    """Decide history again: of the topics, of HISTORY (.parquet, .csv, .csv.gz), or of a directory of exported topics.

    What lies before the range fills the windows. Nothing is written to a topic, and no group's offsets move. Durations:
    90 (seconds), 30m, 12h, 7d. Ctrl-C ends early; the report then says that it is partial.
    """
    differences = shared["differences"]
    if differences is not None and compare is None:
        raise click.UsageError("--differences tells how decisions differ from live ones: add --compare live")
    refuse_unwritable((shared["report"], shared["as_json"], differences), shared["decisions"])
    stop = threading.Event()
    try:
        training = training_of(shared, top)
        shown = ReportOptions(top=top, review_cost=review_cost)
        from_file = history is not None and history.is_file()
        mapping = file_mapping(history, shared) if history and from_file else None
        asked = Backtest(
            history,
            range=time_range(shared, shared["validation_days"]),
            models=_named(models),
            thresholds=thresholds_of(shared),
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
    _print_versions(asked, result)
    if asked.comparison is not None:
        _print_comparison(asked.comparison, examples=differences is None)
    write_each(_writes(result, made, asked.comparison, shared))
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


def _print_versions(asked: Backtest, result: BacktestResult) -> None:
    """Name the versions that were trained, on the standard error."""
    for name, trained in asked.trained.items():
        click.echo(f"{name}: LightGBM {trained.model.version}, policy {trained.policy.version}", err=True)
    for variant in result.variants:
        for version in variant.versions[1:]:
            click.echo(_renewed(variant.name, version), err=True)


def _renewed(name: str, version: TrainedVersion) -> str:
    made = version.refused or f"LightGBM {version.lightgbm}, policy {version.policy}"
    return f"{name}, by what was known at {moment(version.known_us)}: {made}"


def _writes(
    result: BacktestResult, made: BacktestReport, comparison: LiveComparison | None, outputs: OutputOptions
) -> Iterator[Write]:
    report, as_json, decisions = outputs["report"], outputs["as_json"], outputs["decisions"]
    differences = outputs["differences"]
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
