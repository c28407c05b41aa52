"""Shared parts of commands that take long: a bar on the standard error, and an end at Ctrl-C."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pipeline.cli import INTERRUPTED


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
        """Show what is done.

        Args:
            where: Up to where it is done, for people.
            n: Number of things done.
            what: Name of the things, in the plural.
            elapsed_s: Seconds since the begin; 0: the rate is shown as 0.
            share: Part of all that is done, from 0 to 1; None where nobody knows.
        """
        rate = n / elapsed_s if elapsed_s else 0.0
        text = f"{where}  {n:,} {what} ({rate:,.0f}/s)"
        self._progress.update(
            self._task, description=text, total=None if share is None else 1.0, completed=share or 0.0
        )
