"""``fraud-pipeline models`` on a registry: what it prints, and the sentence that an operator gets for bad input."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.commands.model_text import difference_lines, event_lines, table_lines
from pipeline.models.description import differences
from pipeline.models.registry import LIGHTGBM, POLICY, Registry
from tests.helpers.champion import policy
from tests.helpers.models import small_model
from tests.unit.engine.test_engine_models import other_model
from tests.unit.models.test_model_history import A, assessed, switched

MODEL, OTHER = small_model(), other_model()
FIRST, SECOND = policy(0.6), policy(0.5, blend=0.25)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("FRAUD_PIPELINE_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    made = Registry(tmp_path / "registry")
    details = {"metrics": {"average_precision": 0.8123}}
    for item, about in ((MODEL, details), (OTHER, None), (FIRST, None), (SECOND, None)):
        made.register(LIGHTGBM if hasattr(item, "trees") else POLICY, item.to_payload(), about)
    made.activate(LIGHTGBM, MODEL.version)
    return made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["models", *arguments], env={"COLUMNS": "80"})


def test_versions_are_a_table_of_80_columns(registry: Registry) -> None:
    result = run("list", "--registry")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) <= 80
    (line,) = [line for line in lines if MODEL.version in line]
    assert line.split()[2:] == [MODEL.version, "lightgbm", "active", "register", "AP", "0.812"]
    assert run("list", "--registry", "--limit", "1").output.count("\n") == 2


def test_versions_are_json_for_programs(registry: Registry) -> None:
    rows = [json.loads(line) for line in run("list", "--registry", "--json").output.splitlines()]
    assert {row["version"] for row in rows} == {version.version for version in (MODEL, OTHER, FIRST, SECOND)}
    assert [row["facts"]["threshold"] for row in rows if row["kind"] == "policy"] == [0.5, 0.6]


def test_a_version_is_shown_in_words_and_as_json(registry: Registry) -> None:
    result = run("show", "--registry", MODEL.version[:6])
    assert result.exit_code == 0, result.output
    assert f"version: {MODEL.version}" in result.output
    assert "average precision: 0.8123" in result.output
    assert max(len(line) for line in result.output.splitlines() if MODEL.digest not in line) <= 80
    assert "microseconds a row:\n  score: " in result.output
    cost = json.loads(run("show", "--registry", "--json", MODEL.version).output)["microseconds_a_row"]
    assert cost.keys() == {"score", "explanation"}
    assert min(cost.values()) > 0
    facts = json.loads(run("show", "--registry", "--json", FIRST.version).output)
    assert facts["microseconds_a_row"] == {}
    assert (facts["threshold"], facts["lightgbm_version"]) == (0.6, MODEL.version)


def test_two_versions_are_compared(registry: Registry) -> None:
    result = run("diff", "--registry", FIRST.version, SECOND.version)
    assert result.exit_code == 0, result.output
    assert "threshold: 0.6 -> 0.5\nblend: 1 -> 0.25\n" in result.output
    found = json.loads(run("diff", "--registry", "--json", MODEL.version, OTHER.version).output)
    assert found["trees"] == {"before": MODEL.trees, "after": OTHER.trees}
    assert "kernel" not in found


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("show", "--registry", "0000"), "has no version 0000"),
        (("show", "--registry", "what"), "'what' is no version"),
        (("diff", "--registry", FIRST.version, MODEL.version), "name two of a kind"),
        (("list",), "Versions of the local registry need none: give --registry."),
        (("card", MODEL.version), "Versions of the local registry need none: give --registry."),
        (("promote", MODEL.version), "Missing option '--reason'"),
        (("promote", MODEL.version, "--reason", " "), "--reason takes one line"),
        (("at", "yesterday"), "is no time"),
        (("policy", "set", "--reason", "why"), "give what to change"),
        (("policy", "set", "--threshold", "2", "--reason", "why"), "is not in the range"),
        (("freeze",), "Missing option '--reason'"),
    ],
)
def test_bad_input_gets_a_sentence(registry: Registry, arguments: tuple[str, ...], sentence: str) -> None:
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert sentence in result.output
    assert "Traceback" not in result.output
    assert "error of the program" not in result.output


def test_a_damaged_file_of_the_registry_gets_a_sentence(registry: Registry) -> None:
    path = registry.path / LIGHTGBM / MODEL.version / "payload.json"
    path.write_bytes(path.read_bytes().replace(b"0.8", b"0.9"))
    result = run("show", "--registry", MODEL.version)
    assert (result.exit_code, "is not what was registered" in result.output) == (1, True)


def test_help_lists_every_subcommand(registry: Registry) -> None:
    lines = run("--help").output.splitlines()
    listed = [line.split()[0] for line in lines[lines.index("Commands:") + 1 :]]
    assert {"list", "show", "diff", "promote", "rollback", "at", "history", "freeze", "unfreeze", "policy"} <= {*listed}


def test_a_record_of_control_reads_in_three_lines() -> None:
    assert list(event_lines(switched(0, True))) == ["2026-03-01 00:00:00 UTC  freeze  by dana", "  r"]
    assert list(event_lines(A)) == ["2026-03-01 00:00:00 UTC  publish  by train", "  lightgbm a0, policy a1"]
    assert list(event_lines(assessed(1, "b0", "a0")))[:2] == [
        "2026-03-01 01:00:00 UTC  assessment rejected  by retrain",
        "  lightgbm b0 against lightgbm a0",
    ]


def test_a_cell_cannot_move_the_others() -> None:
    row = dict.fromkeys(("time", "version", "kind", "active", "by", "step", "validation"), "x" * 30)
    lines = list(table_lines([row | {"by": "\x1b[31m"}]))
    assert len(lines[1]) == len(lines[0]) <= 80
    assert "\x1b" not in lines[1]


def test_differences_read_in_words() -> None:
    item = {"training": {"seed": 20_180_401, "rows": 1_000}, "features": ["a", "b"], "libraries": {"numpy": "2"}}
    other = {"training": {"seed": 7, "rows": 2_000}, "features": ["b", "c", "d"], "libraries": {}}
    assert list(difference_lines(differences(item, other), "x", "y")) == [
        "training.seed: 20180401 -> 7",
        "training.rows: 1,000 -> 2,000",
        "features only in x: a",
        "features only in y: c, d",
    ]
    newer = other | {"libraries": {"numpy": "3"}}
    assert list(difference_lines(differences(item, newer), "x", "y"))[-1] == "libraries.numpy: 2 -> 3"
