"""A backtest to learn from: simulated history on topics, two models, and a report that compares them."""

import shlex
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final, TextIO

import pandas as pd

from pipeline.backtest.api import Backtest
from pipeline.backtest.input.span import RangeError
from pipeline.backtest.report import ReportOptions, build_report
from pipeline.backtest.runner.arguments import TimeRange
from pipeline.backtest.runner.statistics import BacktestProgress
from pipeline.demo.controller import COMPILING, logging_to
from pipeline.demo.environment import run_cluster
from pipeline.demo.figures import RunState
from pipeline.demo.first_models import LABEL_DELAY_DAYS, alerts_per_day, train_on
from pipeline.demo.stop import Mode, RunStopped, StopSignals, stop_signals
from pipeline.demo.text import PLAIN_WIDTH
from pipeline.demo.view import PLAIN_INTERVAL_S, PlainView
from pipeline.demo.world import World
from pipeline.learning.regimes import LabelRegime
from pipeline.models.registry import Registry
from pipeline.observability.error_text import explained
from pipeline.replay.replayer import Replay, ReplayOptions, ReplayProgress
from pipeline.settings import Settings
from pipeline.training.registered import register
from schemas.times import moment

OLDER: Final = "older"
NEWER: Final = "newer"
RANGE_DAYS: Final = 21
"""The last days of the history, which are decided again."""
AGE_DAYS: Final = 28
"""The difference in age to the older model; the newer is trained when the range begins."""
_CONTINUED: Final = " \\"


def run_example(
    settings: Settings, world: World, output: Path, stream: TextIO = sys.stdout, errors: TextIO = sys.stderr
) -> int:
    """Write the history, train, and backtest the topics.

    Args:
        settings: Settings as the user gave them.
        world: All of its history is written to the topics.
        output: Directory of the report.
        stream: For progress and the report.
        errors: For the sentence of an error.

    Returns:
        The exit code: 128 + the signal after a signal, 1 after an error.
    """
    view = PlainView(RunState(started_s=time.monotonic()), stream)
    with stop_signals() as signals, logging_to(settings.data_dir / "logs" / "backtest.log"):
        try:
            output.mkdir(parents=True, exist_ok=True)
            _Example(settings, world, output, view, stream, signals).run()
        except RunStopped as stopped:
            return stopped.exit_code
        except Exception as error:
            if (sentence := explained(error)) is None:
                raise
            errors.write(f"\nError: {sentence}\n")
            return 1
    return 0


class _Example:
    """A run of the example. Each started part is a context that is left on every way out, the newest first."""

    def __init__(
        self, settings: Settings, world: World, output: Path, view: PlainView, stream: TextIO, signals: StopSignals
    ) -> None:
        self._given, self._world, self._view, self._stream, self._signals = settings, world, view, stream, signals
        self._page, self._content = output / "backtest.html", output / "backtest.json"
        self._end = world.first_streamed()
        self._start = self._end - timedelta(days=RANGE_DAYS)
        self._reported_s = 0.0

    def run(self) -> None:
        """Run to the end; raises `RunStopped`, or what its parts raise."""
        view = self._view
        with run_cluster(self._given, view.stage) as (settings, broker):
            try:
                history = self._world.history()
                self._write(history, settings, broker.bootstrap_servers)
                versions = self._train(history, settings)
                self._backtest(settings, versions)
            finally:
                self._signals.mode = Mode.HOLD
                view.stage("stopping the broker")
        view.print_line(f"The report is {self._page}: open it in a browser. As data, it is {self._content}.")
        if self._given.kafka_bootstrap_servers is None:
            view.print_line(
                f"Topics and models stay in {settings.data_dir} until the next run; docs/backtest.md tells how to ask "
                "them more."
            )
        else:
            view.print_line(f"The topics begin with {settings.topic_prefix}, and stay.")

    def _write(self, history: pd.DataFrame, settings: Settings, servers: str) -> None:
        """Fill the topics, each label behind the transactions that came before it was known."""
        self._view.stage(
            f"writing {self._world.history_days} simulated days to the topics: {len(history):,} "
            f"transactions of {self._world.cards:,} cards, and what each turned out to be, "
            f"{LABEL_DELAY_DAYS} days later"
        )
        self._signals.mode = Mode.NOTE
        Replay(
            settings,
            servers,
            [history],
            ReplayOptions(regime=LabelRegime(delay_days=LABEL_DELAY_DAYS), wait=False),
            report=self._report_written,
            stop=self._signals.event,
            report_interval_s=PLAIN_INTERVAL_S,
        ).run()
        self._signals.check()
        self._signals.mode = Mode.RAISE

    def _report_written(self, progress: ReplayProgress) -> None:
        records = progress.transactions + progress.labels
        self._view.stage(f"{records:,} records written")

    def _train(self, history: pd.DataFrame, settings: Settings) -> dict[str, str]:
        """Train the two models; returns their versions by name."""
        view, registry = self._view, Registry(settings.registry_path)
        versions = {}
        for name, age_days in ((OLDER, AGE_DAYS), (NEWER, 0)):
            known_before = self._start - timedelta(days=age_days)
            view.stage(
                f"training the {name} model on what was known on {known_before:%Y-%m-%d}"
                + (COMPILING if name == OLDER else "")
            )
            trained = train_on(history[history["event_time"] < known_before], self._world, settings)
            register(registry, trained, activate=name == OLDER)
            versions[name] = trained.model.version
            self._signals.check()
        return versions

    def _backtest(self, settings: Settings, versions: dict[str, str]) -> None:
        """Decide the range by both models, and write the report; a partial one when it is to stop."""
        view, top = self._view, max(1, round(alerts_per_day(self._world)))
        view.stage("what would each have decided? The topics are read again, as this command does it:")
        for line in command_lines(
            [
                ("--from", f"{self._start:%Y-%m-%d}"),
                ("--to", f"{self._end:%Y-%m-%d}"),
                *(("--model", f"{name}={version}") for name, version in versions.items()),
                ("--top", str(top)),
                ("--report", str(self._page)),
                ("--json", str(self._content)),
            ]
        ):
            view.print_line(line)
        self._signals.mode = Mode.NOTE
        try:
            result = Backtest(settings=settings, range=TimeRange(self._start, self._end), models=versions).run(
                self._report_decided, self._signals.event.is_set
            )
        except RangeError:
            # Nothing of the range was reached before it was to stop.
            self._signals.check()
            raise
        report = build_report(result, ReportOptions(top=top))
        self._page.write_text(report.html, encoding="utf-8")
        self._content.write_text(report.json, encoding="utf-8")
        self._stream.write(f"\n{report.text}\n")
        if result.partial:
            view.print_line(f"The report is partial. It is {self._page}; as data, {self._content}.")
        self._signals.check()

    def _report_decided(self, step: BacktestProgress) -> None:
        now_s = time.monotonic()
        if now_s >= self._reported_s + PLAIN_INTERVAL_S:
            self._reported_s = now_s
            doing = f", {step.stage}" if step.stage else ""
            self._view.stage(f"{step.transactions:,} transactions, up to {moment(step.event_time_us)}{doing}")


def command_lines(asked: Sequence[tuple[str, str]]) -> list[str]:
    """The backtest with ``asked``, options and their values, as a shell takes it, on lines that fit a terminal.

    Simulated labels count only where the clock is simulated too.

    >>> command_lines([("--train", "a b")])
    ["  FRAUD_PIPELINE_TIMESTAMPS=producer fraud-pipeline backtest --train 'a b'"]
    """
    lines = ["  FRAUD_PIPELINE_TIMESTAMPS=producer fraud-pipeline backtest"]
    for option, value in asked:
        part = f" {option} {shlex.quote(value)}"
        if len(lines[-1]) + len(part) + len(_CONTINUED) > PLAIN_WIDTH:
            lines[-1] += _CONTINUED
            lines.append("     ")
        lines[-1] += part
    return lines
