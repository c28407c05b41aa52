"""The controller of a run: what starts when, what is waited for, and that everything stops."""

import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, TextIO

from msgspec import Meta

from agents.topology import LEARNING
from pipeline.broker.local import HOST, free_port
from pipeline.broker.provided import ProvidedBroker
from pipeline.demo.console import ConsoleProcess, running_console
from pipeline.demo.environment import run_cluster
from pipeline.demo.feeder import Feeder
from pipeline.demo.figures import RateMeter, RunState, summary_json
from pipeline.demo.first_models import alerts_per_day, train_on
from pipeline.demo.monitor import Monitor
from pipeline.demo.processes import WorkerProcess, check_alive, is_ready, running_command, running_workers
from pipeline.demo.stop import Mode, RunStopped, StopSignals, stop_signals
from pipeline.demo.view import (
    COMMAND_INDENT,
    View,
    bytes_on_disk,
    closing_lines,
    command_text,
    make_view,
    summary_lines,
)
from pipeline.demo.world import World
from pipeline.models.publish import VersionToPublish, publish_active
from pipeline.models.registry import Registry
from pipeline.observability.error_text import explained
from pipeline.observability.terminal import throttled
from pipeline.replay.replayer import ReplayProgress
from pipeline.scoring.river_factory import first_river
from pipeline.settings import Settings
from pipeline.training.registered import register

STALLED_AFTER_S: Final = 60.0
"""So long without a new decision while some are missing, and the run fails."""
DRAIN_ON_STOP_S: Final = 5.0
"""After Ctrl-C, transactions on their way get so long to be decided."""
LEARNER: Final = "learner"
LOOK_S: Final = 0.05
"""Time between two looks at something that is waited for."""
EXAMPLES_NAMED: Final = 5
TRAINING_STAGE_S: Final = 2.0
"""Time between two stages of the training that are reported."""
COMPILING: Final = " (the first time, the feature kernels are compiled, which takes a minute or two)"


class Incomplete(RuntimeError):
    """Some transactions have no decision although everything runs."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The user's choices for a run."""

    days: Annotated[
        int,
        Meta(
            ge=0,
            description="Simulated days to stream; 0 runs until stopped.  [env: DAYS]",
            extra={"envvar": "DAYS"},
        ),
    ] = 30
    day_seconds: Annotated[float, Meta(gt=0, description="Real time that a simulated day takes.")] = 1.0
    workers: Annotated[int, Meta(ge=1, description="Worker processes.")] = 1
    keep: Annotated[bool, Meta(description="At the end, let broker and topics stay for a look, until Ctrl-C.")] = False
    world: World = field(default_factory=World)


def run(settings: Settings, options: RunOptions, stream: TextIO = sys.stdout, errors: TextIO = sys.stderr) -> int:
    """Run the whole pipeline on a simulated world.

    Args:
        settings: Settings as the user gave them.
        options: The user's choices.
        stream: For the view, a summary and, as the last line, one JSON object.
        errors: For the sentence of an error.

    Returns:
        The exit code: 0 after a complete run or Ctrl-C, 128 + the signal after another one, 1 after an error.
    """
    state = RunState(started_s=time.monotonic(), days=options.days)
    code, failure = 0, ""
    with stop_signals() as signals, logging_to(settings.data_dir / "logs" / "run.log"):
        with make_view(state, stream) as view:
            try:
                Controller(settings, options, state, view, signals).run()
            except RunStopped as stopped:
                # Ctrl-C is how a run is ended.
                code = 0 if stopped.number == signal.SIGINT else stopped.exit_code
            except Exception as error:
                if (sentence := explained(error)) is None:
                    raise
                code, failure = 1, sentence
            signals.mode = Mode.HOLD
        if failure:
            errors.write(f"\nError: {failure}\n")
            errors.flush()
        closing = closing_lines(settings, state)
        for line in ["", *summary_lines(state, time.monotonic()), "", *closing, summary_json(state.figures)]:
            stream.write(f"{line}\n")
        stream.flush()
    return code


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Write what this process's libraries log to a file: on a terminal it would tear the picture apart."""
    handler: logging.Handler
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    except OSError:
        # The run says that it cannot write there, and what to do, in its first step.
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


class Controller:
    """A run of the demo. Each started part is a context that is left on every way out, the newest first."""

    def __init__(
        self, settings: Settings, options: RunOptions, state: RunState, view: View, signals: StopSignals
    ) -> None:
        self._given, self._options, self._state = settings, options, state
        self._view, self._signals = view, signals
        self._rate = RateMeter()
        self._broker: ProvidedBroker | None = None
        self._workers: list[WorkerProcess] = []
        self._beside = ExitStack()
        self._learning = settings  # Those of the process that learns.
        self._monitor: Monitor | None = None
        self._console: ConsoleProcess | None = None

    def run(self) -> None:
        """Run to the end; raises `RunStopped`, `Incomplete`, or what its parts raise."""
        log_dir = self._given.data_dir / "logs"
        with run_cluster(self._given, self._view.stage, self._options.workers) as (settings, broker):
            self._state.topic_prefix = settings.topic_prefix
            with self._stopping("stopping the broker"):
                self._broker = broker
                self._introduce(settings, log_dir)
                with running_console(settings, log_dir) as self._console:
                    self._work(settings, broker.bootstrap_servers, log_dir)

    def _work(self, settings: Settings, servers: str, log_dir: Path) -> None:
        """Train, stream, and stay for a look where that is wanted."""
        self._learning = settings.model_copy(
            update={"agents": LEARNING, "metrics_host": HOST, "metrics_port": free_port()}
        )
        with (
            Monitor(servers, settings, self._state.figures) as self._monitor,
            running_workers(settings, self._options.workers, log_dir) as workers,
            self._beside,
            self._stopping("stopping the workers"),
        ):
            self._workers, self._state.workers = [*workers], len(workers)
            self._learn_first(settings, servers)
            budget = f"{alerts_per_day(self._options.world):g}"
            self._run_beside(settings, "pace", "pace", "--budget-per-day", budget)
            self._view.print_line(f"The threshold follows a budget of {budget} cases a simulated day.")
            self._stream(settings, servers)
            self._let_work()
        if self._options.keep:
            self._let_look(settings)

    def _run_beside(self, settings: Settings, name: str, *command: str) -> None:
        """Run a command beside the workers, until these are stopped."""
        context = running_command(settings, self._given.data_dir / "logs", name, *command)
        self._workers.append(self._beside.enter_context(context))

    def _introduce(self, settings: Settings, log_dir: Path) -> None:
        """Report where everything is, for those who want to look from another terminal."""
        prefix = f", topics begin with {settings.topic_prefix}" if settings.topic_prefix else ""
        self._view.print_line(f"Kafka is at {settings.kafka_bootstrap_servers}{prefix}; workers log to {log_dir}.")
        self._view.print_line("In another terminal:")
        self._view.print_line(COMMAND_INDENT + command_text(self._given, "alerts", settings.topic_prefix))

    def _let_work(self) -> None:
        """Go on for whoever is signed in to the console, until somebody stops the run."""
        if self._console is None or not self._console.is_used:
            return
        self._view.stage("all is decided; somebody is signed in to the console: Ctrl-C ends the run")
        self._signals.mode = Mode.NOTE
        while not self._signals.event.wait(LOOK_S):
            self._check()

    def _let_look(self, settings: Settings) -> None:
        """Leave broker and topics as they are until somebody stops the run."""
        self._workers = []
        self._monitor = None
        self._view.print_line(f"Kafka stays at {settings.kafka_bootstrap_servers} for a look:")
        self._view.print_line(COMMAND_INDENT + command_text(self._given, "alerts --once", settings.topic_prefix))
        self._view.stage("all is decided; broker and topics stay for a look, Ctrl-C stops them")
        self._signals.mode = Mode.NOTE
        while not self._signals.event.wait(LOOK_S):
            if self._broker is not None:
                self._broker.check()

    def _learn_first(self, settings: Settings, servers: str) -> None:
        world = self._options.world
        self._view.stage(f"training the first LightGBM model on {world.history_days} simulated days{COMPILING}")
        report = throttled(self._training, TRAINING_STAGE_S)
        history = world.history()
        trained = train_on(history, world, settings, report)
        register(Registry(settings.registry_path), trained, activate=True)
        publish_active(servers, settings, VersionToPublish.from_models(trained.model, trained.policy))
        self._state.figures.river_version = first_river(settings.river_classifier).version
        self._check()
        found = trained.metrics["alert_precision"]
        precision = "" if found is None else f"; {found:.0%} of its alerts on later days are fraud"
        self._view.print_line(
            f"The first model has {trained.model.trees} trees, learned from {len(history):,} transactions{precision}."
        )

    def _training(self, text: str) -> None:
        # The first part of the work waits for the compiler.
        self._view.stage(f"training the first LightGBM model: {text}{COMPILING if ': 0 of' in text else ''}")
        self._check()

    def _stream(self, settings: Settings, servers: str) -> None:
        """Warm up, stream the days, and wait for the last decision."""
        world = self._options.world
        self._view.stage(
            f"warming up: the last {world.warm_up_days} days of the history fill the workers' windows, at full speed"
        )
        feeder = Feeder(
            settings,
            servers,
            world,
            self._state,
            day_s=self._options.day_seconds,
            wait_decided=self._begin_days,
            report=self._report,
            stop=self._signals.event,
        )
        self._signals.mode = Mode.NOTE
        sent = feeder.run()
        if self._signals.event.is_set():
            self._view.stage("stopping: waiting for the decisions on what was sent (Ctrl-C again: do not wait)")
            self._await_decided(sent.labels, give_up_after_s=DRAIN_ON_STOP_S)
            self._signals.check()
        self._view.stage("all is sent; waiting for the last decisions")
        self._await_decided(sent.labels)
        self._signals.check()

    def _begin_days(self) -> None:
        """Called by the feeder between the warm-up and the first day."""
        self._view.stage("warming up: waiting until everything sent so far is decided")
        self._await_decided(0)
        self._begin_learning()
        self._view.stage("warming up: waiting for the process that learns")
        while not is_ready(HOST, self._learning.metrics_port) and not self._signals.event.wait(LOOK_S):
            self._check()
        days = f"{self._options.days} simulated days"
        if not self._options.days:
            days = f"simulated days until stopped{self._disk_use()}"
        self._view.stage(f"streaming {days}, one in {self._options.day_seconds:g} s; labels follow a week later")

    def _begin_learning(self) -> None:
        """Start what learns once, behind the first decision: it would compile what the workers are compiling."""
        if not any(process.name == LEARNER for process in self._workers):
            self._run_beside(self._learning, LEARNER, "worker")

    def _disk_use(self) -> str:
        """Return how much disk a run without end takes, as the warm-up took it; nothing on a cluster of the user's."""
        taken = bytes_on_disk(self._given)
        if self._given.kafka_bootstrap_servers is not None or taken is None:
            return ""
        of_day = taken / self._options.world.warm_up_days
        return f" (about {of_day * 60 / self._options.day_seconds / 1e6:,.0f} MB of disk a minute)"

    def _report(self, progress: ReplayProgress) -> None:
        """Called by the feeder several times a second."""
        self._check()
        if self._state.figures.decided:
            self._begin_learning()
        if progress.warning is not None:
            raise Incomplete(
                "the workers have decided nothing for a long time "
                f"({progress.in_flight:,} transactions wait). "
                f"Their logs are in {self._given.data_dir / 'logs'}."
            )

    def _await_decided(self, labels: int, give_up_after_s: float | None = None) -> None:
        """Wait until every transaction has its decision, every alert is read, and so are ``labels`` labels.

        Raises `Incomplete`, naming what is missing, when nothing has moved for long; with ``give_up_after_s`` it
        returns after so many seconds instead. Ends at once when the run is to stop.
        """
        figures = self._state.figures
        began_s = moved_s = time.monotonic()
        decisions = -1
        stopping = self._signals.event.is_set()
        while figures.undecided or figures.alerts < figures.alerts_decided or figures.labels < labels:
            self._check()
            now_s = time.monotonic()
            if figures.decisions != decisions:
                decisions, moved_s = figures.decisions, now_s
            if give_up_after_s is not None and now_s - began_s > give_up_after_s:
                return
            if now_s - moved_s > STALLED_AFTER_S:
                raise Incomplete(self._missing(labels))
            if self._signals.event.wait(LOOK_S) and not stopping:
                return
            if stopping:
                time.sleep(LOOK_S)

    def _missing(self, labels: int) -> str:
        figures = self._state.figures
        parts = []
        if figures.undecided:
            examples = ", ".join(figures.missing(EXAMPLES_NAMED))
            parts.append(f"{figures.undecided:,} transactions have no decision (such as {examples})")
        if figures.alerts < figures.alerts_decided:
            parts.append(f"{figures.alerts_decided - figures.alerts} alerts were decided and are not on their topic")
        if figures.labels < labels:
            parts.append(f"{labels - figures.labels} labels that were sent are not on their topic")
        return (
            f"{'; '.join(parts)}, and nothing has moved for {STALLED_AFTER_S:.0f} s. "
            f"{figures.dead_letters:,} records became dead letters. "
            f"The workers' logs are in {self._given.data_dir / 'logs'}."
        )

    def _check(self) -> None:
        """Raise what has gone wrong anywhere; keep the view up to date."""
        figures = self._state.figures
        self._state.transactions_per_s = self._rate.update(time.monotonic(), figures.transactions)
        check_alive(self._workers)
        if self._console is not None:
            for line in self._console.news():
                self._view.print_line(line)
        if self._broker is not None:
            self._broker.check()
        if self._monitor is not None:
            self._monitor.check()
        self._view.tick()

    @contextmanager
    def _stopping(self, stage: str) -> Iterator[None]:
        """Show ``stage`` while the contexts inside are left, and let no signal interrupt that."""
        try:
            yield
        finally:
            self._signals.mode = Mode.HOLD
            self._view.stage(stage)
