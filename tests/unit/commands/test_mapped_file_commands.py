"""Commands that follow a mapping: a foreign file is trained on and decided as the same file of the contract is."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from tests.helpers.backtest_inputs import simulated_days, with_a_champion
from tests.helpers.champion import policy
from tests.helpers.mappings import CORE

MAPPING = CORE.replace(
    b"\n[attributes]",
    b'channel = { path = "payload.after.how", values = { web = "online" } }\n'
    b'fraud = { path = "payload.after.chargeback", values = { J = "1", N = "0" } }\n\n[attributes]',
)
TRAIN = (
    "--trees", "10", "--threads", "1", "--budget-per-day", "5", "--force", "--label-delay-days", "1",
    "--validation-days", "4",
)  # fmt: skip


@pytest.fixture
def frame() -> pd.DataFrame:
    frame = simulated_days(14)
    return frame.assign(channel=["online" if row % 3 else "shop" for row in range(len(frame))], fraud_type=None)


@pytest.fixture
def home(tmp_path: Path, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the same history in the contract's shape and as changes of rows, and the mapping of these."""
    settings = with_a_champion(tmp_path / "data", policy(0.3))
    monkeypatch.setenv("FRAUD_PIPELINE_DATA_DIR", str(settings.data_dir))
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    frame.to_parquet(tmp_path / "own.parquet", index=False)
    (tmp_path / "foreign.jsonl").write_bytes(b"".join(line(row) for row in frame.to_dict("records")))
    (tmp_path / "mapping.toml").write_bytes(MAPPING)
    return tmp_path


def line(row: dict[Any, Any], **changes: Any) -> bytes:
    state = {
        "id": row["transaction_id"],
        "at": round(row["event_time"].timestamp() * 1_000),
        "card": {"token": row["card_id"]},
        "shop": row["merchant_id"],
        "cents": round(row["amount"] * 100),
        "ccy": row["currency"],
        "how": "web" if row["channel"] == "online" else row["channel"],
        "chargeback": "J" if row["fraud"] else "N",
    }
    return json.dumps({"payload": {"before": None, "after": state | changes}}).encode() + b"\n"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def test_a_version_of_a_foreign_file_is_that_of_the_file(home: Path) -> None:
    found = []
    for name, more in (("own.parquet", ()), ("foreign.jsonl", ("--mapping", home / "mapping.toml"))):
        result = run("train", home / name, *TRAIN, "--registry", home / name.partition(".")[0], *more)
        assert result.exit_code == 0, result.output
        found.append(json.loads(result.stdout))
    assert found[0]["metrics"] == found[1]["metrics"]
    assert found[0]["periods"] == found[1]["periods"]


def test_a_foreign_file_is_decided_as_the_file_is(home: Path) -> None:
    decided = []
    for name, more in (("own.parquet", ()), ("foreign.jsonl", ("--mapping", home / "mapping.toml"))):
        result = run("backtest", home / name, "--from", "2024-03-08", "--decisions", home / "decided", *more)
        assert result.exit_code == 0, result.output
        decided.append(pd.read_parquet(home / "decided/0.parquet"))
    assert len(decided[0]) > 100
    pd.testing.assert_frame_equal(decided[0], decided[1])


def test_a_rule_is_tried_on_a_foreign_file_as_on_the_file(home: Path) -> None:
    longer = simulated_days(20).assign(channel="online", fraud_type=None)
    longer.to_parquet(home / "own.parquet", index=False)
    (home / "foreign.jsonl").write_bytes(b"".join(line(row) for row in longer.to_dict("records")))
    (home / "rule.sql").write_text("-- code: tried\n-- owner: dana\n-- reason: A test.\namount > 40\n")
    tried = []
    for name, more in (("own.parquet", ()), ("foreign.jsonl", ("--mapping", home / "mapping.toml"))):
        result = run("rules", "test", home / "rule.sql", "--on", home / name, *more)
        assert result.exit_code == 0, result.output
        tried.append(result.stdout)
    assert tried[0] == tried[1]
    refused = run("rules", "test", home / "rule.sql", "--on", "topics", "--mapping", home / "mapping.toml")
    assert (refused.exit_code, "FRAUD_PIPELINE_MAPPING_FILE" in refused.stderr) == (2, True)


def test_refused_rows_are_counted_and_the_first_is_named(home: Path, frame: pd.DataFrame) -> None:
    row = frame.iloc[-1].to_dict()
    with (home / "foreign.jsonl").open("ab") as file:
        file.write(line(row, id="zero", cents=0) + line(row, id="late", at="soon") + b"{broken\n")
    sentence = (
        "foreign.jsonl: left out 3 transactions that workers refuse (amount_zero 1, invalid_value 1, "
        f"not_json 1); the first is row {len(frame) + 1:,}: The amount is zero;"
    )
    mapping = ("--mapping", home / "mapping.toml")
    trained = run("train", home / "foreign.jsonl", *TRAIN, *mapping)
    assert (trained.exit_code, sentence in trained.stderr) == (0, True), trained.output
    decided = run("backtest", home / "foreign.jsonl", *mapping)
    # Lines end wherever the directory's name makes them.
    found = "".join(sentence.split()) in "".join(decided.stdout.split())
    assert (decided.exit_code, found) == (0, True), decided.output


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b"payload.after.card.token", b"payload.card", "refuse all of them: missing_field ("),
        (b'J = "1", N', b'N', "the column fraud holds 'J', which is neither 0 nor 1"),
        (b"fraud = {", b"fraud_type = {", "the history has no labels; say where fraud is in a mapping (--mapping)"),
        (b"fraud = {", b"frauds = {", "mapping.toml: [fields.frauds]: there is no such field; did you mean fraud?"),
    ],
)  # fmt: skip
def test_a_mapping_that_does_not_fit_is_one_sentence(home: Path, old: bytes, new: bytes, sentence: str) -> None:
    (home / "mapping.toml").write_bytes(MAPPING.replace(old, new))
    result = run("train", home / "foreign.jsonl", *TRAIN, "--mapping", home / "mapping.toml")
    assert (result.exit_code, sentence in result.stderr.splitlines()[-1]) == (1, True), result.output


def test_columns_that_a_file_lacks_are_named(home: Path, frame: pd.DataFrame) -> None:
    frame.to_csv(home / "history.csv", index=False)
    for command in ("train", "backtest"):
        result = run(command, home / "history.csv", "--mapping", home / "mapping.toml")
        assert (result.exit_code, "has no column payload, which" in result.stderr) == (1, True), result.output
        result = run(command, home / "foreign.jsonl")
        assert (result.exit_code, "has no columns: say where its fields are in a mapping" in result.stderr) == (1, True)


def test_a_mapping_without_a_file_is_refused(home: Path) -> None:
    result = CliRunner().invoke(main, ["backtest", "--mapping", str(home / "mapping.toml")])
    assert (result.exit_code, "FRAUD_PIPELINE_MAPPING_FILE" in result.stderr) == (2, True)
