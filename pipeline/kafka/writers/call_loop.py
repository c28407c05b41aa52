"""An event loop that runs on its caller's thread, for as long as one call takes."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException

_LOOK_S: Final = 0.2
_CLOSE_S: Final = 1.0


class CallLoop:
    """Makes calls with a time limit; used from one thread, on which no other event loop runs.

    Args:
        waiting: Called now and then while a call waits; what it raises ends the call.
    """

    def __init__(self, waiting: Callable[[], None]) -> None:
        self._waiting = waiting
        self._made: asyncio.AbstractEventLoop | None = None

    def run(self, what: str, call: Coroutine[Any, Any, None], timeout_s: float) -> None:
        """Make a call, and raise what it raises. Nothing of it is under way any more when this returns.

        Raises:
            KafkaException: It takes longer than ``timeout_s``; the error is ``retriable``.
        """
        if self._made is None:
            self._made = asyncio.new_event_loop()
        loop, ends_s = self._made, time.monotonic() + timeout_s
        task = loop.create_task(call)
        try:
            while not task.done():
                loop.run_until_complete(asyncio.wait([task], timeout=_LOOK_S))
                if not task.done():
                    self._waiting()
                    if time.monotonic() > ends_s:
                        text = f"{what}: brokers have not done it within {timeout_s:g} s"
                        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, text, retriable=True))
        finally:
            while not task.done():
                task.cancel()
                loop.run_until_complete(asyncio.wait([task], timeout=_LOOK_S))
            error = None if task.cancelled() else task.exception()
        if error is not None:
            raise error

    def close(self, ending: Sequence[asyncio.Future[None]]) -> None:
        """Wait a moment for what is ``ending``, and close the loop."""
        if self._made is None:
            return
        if ending:
            self._made.run_until_complete(asyncio.wait(ending, timeout=_CLOSE_S))
        # Connections that were given up before close in the loop's next turn.
        self._made.run_until_complete(asyncio.sleep(0))
        self._made.close()
        self._made = None
