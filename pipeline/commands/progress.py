"""Shared parts of commands that take long: a bar on the standard error, and an end at Ctrl-C."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pipeline.cli import INTERRUPTED

PROGRESS_INTERVAL_S: Final = 5.0
"""Time between two lines that report progress."""


@contextmanager
def interrupts(stop: threading.Event, *others: signal.Signals) -> Iterator[None]:
    """Let the first Ctrl-C set ``stop``, and the second end the program; an error between them has their exit code.

    Args:
        stop: What is set.
        others: Further signals that set it, for good, where a service ends so; its errors keep their exit code.
    """

    def ask(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, ask)
    for number in others:
        signal.signal(number, ask)
    try:
        yield
    except Exception as error:
        if others or not stop.is_set():
            raise
        if isinstance(error, click.ClickException):
            error.exit_code = INTERRUPTED
            raise
        failure = click.ClickException("")
        failure.exit_code = INTERRUPTED
        raise failure from error
    finally:
        signal.signal(signal.SIGINT, previous)


def seldom(report: Callable[[str], None], interval_s: float = PROGRESS_INTERVAL_S) -> Callable[[str], None]:
    """Return ``report`` in a form that leaves out what comes within ``interval_s`` of the line before."""
    next_s = time.monotonic() + interval_s

    def maybe(text: str) -> None:
        nonlocal next_s
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + interval_s
            report(text)

    return maybe


class ProgressBar:
    """Progress on the standard error: what is done, and time left where the end is known."""

    def __init__(self, begins: str) -> None:
        """``begins`` is reported until there is some progress."""
        self._progress = Progress(
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(begins, total=None)

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, where: str, n: int, what: str, elapsed_s: float, share: float | None) -> None:
        """``n`` of ``what`` are done, up to ``where``; ``share`` of all, 0 to 1, None where nobody knows."""
        rate = n / elapsed_s if elapsed_s else 0.0
        text = f"{where}  {n:,} {what} ({rate:,.0f}/s)"
        self._progress.update(
            self._task, description=text, total=None if share is None else 1.0, completed=share or 0.0
        )
