"""``fraud-pipeline backtest``: what models would have decided about history."""

import dataclasses
import json
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import click
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.backtest.api import Backtest
from pipeline.backtest.input.blocks import blocks
from pipeline.backtest.input.span import moment
from pipeline.backtest.report import ReportOptions, build_report
from pipeline.backtest.runner.live_comparison import LiveComparison
from pipeline.backtest.runner.result import BacktestResult, TrainedVersion, Variant
from pipeline.backtest.training.variants import Training
from pipeline.cli import INTERRUPTED
from pipeline.commands.backtest_options import named_models, show_step, training_of
from pipeline.commands.column_options import ColumnOptions, column_options, file_mapping
from pipeline.commands.option_groups import declared_options
from pipeline.commands.outputs import refuse_unwritable, spreadsheet_safe, write_each
from pipeline.commands.progress import ProgressBar, failure, interrupts
from pipeline.engine.blocks import KernelMismatch
from pipeline.kafka.errors import ClusterUnreachable, TopicError
from pipeline.models.registry import RegistryError
from pipeline.observability.terminal import printable
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings

_SHOWN = 10
"""Differences from live that the terminal shows; all of them go to the file."""


@click.command("backtest")
@click.argument("history", required=False, type=click.Path(path_type=Path))
@declared_options("asked", Backtest, {Backtest: dict, Training: training_of})
@column_options
@declared_options("shown", ReportOptions)
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
    asked: dict[str, Any],
    shown: ReportOptions,
    report: Path | None,
    as_json: Path | None,
    decisions: Path | None,
    differences: Path | None,
    **columns: Unpack[ColumnOptions],
) -> None:
    """Decide history again: of the topics, of HISTORY (.parquet, .csv, .csv.gz), or of a directory of exported topics.

    What lies before the range fills the windows. Nothing is written to a topic, and no group's offsets move. Durations:
    90 (seconds), 30m, 12h, 7d. Ctrl-C ends early; the report then says that it is partial.
    """
    if differences is not None and not asked["compare_live"]:
        raise click.UsageError("--differences tells how decisions differ from live ones: add --compare live")
    refuse_unwritable((report, as_json, differences), decisions)
    stop = threading.Event()
    try:
        backtest = _backtest(history, asked, columns, shown.top)
        with interrupts(stop), ProgressBar("opening the history") as bar:
            result = backtest.run(partial(show_step, bar), stop.is_set)
        made = build_report(result, shown)
    # Sources, ranges, orders and rate tables that may not be used are values that may not be used.
    except (TopicError, ClusterUnreachable, RegistryError, ModelError, KernelMismatch, ValueError) as error:
        raise failure(error, stop) from error
    click.echo(made.text, nl=False)
    _print_versions(backtest, result)
    comparison = backtest.comparison
    if comparison is not None:
        _print_comparison(comparison, examples=differences is None)
    writes: list[tuple[Path | None, Callable[[Path], object]]] = [
        (report, lambda path: path.write_text(made.html, encoding="utf-8")),
        (as_json, lambda path: path.write_text(made.json, encoding="utf-8")),
        (decisions, partial(_write_all, result.variants)),
    ]
    if comparison is not None:
        writes.insert(0, (differences, partial(spreadsheet_safe(comparison.frame()).to_csv, index=False)))
    write_each((path, write) for path, write in writes if path is not None)
    if result.partial:
        sys.exit(INTERRUPTED)


def _backtest(history: Path | None, asked: dict[str, Any], columns: ColumnOptions, top: int) -> Backtest:
    """Return the backtest of a command's options.

    Args:
        history: A file, a directory, or None for topics.
        asked: Arguments of `Backtest`.
        columns: Values of `column_options`.
        top: Alerts a day, which simulated reviews answer and trainings choose thresholds for.
    """
    if asked["training"] is not None:
        asked["training"] = dataclasses.replace(asked["training"], alerts_per_day=top)
    asked["labels"] = dataclasses.replace(asked["labels"], reviews_a_day=top)
    mapping = file_mapping(history, columns) if history is not None and history.is_file() else None
    return Backtest(history, mapping=mapping, settings=Settings(), **asked | {"models": named_models(asked["models"])})


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
