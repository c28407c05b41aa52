"""Waiting for what comes true in its own time."""

import time
from collections.abc import Callable
from typing import Final

PATIENCE_S: Final = 60.0
POLL_S: Final = 0.02


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds; fails after `PATIENCE_S`."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not come true"
        time.sleep(POLL_S)
