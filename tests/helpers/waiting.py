"""Waiting for what comes true in its own time."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

TIMEOUT_S: Final = 60.0
BUSY_S: Final = 180.0
"""A broker on a busy machine may answer nobody for so long."""
POLL_S: Final = 0.02
T = TypeVar("T")


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds; fails after `TIMEOUT_S`."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not come true"
        time.sleep(POLL_S)


def retried(call: Callable[[], T], *errors: type[Exception], within_s: float = TIMEOUT_S) -> T:
    """Repeat ``call`` until it raises none of ``errors``; raises the last one after ``within_s``."""
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            return call()
        except errors:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(POLL_S)
