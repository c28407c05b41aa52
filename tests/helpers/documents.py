"""Documents whose code is run: ``sh`` and ``python`` blocks in order, each ``text`` block what the one before it said.

``python -m tests.helpers.documents FILE`` puts what comes out into the document.
"""

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from click.testing import CliRunner

from pipeline.cli import main

_BLOCK = re.compile(r"^```(sh|python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROGRAM = "fraud-pipeline"


class Block(NamedTuple):
    """What is between two fences."""

    language: str
    content: str
    start: int
    end: int
    """Of the content, in the document."""


def blocks(document: str) -> list[Block]:
    """All blocks that are run or compared, in order."""
    return [Block(found[1], found[2], *found.span(2)) for found in _BLOCK.finditer(document)]


def outputs(document: str) -> Iterator[tuple[Block, str]]:
    """Run a document in the working directory; each ``text`` block, and what should stand in it."""
    names: dict[str, Any] = {"__name__": "__document__"}
    said = ""
    for block in blocks(document):
        if block.language == "text":
            yield block, said
        elif block.language == "sh":
            said = "".join(_call(line) for line in block.content.replace("\\\n", " ").splitlines())
        else:
            said = _run(block.content, names)


def filled(document: str) -> str:
    """The document with what comes out in its ``text`` blocks."""
    for block, said in reversed(list(outputs(document))):
        document = document[: block.start] + said + document[block.end :]
    return document


def _call(line: str) -> str:
    program, *arguments = shlex.split(line)
    if program != _PROGRAM:
        raise ValueError(f"only {_PROGRAM} is run, not {line!r}")
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    if result.exit_code:
        raise ValueError(f"{line!r} ended with exit code {result.exit_code}: {result.output}")
    return result.stdout


def _run(code: str, names: dict[str, Any]) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "<document>", "exec"), names)
    return "".join(f"{line.rstrip()}\n" for line in said.getvalue().splitlines())


def _update(path: Path) -> None:
    document = path.read_text(encoding="utf-8")
    for name in [name for name in os.environ if name.startswith(("FRAUD_", "KAFKA_"))]:
        del os.environ[name]
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        document = filled(document)
    path.write_text(document, encoding="utf-8")


if __name__ == "__main__":
    _update(Path(sys.argv[1]).resolve())
