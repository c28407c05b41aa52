"""The end of a session's waits once its worker ends."""

import math
import threading
import time
from collections.abc import Callable
from typing import Final

from pipeline.kafka.cluster.errors import Stopped

LAST_WAIT_S: Final = 4.0
"""Longest wait for a broker once the worker ends: what was not committed is read again."""


class Shutdown:
    """Ends the waits of one agent's session; `request` may be called from another thread.

    Args:
        agent: Name of the agent.
        report_waiting: Called while something waits for a broker; may raise.
    """

    def __init__(self, agent: str, report_waiting: Callable[[], None]) -> None:
        self._agent, self.report_waiting = agent, report_waiting
        self.requested = threading.Event()
        self._requested_s = math.inf

    def request(self) -> None:
        """No longer repeat calls that fail, nor wait for long."""
        self._requested_s = min(self._requested_s, time.monotonic())
        self.requested.set()

    def waiting(self) -> None:
        """Report a wait for a broker; `Stopped` once the worker has been ending for `LAST_WAIT_S`."""
        self.report_waiting()
        if time.monotonic() - self._requested_s > LAST_WAIT_S:
            raise Stopped(f"agent {self._agent}: the worker ends while it waits for a broker")

    def restoring(self) -> None:
        """Report a wait of a restore; `Stopped` once the worker ends."""
        if self.requested.is_set():
            raise Stopped(f"agent {self._agent}: the worker ends while state is being restored")
        self.waiting()
