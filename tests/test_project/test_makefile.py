"""Targets of the Makefile as a person at a terminal meets them."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.worker import ROOT

STARTED, ENDED = "it runs", "it has ended"
PROGRAM = f"""#!{sys.executable}
import os, signal, time

def of_make(name):
    with open(f"/proc/{{os.getppid()}}/status") as status:
        return next(line.split()[1] for line in status if line.startswith(name))

# Blocked, or a signal that comes before the wait for it would be lost.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
while of_make("State:") != "S":  # It does not wait for this program yet.
    time.sleep(0.001)
print({STARTED!r}, flush=True)
signal.sigwait([signal.SIGINT])
while not int(of_make("SigBlk:"), 16) >> signal.SIGINT - 1 & 1:  # It does not handle the signal yet.
    time.sleep(0.001)
print({ENDED!r}, flush=True)
"""
AT_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_ctrl_c_ends_a_run_without_an_error_of_make(tmp_path: Path) -> None:
    (programs := tmp_path / "bin").mkdir()
    (programs / "python").symlink_to(sys.executable)
    (program := programs / "fraud-pipeline").write_text(PROGRAM)
    program.chmod(0o755)
    (tmp_path / ".installed").touch()
    terminal, of_make = os.openpty()
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            AT_TERMINAL,
            "make",
            "-C",
            str(ROOT),
            "--no-print-directory",
            f"VENV={tmp_path}",
            "run-pipeline",
        ],
        stdin=of_make,
        stdout=of_make,
        stderr=of_make,
        start_new_session=True,
    ) as make:
        os.close(of_make)
        output = ""
        try:
            while read := os.read(terminal, 1_000).decode():
                output += read
                if output.endswith(f"{STARTED}\r\n"):
                    # Ctrl-C: the terminal signals make and the program alike.
                    os.write(terminal, b"\x03")
        except OSError:
            # Linux ends a terminal so, once nobody holds its other side.
            pass
        finally:
            os.close(terminal)
    assert output.splitlines() == [STARTED, f"^C{ENDED}"]
    # GNU make ends by the signal itself, whatever the program's code is; a shell shows that as 130.
    assert make.returncode == -2
