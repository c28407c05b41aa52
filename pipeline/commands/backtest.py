"""``fraud-pipeline backtest``: what models would have decided about history."""

import dataclasses
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.backtest.api import Backtest
from pipeline.backtest.input.spill import blocks
from pipeline.backtest.report import ReportOptions, build_report
from pipeline.backtest.report.wording import moment as written
from pipeline.backtest.reprocess.reprocess import reprocess
from pipeline.backtest.reprocess.written_runs import features_topic
from pipeline.backtest.runner.live_comparison import LiveComparison
from pipeline.backtest.runner.result import BacktestResult, Variant
from pipeline.backtest.runner.statistics import BacktestProgress
from pipeline.backtest.training.variants import Training
from pipeline.cli import INTERRUPTED
from pipeline.commands.file_mapping import file_mapping, mapping_option
from pipeline.commands.option_groups import declared_options
from pipeline.commands.outputs import refuse_unwritable, spreadsheet_safe, write_each
from pipeline.commands.progress import ProgressBar, interrupts
from pipeline.observability.terminal import printable
from pipeline.settings import Settings
from schemas.times import moment

_SHOWN = 10
"""Differences from live that the terminal shows; all of them go to the file."""


def _show_step(bar: ProgressBar, step: BacktestProgress) -> None:
    where = f"{moment(step.event_time_us)}  {step.stage}".rstrip()
    bar.show(where, step.transactions, "transactions", step.elapsed_s, step.share)


def _named_models(models: tuple[str, ...]) -> dict[str, str]:
    """Return versions by the names of their variants, of ``NAME=VERSION`` or ``VERSION``."""
    named = {}
    for model in models:
        name, _, version = model.rpartition("=")
        if (name or version) in named:
            raise click.BadParameter(f"{model!r} is named twice: write NAME=VERSION", param_hint="--model")
        named[name or version] = version
    return named


def _training_of(variants: tuple[str, ...], **schedule: Any) -> Training | None:
    """Return the training of variants ``NAME`` or ``NAME=FEATURES``; a usage error for a schedule alone."""
    if not variants:
        # What --no-early-reports says holds of no training too.
        if any(value for name, value in schedule.items() if name != "early_reports"):
            raise click.UsageError("nothing is trained: name a variant with --train NAME, or leave its options out")
        return None
    if schedule["start"] is None:
        raise click.UsageError("--train needs to know where training begins: add --train-from")
    named: dict[str, list[str]] = {}
    for variant in variants:
        name, _, patterns = variant.partition("=")
        if not name or name in named:
            raise click.BadParameter(f"{variant!r} needs a name of its own: write NAME=FEATURES", param_hint="--train")
        named[name] = patterns.split(",") if patterns else []
    return Training(variants=named, **schedule)


@click.command("backtest")
@click.argument("history", required=False, type=click.Path(path_type=Path))
@declared_options("asked", Backtest, {Backtest: dict, Training: _training_of}, without=("config",))
@mapping_option
@declared_options("shown", ReportOptions)
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the report as an HTML page.")
@click.option("--json", "as_json", type=click.Path(dir_okay=False, path_type=Path), help="Write the report as JSON.")
@click.option(
    "--decisions",
    metavar="DIRECTORY|topic:TOPIC",
    help="Write each variant's decisions, as Parquet; or, in place of a report, those of the only variant to a topic, "
    "made if missing, as is TOPIC-features.",
)
@click.option(
    "--replace", is_flag=True, help="Delete what another run has written to both topics, once this one writes."
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
    decisions: str | None,
    replace: bool,
    differences: Path | None,
    mapping: Path | None,
) -> None:
    """Decide history again: of the topics, of a file HISTORY (as `train` reads), or of a directory of exported topics.

    What lies before the range fills the windows. Nothing is written to a topic of the pipeline, and no group's offsets
    move. Durations: 90 (seconds), 30m, 12h, 7d. Ctrl-C ends early; the report then says that it is partial, and the
    same command goes on with a topic of decisions.
    """
    kind, _, topic = (decisions or "").partition(":")
    into = topic if kind == "topic" else None
    directory = Path(decisions) if decisions is not None and into is None else None
    if differences is not None and not asked["compare_live"]:
        raise click.UsageError("--differences tells how decisions differ from live ones: add --compare live")
    if replace and into is None:
        raise click.UsageError("--replace is about a topic of decisions: name it with --decisions topic:TOPIC")
    if into is not None and (report or as_json or asked["compare_live"]):
        raise click.UsageError("decisions to a topic have no report: leave --report, --json and --compare out")
    refuse_unwritable((report, as_json, differences), directory)
    stop = threading.Event()
    with _usable_values():
        backtest = _backtest(history, asked, mapping, shown.top)
    if into is not None:
        _write_topic(backtest, into, replace, stop)
        return
    with interrupts(stop), _usable_values(), ProgressBar("opening the history") as bar:
        result = backtest.run(partial(_show_step, bar), stop.is_set)
    with _usable_values():
        made = build_report(result, shown)
    click.echo(made.text, nl=False)
    _print_versions(backtest, result)
    comparison = backtest.comparison
    if comparison is not None:
        _print_comparison(comparison, examples=differences is None)
    writes: list[tuple[Path | None, Callable[[Path], object]]] = [
        (report, lambda path: path.write_text(made.html, encoding="utf-8")),
        (as_json, lambda path: path.write_text(made.json, encoding="utf-8")),
        (directory, partial(_write_all, result.variants)),
    ]
    if comparison is not None:
        writes.insert(0, (differences, partial(spreadsheet_safe(comparison.frame()).to_csv, index=False)))
    write_each((path, write) for path, write in writes if path is not None)
    if result.partial:
        sys.exit(INTERRUPTED)


@contextmanager
def _usable_values() -> Iterator[None]:
    """Report names, sources, ranges and orders that cannot be used, which are values that cannot."""
    try:
        yield
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def _write_topic(backtest: Backtest, into: str, replace: bool, stop: threading.Event) -> None:
    with interrupts(stop), _usable_values(), ProgressBar("looking at the topics") as bar:
        done = reprocess(backtest, into, replace=replace, progress=partial(_show_step, bar), stopped=stop.is_set)
    for warning in done.warnings:
        click.echo(f"warning: {warning}", err=True)
    there = f", behind {done.present:,} that were there" if done.present else ""
    click.echo(f"{done.topic}: {done.written:,} decisions of run {done.run} written{there}")
    click.echo(f"their features: {features_topic(done.topic)}")
    click.echo("the run is complete" if done.complete else "stopped before the end: the same command goes on from here")
    if not done.complete:
        sys.exit(INTERRUPTED)


def _backtest(history: Path | None, asked: dict[str, Any], mapping: Path | None, top: int) -> Backtest:
    """Return the backtest that is asked for; reviews answer ``top`` alerts a day, for which thresholds are chosen."""
    if asked["training"] is not None:
        asked["training"] = dataclasses.replace(asked["training"], alerts_per_day=top)
    asked["labels"] = dataclasses.replace(asked["labels"], reviews_a_day=top)
    settings = Settings()
    found = file_mapping(history, mapping, settings) if history is not None and history.is_file() else None
    if mapping is not None and found is None:
        raise click.UsageError("--mapping is for a file; topics and exports follow FRAUD_PIPELINE_MAPPING_FILE")
    return Backtest(history, mapping=found, settings=settings, **asked | {"models": _named_models(asked["models"])})


def _print_versions(asked: Backtest, result: BacktestResult) -> None:
    for name, trained in asked.trained.items():
        click.echo(f"{name}: LightGBM {trained.model.version}, policy {trained.policy.version}", err=True)
    for variant in result.variants:
        for version in variant.versions[1:]:
            made = version.refused or f"LightGBM {version.lightgbm}, policy {version.policy}"
            click.echo(f"{variant.name}, by what was known at {written(version.known_time)}: {made}", err=True)


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
