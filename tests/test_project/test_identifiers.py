"""The names of the product's code: the standard terms of the glossary, and nouns."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for package in ("schemas", "pipeline", "agents") for path in (ROOT / package).rglob("*.py"))

NOT_A_NOUN = frozenset({"one", "of", "it", "its", "told", "said", "tell", "say", "stated", "they", "them", "who"})
PRIVATE = re.compile(
    r"(?:^|_)(?:"
    r"settled?|undo(?!_stack)|folded|refold|keepers?|patien\w+|hung|places?|placed|lessons?|teach\w*|taught|untaught|boards?|"
    r"stor(?:y|ies)|tellings?|verdicts?|waiting_room|newest_us|unsaid|judged|conduct|decidable"
    r")(?:$|_)",
    re.IGNORECASE,
)
"""Words of our own, each of which the glossary replaces: commit, rollback, replay, snapshot scheduler, retry, timeout,
partition, position, training update, train, model set, reason text, decision, stream time, and so on."""


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
        wrong = sorted(name for name in given if name.strip("_") in NOT_A_NOUN or PRIVATE.search(name))
        found += [f"{path.relative_to(ROOT)}: {name}" for name in wrong]
    assert found == []
