"""The front page: short, with figures of the pages that it links to, and a picture of the view as it is."""

import re
import time
from pathlib import Path
from urllib.parse import unquote

import pytest
from rich.console import Console

from pipeline.demo.figures import RunFigures, RunState
from pipeline.demo.view import dashboard, summary_lines
from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.features.declaration import Declaration
from pipeline.features.feature_set import FeatureSet
from tests.helpers.recording import PICTURE, SUMMARY, svg_text

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = (ROOT / "docs", ROOT / "examples")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(page for folder in FOLDERS for page in folder.rglob("*.md")),
]
LINK = re.compile(r"(?<!`)\[[^\]]*\](?:\(([^)\s]+)\)|: (\S+))")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub names the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def state() -> RunState:
    figures = RunFigures(transactions=2, warm_up_transactions=1, decisions=2)
    return RunState(started_s=time.monotonic(), days=2, figures=figures, day=1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for inline, reference in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        target, _, anchor = unquote(inline or reference).partition("#")
        if target.startswith(("http:", "https:")):
            continue
        linked = (page.parent / target).resolve() if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


def test_readme_is_a_landing_page() -> None:
    assert len(README.splitlines()) <= 150


NOT_WRAPPED = re.compile(r"\||    |\s*\[[^]]+\]: |\S+$")
"""A row of a table, a line of code, a link's address, and what has no space to wrap at."""


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_prose_is_wrapped_at_100_columns(page: Path) -> None:
    lines = without_code(page.read_text(encoding="utf-8")).splitlines()
    assert [line for line in lines if len(line) > 100 and not NOT_WRAPPED.match(line)] == []


@pytest.mark.parametrize("section", ["What it guarantees", "What you would use instead"])
def test_figures_are_those_of_the_pages(section: str) -> None:
    """Each figure of a section stands on a page that the section links to."""
    text = README.partition(f"## {section}")[2].partition("\n## ")[0]
    pages = {target for target, _ in LINK.findall(text) if target.startswith("docs/") and "decisions" not in target}
    linked = " ".join((ROOT / page.partition("#")[0]).read_text(encoding="utf-8") for page in pages)
    figures = re.findall(r"\d+(?:,\d{3})+|\d+\.\d+", text)
    assert len(figures) > 5
    assert [figure for figure in figures if figure not in linked] == []


def test_the_picture_shows_the_view_as_it_is() -> None:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(dashboard(state(), time.monotonic()))
    picture = svg_text(PICTURE.read_text(encoding="utf-8"))
    labels = re.findall(r"^(\w+(?: \w+)?) {2,}[\d-]", captured.get(), re.MULTILINE)
    assert len(labels) == 7
    assert [label for label in ["Fraud detection on simulated transactions", *labels] if label not in picture] == []


@pytest.mark.parametrize(
    ("page", "kernel"),
    [
        ("README.md", FeatureSet(Declaration()).kernel_version),
        # A test prints what it shows, with the tests' own declaration.
        ("docs/wire-contract.md", KERNEL_VERSION),
    ],
)
def test_examples_name_the_kernel_of_now(page: str, kernel: str) -> None:
    versions = re.findall(r"""kernel['"]: ?['"](\d-[0-9a-f]{8})""", (ROOT / page).read_text(encoding="utf-8"))
    assert set(versions) == {kernel}


def test_the_picture_loads_nothing() -> None:
    addresses = re.findall(r"https?://[^\s\"'<>]+", PICTURE.read_text(encoding="utf-8"))
    assert set(addresses) <= {"http://www.w3.org/2000/svg", "https://www.textualize.io"}


def test_the_summary_has_the_lines_of_a_summary() -> None:
    found = SUMMARY.search(README)
    assert found is not None
    wanted = [line[:15] for line in summary_lines(state(), time.monotonic())]
    assert [line[:15] for line in found[0].splitlines()[2:-2]] == wanted
