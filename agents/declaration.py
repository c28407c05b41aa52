"""The active declaration of features, which a worker follows: one that runs with another replaces its own image."""

import logging
import os
import signal
import sys
import threading
from typing import Final, NoReturn

from agents.watches import WatchThread
from pipeline.features.active import active_declaration
from pipeline.features.declaration import Declaration
from pipeline.kafka.cluster.errors import Stopped
from pipeline.kafka.cluster.log_offsets import Waiting
from pipeline.kafka.records.internal import OnRefused
from pipeline.models.published_files import PublishedFiles
from pipeline.observability.error_text import explained
from pipeline.settings import Settings
from pipeline.settings.features_file import VARIABLE, FeaturesError, functions_of
from pipeline.state.durability import replace_file

log = logging.getLogger(__name__)

INTERVAL_S: Final = 1.0


class DeclarationWatch(WatchThread):
    """Learns which declarations are published, and notices when another one than this process' becomes active.

    Args:
        on_refused: Counts records of `control` and `models` that cannot be read.
    """

    def __init__(
        self, bootstrap: str, settings: Settings, on_refused: OnRefused, *, interval_s: float = INTERVAL_S
    ) -> None:
        super().__init__("declaration-watch", 1.0)
        self._files, self._lock = PublishedFiles(bootstrap, settings, on_refused), threading.Lock()
        self._directory, self._interval_s = settings.data_dir / "features", interval_s
        self._reported = ""
        self.next: Declaration | None = None
        """The declaration that the worker ends for, to start again with it; None while it need not."""

    def learn(self, waiting: Waiting = None) -> None:
        """Learn what was published before this call; any thread may call it, and ``waiting`` may raise."""
        with self._lock:
            self._files.refresh(waiting)

    def publish_first(self, waiting: Waiting) -> None:
        """Publish this process' declaration where none is active."""
        with self._lock:
            if self._files.active_declaration() is None:
                self._files.publish_first(active_declaration(), waiting)

    def other(self) -> Declaration | None:
        """Return the active declaration if it is another one than this process has."""
        with self._lock:
            active = self._files.active_declaration()
        return None if active is None or active.digest == active_declaration().digest else active

    def replace(self, declaration: Declaration) -> NoReturn:
        """Replace this process' image by one with another declaration; its id and its arguments stay.

        Raises:
            FeaturesError: This process has read that one's file, and would read it for ever.
        """
        file = (self._directory / f"{declaration.digest}.json").absolute()
        if os.environ.get(VARIABLE) == str(file):
            raise FeaturesError(
                f"{VARIABLE} names {file}, which is not the active declaration {declaration.digest}: name another file"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, declaration.content)
        log.info(
            "declaration of features %s is active, this process has %s: the worker starts again with it",
            declaration.digest, active_declaration().digest,
        )  # fmt: skip
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        # Both would outlive this image: the clock that ends a late worker, and what a handler of Python's leaves.
        signal.alarm(0)
        environment = {**os.environ, VARIABLE: str(file)}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            try:
                self.learn(self._unless_stopping)
            except Stopped:
                return
            except Exception as error:
                # The next look may do better; a thread that ends would be seen by nobody.
                self._report(explained(error) or type(error).__name__)
                continue
            if (other := self.other()) is not None:
                try:
                    functions_of(other)
                except FeaturesError as error:
                    # The worker goes on with the one that it has: without its functions it could not start again.
                    self._report(str(error))
                    continue
                log.info("declaration of features %s becomes active: finishing the batches", other.digest)
                self.next = other
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _unless_stopping(self) -> None:
        if self._stopping.is_set():
            raise Stopped("the worker ends")

    def _report(self, sentence: str) -> None:
        if sentence != self._reported:
            log.error("the active declaration of features cannot be used: %s", sentence)
        self._reported = sentence
