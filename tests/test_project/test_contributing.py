"""CONTRIBUTING.md names what there is: paths, make targets, packages, tests, and places that something has."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
THINGS = {
    "A feature": ("usual_amount",),
    "A model": ("lightgbm", "modelversion"),
    "An agent": ("feedback",),
    "A command": ("drift",),
    "A metric": ("rerouted",),
    "A setting": ("future_tolerance",),
    "A page": ("backtest",),
    "An example": ("own-csv",),
}
"""What each list is for, and something of the kind, by the names that places have for it."""
SPANS = re.findall(r"`([^`\n]+)`", PAGE)
PATH = re.compile(r"\.?\w[\w.-]*(/[\w.-]*)+|[\w.-]+\.(md|yml|toml)|Dockerfile")


def section(title: str) -> str:
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^## |^### |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def packages(directory: str) -> set[str]:
    return {f"{path.parent.relative_to(ROOT).as_posix()}/" for path in (ROOT / directory).glob("*/*.py")}


def test_every_path_exists() -> None:
    paths = [span for span in SPANS if PATH.fullmatch(span)]
    assert len(paths) > 50
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("thing", THINGS)
def test_a_list_names_its_places_and_the_tests_that_fail(thing: str) -> None:
    text = section(thing)
    places = re.findall(r"^(\d)\. `[\w./-]+`", text, re.MULTILINE)
    assert places == [str(number) for number in range(1, len(places) + 1)]
    assert len(places) > 1
    assert re.search(r"Tests? that fails? without it: `tests/|\| test that fails \|.*`tests/", text.replace("\n", " "))


@pytest.mark.parametrize("thing", THINGS)
def test_something_of_the_kind_is_at_each_place(thing: str) -> None:
    places = re.findall(r"^\d\. `([\w./-]+)`", section(thing), re.MULTILINE)
    assert [place for place in places if not any(name in content(place) for name in THINGS[thing])] == []


IN_A_FILE = re.compile(r"`([\w.]+)`(?: and `([\w.]+)`)? in \[?`([\w./]+)`")
WHERE_NAMES_ARE = ("CONTRIBUTING.md", "docs/architecture.md", "docs/dead-letters.md")


@pytest.mark.parametrize("page", WHERE_NAMES_ARE)
def test_names_are_where_pages_say(page: str) -> None:
    """Functions, classes and constants are defined in the file, or in a file of the folder, that stands behind them."""
    found = IN_A_FILE.findall((ROOT / page).read_text(encoding="utf-8"))
    assert found
    wrong = [
        f"{name} in {place}"
        for *names, place in found
        for name in filter(None, names)
        if not all(
            re.search(rf"(?:def|class) {part}\b|^ *{part}(?::|\b.* =)", code(place), re.M) for part in name.split(".")
        )
    ]
    assert wrong == []


def code(place: str) -> str:
    """Text of a Python file, or of those of a folder."""
    path = ROOT / place
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def content(place: str) -> str:
    """Text and names of the files of a place."""
    root = ROOT / place
    files = [root] if root.is_file() else [path for path in root.rglob("*") if path.suffix in (".py", ".md")]
    return " ".join(f"{path.name} {path.read_text(encoding='utf-8')}" for path in files).lower()


def test_every_package_has_its_place() -> None:
    assert packages("pipeline") - set(SPANS) == set()


def test_every_kind_of_test_has_its_place() -> None:
    assert packages("tests") - set(SPANS) == set()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_exists(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):(?!=)", makefile, re.MULTILINE))
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^|\$ )make ([a-z-]+)", text, re.MULTILINE))
    assert named
    assert named - targets == set()


def test_every_module_of_the_pipeline_is_in_a_package() -> None:
    assert {path.name for path in (ROOT / "pipeline").glob("*.py")} == {"__init__.py", "cli.py"}
