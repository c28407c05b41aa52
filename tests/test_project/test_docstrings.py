"""Docstrings say what a thing is or does, and the public API documents every parameter."""

import ast
import itertools
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "agents", "schemas")
OPENERS = re.compile(r"(What|Of|By|Where|Whether|One|How|Which|Who|From|As)\b")
MOST_OPENERS = 0.01
PAGES_WITH_PYTHON = ("README.md", "docs/notebook.md", "examples/custom-feature.md", "examples/own-csv.md")
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
LIBRARY_HOOKS = {"settings_customise_sources"}
"""Methods whose parameters a library names and explains."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Docstring(NamedTuple):
    """A docstring, or the string below an assignment."""

    path: Path
    line: int
    text: str


def string_of(statement: ast.stmt) -> ast.Constant | None:
    """Return the string that a statement consists of."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return statement.value if isinstance(statement.value.value, str) else None
    return None


@cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a module."""
    return ast.parse(path.read_text(encoding="utf-8"))


def documented_strings(path: Path) -> Iterator[Docstring]:
    """Yield the docstrings of a module's objects and attributes."""
    for node in ast.walk(parsed(path)):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        first = body[:1] if isinstance(node, Documented) else []
        below = [after for before, after in itertools.pairwise(body) if isinstance(before, ast.Assign | ast.AnnAssign)]
        for statement in first + below:
            if (string := string_of(statement)) is not None:
                yield Docstring(path, string.lineno, str(string.value).strip())


@pytest.fixture(scope="module")
def docstrings() -> list[Docstring]:
    """All docstrings of the product."""
    paths = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return [docstring for path in paths for docstring in documented_strings(path)]


def test_docstrings_open_with_a_noun_or_an_imperative(docstrings: list[Docstring]) -> None:
    opened = [docstring for docstring in docstrings if OPENERS.match(docstring.text)]
    places = [f"{docstring.path.relative_to(ROOT)}:{docstring.line}" for docstring in opened]
    assert len(docstrings) > 3_000
    assert len(opened) <= MOST_OPENERS * len(docstrings), f"say what these are, or do: {', '.join(places)}"


class Parameters(NamedTuple):
    """The parameters of a public class or function, and those that its docstrings explain."""

    name: str
    all: list[str]
    explained: set[str]


def names_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Return a function's parameters, without ``self`` and ``cls``."""
    arguments = function.args
    extra = [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
    given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *extra]
    return [argument.arg for argument in given if argument.arg not in {"self", "cls"}]


def in_arguments(docstring: str) -> list[str]:
    """Return the names in the ``Args:`` section of a docstring.

    >>> in_arguments("Args:\\n    left: A number.\\n    right, third: Others,\\n        as large.\\n\\nRaises: None")
    ['left', 'right', 'third']
    """
    section = re.search(r"^Args:\n((?:    .*\n?|\n(?=    ))+)", docstring, re.MULTILINE)
    lines = re.findall(r"^    ((?:\*{0,2}\w+, )*\*{0,2}\w+):", section.group(1), re.MULTILINE) if section else []
    return [name.strip(" *") for line in lines for name in line.split(",")]


def explained_in(docstring: str) -> set[str]:
    """Return the names that a docstring has in its ``Args:``, or mentions as ``name``."""
    return {*in_arguments(docstring), *re.findall(r"``(\w+)``", docstring)}


def described(declaration: ast.AST) -> bool:
    """Return True for a field, or a parameter, that has a description in its type or its value."""
    calls = [node for node in ast.walk(declaration) if isinstance(node, ast.Call)]
    return any(keyword.arg == "description" for call in calls for keyword in call.keywords)


def fields_of(node: ast.ClassDef) -> tuple[list[str], set[str]]:
    """Return the fields of a class, and those with a docstring below or a description."""
    fields = [s.target.id for s in node.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)]
    explained = {
        before.target.id
        for before, after in itertools.pairwise([*node.body, ast.Pass()])
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)
        if described(before) or string_of(after) is not None
    }
    return [field for field in fields if not field.startswith("_")], explained


def parameters_of(node: ast.ClassDef | ast.FunctionDef) -> Iterator[Parameters]:
    """Yield the parameters of a function, or of a class and its public methods."""
    text = ast.get_docstring(node) or ""
    if isinstance(node, ast.FunctionDef):
        yield Parameters(node.name, names_of(node), explained_in(text))
        return
    fields, explained = fields_of(node)
    yield Parameters(node.name, fields, explained | explained_in(text))
    for method in node.body:
        is_public = isinstance(method, FUNCTIONS) and (method.name == "__init__" or not method.name.startswith("_"))
        if isinstance(method, FUNCTIONS) and is_public and method.name not in LIBRARY_HOOKS:
            own = explained_in(ast.get_docstring(method) or "")
            shared = explained_in(text) if method.name == "__init__" else set()
            arguments = [*method.args.args, *method.args.kwonlyargs]
            declared = {argument.arg for argument in arguments if described(argument)}
            yield Parameters(f"{node.name}.{method.name}", names_of(method), own | shared | declared)


def definition(module: str, name: str) -> ast.ClassDef | ast.FunctionDef | None:
    """Find a class or function, through the imports of packages; None for anything else."""
    base = ROOT.joinpath(*module.split("."))
    path = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and node.module and name in {alias.name for alias in node.names}:
            return definition(node.module, name)
    return None


def python_of(page: Path) -> str:
    """Return the Python of a page or notebook."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def public_names() -> set[tuple[str, str]]:
    """Return module and name of each class and function that `pipeline` exports, or that the pages import from it."""
    pages = [ROOT / page for page in PAGES_WITH_PYTHON] + sorted((ROOT / "examples").glob("*.ipynb"))
    shown = re.findall(r"^from (pipeline[\w.]*) import ([\w, ]+)$", "\n".join(map(python_of, pages)), re.MULTILINE)
    found = {(module, name.strip()) for module, names in shown for name in names.split(",")}
    for node in ast.walk(parsed(ROOT / "pipeline/__init__.py")):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            found |= {("pipeline", name) for name in ast.literal_eval(node.value)}
    return {(module, name) for module, name in found if definition(module, name) is not None}


@pytest.mark.parametrize(("module", "name"), sorted(public_names()))
def test_the_public_api_documents_every_parameter(module: str, name: str) -> None:
    node = definition(module, name)
    assert node is not None
    missing = {p.name: rest for p in parameters_of(node) if (rest := [n for n in p.all if n not in p.explained])}
    assert not missing, f"document these in Args, as ``name``, or below the field: {missing}"


def test_argument_sections_name_parameters_that_there_are() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(parsed(path)):
                if isinstance(node, FUNCTIONS):
                    named = in_arguments(ast.get_docstring(node) or "")
                    assert set(named) <= set(names_of(node)), f"{path.relative_to(ROOT)}:{node.lineno}"
