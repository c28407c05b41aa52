"""What is offered is documented: settings, metrics, commands, make targets."""

import re
import socket
from pathlib import Path

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from agents.topology import AGENTS
from pipeline.cli import COMMANDS
from pipeline.commands.models import SUBCOMMANDS
from pipeline.drift_metrics import DriftMetrics
from pipeline.features.catalogue import FEATURES, WINDOWS_US
from pipeline.metrics import WorkerMetrics
from pipeline.settings import Settings
from schemas.messages import Versions

ROOT = Path(__file__).resolve().parents[2]


def variable(name: str, field: FieldInfo) -> str:
    """The environment variable that sets ``field``; the first of several."""
    if isinstance(field.validation_alias, AliasChoices):
        return str(field.validation_alias.choices[0])
    return f"{Settings.model_config['env_prefix']}{name}".upper()


def default(field: FieldInfo) -> str:
    """The default as a person would write it into the environment."""
    if field.default_factory is socket.gethostname:
        return "the host's name"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`" if str(value) else "empty"


def settings_rows() -> list[str]:
    return [
        f"| `{variable(name, field)}` | {default(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]


def table_rows(page: str, first_cell: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if re.match(rf"\| `{first_cell}", line)]


def test_every_setting_is_listed_with_its_default_and_meaning() -> None:
    assert table_rows("docs/settings.md", "[A-Z_]+`") == settings_rows()


def test_every_metric_is_listed_with_its_type() -> None:
    documented = {
        name: kind
        for line in table_rows("docs/metrics.md", "[a-z_]+`")
        for name, kind in re.findall(r"^\| `(\w+)` \| (\w+) \|", line)
    }
    exported = {**WorkerMetrics().metric_names(), **DriftMetrics().metric_names()}
    elsewhere = {name: kind for name, kind in documented.items() if name not in exported}
    assert {**exported, **elsewhere} == documented
    # The process's own metrics come from /proc, which only Linux has.
    assert all(name.startswith("process_") for name in elsewhere)
    assert not (elsewhere and Path("/proc/self/stat").exists())


def test_every_label_of_a_metric_is_listed() -> None:
    documented = {
        name: tuple(re.findall(r"`(\w+)`", labels))
        for line in table_rows("docs/metrics.md", "fraud_pipeline_")
        for name, labels in re.findall(r"^\| `(\w+)` \| \w+ \| ([^|]*)\|", line)
    }
    assert documented == {**WorkerMetrics().label_names(), **DriftMetrics().label_names()}


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


def test_every_feature_is_defined() -> None:
    """Names of the page: ``*`` stands for card or merchant, ``W`` for a window, ``_30d`` for another window."""
    names: list[str] = []
    for line in table_rows("docs/features.md", r"[a-z*]\w*(?:`,|` \|)"):
        for name in re.findall(r"`([\w*]+)`", line.split(" | ")[0]):
            names.append(re.sub(r"_\d+[dh]$", name, names[-1]) if name.startswith("_") else name)
    windows = "|".join(WINDOWS_US)
    patterns = [name.replace("*", "(?:card|merchant)").replace("_W", f"_(?:{windows})") for name in names]
    assert [name for name in FEATURES if not any(re.fullmatch(pattern, name) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(re.fullmatch(pattern, name) for name in FEATURES)] == []


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


def test_changelog_has_an_entry_for_the_unreleased_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased = changelog.split("## [Unreleased]", 1)[1].split("\n## [", 1)[0]
    assert re.search(r"^- \S", unreleased, re.MULTILINE)
