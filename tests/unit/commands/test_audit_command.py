"""``fraud-pipeline audit`` on exported files: what it says where much, little or nothing is known."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from schemas.topics import DECISIONS, LABELS
from tests.helpers.exported import export
from tests.helpers.logs import after, decision, label


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAUD_PIPELINE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)


def audit(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["audit", *map(str, arguments)])


def export_history(directory: Path, audits: int, frauds: int, probability: float = 0.1) -> Path:
    """400 decisions of 10 days and one 60 days later: 20 alerted frauds, 10 reported ones, some audits."""
    decisions, labels = [], []
    for number in range(400):
        audited = 30 <= number < 30 + audits
        selection = "score" if number < 20 else "audit" if audited else None
        rate = 1.0 if number < 20 else probability
        at = after(number % 10)
        decisions.append(decision(number, at, selection=selection, selection_probability=rate))
        if number < 30:
            labels.append(label(number, after(12), source="analyst" if number < 20 else "chargeback"))
        elif audited:
            known = "fraud" if number < 30 + frauds else "legitimate"
            labels.append(label(number, after(12), known, source="audit"))
    decisions.append(decision(900, after(70), selection_probability=probability))
    export(directory, DECISIONS, decisions)
    export(directory, LABELS, [*labels, b"no label"])
    return directory


def test_what_was_found_gives_a_range(tmp_path: Path) -> None:
    directory = export_history(tmp_path, audits=40, frauds=5)
    result = audit("--file", directory)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "20 frauds raised an alert by score or rule\n" in result.stdout
    assert "10 frauds raised none and were reported so far" in result.stdout
    assert "40 audited transactions have an answer, 0 have none" in result.stdout
    reported = json.loads(audit("--file", directory, "--json").stdout)
    low, high = reported["never_reported"]
    assert 5 < low < 50 < high < 200
    assert (
        f"{reported['never_reported_share'][0]:.0%} to {reported['never_reported_share'][1]:.0%}: {low} to"
        in result.stdout
    )
    assert reported["recall"][1] < reported["recall_of_reported"][0] == pytest.approx(20 / 30)


def test_where_nothing_was_found_it_says_at_most(tmp_path: Path) -> None:
    result = audit("--file", export_history(tmp_path, audits=40, frauds=0))
    assert "unknown, at most 35 (78% of them)" in result.stdout


def test_without_an_audit_it_says_unknown_and_what_to_do(tmp_path: Path) -> None:
    directory = export_history(tmp_path, audits=0, frauds=0, probability=0.0)
    result = audit("--file", directory)
    assert "unknown: no audited transaction is that old" in result.stdout
    assert "of all frauds: unknown, at most 67%" in result.stdout
    assert result.stdout.startswith(f"401 decisions from {after():%Y-%m-%d} to {after(70):%Y-%m-%d}")
    assert "381 of the decisions could not be audited" in result.stdout
    assert "Set an audit in the policy" in result.stdout
    assert json.loads(audit("--file", directory, "--json").stdout)["never_reported"] == [0.0, None]


def test_the_period_begins_with_the_first_audit_or_where_you_say(tmp_path: Path) -> None:
    directory = export_history(tmp_path, audits=4, frauds=1)
    reported = json.loads(audit("--file", directory, "--from", f"{after(5):%Y-%m-%d}", "--json").stdout)
    assert (reported["from"], reported["decisions"]) == (f"{after(5):%Y-%m-%d}", 201)


def test_without_a_decision_it_says_so(tmp_path: Path) -> None:
    export(tmp_path, DECISIONS, [b"no decision"])
    export(tmp_path, LABELS, [b"no label"])
    result = audit("--file", tmp_path)
    assert (result.exit_code, "there is no decision" in result.output) == (1, True)


def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for arguments, why in (
        (("--file", tmp_path), "decisions labels"),
        (("--file", tmp_path, "--bootstrap", "x:1"), "leave out --bootstrap"),
        ((), "No embedded broker runs"),
    ):
        result = audit(*arguments)
        assert result.exit_code in (1, 2)
        assert why in result.output
        assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["audit", "drift"])
def test_a_setting_that_is_none_is_one_sentence(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAUD_PIPELINE_MATURITY_DAYS", "soon")
    result = CliRunner().invoke(main, [command, "--file", str(tmp_path)])
    assert (result.exit_code, isinstance(result.exception, SystemExit)) == (1, True)
    assert "FRAUD_PIPELINE_MATURITY_DAYS cannot be used" in result.stderr
