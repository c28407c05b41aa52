"""Waiting for what comes true in its own time."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

TIMEOUT_S: Final = 600.0
"""Limit of waits that are not themselves measured: on a busy machine a run of seconds may take minutes."""
POLL_S: Final = 0.02
T = TypeVar("T")


def seconds_until(
    holds: Callable[[], bool],
    within_s: float = TIMEOUT_S,
    poll_s: float = POLL_S,
    meanwhile: Callable[[], object] | None = None,
) -> float | None:
    """Wait until something holds, and call ``meanwhile`` between; return how long it took, None if it never did."""
    started_s = time.monotonic()
    while not holds():
        if time.monotonic() - started_s > within_s:
            return None
        if meanwhile is None:
            time.sleep(poll_s)
        else:
            meanwhile()
    return time.monotonic() - started_s


def eventually(condition: Callable[[], bool], meanwhile: Callable[[], object] | None = None) -> None:
    """Wait until ``condition`` holds, and call ``meanwhile`` between; fails after `TIMEOUT_S`."""
    assert seconds_until(condition, meanwhile=meanwhile) is not None, "the condition did not come true"


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
