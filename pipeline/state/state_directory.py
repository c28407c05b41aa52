"""A worker's own directory of state, which no other process may use while it runs."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Self


def keep_private() -> None:
    """Let this process, and those that it starts, make files of mode 0600 and directories of mode 0700.

    They hold people's data, keys, and what decides about people.
    """
    os.umask(0o077)


class DirectoryInUse(RuntimeError):
    """Another process on this machine runs the same agent under the same name; the text says what to do."""


class StateDirectory:
    """Holds the directory of one agent of one instance, from ``with`` on to its end.

    Args:
        data_dir: The worker's directory; that of the state lies below it.
        instance: Name of the instance, prefix included.
        agent: Name of the agent.
    """

    def __init__(self, data_dir: Path, instance: str, agent: str) -> None:
        self._instance, self._agent = instance, agent
        self.directory = data_dir / "state" / instance / agent
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = self.directory.with_suffix(".lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            raise DirectoryInUse(
                f"agent {self._agent} of instance {self._instance} runs already, in process {holder or '(unknown)'}: "
                "give this worker a name of its own (--instance, FRAUD_PIPELINE_INSTANCE), or end the other one"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            # The lock goes with the file; the file stays, or two could hold a lock on two files of one name.
            self._lock.close()
            self._lock = None
