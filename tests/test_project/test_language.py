"""The language of the documentation: short sentences that speak to the reader, in the standard terms."""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from statistics import mean

import click
import pytest

from pipeline.cli import main
from pipeline.observability.metric_declarations import DRIFT_METRICS, WEBHOOK_METRICS, WORKER_METRICS
from pipeline.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/guides").glob("*.md"), *(ROOT / "examples").glob("*.md")]),
]
NOT_PROSE = re.compile(r"^```.*?^```$|<!-- ([\w-]+):begin -->.*?<!-- \1:end -->", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])?")
WORD = re.compile(r"[\w'-]+")
READER = re.compile(r"\byou(?:r|rs|rself)?\b", re.IGNORECASE)
MOST_WORDS = 16
MOST_WORDS_OF_A_PAGE = 20
LEAST_SHARE_TO_THE_READER = 0.1

DECISIONS = sorted((ROOT / "docs/decisions").glob("*.md"))

PRIVATE = re.compile(
    r"\b(?:in force|lessons?|untaught|taught|waiting room|(?:sets?|being|was|were) aside|folded|folding|"
    r"folds? (?:the|what)|keepers?|hung|settles?|told (?!apart|from|or))\b"
)
"""Words of our own that readers would have to learn; the standard terms are: active, training update, untrained,
trained, pending labels, quarantine, replay, snapshot scheduler, timed out, commit, emitted or reported, rolled back."""


def prose(page: Path) -> list[str]:
    """Paragraphs and list items, without code, tables, headings and addresses of links."""
    lines = []
    for line in NOT_PROSE.sub("", page.read_text(encoding="utf-8")).splitlines():
        if line.startswith(("|", "    ", "#", "<", "!")) or re.match(r"\[[^\]]+\]: ", line):
            lines.append("")
        else:
            lines += ["", line[found.end() :]] if (found := re.match(r"\s*(?:[-*]|\d+\.) ", line)) else [line]
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines))
    return [LINK.sub(r"\1", re.sub(r"`[^`]*`", "X", part.replace("\n", " "))).strip() for part in paragraphs]


def sentences(page: Path) -> list[str]:
    parts = chain.from_iterable(re.split(r"(?<=[.!?:;])\s+(?=[A-Z0-9(\"*])", part) for part in prose(page))
    return [part for part in parts if len(WORD.findall(part)) > 1]


def words(found: list[str]) -> float:
    return mean(len(WORD.findall(sentence)) for sentence in found)


def test_sentences_are_short() -> None:
    found = list(chain.from_iterable(map(sentences, PAGES)))
    assert len(found) > 1_000
    assert words(found) < MOST_WORDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_page_has_long_sentences_as_a_habit(page: Path) -> None:
    assert words(sentences(page)) < MOST_WORDS_OF_A_PAGE


def test_guides_and_examples_speak_to_the_reader() -> None:
    pages = [page for page in PAGES if page.parent.name in {"guides", "examples"}]
    found = list(chain.from_iterable(map(sentences, pages)))
    spoken = [sentence for sentence in found if READER.search(sentence)]
    assert len(spoken) / len(found) > LEAST_SHARE_TO_THE_READER


def help_texts(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    """Names and texts of a command and its options, and those below it."""
    yield name, command.help or ""
    for option in command.params:
        yield " ".join(option.opts), getattr(option, "help", None) or ""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from help_texts(found, child)


def test_names_and_texts_for_users_are_in_words_of_the_field() -> None:
    rules = re.findall(r"alert: (\w+)", (ROOT / "deploy/prometheus/rules.yml").read_text(encoding="utf-8"))
    named = [
        *((name, metric.meaning) for name, metric in {**WORKER_METRICS, **DRIFT_METRICS, **WEBHOOK_METRICS}.items()),
        *((name, field.description or "") for name, field in Settings.model_fields.items()),
        *((re.sub("(?=[A-Z])", " ", rule).lower(), "") for rule in rules),
        *help_texts(main, "fraud-pipeline"),
    ]
    split = [f"{re.sub('[_-]', ' ', name)}: {text}" for name, text in named]
    assert len(split) > 400
    assert [text for text in split if PRIVATE.search(text) or re.search("(?i)horizon|repeats:|set aside", text)] == []


@pytest.mark.parametrize("page", [*PAGES, *DECISIONS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_words_are_those_of_the_field(page: Path) -> None:
    assert [part for part in prose(page) if PRIVATE.search(part)] == []
