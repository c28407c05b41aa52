"""``fraud-pipeline replay``: feed a file of transactions through the topics on a simulated clock."""

import json
import math
import signal
import threading
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import click

from pipeline.commands.file_mapping import file_mapping, mapping_option
from pipeline.commands.option_groups import declared_options
from pipeline.commands.option_types import Moment
from pipeline.commands.shared_options import named_servers
from pipeline.engine.records.columns import Reject
from pipeline.history.frames import read_transactions
from pipeline.history.mapped_files import refusal_text
from pipeline.observability.terminal import printable
from pipeline.replay.replayer import Replay, ReplayOptions, ReplayProgress
from pipeline.settings import Settings


class Speed(click.ParamType):
    """Simulated seconds per second, or ``max``."""

    name = "speed"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return a positive number; infinite for ``max``.

        Args:
            value: Text of the option, or its default.
            param: Named by the error.
            ctx: Shown with the error.
        """
        if value == "max":
            return math.inf
        try:
            speed = float(str(value))
        except ValueError:
            speed = math.nan
        if not 0 < speed <= math.inf:
            self.fail(f"{value!r} is no speed; write a positive number (86400 is a day a second) or max", param, ctx)
        return speed


@click.command("replay")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--bootstrap", help="Cluster to feed.  [default: KAFKA_BOOTSTRAP_SERVERS]")
@click.option("--speed", type=Speed(), default="max", show_default=True, help="Simulated seconds a second, or max.")
@mapping_option
@click.option("--from", "start", type=Moment(), help="First event time.")
@click.option("--to", "end", type=Moment(), help="Event time to end before.")
@click.option("--sort", is_flag=True, help="Order the file by event time first, in memory.")
@declared_options("options", ReplayOptions)
def command(
    file: Path,
    bootstrap: str | None,
    speed: float,
    start: datetime | None,
    end: datetime | None,
    sort: bool,
    options: ReplayOptions,
    mapping: Path | None,
) -> None:
    """Feed the transactions of FILE (.parquet, .csv, .jsonl) to the topics, each label after its delay.

    Records bear the simulated clock, so the topics must keep producers' timestamps (docs/replay.md). Durations are
    simulated time: 90 (seconds), 30m, 12h, 7d. Ctrl-C ends the replay; one JSON line on the standard output sums it up.
    """
    settings = Settings()
    servers = named_servers(bootstrap, settings)
    stop = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        found, rejects = file_mapping(file, mapping, settings), list[Reject]()
        frames = read_transactions(file, found, start=start, end=end, sort=sort, rejects=rejects)
        progress = Replay(settings, servers, frames, replace(options, speed=speed), report=_echo, stop=stop).run()
    finally:
        signal.signal(signal.SIGINT, previous)
    if rejects:
        codes = Counter(reject.code for reject in rejects)
        click.echo(printable(refusal_text(file, codes, rejects[0])), err=True)
    if not progress.transactions and not progress.stopped:
        raise click.ClickException(f"{file} holds no transaction in the chosen time; widen --from and --to")
    click.echo(json.dumps(_summary(progress)))


def _echo(progress: ReplayProgress) -> None:
    when = f"{progress.simulated_time:%Y-%m-%d %H:%M}" if progress.simulated_time is not None else "-"
    rate = progress.transactions / progress.elapsed_s if progress.elapsed_s else 0.0
    click.echo(
        f"{when}  {progress.transactions:,} transactions ({rate:,.0f}/s, {progress.in_flight:,} in flight)  "
        f"{progress.labels:,} labels ({progress.reviews:,} reviews, {progress.pending_labels:,} to come)",
        err=True,
    )
    if progress.warning is not None:
        click.secho(progress.warning, fg="yellow", err=True)


def _summary(progress: ReplayProgress) -> dict[str, object]:
    return {
        "transactions": progress.transactions,
        "labels": progress.labels,
        "fraud_labels": progress.fraud_labels,
        "reviews": progress.reviews,
        "labels_not_sent": progress.pending_labels,
        "unmatched_alerts": progress.unmatched_alerts,
        "first_event_time": progress.first_time and progress.first_time.isoformat(),
        "simulated_time": progress.simulated_time and progress.simulated_time.isoformat(),
        "elapsed_s": round(progress.elapsed_s, 3),
        "stopped": progress.stopped,
    }
