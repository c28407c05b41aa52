"""Schemas match the types, bytes of earlier versions decode, and the pages list what there is."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from pipeline.backtest.input.sources import TOO_LATE
from schemas import codec, messages
from schemas.codec import encode
from schemas.export import MESSAGES, exported, main
from schemas.messages import (
    Activation,
    Alert,
    Assessment,
    Control,
    Decision,
    LabelRelease,
    LearningSwitch,
    Message,
    Profiled,
    ProfiledLabel,
    ProfiledTransaction,
    Quarantine,
)
from tests.helpers.schemas import check_schema, violations

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "schemas/json"
GOLDEN = ROOT / "schemas/golden"
UNIONS = {"profiled": Profiled, "control": Control}
"""Schemas of more than one type."""
TYPES = {
    **{name: kind for name, kind in MESSAGES.items() if name not in UNIONS},
    "quarantine": Quarantine,
    "activation": Activation,
    "assessment": Assessment,
    "learning": LearningSwitch,
    "release": LabelRelease,
    "profiled-transaction": ProfiledTransaction,
    "profiled-label": ProfiledLabel,
}
"""Name of golden bytes, up to a suffix that tells variants apart -> the type that reads them."""


def golden() -> list[Path]:
    return sorted(GOLDEN.glob("v*/*.json"))


def type_name(path: Path) -> str:
    return path.stem.removesuffix("-full").removesuffix("-slim").removesuffix("-feedback")


def schema_of(name: str) -> Any:
    union = next((union for union, kinds in UNIONS.items() if TYPES.get(name) in get_args(kinds)), name)
    return json.loads((SCHEMAS / f"{union}.json").read_bytes())


def test_exported_schemas_are_current() -> None:
    kept = {path.name: path.read_bytes() for path in SCHEMAS.glob("*.json")}
    assert kept == exported(), "The message types have changed; run: python -m schemas.export"


def test_the_command_writes_every_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path)])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == exported()
    assert str(tmp_path) in capsys.readouterr().out


@pytest.mark.parametrize("name", MESSAGES)
def test_exported_schemas_are_valid(name: str) -> None:
    check_schema(schema_of(name))


def test_every_message_type_is_exported_and_has_golden_bytes() -> None:
    types = set(Message.__subclasses__())
    assert types == {*TYPES.values()}
    assert {type_name(path) for path in (GOLDEN / "v1").iterdir()} == set(TYPES)


@pytest.mark.parametrize("path", golden(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_golden_bytes_still_decode_to_what_they_say(path: Path) -> None:
    value = path.read_bytes()
    name = type_name(path)
    read_as = next((kind for kind in UNIONS.values() if TYPES[name] in get_args(kind)), TYPES[name])
    message = msgspec.json.decode(value, type=read_as)
    assert isinstance(message, TYPES[name])
    written, original = json.loads(encode(message)), json.loads(value)
    defaults = {
        field.encode_name: field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        for field in msgspec.structs.fields(message)
        if not field.required
    }
    # What was there is written again, but for a field that has its default; what is new has its default.
    for field, stated in original.items():
        assert comparable(written.get(field, defaults.get(field))) == comparable(stated), field
    for field in written.keys() - original.keys():
        assert written[field] == defaults[field], field
    assert violations(original, schema_of(name)) == []


def test_a_position_without_a_row_is_of_the_first_one() -> None:
    position = msgspec.json.decode(b'{"partition":2,"offset":7}', type=messages.LogPosition)
    assert position == messages.LogPosition(partition=2, offset=7, row=0)
    assert encode(position) == b'{"partition":2,"offset":7,"row":0}'


def comparable(value: object) -> object:
    """Times as instants: RFC 3339 writes one in several ways."""
    if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\dT.*(Z|[+-]\d\d:\d\d)$", value):
        return msgspec.convert(value, messages.Timestamp)
    return value


@pytest.mark.parametrize(("name", "required"), [(n, f) for n in ("transaction", "label") for f in ("card_id",)])
def test_the_schema_refuses_what_the_codec_refuses(name: str, required: str) -> None:
    stated = json.loads((GOLDEN / f"v1/{name}.json").read_bytes())
    del stated[required]
    (found,) = violations(stated, schema_of(name))
    assert required in found


@pytest.mark.parametrize(("amount", "valid"), [(1, True), ("1.50", True), ("1_0", False), (-1, False), (None, False)])
def test_the_schema_knows_how_amounts_are_written(amount: object, valid: bool) -> None:
    stated = json.loads((GOLDEN / "v1/transaction.json").read_bytes()) | {"amount": amount}
    assert (violations(stated, schema_of("transaction")) == []) is valid


@pytest.mark.parametrize(("mcc", "valid"), [("5411", True), (5411, True), (None, True), (True, False), ([], False)])
def test_a_field_that_nothing_reads_may_be_a_number(mcc: object, valid: bool) -> None:
    stated = json.loads((GOLDEN / "v1/transaction.json").read_bytes()) | {"mcc": mcc}
    assert (violations(stated, schema_of("transaction")) == []) is valid


def test_unknown_fields_of_a_transaction_travel_on_untouched() -> None:
    value = (GOLDEN / "v1/profiled-transaction.json").read_bytes()
    message = msgspec.json.decode(value, type=ProfiledTransaction)
    original = b'"not_in_the_contract":{"kept":true}}'
    assert bytes(message.transaction).endswith(original)
    assert original in encode(message)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("decision", "action"),
        ("decision", "selection"),
        ("decision", "transaction_type"),
        ("alert", "selection"),
        ("profiled-label", "known"),
        ("label", "label"),
        ("label", "source"),
        ("transaction-full", "transaction_type"),
        ("transaction-full", "authorisation"),
        ("example", "label"),
    ],
)
def test_enumerations_are_open(name: str, field: str) -> None:
    stated = json.loads((GOLDEN / f"v1/{name}.json").read_bytes()) | {field: "invented-later", "more": {"of": [1]}}
    kind = TYPES[name.removesuffix("-full")]
    assert getattr(msgspec.json.decode(json.dumps(stated), type=kind), field) == "invented-later"
    assert violations(stated, schema_of(name.removesuffix("-full"))) == []


@pytest.mark.parametrize("kind", [Alert, Decision])
def test_models_agree_on_what_is_one_decision(kind: type[Message]) -> None:
    """An alert can be matched to its decision by what both carry."""
    assert {"card_id", "transaction_id", "source", "log", "versions", "case_id"} <= set(kind.__struct_fields__)


def calls(name: str) -> Iterator[ast.Call]:
    """Calls of a function or method of this name in the shipped code."""
    for node in shipped():
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called == name:
                yield node


def shipped() -> Iterator[ast.AST]:
    """All syntax nodes of the shipped code."""
    for path in (*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("agents/**/*.py"), *ROOT.glob("schemas/**/*.py")):
        yield from ast.walk(ast.parse(path.read_bytes()))


def codes_in_use() -> set[str]:
    """Codes of the codec, of every `InvalidMessage`, and of ``Result.dead_letter`` and `Reject` (third argument)."""
    arguments = [call.args[2] for name in ("dead_letter", "Reject") for call in calls(name) if len(call.args) >= 4]
    arguments += [call.args[0] for call in calls("InvalidMessage") if call.args]
    constants = {
        node.target.id: node.value.value
        for node in shipped()
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    literal = {argument.value for argument in arguments if isinstance(argument, ast.Constant)}
    named = {constants[argument.id] for argument in arguments if getattr(argument, "id", None) in constants}
    # A backtest alone refuses what comes too late for its margin.
    return {*codec.CODES, *map(str, literal | named)} - {TOO_LATE}


def documented_codes() -> list[str]:
    text = (ROOT / "docs/dead-letters.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([a-z0-9_]+)` \|", text.partition("## Codes")[2], re.MULTILINE)


def test_every_dead_letter_code_is_documented_once() -> None:
    assert sorted(documented_codes()) == sorted(codes_in_use())


def test_literal_codes_of_the_codec_are_declared() -> None:
    firsts = [call.args[0] for call in calls("InvalidMessage") if call.args]
    literal = {str(first.value) for first in firsts if isinstance(first, ast.Constant)}
    assert literal
    assert literal <= codec.CODES


def test_every_field_that_a_producer_may_send_is_described() -> None:
    text = (ROOT / "docs/wire-contract.md").read_text(encoding="utf-8")
    for kind in (messages.Transaction, messages.Label):
        for field in kind.__struct_fields__:
            assert f"`{field}`" in text, field


@pytest.mark.parametrize("offset", [-2, 2**63, 10**30])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (messages.RecordPosition, '{"topic":"t","partition":0,"offset":%d}'),
        (messages.RecordPosition, '{"topic":"t","partition":0,"offset":0,"end":%d}'),
        (messages.LogPosition, '{"partition":0,"offset":%d}'),
        (messages.VersionReference, '{"name":"n","version":"v","digest":"d","offset":%d}'),
        (messages.Progress, '{"agent":"card","starts":{"t":%d},"ends":{}}'),
        (messages.Progress, '{"agent":"card","starts":{},"ends":{"t":%d}}'),
    ],
)
def test_what_no_log_has_is_no_offset(kind: type, message: str, offset: int) -> None:
    for good in (0, 2**63 - 1):
        msgspec.json.decode(message % good, type=kind)
    with pytest.raises(msgspec.ValidationError, match=r"Expected `int` [<>]="):
        msgspec.json.decode(message % offset, type=kind)
