"""Child processes: started with their settings in the environment, watched, stopped, never left behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final

from pipeline.settings import Settings

STOP_TIMEOUT_S: Final = 10.0
"""Time that a worker has, after SIGTERM, to finish its batch and leave the group."""
READY_TIMEOUT_S: Final = 1.0
YIELDING: Final = 10
"""Niceness, beyond this process's own, of one for which no alert waits; the system keeps to its own limit."""
LOG_TAIL_LINES: Final = 15


class WorkerDied(RuntimeError):
    """A worker ended although nobody asked it to."""


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A running ``fraud-pipeline`` command and where its log goes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


def settings_environment(settings: Settings) -> dict[str, str]:
    """``settings`` as environment variables from which a process builds the same settings; defaults are left out."""
    defaults = Settings.model_fields
    variables: dict[str, str] = {}
    for name, value in settings.model_dump(mode="json").items():
        if name == "kafka_bootstrap_servers":
            if value is not None:
                variables["KAFKA_BOOTSTRAP_SERVERS"] = value
        elif value is not None and getattr(settings, name) != defaults[name].default:
            variables[f"FRAUD_PIPELINE_{name.upper()}"] = value if isinstance(value, str) else json.dumps(value)
    return variables


def start_command(settings: Settings, log_dir: Path, *command: str) -> WorkerProcess:
    """Start a ``fraud-pipeline`` command as ``settings.instance``, with its log in ``log_dir``/``instance``.log.

    The process has a process group of its own, so that Ctrl-C reaches the controller alone, which then stops its
    workers in order; and it ends by itself when this process is gone (`pipeline.demo.child_process`).
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    log = log_dir / f"{settings.instance}.log"
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FRAUD_PIPELINE_") and name != "KAFKA_BOOTSTRAP_SERVERS"
    }
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.demo.child_process", *command],
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**inherited, **settings_environment(settings)},
            process_group=0,
        )
    return WorkerProcess(settings.instance, process, log)


@contextmanager
def running_workers(settings: Settings, count: int, log_dir: Path) -> Iterator[list[WorkerProcess]]:
    """Run ``count`` workers named ``worker-1``, ``worker-2``, …; all are stopped at the end, however it comes.

    Only the first serves metrics on the port of ``settings``; the others take any free one.
    """
    workers: list[WorkerProcess] = []
    try:
        for number in range(1, count + 1):
            own: dict[str, object] = {"instance": f"worker-{number}"}
            if number > 1:
                own["metrics_port"] = 0
            workers.append(start_command(settings.model_copy(update=own), log_dir, "worker"))
        yield workers
    finally:
        stop_workers(workers)


@contextmanager
def running_command(settings: Settings, log_dir: Path, name: str, *command: str) -> Iterator[WorkerProcess]:
    """Run a ``fraud-pipeline`` command under a name of its own; it is stopped at the end, however that comes.

    No alert waits for it: it yields processors to the workers that decide.
    """
    process = start_command(settings.model_copy(update={"instance": name}), log_dir, *command)
    try:
        # Relative to this process: a run that is itself nice may not raise anybody.
        os.setpriority(os.PRIO_PROCESS, process.process.pid, os.getpriority(os.PRIO_PROCESS, 0) + YIELDING)
        yield process
    finally:
        stop_workers([process])


def is_ready(host: str, port: int) -> bool:
    """Ask a worker's ``/readyz`` whether all its agents work."""
    connection = HTTPConnection(host, port, timeout=READY_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def check_alive(workers: Sequence[WorkerProcess]) -> None:
    """Raise `WorkerDied`, with the end of its log, if one of ``workers`` has ended."""
    for worker in workers:
        code = worker.process.poll()
        if code is not None:
            ending = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise WorkerDied(
                f"{worker.name} {ending} in the middle of the run. Its log is {worker.log}; the last lines are:\n"
                f"{log_tail(worker.log)}"
            )


def stop_workers(workers: Sequence[WorkerProcess]) -> None:
    """Send SIGTERM to all of ``workers`` and wait; kill those that are still there after `STOP_TIMEOUT_S`.

    The standard input stays open until a process has ended, because its end would be taken for the death of this
    process.
    """
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.terminate()
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        if worker.process.stdin is not None:
            worker.process.stdin.close()


def log_tail(log: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last ``lines`` lines of a log file, each indented by two spaces."""
    tail = log.read_bytes()[-64 * 1024 :].decode(errors="replace").splitlines()[-lines:]
    return "\n".join(f"  {line}" for line in tail) or "  (the log is empty)"
