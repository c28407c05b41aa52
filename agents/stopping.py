"""How a worker ends: the first signal finishes, the second one, or time, ends it at once. Nothing is lost by either."""

import logging
import math
import os
import signal
import sys
import threading
from typing import Any, Final

import faust

log = logging.getLogger(__name__)

EXIT_LATE: Final = 1


class PipelineWorker(faust.Worker):  # type: ignore[misc]
    """Faust's worker, with an end that is sure to come.

    What is not committed is read again by whoever holds the partition next, so that no end loses anything; a snapshot
    that was not written only makes a fold longer.
    """

    def __init__(self, app: faust.App, *, shutdown_timeout_s: float, **options: Any) -> None:
        super().__init__(app, **options)
        self._shutdown_timeout_s = shutdown_timeout_s
        self._told_to_stop = False

    def _schedule_shutdown(self, received: signal.Signals) -> None:
        if self._told_to_stop:
            _leave(128 + received, f"{received.name} again: the worker ends at once")
        self._told_to_stop = True
        log.info("%s: finishing the batch, at most %.0f s", received.name, self._shutdown_timeout_s)
        timer = threading.Timer(
            self._shutdown_timeout_s, _leave, (EXIT_LATE, "the worker did not end in time and ends now")
        )
        timer.daemon = True
        timer.start()
        # Should even the interpreter stand still: the system's own clock, whose default is to end the process.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(math.ceil(self._shutdown_timeout_s) + 1)
        super()._schedule_shutdown(received)


def _leave(code: int, why: str) -> None:
    log.warning("%s", why)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
