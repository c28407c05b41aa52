"""Runs one program and does not let it outlive the process that asked for it.

``python -I -S guard.py LOG PROGRAM ARGUMENTS...``: standard input is a pipe whose other end the owner holds and never
writes to. When it closes (the owner closed it or died, in whatever way) the program gets SIGTERM, and SIGKILL after
``GRACE_S``.
The first line on standard output is the program's process id; the guard's exit code is the program's.

Only the standard library, and no import of this package: it must start at once and stay small.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

GRACE_S = 15.0
PR_SET_PDEATHSIG = 1


def _die_with_guard() -> None:
    # Linux only: covers a guard that is itself killed. The signal comes when the thread that forked ends: the main one.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Run the program; see the module."""
    # A terminal's Ctrl-C and hang-up are the owner's business: it decides what stops before the program does.
    # Handlers, because a program would inherit ignored signals, and a JVM then never stops on SIGTERM.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)
    with open(sys.argv[1], "ab") as log:
        program = subprocess.Popen(
            sys.argv[2:],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=_die_with_guard if sys.platform == "linux" else None,  # noqa: PLW1509  # no other thread yet
        )
    os.write(1, f"{program.pid}\n".encode())
    os.close(1)
    threading.Thread(target=_stop_when_owner_ends, args=(program,), daemon=True).start()
    code = program.wait()
    return code if code >= 0 else 128 - code


def _stop_when_owner_ends(program: "subprocess.Popen[bytes]") -> None:
    while os.read(0, 4_096):
        pass
    program.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        program.wait(GRACE_S)
        return
    program.kill()


if __name__ == "__main__":
    sys.exit(main())
