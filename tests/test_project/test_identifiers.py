"""The names of the product's code: nouns, and the standard terms of the field."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for package in ("schemas", "pipeline", "agents") for path in (ROOT / package).rglob("*.py"))

NOT_A_NOUN = frozenset({"one", "of", "it", "its", "told", "said", "tell", "say", "stated", "they", "them", "who"})
PRIVATE = re.compile(
    r"(?:^|_)(?:"
    r"settled?|undo|folded|refold|keepers?|patien\w+|hung|places?|placed|lessons?|teach\w*|taught|untaught|boards?|"
    r"stor(?:y|ies)|tellings?|verdicts?|waiting_room|newest_us|unsaid|judged|conduct|decidable"
    r")(?:$|_)",
    re.IGNORECASE,
)
"""Words of our own, each of which the glossary replaces: commit, rollback, replay, snapshot scheduler, retry, timeout,
partition, position, training update, train, model set, reason text, decision, stream time, and so on."""

OF_TESTS = re.compile(
    r"(?:^|_)(?:settle[ds]?|told(?!_apart)|judged|folded|refold|keepers?|patien\w+|lessons?)(?:$|_)", re.IGNORECASE
)
"""Those of them that tests have none of either. Metrics and fields of messages with such names are no names of code."""


def is_private(name: str) -> bool:
    """Return whether a name is no noun, or has a word of our own."""
    return name.strip("_") in NOT_A_NOUN or PRIVATE.search(name) is not None


def names(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a module gives: to parts of it, to variables, to parameters, to attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name
            case ast.alias(asname=str(name)):
                yield name


def test_names_are_nouns_and_standard_terms() -> None:
    found = []
    for path in MODULES:
        given = {path.stem, *names(ast.parse(path.read_text(encoding="utf-8")))}
        wrong = sorted(filter(is_private, given))
        found += [f"{path.relative_to(ROOT)}: {name}" for name in wrong]
    assert found == []


def test_names_of_tests_are_standard_terms_too() -> None:
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        given = {path.stem, *names(ast.parse(path.read_text(encoding="utf-8")))}
        found += [f"{path.relative_to(ROOT)}: {name}" for name in sorted(filter(OF_TESTS.search, given))]
    assert found == []


def test_what_is_no_noun_is_found() -> None:
    tree = ast.parse("class OldStory:\n    def settle(self, told): self.newest_us = [one for one in told]")
    assert {name for name in names(tree) if is_private(name)} == {"Old_Story", "settle", "told", "newest_us", "one"}


def test_a_class_name_means_one_thing() -> None:
    homes: dict[str, set[Path]] = defaultdict(set)
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes[node.name].add(path)
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}
