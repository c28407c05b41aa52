"""Foreign text: no control character reaches a terminal, and no formula a spreadsheet."""

import json
import logging
import os
import unicodedata
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import LazyGroup, main
from pipeline.commands.outputs import spreadsheet_safe
from pipeline.observability.logs import logging_config
from pipeline.observability.terminal import printable, printable_json, printable_lines
from pipeline.settings import Settings

HOSTILE = "\x1b[2J\x9b31m\x7f\u202e\u2066\u200f\r\u0085\u2028"


def harmless(text: str) -> bool:
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


def test_control_characters_are_written_out() -> None:
    assert harmless(printable(HOSTILE))
    assert printable_lines(f"a{HOSTILE}\nb").count("\n") == 1


@given(st.text())
def test_any_text_is_harmless(text: str) -> None:
    assert harmless(printable(text))


@given(st.dictionaries(st.text(), st.text()))
def test_json_keeps_its_value(value: dict[str, str]) -> None:
    text = printable_json(json.dumps(value, ensure_ascii=False))
    assert harmless(text)
    assert json.loads(text) == value


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_line_of_the_log_is_harmless(log_format: str) -> None:
    config = logging_config(Settings.model_validate({"log_format": log_format}))["formatters"]["line"]
    kind = config.pop("()")
    forged = f"{HOSTILE}\n[2026-01-01 00:00:00,000] [1] [INFO] all is well"
    line = kind(**config).format(logging.LogRecord("x", logging.INFO, "x", 1, "card %s", (forged,), None))
    assert "card" in line
    first, *others = line.split("\n")
    assert all(map(harmless, [first, *others]))
    # No text passes for a line of its own.
    assert all(other.startswith(" ") for other in others)


def test_an_error_that_names_foreign_text_is_harmless() -> None:
    @click.command()
    def command() -> None:
        raise click.ClickException(f"first\nsecond {HOSTILE}")

    group = LazyGroup(lazy={})
    group.get_command = lambda ctx, name: command  # type: ignore[method-assign,assignment]
    output = CliRunner().invoke(group, ["any"]).output
    assert all(map(harmless, output.split("\n")))
    assert "second \\x1b[2J" in output


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0d"])
def test_no_text_of_a_csv_is_a_formula(start: str) -> None:
    frame = pd.DataFrame({"text": [f"{start}HYPERLINK()", "card"], "number": [-1.5, 2.0]})
    safe = spreadsheet_safe(frame)
    assert safe["text"].tolist() == [f"'{start}HYPERLINK()", "card"]
    assert safe["number"].tolist() == [-1.5, 2.0]


def test_files_of_commands_are_their_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        file = tmp_path / "new" / "file.parquet"
        file.parent.mkdir()
        result = CliRunner().invoke(main, ["simulate", str(file), "--days", "1"])
        assert result.exit_code == 0, result.output
        assert file.stat().st_mode & 0o077 == 0
        made = tmp_path / "made"
        made.mkdir()
        assert made.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
