"""The recording for the README: what stands on a terminal, and the picture of it."""

import io
import sys

import pytest
from rich.console import Console
from rich.live import Live
from rich.text import Text

from tests.helpers.recording import NothingToShow, picture, record, screens, summary, svg_text


class Terminal(io.StringIO):
    """A terminal that translates line ends."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return super().write(text.replace("\n", "\r\n"))


def redrawn(*drawn: str) -> str:
    """What a view writes that shows each text in turn, says a line before the last, and ends with a summary."""
    terminal = Terminal()
    console = Console(file=terminal, width=80, height=24, force_terminal=True, highlight=False)
    with Live(Text(drawn[0]), console=console, auto_refresh=False, transient=True) as live:
        for text in drawn:
            if text == drawn[-1]:
                console.print("a line that stays")
            live.update(Text(text, style="bold"), refresh=True)
    terminal.write('\nAlerts  3\nLabels  4\n\nWhat next\n{"alerts": 3}\n')
    return terminal.getvalue()


def test_screens_are_what_stood_between_two_redraws() -> None:
    plain = [Text.from_ansi(screen).plain.strip() for screen in screens(redrawn("one\n1", "two", "three\n3\n3"))]
    assert [screen for screen in dict.fromkeys(plain) if screen][:2] == ["one\n1", "two"]
    assert "three\n3\n3" in plain


def test_the_last_streaming_screen_becomes_the_picture() -> None:
    drawn = picture(redrawn("Training", "Streaming <1>", "Streaming <2>\nand more", "Stopping"), "a title")
    text = svg_text(drawn)
    assert "Streaming <2>" in text
    assert "and more" in text
    assert "a title" in text
    assert "<1>" not in text
    assert "Stopping" not in text
    assert "@font-face" not in drawn


def test_a_run_that_never_streamed_has_no_picture() -> None:
    with pytest.raises(NothingToShow, match="Streaming"):
        picture(redrawn("Training", "Stopping"), "a title")


def test_the_summary_is_what_follows_the_last_screen() -> None:
    assert summary(redrawn("Streaming", "Stopping")) == "Alerts  3\nLabels  4\n"


def test_a_command_is_recorded_in_a_terminal_of_80_columns() -> None:
    code = "import os, sys; print(sys.stdout.isatty(), os.get_terminal_size().columns)"
    assert record([sys.executable, "-c", code]) == "True 80\r\n"


def test_a_command_that_fails_is_not_recorded() -> None:
    with pytest.raises(NothingToShow, match="exit code 3"):
        record([sys.executable, "-c", "raise SystemExit(3)"])
