"""The analysts' console beside a run, in a process of its own: its end does not end the run."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from pipeline.broker.local import is_free
from pipeline.demo.processes import WorkerProcess, log_tail, running_command
from pipeline.demo.view import COMMAND_INDENT
from pipeline.settings import Settings

PORT: Final = 8400
_LINK: Final = re.compile(r"https?://\S+")


class ConsoleProcess:
    """A console that runs beside others.

    Args:
        process: The process; its log begins with the link by which somebody signs in.
        accounts: File in which it notes who has signed in.
    """

    def __init__(self, process: WorkerProcess, accounts: Path) -> None:
        self._process, self._accounts = process, accounts
        self._is_reported = False

    def news(self) -> list[str]:
        """Return once where it is, or why it has ended, in lines for people."""
        if self._is_reported:
            return []
        link = _LINK.search(self._process.log.read_text(encoding="utf-8", errors="replace"))
        self._is_reported = link is not None or self._process.process.poll() is not None
        if link is not None:
            return ["The analysts' console, for a browser on this machine:", COMMAND_INDENT + link[0]]
        return ["The analysts' console does not run:", log_tail(self._process.log, 1)] if self._is_reported else []

    @property
    def is_used(self) -> bool:
        """True if it runs, and somebody is signed in."""
        if self._process.process.poll() is not None or not self._accounts.exists():
            return False
        from pipeline.console.accounts import Accounts

        with closing(Accounts(self._accounts)) as accounts:
            return accounts.sessions > 0


@contextmanager
def running_console(settings: Settings, log_dir: Path) -> Iterator[ConsoleProcess]:
    """Run a console of the cluster of ``settings``; it is stopped at the end, however that comes."""
    port = PORT if is_free(PORT, "127.0.0.1") else 0
    with running_command(settings, log_dir, "console", "console", "--port", str(port)) as process:
        yield ConsoleProcess(process, settings.data_dir / "console" / "accounts.sqlite")
