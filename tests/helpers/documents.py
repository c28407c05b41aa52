"""Documents whose code is run: ``sh`` and ``python`` blocks in order, each ``text`` block what the one before it said.

``python -m tests.helpers.documents FILE`` puts what comes out into the document, and writes the notebook that is made
from it.
"""

import contextlib
import io
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from click.testing import CliRunner

from pipeline.cli import main

_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_PROGRAM = "fraud-pipeline"
ROOT: Final = Path(__file__).resolve().parents[2]
NOTEBOOKS: Final = {"docs/notebook.md": "examples/notebook.ipynb"}
"""Jupyter notebooks, by the documents that they are made from."""


class Block(NamedTuple):
    """What is between two fences."""

    language: str
    content: str
    start: int
    end: int
    """Of the content, in the document."""


def fenced(document: str, *languages: str) -> list[Block]:
    """Return the blocks of a document that are in one of ``languages``, in order, without the indentation of a list."""
    return [
        Block(found[2], re.sub(f"^{found[1]}", "", found[3], flags=re.MULTILINE), *found.span(3))
        for found in _BLOCK.finditer(document)
        if found[2] in languages
    ]


def blocks(document: str) -> list[Block]:
    """All blocks that are run or compared, in order."""
    return fenced(document, "sh", "python", "text")


def outputs(document: str) -> Iterator[tuple[Block, str]]:
    """Run a document in the working directory; each ``text`` block, and what should stand in it."""
    names: dict[str, Any] = {"__name__": "__document__"}
    run = ""
    for block in blocks(document):
        if block.language == "text":
            yield block, run
        elif block.language == "sh":
            run = "".join(_call(line) for line in block.content.replace("\\\n", " ").splitlines())
        else:
            run = _run(block.content, names)


def filled(document: str) -> str:
    """The document with what comes out in its ``text`` blocks."""
    for block, output in reversed(list(outputs(document))):
        document = document[: block.start] + output + document[block.end :]
    return document


def notebook(document: str) -> str:
    """Return a document of ``docs`` as a Jupyter notebook in ``examples``, with the output that it shows."""
    cells: list[dict[str, Any]] = []
    at = 0
    for block in [*blocks(document), None]:
        fence = len(document) if block is None else document.rindex("```", 0, block.start)
        prose = re.sub(r"\]\((?=[\w./-]+\.md)", "](../docs/", document[at:fence].strip())
        if prose:
            cells.append({"cell_type": "markdown", "metadata": {}, "source": _lines(prose)})
        if block is None:
            break
        at = block.end + len("```")
        if block.language == "text":
            cells[-1]["outputs"] = [{"name": "stdout", "output_type": "stream", "text": _lines(block.content)}]
            continue
        code = re.sub(rf"^(?={_PROGRAM})", "!", block.content.rstrip(), flags=re.MULTILINE)
        cell = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": _lines(code)}
        cells.append(cell)
    content = {"cells": cells, "metadata": {"language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 4}
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def _call(line: str) -> str:
    program, *arguments = shlex.split(line)
    if program != _PROGRAM:
        raise ValueError(f"only {_PROGRAM} is run, not {line!r}")
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    if result.exit_code:
        raise ValueError(f"{line!r} ended with exit code {result.exit_code}: {result.output}")
    return result.stdout


def _run(code: str, names: dict[str, Any]) -> str:
    reported = io.StringIO()
    with contextlib.redirect_stdout(reported):
        exec(compile(code, "<document>", "exec"), names)
    return "".join(f"{line.rstrip()}\n" for line in reported.getvalue().splitlines())


def _update(path: Path) -> None:
    document = path.read_text(encoding="utf-8")
    for name in [name for name in os.environ if name.startswith(("FRAUD_", "KAFKA_"))]:
        del os.environ[name]
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        document = filled(document)
    path.write_text(document, encoding="utf-8")
    made = NOTEBOOKS.get(path.relative_to(ROOT).as_posix())
    if made is not None:
        (ROOT / made).write_text(notebook(document), encoding="utf-8")


if __name__ == "__main__":
    _update(Path(sys.argv[1]).resolve())
