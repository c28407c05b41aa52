"""Ends a worker: the first signal finishes, the second one, or time, ends it at once. Nothing is lost by either."""

import faulthandler
import logging
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, Final, NoReturn

import faust

log = logging.getLogger(__name__)

FAUST_LOG: Final = logging.getLogger("faust.pipeline")
"""Faust's logger of our app and worker."""
EXIT_LATE: Final = 1
EXIT_DEAD_THREAD: Final = 1


def end_with_any_thread() -> None:
    """End this process as soon as one of its threads dies of an exception.

    Without that thread the process would look alive and do a part of its work only. Nothing is lost by the end: what
    is not committed is read again.
    """
    threading.excepthook = _thread_died


def silence_faust() -> None:
    """Log no more of what Faust says: it logs an error once for every service that ends with it."""
    for name in ("faust", "mode"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def end_within(timeout_s: float) -> None:
    """End this process after ``timeout_s`` seconds at the latest; called on the main thread.

    Whatever waits then (another agent for a broker, for one) would keep a worker that has stopped alive for ever.
    """
    timer = threading.Timer(timeout_s, _leave_late)
    timer.daemon = True
    timer.start()
    # Should even the interpreter stand still: the system's own clock, whose default is to end the process.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.register(signal.SIGALRM, file=2, chain=True)
    signal.alarm(math.ceil(timeout_s) + 1)


class PipelineWorker(faust.Worker):  # type: ignore[misc]
    """Faust's worker, with an end that is sure to come.

    What is not committed is read again by whoever holds the partition next, so that no end loses anything; a snapshot
    that was not written only makes a replay longer. Once all is closed the process ends without the interpreter's own
    end, which waits for threads, and for what native clients do when they are dropped.

    Args:
        ends_for_good: Called with a second signal; returns True if the first one only asked for another image.
    """

    logger = FAUST_LOG

    def __init__(
        self,
        app: faust.App,
        *,
        shutdown_timeout_s: float,
        ends_for_good: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> None:
        super().__init__(app, **options)
        self._ends_for_good = ends_for_good
        # It turns with each line of the log, and sets the levels of its own accord.
        self.spinner = None
        self._shutdown_timeout_s = shutdown_timeout_s
        self._stop_requested = False

    def execute_from_commandline(self) -> NoReturn:
        """Run until it is stopped or crashes, and end the process with Faust's exit code."""
        try:
            super().execute_from_commandline()
        except SystemExit as end:
            # Faust has logged an error; whatever else leaves it goes the common way, to be seen.
            _end(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise AssertionError("Faust's worker ends by SystemExit")

    def _schedule_shutdown(self, received: signal.Signals) -> None:
        if self._stop_requested:
            if self._ends_for_good():
                log.info("%s: the worker ends, and does not start again", received.name)
                return
            _leave(128 + received, f"{received.name} again: the worker ends at once")
        self._stop_requested = True
        log.info("%s: finishing the batch, at most %.0f s", received.name, self._shutdown_timeout_s)
        end_within(self._shutdown_timeout_s)
        super()._schedule_shutdown(received)


def _thread_died(death: threading.ExceptHookArgs) -> NoReturn:
    name = death.thread.name if death.thread is not None else "unknown"
    # The client's bare `KafkaError` is no exception that `traceback` would take.
    error = f"{death.exc_type.__name__}: {death.exc_value}"
    if death.exc_traceback is not None:
        log.critical("thread %s:\n%s", name, "".join(traceback.format_tb(death.exc_traceback)).rstrip())
    _leave(
        EXIT_DEAD_THREAD,
        f"thread {name} died of {error}: the worker ends at once, and nothing of an open batch is committed. Start it "
        "again; if that does not help, report this error",
    )


def _leave_late() -> NoReturn:
    # Where each thread waits: without it nobody could see afterwards what held the worker up.
    # Faust puts the log in the place of `sys.stderr`.
    faulthandler.dump_traceback(2)
    _leave(EXIT_LATE, "the worker did not end in time and ends now; above is where its threads stood")


def _leave(code: int, why: str) -> NoReturn:
    log.warning("%s", why)
    _end(code)


def _end(code: int) -> NoReturn:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
