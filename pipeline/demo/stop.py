"""Stopping a run from outside: Ctrl-C, SIGTERM, or the end of the terminal."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """Somebody asked the run to stop. Not an ``Exception``: nothing on the way may take it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal, as shells have it."""
        return 128 + self.number


class StopSignals:
    """Turns stop signals into `Stopped`, once; while `quiet`, they are only remembered.

    A signal can arrive inside a callback whose exceptions Python only reports; `check` raises it again at a safe place.
    """

    def __init__(self) -> None:
        self.quiet = False
        self.received: int | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        del frame
        self.received = number
        if not self.quiet:
            raise Stopped(number)

    def check(self) -> None:
        """Raise `Stopped` if a signal has come."""
        if self.received is not None:
            raise Stopped(self.received)


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
