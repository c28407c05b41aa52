"""What is offered is documented: settings, metrics, commands, make targets."""

import re
import sys
import tomllib
from operator import attrgetter
from pathlib import Path

import pytest

from agents.topology import AGENTS
from pipeline.cli import COMMANDS
from pipeline.commands.models import SUBCOMMANDS
from pipeline.settings import Settings
from schemas.messages import Versions
from tests.helpers.generated import PACKAGED_FEATURES, PARTS, filled, packaged_features

ROOT = Path(__file__).resolve().parents[2]
# The metrics of a process come from /proc, which only Linux has.
PARTS_HERE = [page for page in PARTS if page != "docs/metrics.md" or sys.platform == "linux"]
GENERATED = re.compile(r"<!-- ([\w-]+):begin -->.*?<!-- \1:end -->", re.DOTALL)


def table_rows(page: str, first_cell: str) -> list[str]:
    """Rows that a person wrote."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [line for line in GENERATED.sub("", text).splitlines() if re.match(rf"\| `{first_cell}", line)]


@pytest.mark.parametrize("page", PARTS_HERE)
def test_generated_parts_are_as_the_code_is(page: str) -> None:
    assert filled(page) == (ROOT / page).read_text(encoding="utf-8"), "run `python -m tests.helpers.generated`"


def test_the_packaged_features_are_those_of_the_file() -> None:
    found = PACKAGED_FEATURES.read_text(encoding="utf-8")
    assert packaged_features() == found, "run `python -m tests.helpers.generated`"


def test_every_command_is_listed() -> None:
    listed = [line.split("`")[1] for line in table_rows("docs/commands.md", "fraud-pipeline ")]
    assert sorted(listed) == [f"fraud-pipeline {name}" for name in sorted(COMMANDS)]


def test_every_subcommand_of_models_is_listed() -> None:
    text = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    section = text.partition("## Change versions")[2].partition("\n### ")[0]
    cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    assert sorted({name for cell in cells for name in re.findall(r"`([\w-]+)", cell)}) == sorted(SUBCOMMANDS)


def test_every_module_with_a_command_is_offered() -> None:
    found = {
        f"pipeline.commands.{path.stem}"
        for path in (ROOT / "pipeline/commands").glob("*.py")
        if re.search(r"^def command\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert found == {module for module, _ in COMMANDS.values()}


def test_every_kind_of_model_is_listed() -> None:
    listed = re.findall(r"^\| `(\w+)` \| first 12 digits", (ROOT / "docs/models.md").read_text(), re.MULTILINE)
    # A decision names code and rate table as well.
    assert {*listed, "kernel", "rates"} == set(Versions.__struct_fields__)


def test_every_agent_runs_by_default_and_is_named_among_the_metrics() -> None:
    assert Settings.model_fields["agents"].default == ",".join(AGENTS)
    listed = re.search(r"^Agents are (.*)\.$", (ROOT / "docs/metrics.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed is not None
    assert re.findall(r"`(\w+)`", listed[1]) == list(AGENTS)


def test_help_lists_every_make_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = next(re.finditer(r"^\.PHONY: (help .*)$", makefile, re.MULTILINE)).group(1).split()
    targets = re.findall(r"^([a-z-]+):(?!=)", makefile, re.MULTILINE)
    described = re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE)
    assert sorted(phony) == sorted(targets) == sorted(described)


def test_the_changelog_has_a_dated_section_of_the_version_below_what_comes_next() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    first, second, *_ = re.findall(r"^## \[([^\]]+)\](?: - \d{4}-\d\d-\d\d)?$", changelog, re.MULTILINE)
    assert (first, second) == ("Unreleased", version)
    assert re.search(r"^- \S", changelog.split(f"\n## [{version}] - ", 1)[1], re.MULTILINE)


@pytest.mark.parametrize(
    "page", [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))], ids=attrgetter("stem")
)
def test_modules_that_a_page_names_are_there(page: Path) -> None:
    """By their paths, which may begin below `pipeline/`, or by their names."""
    for named in re.findall(r"`([a-z\d_/]+\.py)`", page.read_text(encoding="utf-8")):
        places = [ROOT / named, ROOT / "pipeline" / named]
        if "/" not in named:
            places += [found for folder in ("pipeline", "tests") for found in (ROOT / folder).rglob(named)]
        assert any(place.exists() for place in places), named
