"""A JVM under guard: it ends when asked to, and never outlives this process; and the errors of the broker."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import psutil

log = logging.getLogger(__name__)

STOP_TIMEOUT_S: Final = 25.0
"""Above the guard's own grace, after which it kills the JVM."""


INSTALL: Final = (
    "install the embedded broker (pip install 'fraud-pipeline[broker]'), or set KAFKA_BOOTSTRAP_SERVERS to a Kafka "
    "cluster"
)
"""The advice given where a part of the embedded broker is missing."""


class BrokerError(RuntimeError):
    """The embedded broker cannot start or has died; the text says why and what to do."""


class BrokerInUse(BrokerError):
    """Another process holds the data directory."""


class GuardedProcess:
    """``command``, started under ``guard.py``, with its output appended to ``log_path``; starts when it is made.

    The guard inherits the descriptor ``lock``, so that the lock lasts as long as the processes do. Raises
    ``BrokerError`` when the program cannot be run.
    """

    def __init__(self, command: list[str], log_path: Path, lock: int) -> None:
        guard = Path(__file__).with_name("guard.py")
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(guard), str(log_path), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(lock,),
            start_new_session=True,
        )
        line = self._guard.stdout.readline() if self._guard.stdout is not None else b""
        if not line:
            _, reason = self._guard.communicate()
            raise BrokerError(f"cannot run {command[0]}: {reason.decode(errors='replace').strip()}")
        self.pid = int(line)
        """Process id of the program itself."""
        self._started = psutil.Process(self.pid) if psutil.pid_exists(self.pid) else None

    @property
    def started_s(self) -> float:
        """When the program started, in seconds since 1970; with the process id it names the process for good."""
        if self._started is None:
            raise BrokerError("the program ended as soon as it was started")
        return self._started.create_time()

    def poll(self) -> int | None:
        """None while it runs, else its exit code (128 + signal for one that was killed)."""
        code = self._guard.poll()
        return 128 - code if code is not None and code < 0 else code

    def kill(self) -> None:
        """End the program at once, and wait."""
        if self._started is not None and self._started.is_running():
            self._started.kill()
        self.stop()

    def hand_over(self) -> None:
        """Let the program live until this process ends, through any other image that it loads."""
        if self._guard.stdin is not None:
            # The guard hears of this process' end by the pipe. The copy goes into the next image, unknown to it.
            os.set_inheritable(os.dup(self._guard.stdin.fileno()), True)

    def stop(self) -> None:
        """Ask the program to end, and wait until it has."""
        if self._guard.stdin is not None:
            self._guard.stdin.close()  # the guard's sign
        try:
            self._guard.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.warning("the embedded broker did not end within %.0f s; killing it", STOP_TIMEOUT_S)
            self._guard.kill()
            self._guard.wait()
        # A guard that was killed could not end the program where the kernel does not do so in its place (macOS).
        if self._started is not None and self._started.is_running():
            self._started.kill()
            self._started.wait()
        for pipe in (self._guard.stdout, self._guard.stderr):
            if pipe is not None:
                pipe.close()
