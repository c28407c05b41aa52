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


class Stalled(RuntimeError):
    """What is waited for does not come, and nothing moves any more."""


def await_moving(
    look: Callable[[], T],
    done: Callable[[T], bool],
    check: Callable[[], None],
    otherwise: str,
    *,
    every_s: float = 0.05,
    within_s: float = 120.0,
) -> T:
    """Wait until what is seen is enough, for as long as it changes.

    Args:
        look: Returns what is to be seen now.
        done: Whether that is enough.
        check: Raises what has ended meanwhile.
        otherwise: What is wrong if nothing changes, as a sentence.
        every_s: Between two looks.
        within_s: How long nothing may change.

    Raises:
        Stalled: Nothing has changed for so long.
    """
    seen, moved_s = look(), time.monotonic()
    while not done(seen):
        check()
        time.sleep(every_s)
        now = look()
        if now != seen:
            seen, moved_s = now, time.monotonic()
        elif time.monotonic() - moved_s > within_s:
            raise Stalled(f"nothing has moved for {within_s:.0f} s: {otherwise}")
    return seen
