"""The workers of a run: started, stopped, killed, paused; one that ends by itself is told and started again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipeline.demo.processes import log_tail, settings_environment
from pipeline.settings import Settings

ROOT = Path(__file__).parents[2]
WORKER = ("-m", "pipeline.demo.child_process", "worker")
EXIT_S = 2.0
"""Time that a worker has after SIGTERM, beyond its own limit."""
AT_ONCE_S = 3.0
"""Time that a worker has after a second SIGTERM."""
RECENT_PAUSE_S = 60.0
MOST_RESTARTS = 30
STACK_LINES = 80
ENDING_LINES = 15
"""Last lines of a log that tell why a worker ended by itself."""
STARTING_S = 30.0
"""Younger than this, a worker may not have come to handle SIGTERM yet, and holds nothing."""
NO_BROKER = ("Error: no Kafka broker answers", "see whether the brokers are well")
"""Last lines of a worker that was started while no broker was there for longer than a start waits."""
ALL_AGENTS = "label,card,score,feedback,learn"


class Ending(NamedTuple):
    """A worker that ended although nobody asked it to."""

    at_s: float
    name: str
    code: int
    after_pause: bool
    """Whether it had been stopped for longer than its session shortly before: then it may end."""
    log: str
    meant: bool = False
    """True after a fault that may end a worker, or a start without the only broker, if the worker said so."""


class WorkerFailed(RuntimeError):
    """Workers end by themselves again and again."""


@dataclass
class Running:
    """A worker's process."""

    name: str
    agents: str
    process: subprocess.Popen[bytes]
    log: Path
    started_s: float
    paused_s: float = -1e9
    """When it was last let go on after a pause (monotonic)."""
    is_paused: bool = False
    log_start: int = 0
    """Where in its log its own lines begin."""

    @property
    def output(self) -> str:
        """Its own lines."""
        return self.log.read_bytes()[self.log_start :].decode(errors="replace")


@dataclass
class Fleet:
    """Workers by name. ``environment`` is added to that of the settings."""

    settings: Settings
    log_dir: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    workers: dict[str, Running] = field(default_factory=dict)
    endings: list[Ending] = field(default_factory=list)
    slow_exits: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """What else a worker did that it must not do."""
    sentences: dict[str, tuple[str, int]] = field(default_factory=dict)
    """By worker that must end by itself: what it must say, and from where on in its log."""
    say: Callable[[str], None] = print
    brokers: int = 1

    def start(self, name: str, agents: str = ALL_AGENTS) -> None:
        """Start a worker; its log goes on where an earlier one of that name ended."""
        log = self.log_dir / f"{name}.log"
        start = log.stat().st_size if log.exists() else 0
        process = self._process(name, agents, log)
        self.workers[name] = Running(name, agents, process, log, time.monotonic(), log_start=start)

    def rival(self, name: str, agents: str, data_dir: Path) -> Running:
        """Start a worker with the name of one that runs. It is not watched: whoever asks for it must end it."""
        log = self.log_dir / f"{name}-rival.log"
        log.unlink(missing_ok=True)
        return Running(name, agents, self._process(name, agents, log, data_dir), log, time.monotonic())

    def _process(self, name: str, agents: str, log: Path, data_dir: Path | None = None) -> subprocess.Popen[bytes]:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        own = self.settings.model_copy(update={"instance": name, "metrics_port": 0, "agents": agents})
        if data_dir is not None:
            own = own.model_copy(update={"data_dir": data_dir})
        ours = ("FRAUD_PIPELINE_", "KAFKA_")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        with log.open("ab") as sink:
            return subprocess.Popen(
                [sys.executable, *WORKER],
                # The end of this pipe tells a worker that its harness is gone.
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**inherited, **settings_environment(own), **self.environment, "PYTHONFAULTHANDLER": "1"},
                cwd=ROOT,
                process_group=0,
            )

    def pick(self, target: str, draw: float) -> Running | None:
        """One of the workers that run, by ``target`` (a kind of agent or ``any``) and a number from 0 to 1."""
        able = [worker for name, worker in sorted(self.workers.items()) if target == "any" or target in worker.agents]
        return able[int(draw * len(able))] if able else None

    def kill(self, name: str) -> Running:
        """SIGKILL."""
        worker = self.workers.pop(name)
        worker.process.kill()
        self._ended(worker)
        return worker

    def pause(self, name: str) -> None:
        """SIGSTOP."""
        self.workers[name].is_paused = True
        self.workers[name].process.send_signal(signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """SIGCONT."""
        if (worker := self.workers.get(name)) is not None:
            worker.process.send_signal(signal.SIGCONT)
            if worker.is_paused:
                worker.paused_s, worker.is_paused = time.monotonic(), False

    def terminate(self, name: str, *, twice: bool = False, reported: bool = False) -> float:
        """SIGTERM; returns the seconds that it took to end. Too many of them, or an exit code, are kept.

        ``reported``: the first SIGTERM was sent before.
        """
        worker = self.workers.pop(name)
        worker.process.send_signal(signal.SIGCONT)
        started_s = time.monotonic()
        if not reported:
            worker.process.terminate()
        limit_s = AT_ONCE_S if twice else self.settings.shutdown_timeout_s + EXIT_S
        if twice:
            time.sleep(0.2)
            worker.process.terminate()
        try:
            code = worker.process.wait(limit_s)
            early = code == -signal.SIGTERM and started_s - worker.started_s < STARTING_S
            if code != 0 and not twice and not early:
                self.slow_exits.append(f"{name} ended with {code} after SIGTERM:\n{log_tail(worker.log)}")
        except subprocess.TimeoutExpired:
            # With Python's fault handler this leaves the stacks of all threads in the log.
            worker.process.send_signal(signal.SIGABRT)
            worker.process.wait()
            tail = log_tail(worker.log, STACK_LINES)
            self.slow_exits.append(f"{name} was still there {limit_s:.0f} s after SIGTERM:\n{tail}")
        self._ended(worker)
        return time.monotonic() - started_s

    def watch(self, now_s: float) -> None:
        """Start again what has ended by itself. Raises `WorkerFailed` where that does not help."""
        for name, worker in list(self.workers.items()):
            code = worker.process.poll()
            if code is None:
                continue
            del self.workers[name]
            self._ended(worker)
            recent = time.monotonic() - worker.paused_s < RECENT_PAUSE_S
            tail = log_tail(worker.log, ENDING_LINES)
            alone = self.brokers == 1 and any(text in tail.splitlines()[-1] for text in NO_BROKER)
            meant = self._says(worker) or alone
            self.endings.append(Ending(round(now_s, 1), name, code, recent, tail, meant))
            why = " as it must" if meant else " after its pause" if recent else ""
            self.say(f"{name} ended by itself (exit code {code}){why}")
            if sum(not item.meant for item in self.endings) > MOST_RESTARTS:
                raise WorkerFailed(
                    f"workers end by themselves again and again; the last was {name}:\n{log_tail(worker.log)}"
                )
            self.start(name, worker.agents)

    def stop(self) -> None:
        """SIGTERM to all that are left, at once, and wait."""
        for worker in self.workers.values():
            worker.process.send_signal(signal.SIGCONT)
            worker.process.terminate()
        for name in list(self.workers):
            self.terminate(name, reported=True)

    def end_rival(self, rival: Running) -> None:
        """End a worker that `rival` started."""
        if rival.process.poll() is None:
            rival.process.terminate()
            try:
                rival.process.wait(self.settings.shutdown_timeout_s + EXIT_S)
            except subprocess.TimeoutExpired:
                rival.process.kill()
        self._ended(rival)

    def end(self) -> None:
        """Leave nothing behind."""
        for name in list(self.workers):
            self.kill(name)

    def must_say(self, name: str, sentence: str) -> None:
        """Expect that a worker ends by itself, with this sentence and no traceback."""
        self.sentences[name] = sentence, self.workers[name].log.stat().st_size

    def _says(self, worker: Running) -> bool:
        sentence, start = self.sentences.pop(worker.name, ("", 0))
        reported = worker.log.read_bytes()[start:].decode(errors="replace")
        return sentence != "" and sentence in reported and "Traceback" not in reported

    @staticmethod
    def _ended(worker: Running) -> None:
        worker.process.wait()
        if worker.process.stdin is not None:
            worker.process.stdin.close()
