"""Stopping a run from outside: Ctrl-C, SIGTERM, or the end of the terminal."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from types import FrameType
from typing import Any, Final

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class RunStopped(BaseException):
    """Somebody asked the run to stop. Not an ``Exception``: nothing on the way may take it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal, as shells have it."""
        return 128 + self.number


class Mode(Enum):
    """The effect of a stop signal."""

    RAISE = auto()
    """It raises `RunStopped` at once, wherever the main thread is."""
    NOTE = auto()
    """It sets the event; the next one raises."""
    HOLD = auto()
    """It is remembered: the run is cleaning up, which must not be interrupted and does not last."""


class StopSignals:
    """Turns stop signals into `RunStopped`. ``event`` is set once one has come."""

    def __init__(self) -> None:
        self.mode = Mode.RAISE
        self.event = threading.Event()
        self.received: int | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        del frame
        self.received = number
        self.event.set()
        if self.mode is Mode.NOTE:
            self.mode = Mode.RAISE
        elif self.mode is Mode.RAISE:
            # What follows is cleaning up.
            self.mode = Mode.HOLD
            raise RunStopped(number)

    def check(self) -> None:
        """Raise `RunStopped` if a signal has come.

        The handler may have raised inside a callback or a finaliser, whose exceptions Python only prints.
        """
        if self.received is not None:
            self.mode = Mode.HOLD
            raise RunStopped(self.received)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Handle stop signals in the main thread until the block ends; then as before."""
    signals = StopSignals()
    before: dict[int, Any] = {number: signal.signal(number, signals.handle) for number in STOP_SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
