"""Calls that may never come back, made on a thread that can be given up.

librdkafka 2.16 can wait for ever in a transactional call when the broker died that it took for the coordinator
(confluentinc/librdkafka 5456); its own time limit does not help. Who calls through a `CallThread` gets the word back.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final

CALL_TIMEOUT_AFTER_S: Final = 13.0
"""Longer than any call may take by its own limit of ten seconds."""
_LOOK_S: Final = 0.2


class CallTimedOut(RuntimeError):
    """A call did not come back in time; its thread is given up, and whatever the call used must not be used again."""


class CallThread:
    """A daemon thread, which makes one call at a time for one other thread."""

    def __init__(self, name: str, waiting: Callable[[], None]) -> None:
        self._name, self._waiting = name, waiting
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=f"{name}-calls", daemon=True).start()

    def call(self, what: str, function: Callable[[], Any], timeout_s: float = CALL_TIMEOUT_AFTER_S) -> Any:
        """Make a call on the thread and return its result; ``waiting`` is called meanwhile.

        Args:
            what: Name of the call, for the error.
            function: Makes the call. What it raises is raised here.
            timeout_s: Longest wait for its end, in seconds.

        Raises:
            CallTimedOut: The call did not come back in time.
        """
        self._calls.put(function)
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                value, error = self._ends.get(timeout=_LOOK_S)
            except queue.Empty:
                self._waiting()
                if time.monotonic() > deadline_s:
                    raise CallTimedOut(f"{self._name}: {what} has not come back for {timeout_s:.0f} s") from None
                continue
            if error is not None:
                raise error
            return value

    def end(self) -> None:
        """End the thread once its call, if there is one, has come back."""
        self._calls.put(None)

    def _run(self) -> None:
        while (function := self._calls.get()) is not None:
            try:
                self._ends.put((function(), None))
            except BaseException as error:
                # Not dropped: raised where the call was made.
                self._ends.put((None, error))
