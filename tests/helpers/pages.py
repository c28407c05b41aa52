"""Programs of the pages: each is run as the page has it, and what it prints is compared with what the page shows.

A program is a ``python`` block, or a ``console`` block that shows output; a ``text`` block is output of another one.
Digests, times and durations are masked.
"""

import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import pytest
from click.testing import CliRunner
from threadpoolctl import threadpool_limits

from pipeline.cli import main
from tests.helpers.documents import ROOT, Block, fenced

PAGES: Final = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")]
)
SHELLS: Final = ("console", "sh")
NOT_RUN: Final = {
    ("docs/console.md", "$ pip install"): "installs a package, and serves until somebody stops it",
    ("docs/evaluation.md", "$ pip download"): "downloads a published file; test_ulb.py has its columns and types",
    ("docs/export.md", "SELECT features"): "DuckDB is no part of the project; the Python beside it is run",
    ("docs/protection.md", "$ kafka-get-offsets.sh"): "a tool of Kafka's own, which the broker from pip lacks",
    ("docs/security.md", "$ fraud-pipeline acl --principal producer=User:core-banking --principal"): (
        "makes rules on a cluster with an authorizer: test_secured_cluster.py does, and the scene counts these"
    ),
}
"""Programs that no test runs as they stand, by page and beginning, with the reason."""
COMPARED: Final = {
    ("docs/models.md", "$ fraud-pipeline models propose"): "tests/integration/test_retrain.py",
    ("docs/models.md", "$ fraud-pipeline retrain"): "tests/integration/test_retrain.py",
    ("docs/operating.md", "card: transactions partition"): "tests/simulation/test_found.py",
    ("docs/operating.md", "$ curl"): "tests/integration/test_undecided.py",
    ("docs/releasing.md", "$ make release"): "tests/test_project/test_release.py",
}
"""Programs whose output takes days of traffic, deaths or a copy of the project: the tests that compare theirs."""
_MASKS: Final = {
    r"\b[0-9a-f]{12,64}…?": "DIGEST",
    r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z| UTC)?": "TIME",
    r"\b\d+(\.\d+)? (us|ms|s|min)\b": "DURATION",
}
_LEFT_OUT: Final = re.compile(r"\s*(?:\.\.\.|…)\s*")


class Command(NamedTuple):
    """A command of a block, and the lines that the page shows below it."""

    line: str
    shown: str


def commands(block: Block) -> list[Command]:
    """Return the commands of a ``console`` or ``sh`` block; ``sh`` shows nothing."""
    found: list[Command] = []
    content = block.content.replace("\\\n", " ")
    if block.language == "sh":
        # A quoted text may have several lines.
        return [Command(line, "") for line in re.findall(r"(?:[^\n']|'[^']*')+", content)]
    for line in content.splitlines():
        if line.startswith("$ "):
            found.append(Command(line.removeprefix("$ "), ""))
        else:
            before = found.pop() if found else Command("", "")
            found.append(Command(before.line, f"{before.shown}{line}\n"))
    return found


def programs(page: str) -> list[Block]:
    """Return the programs of a page."""
    blocks = fenced((ROOT / page).read_text(encoding="utf-8"), "python", "sql", "text", "console")
    return [block for block in blocks if block.language != "console" or any(item.shown for item in commands(block))]


def entry(page: str, block: Block) -> tuple[str, str] | None:
    """Return the key of a program in `NOT_RUN` or `COMPARED`; None where it is run as it stands."""
    return next((key for key in (*NOT_RUN, *COMPARED) if key[0] == page and block.content.startswith(key[1])), None)


def shown(page: str, beginning: str) -> list[Command]:
    """Return the commands of a program in `COMPARED`, with what the page shows."""
    (found,) = [commands(block) for block in programs(page) if entry(page, block) == (page, beginning)]
    return found


def compare(command: Command, printed: str, *, figures: bool = False) -> None:
    """Compare what a command prints with what the page shows.

    ``figures`` masks numbers with decimals too: those of the page were measured on other data.
    """
    pattern = ".*?".join(re.escape(part) for part in _LEFT_OUT.split(_masked(command.shown, figures)))
    assert re.fullmatch(pattern, _masked(printed, figures), re.DOTALL), (
        f"the page shows of {command.line!r}:\n{command.shown}\nIt prints:\n{printed}"
    )


def _masked(text: str, figures: bool) -> str:
    """Return the text on one line, without what varies."""
    for pattern, mask in _MASKS.items():
        text = re.sub(pattern, mask, text)
    if figures:
        text = re.sub(r"\d+\.\d+", "FIGURE", text)
    return re.sub(r"\s*\n\s*", " ", text.strip())


def fraud_pipeline_calls(page: str) -> Iterator[list[str]]:
    """Yield the arguments of every call of ``fraud-pipeline`` in the shell blocks of a page."""
    for block in fenced((ROOT / page).read_text(encoding="utf-8"), *SHELLS):
        for command in commands(block):
            for part in re.split(r" (?:\||&&|&)(?: |$)", command.line):
                words = shlex.split(part, comments=True)
                if words and Path(words[0]).name == "fraud-pipeline":
                    yield words[1:]


def check_call(arguments: list[str]) -> None:
    """Parse the arguments of ``fraud-pipeline`` as it would, and run nothing; raises `click.UsageError`."""
    command: click.Command = main
    context = click.Context(main)
    # A group that runs without a subcommand has options of its own.
    while isinstance(command, click.Group) and not (
        command.invoke_without_command and (not arguments or arguments[0].startswith("-"))
    ):
        name, *arguments = arguments
        found = command.get_command(context, name)
        if found is None:
            raise click.UsageError(f"there is no command {name}")
        command, context = found, click.Context(found, context, info_name=name)
    command.make_parser(context).parse_args(list(arguments))


class Stage:
    """The place in which the programs of a page are run.

    Args:
        page: Path of the page.
        directory: Working directory of the programs, which is the data directory's parent too.
        patch: Sets environment and working directory until the test ends.
    """

    def __init__(self, page: str, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.page, self.directory, self._patch = page, directory, patch
        self.words: dict[str, str] = {}
        """Words of the page, such as a version, and what stands for them here."""
        self.names: dict[str, Any] = {"__name__": "__page__"}
        """Names that the page's Python takes from elsewhere."""
        self.more: dict[str, str] = {}
        """Arguments behind a command that would not end otherwise."""
        self.also: tuple[str, ...] = ()
        """Beginnings of blocks that show no output, and are run too."""
        self.typed = ""
        """Text that somebody types."""
        self.figures = False
        """True if figures with decimals are masked: those of the page were measured on other data."""
        for name in [name for name in os.environ if name.startswith(("FRAUD_", "KAFKA_"))]:
            patch.delenv(name)
        patch.chdir(directory)

    def set(self, name: str, value: str) -> None:
        """Set a variable of the environment."""
        self._patch.setenv(name, value)

    def call(self, line: str) -> str:
        """Run a command of ``fraud-pipeline``; return what it prints."""
        # The threads of a BLAS spin while they wait: for minutes, on a machine that others use.
        with threadpool_limits(1):
            result = CliRunner().invoke(main, shlex.split(line), input=self.typed)
        assert result.exit_code == 0, f"{self.page}: fraud-pipeline {line}\n{result.output}\n{result.exception!r}"
        # On a slow machine a search says where it looks.
        return re.sub(r"^Searching .*\n", "", result.output, flags=re.MULTILINE)

    def run(self) -> int:
        """Run the programs of the page, but those that are not run as they stand; return their number."""
        to_run = {block.start for block in programs(self.page) if entry(self.page, block) is None}
        blocks = fenced((ROOT / self.page).read_text(encoding="utf-8"), "python", "text", "console")
        found = [block for block in blocks if block.start in to_run or block.content.startswith(self.also)]
        for block in found:
            if block.language == "python":
                self._python(block.content)
                continue
            for command in commands(block):
                printed = self._shell(command.line)
                if command.shown:
                    compare(command._replace(shown=self._here(command.shown)), printed, figures=self.figures)
        return len(found)

    def _here(self, text: str) -> str:
        for word, here in self.words.items():
            text = text.replace(word, here)
        return text

    def _shell(self, line: str) -> str:
        more = next((more for begin, more in self.more.items() if line.startswith(begin)), "")
        words = shlex.split(self._here(line), comments=True)
        if words[:1] == ["export"]:
            for assignment in words[1:]:
                self.set(*assignment.split("=", 1))
            return ""
        assert words[:1] == ["fraud-pipeline"], f"{self.page}: {line!r} is not run: name it in NOT_RUN, with the reason"
        return self.call(f"{shlex.join(words[1:])} {more}")

    def _python(self, code: str) -> None:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), threadpool_limits(1):
            exec(compile(self._here(code), self.page, "exec"), self.names)
        comments = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
        assert not comments or printed.getvalue().splitlines() == comments
