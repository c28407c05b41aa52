"""The view of a run: redrawn in place on a terminal with colours, plain lines everywhere else."""

import os
import shlex
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from pipeline.broker.running import demo_dir
from pipeline.demo.figures import RunFigures, RunState
from pipeline.demo.text import PLAIN_WIDTH, alert_rows, duration_text
from pipeline.observability.terminal import printable
from pipeline.settings import Settings
from schemas.times import utc_text

PLAIN_INTERVAL_S: Final = 2.0
"""Time between two progress lines in a pipe."""
REDRAWS_PER_S: Final = 4.0
COMMAND_INDENT: Final = "    "
"""Before a command line, which is never wrapped: it is there to be copied."""
BLOCK_BYTES: Final = 512
"""Unit of ``st_blocks``, whatever the file system's is."""
MOST_COLUMNS: Final = 110
"""Wider lines are hard to read."""

Clock = Callable[[], float]


def wants_colours(stream: TextIO) -> bool:
    """Return True if escape codes may go to ``stream``: a terminal that knows them, and nobody said ``NO_COLOR``."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") not in {"dumb", ""}


def milliseconds_text(latency_ms: float | None) -> str:
    """A latency with the digits that matter.

    >>> [milliseconds_text(ms) for ms in (None, 5.31, 53.2, 1200)]
    ['-', '5.3 ms', '53 ms', '1,200 ms']
    """
    if latency_ms is None:
        return "-"
    return f"{latency_ms:.1f} ms" if latency_ms < 10 else f"{latency_ms:,.0f} ms"


def precision_text(figures: RunFigures) -> str:
    """Write the share of fraud among the alerts that have a label by now."""
    if figures.precision is None:
        return "precision not known yet: labels come days later"
    return f"precision so far {figures.precision:.0%} of {figures.labelled_alerts:,} labelled"


def progress_line(state: RunState, now_s: float) -> str:
    """The present state on one line, for a pipe: at most 80 columns with figures of the usual size."""
    figures = state.figures
    position = "" if state.day == 0 else f"day {state.day}{f'/{state.days}' if state.days else ''} "
    precision = "" if figures.precision is None else f" ({figures.precision:.0%} true)"
    return (
        f"[{now_s - state.started_s:5.0f} s] {position or 'warm-up '}{state.transactions_per_s:,.0f}/s, "
        f"{figures.decisions} decided, {figures.undecided} waiting, {figures.alerts} alerts{precision}"
    )


def dashboard(state: RunState, now_s: float, width: int = PLAIN_WIDTH, height: int = 24) -> RenderableType:
    """The whole picture for a terminal of ``width`` columns and ``height`` lines; it fits 80 x 24."""
    width = min(width, MOST_COLUMNS)
    figures = state.figures
    title = Text("Fraud detection on simulated transactions", style="bold")
    elapsed = f"running for {duration_text(now_s - state.started_s)}"
    title.append(elapsed.rjust(width - len(title)), style="dim")
    parts: list[RenderableType] = [title, Rule(style="dim")]
    parts += [
        Text(line, style="bold green") for line in textwrap.wrap(state.stage[:1].upper() + state.stage[1:], width)
    ]
    if state.day:
        parts.append(_day_line(state, width))
    if state.share is not None:
        parts.append(ProgressBar(total=1.0, completed=state.share, width=width))
    if figures.transactions:
        parts += [Text(), _figures_table(state)]
    if figures.latest_alerts:
        parts += [Text(), Text("Latest alerts (simulated time, amount, score)", style="bold")]
        parts += _latest(figures, width, max(0, height - 18))
    workers = f"{state.workers} worker{'' if state.workers == 1 else 's'}. " if state.workers else ""
    parts += [Text(), Text(f"{workers}Ctrl-C stops everything.", style="dim")]
    return Group(*parts)


def summary_lines(state: RunState, now_s: float) -> list[str]:
    """Summarise the run in words, before the line of JSON."""
    figures = state.figures
    if figures.transactions == 0:
        return [f"The run ended after {duration_text(now_s - state.started_s)}, before any transaction: {state.stage}."]
    decided = figures.decisions - figures.repeated_decisions
    return [
        f"Transactions   {figures.transactions:,} sent, of which {figures.warm_up_transactions:,} "
        "warmed the windows up",
        f"Decisions      {figures.decisions:,}"
        + (", one for each transaction" if decided == figures.transactions else "")
        + (f", {figures.undecided:,} transactions without one" if figures.undecided else "")
        + (f", {figures.refused:,} refused" if figures.refused else "")
        + (f", {figures.repeated_decisions:,} repeated or foreign" if figures.repeated_decisions else ""),
        *(["               The rest is decided when workers start there again."] if figures.undecided else []),
        f"Alerts         {figures.alerts:,}, {precision_text(figures)}",
        f"Labels         {figures.labels:,} sent, days after their transactions",
        f"Latency        p50 {milliseconds_text(figures.latencies.percentile_ms(0.5))}, "
        f"p99 {milliseconds_text(figures.latencies.percentile_ms(0.99))} from send to decision",
        f"River model    version {printable(figures.river_version or '-')}, "
        f"{figures.river_versions:,} published while it learned",
        f"Dead letters   {figures.dead_letters:,}",
        f"Wall time      {duration_text(now_s - state.started_s)}",
    ]


def command_text(settings: Settings, arguments: str, topic_prefix: str = "") -> str:
    """Return a command line that runs from this directory, whatever the PATH is; ``settings`` as the user gave them."""
    program = Path(sys.executable).with_name("fraud-pipeline")
    here = Path.cwd()
    variables = {
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "FRAUD_PIPELINE_DATA_DIR": settings.data_dir if "data_dir" in settings.model_fields_set else None,
        "FRAUD_PIPELINE_TOPIC_PREFIX": topic_prefix or None,
    }
    given = [f"{name}={shlex.quote(str(value))}" for name, value in variables.items() if value is not None]
    relative = program.relative_to(here) if program.is_relative_to(here) else program
    return " ".join([*given, shlex.quote(str(relative)), arguments])


def bytes_on_disk(settings: Settings) -> int | None:
    """Return the size of what the latest run has on disk here; None without a directory of its own."""
    directory = demo_dir(settings)
    if not directory.is_dir():
        return None
    blocks = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            # Brokers and workers delete files meanwhile; Kafka's indexes are large files with holes.
            with suppress(OSError):
                blocks += os.lstat(f"{folder}/{name}").st_blocks
    return blocks * BLOCK_BYTES


def closing_lines(settings: Settings, state: RunState) -> list[str]:
    """Describe the run's remains and the next steps; ``settings`` are those that the user gave."""
    lines = []
    if (size := bytes_on_disk(settings)) is not None:
        lines += [
            f"On disk        {size / 1e6:,.0f} MB of topics, state and models, which the next run empties:",
            f"{COMMAND_INDENT}{demo_dir(settings)}",
            f"{COMMAND_INDENT}{settings.data_dir / 'logs'} has the logs.",
        ]
    if state.figures.transactions == 0:
        return lines
    next_steps = [
        ("Read the alerts of this run, or `show` a card or transaction of them", "alerts --once", state.topic_prefix),
        ("Compare two models on simulated history", "backtest-example", ""),
        ("See all commands; docs/deployment.md has them on your own cluster", "--help", ""),
    ]
    if state.figures.dead_letters:
        next_steps.insert(1, ("See why records became dead letters", "dead-letters list", state.topic_prefix))
    lines.append("What next")
    for text, *command in next_steps:
        lines += [f"- {text}:", f"{COMMAND_INDENT}{command_text(settings, *command)}"]
    return lines


class PlainView:
    """Lines for a pipe, a file, or a terminal without colours."""

    def __init__(self, state: RunState, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._state = state
        self._stream = stream
        self._clock = clock
        self._next_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def stage(self, stage: str) -> None:
        """Print the stage with the seconds since the start."""
        self._state.stage = stage
        now_s = self._clock()
        self._next_s = now_s + PLAIN_INTERVAL_S
        self.print_line(f"[{now_s - self._state.started_s:5.0f} s] {stage}")

    def print_line(self, line: str) -> None:
        """Print ``line``, wrapped at 80 columns under its own beginning; an indented one is a command, and whole."""
        if line.startswith(COMMAND_INDENT):
            self._stream.write(f"{line}\n")
            self._stream.flush()
            return
        indent = " " * (10 if line.startswith("[") else 2)
        for part in textwrap.wrap(line, PLAIN_WIDTH, subsequent_indent=indent, break_long_words=False) or [""]:
            self._stream.write(f"{part}\n")
        self._stream.flush()

    def tick(self) -> None:
        """Print a progress line if the last line is `PLAIN_INTERVAL_S` old and there are figures to show."""
        now_s = self._clock()
        if now_s >= self._next_s and self._state.figures.transactions:
            self._next_s = now_s + PLAIN_INTERVAL_S
            self.print_line(progress_line(self._state, now_s))


class LiveView:
    """A picture that is redrawn in place, four times a second, by a thread of its own."""

    def __init__(self, state: RunState, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._state = state
        self._clock = clock
        self._console = Console(file=stream, highlight=False, markup=False)
        self._live = Live(
            console=self._console,
            get_renderable=self._picture,
            refresh_per_second=REDRAWS_PER_S,
            transient=True,
            redirect_stderr=False,
            redirect_stdout=False,
            vertical_overflow="crop",
        )

    def _picture(self) -> RenderableType:
        return dashboard(self._state, self._clock(), self._console.width, self._console.height)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def stage(self, stage: str) -> None:
        """Show ``stage`` from the next redraw on."""
        self._state.stage = stage

    def print_line(self, line: str) -> None:
        """Print ``line`` above the picture."""
        self._console.print(Text(line), soft_wrap=line.startswith(COMMAND_INDENT))

    def tick(self) -> None:
        """Nothing to do: the picture redraws itself."""


View = PlainView | LiveView


def make_view(state: RunState, stream: TextIO = sys.stdout) -> View:
    """The view that suits ``stream``."""
    return LiveView(state, stream) if wants_colours(stream) else PlainView(state, stream)


def _day_line(state: RunState, width: int) -> Text:
    line = Text(f"Day {state.day}" + (f" of {state.days}" if state.days else ", until stopped"))
    if state.simulated is not None:
        line.append(f"   simulated time {utc_text(state.simulated)}"[: width - len(line)], style="dim")
    return line


def _figures_table(state: RunState) -> Table:
    figures = state.figures
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(style="dim", no_wrap=True, overflow="ellipsis")
    river = printable(figures.river_version or "-")
    rows = (
        ("Transactions", f"{figures.transactions:,}", f"{state.transactions_per_s:,.0f} a second at the moment"),
        (
            "Decisions",
            f"{figures.decisions:,}",
            f"{figures.undecided:,} transactions wait for one (lag)",
        ),
        ("Alerts", f"{figures.alerts:,}", precision_text(figures)),
        ("Labels", f"{figures.labels:,}", "what transactions turned out to be, a week later"),
        (
            "Latency",
            milliseconds_text(figures.latencies.percentile_ms(0.5)),
            f"median from send to decision; 99 % within {milliseconds_text(figures.latencies.percentile_ms(0.99))}",
        ),
        ("River model", f"{figures.river_versions:,}", f"versions learned; now {river}"),
        ("Dead letters", f"{figures.dead_letters:,}", "records that could not be accepted"),
    )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _latest(figures: RunFigures, width: int, height: int) -> list[Text]:
    lines: list[Text] = []
    for alert in reversed(tuple(figures.latest_alerts)):  # Another thread appends meanwhile.
        rows = alert_rows(alert, width)
        if len(lines) + len(rows) > height:
            break
        lines += rows
    return lines
