"""Workers as an operator starts them: processes, with their settings in the environment."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.demo.processes import settings_environment
from pipeline.settings import Settings
from tests.helpers.waiting import TIMEOUT_S

POLL_S = 0.05
LONGEST_PAUSE_S = 1.0
FOLLOWERS = 2
"""Agents of a worker that follow versions."""
ROOT = Path(__file__).parents[2]

WORKER = ("-m", "pipeline.cli", "worker")
FAUST = ("-m", "faust", "-A", "agents.app", "worker")


def inherited_environment() -> dict[str, str]:
    """The environment without what configures this project's commands, but for the features that tests declare."""
    ours, kept = ("FRAUD_PIPELINE_", "KAFKA_", "DAYS"), ("FRAUD_PIPELINE_FEATURES_FILE",)
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(ours)}


def printed_json(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Any:
    """Return what a module prints as JSON in a process of its own: it declares what no other test may find."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Worker:
    """A process of its own with its output in a file; `end` leaves nothing behind."""

    def __init__(self, settings: Settings, log: Path, command: tuple[str, ...] = WORKER) -> None:
        self._log = log
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env={**inherited_environment(), **settings_environment(settings)},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds; fails when the worker ends before, or after `TIMEOUT_S`.

        The checks take a fifth of the time at most. A check that reads a topic takes CPU time from the worker.
        """
        deadline_s = time.monotonic() + TIMEOUT_S
        looked_s = time.monotonic()
        while not condition():
            if self.process.poll() is not None:
                # What it did last may have made it true.
                assert condition(), f"the worker ended with {self.process.returncode}:\n{self.output}"
                return
            assert time.monotonic() < deadline_s, f"the condition did not come true; the worker said:\n{self.output}"
            time.sleep(min(max(POLL_S, 4 * (time.monotonic() - looked_s)), LONGEST_PAUSE_S))
            looked_s = time.monotonic()

    def until_it_says(self, text: str) -> None:
        self.until(lambda: text in self.output)

    def until_active(self, name: str, version: str, *, was: str = "") -> None:
        """Wait until a version is active in both agents that follow them, of which one decides.

        ``was``: the version before, where this one was active earlier.
        """
        self.until(lambda: self.output.count(f"{name} version {version} is active (was {was}") >= FOLLOWERS)

    def code(self) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(TIMEOUT_S)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        return self.code()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
