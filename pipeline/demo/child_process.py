"""Run a ``fraud-pipeline`` command that ends with the process that started it.

``python -m pipeline.demo.child_process ARGUMENTS...`` runs the command in a process whose standard input is a pipe from
its parent. The parent writes nothing into it; when it ends, in whatever way, the kernel closes the pipe, and the
command is stopped as by SIGTERM. Nothing else informs a child on every system that its parent was killed.
"""

import os
import signal
import sys
import threading
from typing import Final

from pipeline.cli import main

GRACE_S: Final = 10.0
"""Time that the command has to end by itself once its parent is gone."""


def watch_parent(descriptor: int) -> None:
    """Wait for the end of the pipe ``descriptor``, then end this process: SIGTERM, and SIGKILL `GRACE_S` later."""
    while os.read(descriptor, 4_096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=watch_parent, args=(os.dup(0),), name="parent-watch", daemon=True).start()
    sys.exit(main())
