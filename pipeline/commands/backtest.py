"""``fraud-pipeline backtest``: what models would have decided about history."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import click
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pipeline.backtest.api import Backtest, Step
from pipeline.backtest.blocks import blocks
from pipeline.backtest.live import Comparison
from pipeline.backtest.order import Order
from pipeline.backtest.report import ReportOptions, build_report
from pipeline.backtest.sources import moment
from pipeline.commands.replay import Duration, Moment, file_mapping
from pipeline.engine.score import KernelMismatch
from pipeline.kafka.clients import ClusterUnreachable, TopicError
from pipeline.registry import RegistryError
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings
from pipeline.sources import PRESETS

_DEFAULTS = ReportOptions()
_SHOWN = 10
"""Differences from live that the terminal shows; all of them go to the file."""


@click.command("backtest")
@click.argument("history", required=False, type=click.Path(path_type=Path))
@click.option("--bootstrap", help="Cluster whose topics are read.  [default: KAFKA_BOOTSTRAP_SERVERS]")
@click.option("--from", "start", type=Moment(), help="First event time.")
@click.option("--to", "end", type=Moment(), help="Event time to end before.")
@click.option(
    "--warm-up",
    type=Duration(),
    help="History before the range that fills the windows.  [default: 37d; recorded: what a restore reads]",
)
@click.option(
    "--lateness", type=Duration(), default="7d", show_default=True, help="From an event to its record, at most."
)
@click.option(
    "--order",
    type=click.Choice([order.value for order in Order]),
    default=Order.EVENT_TIME.value,
    show_default=True,
    help="All partitions by event time, or the logs as they are.",
)
@click.option("--compare", type=click.Choice(["live"]), help="Report every difference from the recorded decisions.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]VERSION",
    help="LightGBM version, or active; may be repeated.  [default: active; recorded: those that decisions name]",
)
@click.option("--policy", help="Policy version.  [default: the one that was made for the model]")
@click.option(
    "--threshold",
    "thresholds",
    type=click.FloatRange(0, 1),
    multiple=True,
    help="In place of the policy's; may be repeated.",
)
@click.option(
    "--river", help="Online model: latest, untaught, or a version.  [default: latest; with --learn: untaught]"
)
@click.option("--learn", is_flag=True, help="Let the online model learn from there on.")
@click.option(
    "--publish-every",
    type=Duration(),
    default="1h",
    show_default=True,
    help="Event time between two versions of an online model that learns.",
)
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
    "--label-delay", type=Duration(), default="7d", show_default=True, help="From a transaction to what its file knows."
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
    bootstrap: str | None,
    start: datetime | None,
    end: datetime | None,
    warm_up: float | None,
    lateness: float,
    order: str,
    compare: str | None,
    models: tuple[str, ...],
    policy: str | None,
    thresholds: tuple[float, ...],
    river: str | None,
    learn: bool,
    publish_every: float,
    preset: str | None,
    changes: tuple[str, ...],
    currency: str,
    time_zone: str,
    label_file: Path | None,
    label_delay: float,
    top: int,
    review_cost: float,
    report: Path | None,
    as_json: Path | None,
    decisions: Path | None,
    differences: Path | None,
) -> None:
    """Decide history again: of the topics, of HISTORY (.parquet, .csv, .csv.gz), or of a directory of exported topics.

    What lies before the range fills the windows. Nothing is written to a topic, and no group's offsets move. Durations:
    90 (seconds), 30m, 12h, 7d. Ctrl-C ends early; the report then says that it is partial.
    """
    if differences is not None and compare is None:
        raise click.UsageError("--differences tells how decisions differ from live ones: add --compare live")
    stop = threading.Event()
    try:
        from_file = history is not None and history.is_file()
        mapping = file_mapping(history, changes, preset, currency, time_zone) if history and from_file else None
        asked = Backtest(
            history,
            start=start,
            end=end,
            models=_named(models),
            thresholds=thresholds,
            policy=policy,
            river=river,
            learn=learn,
            publish_every_s=publish_every,
            order=order,
            compare_live=compare is not None,
            warm_up_s=warm_up,
            lateness_s=lateness,
            label_file=label_file,
            label_delay_s=label_delay,
            mapping=mapping,
            settings=Settings(),
            bootstrap=bootstrap,
        )
        with _interrupts(stop), _Bar() as bar:
            result = asked.run(bar.show, stop.is_set)
        made = build_report(result, ReportOptions(top=top, review_cost=review_cost))
    # Sources, ranges, orders and rate tables that may not be used are values that may not be used.
    except (TopicError, ClusterUnreachable, RegistryError, ModelError, KernelMismatch, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(made.text)
    if asked.comparison is not None:
        _tell(asked.comparison, differences)
    for path, text in ((report, made.html if report else ""), (as_json, made.json if as_json else "")):
        if path is not None:
            path.write_text(text, encoding="utf-8")
            click.echo(f"wrote {path}", err=True)
    if decisions is not None:
        decisions.mkdir(parents=True, exist_ok=True)
        for number, variant in enumerate(result.variants):
            _write(variant.decisions, decisions / f"{number}.parquet")
        (decisions / "variants.json").write_text(
            json.dumps([{"name": one.name, **one.models} for one in result.variants]), encoding="utf-8"
        )
        click.echo(f"wrote {decisions}", err=True)


def _named(models: tuple[str, ...]) -> dict[str, str]:
    named = {}
    for model in models:
        name, _, version = model.rpartition("=")
        if (name or version) in named:
            raise click.BadParameter(f"{model!r} is named twice: write NAME=VERSION", param_hint="--model")
        named[name or version] = version
    return named


def _write(frame: pd.DataFrame, path: Path) -> None:
    """A part at a time: a frame may be longer than what fits into memory."""
    schema = pa.Table.from_pandas(frame.iloc[:0], preserve_index=False).schema
    with pq.ParquetWriter(path, schema) as writer:
        for rows in blocks(len(frame)):
            writer.write_table(pa.Table.from_pandas(frame.iloc[rows], schema, preserve_index=False))


@contextmanager
def _interrupts(stop: threading.Event) -> Iterator[None]:
    """The first Ctrl-C ends the replay, a second one the program."""

    def ask(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


class _Bar:
    """Progress on the standard error: rate, event time, and time left where an end was named."""

    def __init__(self) -> None:
        self._progress = Progress(
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("opening the history", total=None)

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, step: Step) -> None:
        """Tell how far it is."""
        rate = step.transactions / step.elapsed_s if step.elapsed_s else 0.0
        text = f"{moment(step.event_time_us)}  {step.transactions:,} transactions ({rate:,.0f}/s)"
        total = None if step.share is None else 1.0
        self._progress.update(self._task, description=text, total=total, completed=step.share or 0.0)


def _tell(comparison: Comparison, path: Path | None) -> None:
    click.echo(f"{comparison.compared:,} decisions compared with live: {len(comparison.differences):,} differ")
    for cause, count in comparison.causes.most_common():
        click.echo(f"  {count:,} {cause}")
    if path is not None:
        comparison.frame().to_csv(path, index=False)
        click.echo(f"wrote {path}", err=True)
        return
    for one in comparison.differences[:_SHOWN]:
        click.echo(
            f"  {one.transaction_id} of {one.card_id}: {one.cause} ({one.differs or one.action or one.live_action})"
        )
    if len(comparison.differences) > _SHOWN:
        click.echo("  ...; --differences FILE writes all of them")
