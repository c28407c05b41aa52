"""A recording of ``make run-pipeline`` for the README: a picture of its view, and its summary.

``python -m tests.helpers.recording`` runs the command in a pseudo terminal, writes ``docs/run-pipeline.svg`` and puts
the summary between the marks in the README.
"""

import html
import io
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Sequence
from itertools import takewhile
from typing import Final

from rich.ansi import AnsiDecoder
from rich.console import Console
from rich.text import Text

from tests.helpers.worker import ROOT, inherited_environment

COMMAND: Final = ("make", "run-pipeline")
PICTURE: Final = ROOT / "docs/run-pipeline.svg"
README: Final = ROOT / "README.md"
SUMMARY: Final = re.compile(r"(<!-- run:begin -->\n```text\n).*?(```\n<!-- run:end -->)", re.DOTALL)
COLUMNS: Final = 80
ROWS: Final = 24
SHOWN: Final = "Streaming"
"""The last screen with this word becomes the picture."""

_ERASED = re.compile(r"\r(?:\x1b\[1A)?\x1b\[2K(?:\x1b\[1A\x1b\[2K)*")
"""How the view goes back to its first line before it draws the next screen."""
_CONTROL = re.compile(r"\x1b\[\?25[hl]|\r")
_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


class NothingToShow(RuntimeError):
    """The command failed, or drew no screen that can become the picture."""


def record(command: Sequence[str]) -> str:
    """Run ``command`` in a pseudo terminal and return all that it wrote there; raises `NothingToShow` if it fails."""
    terminal, its_end = pty.openpty()
    termios.tcsetwinsize(its_end, (ROWS, COLUMNS))
    environment = {**inherited_environment(), "TERM": "xterm-256color"}
    for name in ("NO_COLOR", "COLUMNS", "LINES", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        environment.pop(name, None)
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=its_end)
    os.close(its_end)
    written = bytearray()
    try:
        while part := os.read(terminal, 65_536):
            written += part
    except OSError:
        # Linux's answer where the last process has closed the terminal.
        pass
    finally:
        os.close(terminal)
    if process.wait():
        raise NothingToShow(f"{' '.join(command)} ended with exit code {process.returncode}")
    return written.decode()


def screens(written: str) -> list[str]:
    """Split terminal output into what stood there between two redraws, colours included."""
    return [_CONTROL.sub("", screen) for screen in _ERASED.split(written)]


def picture(written: str, title: str) -> str:
    """Render the last streaming screen of ``written`` as SVG, which loads nothing from elsewhere."""
    shown = next((screen for screen in reversed(screens(written)) if SHOWN in Text.from_ansi(screen).plain), None)
    if shown is None:
        raise NothingToShow(f"no screen has the word {SHOWN!r}")
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    for line in AnsiDecoder().decode(shown.rstrip("\n")):
        console.print(line, no_wrap=True, crop=True, highlight=False)
    console.print()
    drawn = console.export_svg(title=title, unique_id="run")
    return _FONT.sub("", drawn).replace("Fira Code", "ui-monospace, Menlo, Consolas") + "\n"


def svg_text(drawn: str) -> str:
    """Return the text of a picture, as it reads."""
    return html.unescape(re.sub(r"<[^>]*>", " ", drawn)).replace("\xa0", " ")


def summary(written: str) -> str:
    """Return the summary behind the last screen, without what follows: what is left, and a line for programs."""
    lines = screens(written)[-1].strip().splitlines()
    return "".join(f"{line}\n" for line in takewhile(str.strip, lines))


def main() -> None:
    """Record the command; write the picture and the README's summary."""
    written = record(COMMAND)
    PICTURE.write_text(picture(written, " ".join(COMMAND)), encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    README.write_text(SUMMARY.sub(lambda marks: f"{marks[1]}{summary(written)}{marks[2]}", readme), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except NothingToShow as error:
        sys.exit(f"Error: {error}")
