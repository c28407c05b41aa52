"""``fraud-pipeline map``: what it shows of a sample, and how it refuses one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.commands import map as map_command
from pipeline.models import published_files
from schemas.mapping import FieldMapping, load_mapping, read_mapping

RECORD: dict[str, Any] = {
    "id": "t", "time": "2024-03-01T20:15:30Z", "card": "c", "shop": "s", "amount": 12.5, "currency": "EUR",
}  # fmt: skip


def run(*arguments: object, content: bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["map", *map(str, arguments)], input=content)


def lines(records: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def numbered(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [{**RECORD, "id": f"t-{number}", **changes} for number in range(count)]


@pytest.fixture
def mapping(tmp_path: Path) -> Path:
    path = tmp_path / "mapping.toml"
    path.write_text(run("-", content=lines(numbered(3))).stdout)
    return path


@pytest.mark.parametrize(
    "content",
    [
        lines(numbered(7)),
        json.dumps(numbered(7)).encode(),
        b"\xef\xbb\xbf\r\n" + json.dumps(numbered(7), indent=2).replace("\n", "\r\n").encode(),
    ],
)
def test_a_proposal_and_what_it_makes_of_the_sample(tmp_path: Path, content: bytes) -> None:
    sample = tmp_path / "sample.json"
    sample.write_bytes(content)
    result = run(sample)
    assert result.exit_code == 0, result.output
    assert read_mapping(result.stdout.encode()).fields.keys() >= {"transaction_id", "amount", "currency"}
    *rows, counts = result.stderr.splitlines()
    assert [json.loads(row)["transaction_id"] for row in rows] == [f"t-{number}" for number in range(5)]
    assert counts == "7 accepted, 0 refused"


@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_is_a_sample(indent: int | None) -> None:
    result = run("-", content=json.dumps(RECORD, indent=indent).encode())
    assert result.stderr.splitlines()[-1] == "1 accepted, 0 refused"


def test_the_first_thousand_records_are_looked_at() -> None:
    result = run("-", content=lines(numbered(map_command.MAX_RECORDS)) + b"broken\n")
    assert result.stderr.splitlines()[-1] == "1,000 accepted, 0 refused"


def test_an_incomplete_proposal_says_so() -> None:
    result = run("-", content=lines([{"id": 1}]))
    assert result.exit_code == 0
    assert result.stderr.startswith("Complete the mapping, and check it with --mapping: [fields.event_time]: give")
    assert len(result.stderr.splitlines()) == 1


def test_a_mapping_is_checked(mapping: Path, tmp_path: Path) -> None:
    result = run("-", "--mapping", mapping, content=lines(numbered(2)))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == "2 accepted, 0 refused"
    odd = [
        *numbered(1),
        *numbered(2, amount=0),
        *numbered(1, currency="\x9b31m"),
        *numbered(1, time="2099-01-01T00:00:00Z"),
    ]
    result = run("-", "--mapping", mapping, content=lines(odd))
    assert (result.exit_code, result.stderr) == (1, "")
    *rows, reason, counts = result.stdout.splitlines()
    assert json.loads(rows[3])["currency"] == "\x9b31m"
    assert result.stdout.replace("\n", "").isprintable()
    assert reason.startswith("Record 2 is refused as amount_zero: The amount is zero;")
    assert counts == "1 accepted, 4 refused: amount_zero 2, invalid_value 1, event_time_in_future 1"


def test_what_the_mapping_itself_refuses_is_counted_with_the_rest(tmp_path: Path) -> None:
    mapping, sample = tmp_path / "mapping.toml", tmp_path / "sample.csv"
    fields = "".join(f'{name} = {{ path = "{name}" }}\n' for name in ("transaction_id", "card_id", "merchant_id"))
    zoned = 'event_time = { path = "at", zone = "Europe/Berlin" }\n'
    money = 'amount = { path = "amount", decimal = "," }\ncurrency = { constant = "EUR" }\n'
    mapping.write_text(f'version = "1"\n[fields]\n{fields}{zoned}{money}')
    times = ["2018-03-25 01:30:00", "2018-03-25 02:30:00", "2018-03-25 03:30:00"]
    rows = [f't-{number},c,m,{at},"12,50"' for number, at in enumerate(times)]
    sample.write_text("\n".join(["transaction_id,card_id,merchant_id,at,amount", *rows]))
    result = run(sample, "--mapping", mapping)
    assert result.exit_code == 1, result.output
    assert "Record 2 is refused as invalid_value: event_time: no clock of Europe/Berlin shows" in result.stdout
    assert "2 accepted, 1 refused: invalid_value 1" in result.stdout


@pytest.mark.parametrize("missing", [False, True])
def test_a_row_of_a_file_that_does_not_say_whether_it_is_a_fraud_is_refused(tmp_path: Path, missing: bool) -> None:
    sample, mapping = tmp_path / "sample.csv", tmp_path / "mapping.toml"
    rows = numbered(3, is_fraud=0)
    pd.DataFrame(rows).to_csv(sample, index=False)
    mapping.write_text(run(sample).stdout)
    assert run(sample, "--mapping", mapping).exit_code == 0
    pd.DataFrame([*rows, {**rows[0], "is_fraud": None if missing else "maybe"}]).to_csv(sample, index=False)
    result = run(sample, "--mapping", mapping)
    assert result.exit_code == 1, result.output
    assert "Record 4 is refused as invalid_value: fraud is neither 0 nor 1" in result.stdout
    # Messages do not have it.
    assert run("-", "--mapping", mapping, content=lines(numbered(2))).exit_code == 0


def test_rows_are_cut_in_a_terminal(mapping: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(map_command.click, "get_text_stream", lambda name: Terminal())
    result = run("-", "--mapping", mapping, content=lines(numbered(2)))
    assert [len(line) for line in result.stdout.splitlines()[:2]] == [80, 80]


def test_a_mapping_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mapping.toml"
    file.write_text('version = "1"\n[fields.card]\npath = "c"\n')
    for arguments in (["-", "--mapping", file], ["--publish", file]):
        result = run(*arguments, content=lines(numbered(1)))
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"Error: {file}: [fields.card]: there is no ")
        assert result.stderr.endswith("; did you mean card_id?\n")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "it holds no record; give a file with one JSON object a line"),
        (b" \n\n", "it holds no record; give a file with one JSON object a line"),
        (b"[]", "it holds no record; give a file with one JSON object a line"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "line 2 is not UTF-8; encode the file as UTF-8"),
        ("{}".encode("utf-16"), "line 1 is not UTF-8; encode the file as UTF-8"),
        (b'{"a": 1}\n\n{"a": }\n', "line 3 cannot be read as JSON (JSON is malformed: "),
        (b'{"a": 1}\n{"a": NaN}\n', "line 2 cannot be read as JSON (JSON is malformed: "),
        (b'[{"a": 1},\n{"a": Infinity}]', "line 2 cannot be read as JSON (JSON is malformed: "),
        (b'{\n"a": 1,\n"b": x\n}', "line 3 cannot be read as JSON (JSON is malformed: "),
        (b'[{"a": 1},\n{"a": 1', "line 2 cannot be read as JSON (Input data was truncated)"),
        (b'{"a": 1}\n[1]\n', "what stands on line 2 is no JSON object; write one object a record"),
        (b'[{"a": 7},\n\n7]', "what stands on line 3 is no JSON object; write one object a record"),
        (b"7", "what stands on line 1 is no JSON object; write one object a record"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "line 1 is nested more than 64 deep; take the record out"),
        (b'{"a":' * 10_000, "line 1 is nested more than 64 deep; take the record out"),
        (b"[" * 10_000, "line 1 is nested more than 64 deep; take the record out"),
        (b'{}\n{"a":' + b"[" * 65 + b"]" * 65 + b"}", "line 2 is nested more than 64 deep; take the record out"),
        (b'{}\n{"a":' + b"9" * 5_000 + b"}", "line 2 cannot be read as JSON (Integer value out of range"),
        (b'{}\n{"a":1e99999999999999999999}', "the record on line 2 has a number that is out of range; take it out"),
        (
            b'{"%s": 1}' % (b"x" * 2**20),
            "the record on line 1 has 1,048,583 bytes, and may have 1,048,576; take it out",
        ),
        (b'{"a": "\\ud800"}', "line 1 cannot be read as JSON ("),
    ],
)
@pytest.mark.parametrize("checked", [False, True])
def test_a_sample_that_cannot_be_read_is_refused_in_a_sentence(
    content: bytes, sentence: str, checked: bool, mapping: Path
) -> None:
    result = run("-", *(["--mapping", mapping] if checked else []), content=content)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: -: {sentence}")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    [
        b'{"%s": 1}' % (b"x" * 1_000_000),
        b'{"a": 1, "a": 2, "a": {"a": 3}}',
        b'{"id": 1e999999999, "amount": 1e-999999999, "time": 1e999999999, "n": 1e400}',
        b'{"id": %s}' % (b"9" * 4_000),
        b'{"": {"": 1}, "a.b": 2, "\\u001b": 3, "0": [[]]}',
    ],
)
def test_odd_samples_are_proposed_from(content: bytes) -> None:
    result = run("-", content=content)
    assert result.exit_code == 0, result.output
    assert result.output.replace("\n", "").isprintable()
    assert len(result.output) < 5_000


def test_a_large_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_command, "MAX_SAMPLE_BYTES", 10)
    result = run("-", content=lines(numbered(1)))
    assert (result.exit_code, result.stderr) == (1, "Error: -: it is larger than 10 bytes; give a part of it\n")


def test_arguments_that_do_not_go_together_are_refused(mapping: Path) -> None:
    for arguments in (
        [],
        ["--mapping", mapping],
        ["-", "--publish", mapping],
        ["--publish", mapping, "--mapping", mapping],
    ):
        result = run(*arguments, content=b"{}")
        assert result.exit_code == 2
        assert "Give either a SAMPLE, with or without --mapping, or --publish alone." in result.stderr


def test_a_mapping_is_published_and_listed(mapping: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[FieldMapping] = []

    class Cluster:
        def __init__(self, bootstrap: str, settings: object) -> None:
            assert bootstrap == "broker:1"

        def publish(self, kind: object, content: bytes) -> bool:
            assert kind is published_files.MAPPING
            published.append(load_mapping(content))
            return True

        def versions(self, kind: object) -> list[tuple[str, str]]:
            return [("\x9b0", "0" * 16), *((item.version, item.digest) for item in published)]

    monkeypatch.setattr(published_files, "PublishedFiles", Cluster)
    monkeypatch.setattr("pipeline.broker.running.find_cluster", lambda settings: "broker:1")
    result = run("--publish", mapping)
    assert result.exit_code == 0, result.output
    own = read_mapping(mapping.read_bytes())
    assert published == [own]
    assert result.stdout == f"{'0' * 16}  \\x9b0\n{own.digest}  1\n"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_is_a_sample_of_which_each_row_is_an_object(suffix: str, tmp_path: Path) -> None:
    frame = pd.DataFrame(numbered(1_200)).assign(amount=[f"{1_000 + number},50" for number in range(1_200)])
    sample = tmp_path / f"sample.{suffix}"
    frame.to_csv(sample, index=False) if suffix == "csv" else frame.to_parquet(sample)
    proposed = run(sample)
    assert proposed.stderr.splitlines()[-1] == "1,000 accepted, 0 refused"
    (mapping := tmp_path / "mapping.toml").write_text(proposed.stdout)
    assert read_mapping(mapping.read_bytes()).fields["amount"].decimal == ","
    assert run(sample, "--mapping", mapping).stdout.splitlines()[-1] == "1,000 accepted, 0 refused"
