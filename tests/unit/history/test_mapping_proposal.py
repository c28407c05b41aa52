"""Proposed mappings: foreign records give back the transactions that they were made of."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from pipeline.history.canonical_columns import truth_of
from pipeline.history.mapping_proposal import MAX_PROPOSED_ATTRIBUTES, propose_mapping
from pipeline.settings import Settings
from pipeline.settings.rate_table import load_rates
from schemas.mapping import InvalidMapping, Mapper, read_mapping
from schemas.messages import Transaction

TRANSACTIONS = [
    Transaction(
        transaction_id=f"t-{number}",
        event_time=datetime(2024, 3, 1, 20, 15, number, 123_000, tzinfo=UTC),
        card_id=f"card-{number % 2}",
        merchant_id=str(900 + number),
        amount=Decimal(f"{1_234 * number}.50"),
        currency="EUR",
    )
    for number in range(1, 5)
]
Shape = Callable[[Transaction], dict[str, Any]]


def milliseconds(of: Transaction) -> int:
    return round(of.event_time.timestamp() * 1_000)


def minor_units(of: Transaction) -> dict[str, Any]:
    return {
        "txnId": of.transaction_id,
        "ts": milliseconds(of),
        "pan_token": of.card_id,
        "terminal": int(of.merchant_id),
        "amountCents": int(of.amount * 100),
        "ccy": of.currency.lower(),
    }


def nested(of: Transaction) -> dict[str, Any]:
    return {
        "device": {"id": "d"},
        "transaction": {"id": of.transaction_id, "time": of.event_time.strftime("%Y-%m-%d %H:%M:%S.%f")},
        "card": {"id": of.card_id},
        "merchant": {"id": of.merchant_id, "category.code": 5411},
        "amount": {"value": str(of.amount), "currency": of.currency},
    }


def debezium(of: Transaction) -> dict[str, Any]:
    row = {
        "id": of.transaction_id,
        "created_at": milliseconds(of) * 1_000,
        "card": of.card_id,
        "shop_id": of.merchant_id,
        "amt_minor": int(of.amount * 100),
        "currency": of.currency,
    }
    before = {**dict.fromkeys(row, "old"), "event_time": 0}
    source = {"ts_ms": 1_709_000_000_000, "currency": "USD", "lsn": 3, "country": "DE"}
    return {"payload": {"before": before, "after": row, "source": source, "ts_ms": 1_709_000_000_001}}


def decimal_commas(of: Transaction) -> dict[str, Any]:
    amount = f"{of.amount:,}".translate(str.maketrans(",.", ".,"))
    return {
        "Reference": of.transaction_id,
        "Timestamp": of.event_time.strftime("%Y%m%dT%H%M%S.%f+0000"),
        "CustomerNo": "c",
        "card": of.card_id,
        "acceptor": of.merchant_id,
        "total": amount,
    }


def mapped(text: str, objects: Sequence[dict[str, Any]]) -> list[Transaction]:
    mapper = Mapper(read_mapping(text.encode()), load_rates(Settings()))
    return [msgspec.json.decode(mapper.mapped(json.dumps(item).encode()) or b"", type=Transaction) for item in objects]


@pytest.mark.parametrize("shape", [minor_units, nested, debezium, decimal_commas])
def test_foreign_records_give_back_their_transactions(shape: Shape) -> None:
    objects = [shape(transaction) for transaction in TRANSACTIONS]
    text = propose_mapping(objects).replace('# constant = "EUR"', 'constant = "EUR"')
    found = [msgspec.structs.replace(item, attributes=None, device_id=None, mcc=None) for item in mapped(text, objects)]
    assert found == TRANSACTIONS


def test_a_currency_that_is_nowhere_has_to_be_completed() -> None:
    text = propose_mapping(list(map(decimal_commas, TRANSACTIONS)))
    assert 'decimal = ","' in text
    with pytest.raises(InvalidMapping, match=r"\[fields.currency\]: give either a path or a constant"):
        read_mapping(text.encode())


def test_every_required_field_that_nothing_fits_has_to_be_completed() -> None:
    text = propose_mapping([{"amount": True, "time": "soon", "id": None, "currency": "euro", "date": "2024-03-01"}])
    assert text.count("No member fits: complete it") == 6
    with pytest.raises(InvalidMapping, match="give either a path or a constant"):
        read_mapping(text.encode())


def test_a_row_behind_its_change_comes_first() -> None:
    text = propose_mapping(list(map(debezium, TRANSACTIONS)))
    used, nothing = text.split("# Mapped to nothing:")
    assert "before" not in used
    assert "source" not in used
    assert "#   payload.source.lsn\n" in nothing
    assert nothing.count("#   payload.before.id\n") == 1


@pytest.mark.parametrize(
    ("time", "option"),
    [
        (1_709_323_200, 'unit = "s"'),
        (Decimal("1709323200.5"), 'unit = "s"'),
        ("1709323200123", 'unit = "ms"'),
        (1_709_323_200_123_456, 'unit = "us"'),
        (1_709_323_200_123_456_789, 'unit = "ns"'),
        ("2024-03-01T20:15:30", 'zone = "UTC"'),
        ("20240301T201530Z", 'zone = "UTC"'),
        ("2024-03-01T20:15:30Z", ""),
        (631_151_999, "No member fits"),
        (Decimal("1e999999999"), "No member fits"),
        ("2024-03-01", "No member fits"),
    ],
)
def test_a_time_is_taken_as_it_is_written(time: object, option: str) -> None:
    section = propose_mapping([{"time": time}]).split("[fields.event_time]")[1].split("\n[")[0]
    assert option in section
    assert ("unit" in section, "zone" in section) == (option.startswith("unit"), option.startswith("zone"))


@pytest.mark.parametrize(
    ("name", "values", "option", "frauds"),
    [
        ("is_fraud", ["0", "1", "0"], "", [False, True, False]),
        ("TX_FRAUD", [0, 1, 1], "", [False, True, True]),
        ("Class", [True, False, False], "", [True, False, False]),
        ("chargeback", ["J", "N", "n"], 'values = { "J" = "1" }', [True, False, False]),
        ("chargeback", ["", "x", "1"], "filled = true", [False, True, True]),
        ("chargeback_date", ["", "2024-05-01", None], "filled = true", [False, True, False]),
        ("fraudFlag", ["", "1", ""], "filled = true", [False, True, False]),
        ("is_fraud", ["0", "1", ""], "", [False, True, None]),
        ("is_fraud", ["0", "1", "maybe"], None, []),
        ("label", ["gold", "", "silver"], None, []),
        ("is_fraud", [None, None, ""], None, []),
    ],
)
def test_the_truth_of_a_file_is_taken_as_it_is_written(
    name: str, values: Sequence[object], option: str | None, frauds: Sequence[bool | None]
) -> None:
    rows = [{**minor_units(of), name: value} for of, value in zip(TRANSACTIONS, values, strict=False)]
    text = propose_mapping(rows)
    assert ("[fields.fraud]" in text) == (option is not None)
    if option is not None:
        assert option in text
        assert ("filled" in text) == option.startswith("filled")
        mapper = Mapper(read_mapping(text.encode()), load_rates(Settings()), truth=True)
        found = [mapper.row(json.dumps(row).encode())[1].get("fraud") for row in rows]
        assert [truth_of(truth) for truth in found] == frauds


@pytest.mark.parametrize(
    ("name", "amounts", "options"),
    [
        ("amount", [Decimal("1.5"), 2], []),
        ("amount", [1, "2"], ["# All are whole numbers: add minor = true if they count cents."]),
        ("amount_minor", [1, 2], ["minor = true"]),
        ("amount", ["1,234", "1.50"], ['decimal = "."']),
        ("amount", ["1.234", "1,50"], ['decimal = ","']),
        ("amount", ["1,234", "12,50"], ['decimal = ","']),
        ("amount", ["1 234.50"], ['decimal = "."']),
        ("amount", ["EUR 1"], None),
    ],
)
def test_an_amount_is_taken_as_it_is_written(name: str, amounts: list[object], options: list[str] | None) -> None:
    section = propose_mapping([{name: amount} for amount in amounts]).split("[fields.amount]\n")[1].split("\n\n")[0]
    if options is None:
        assert section.startswith("# path")
    else:
        assert section.splitlines() == [f'path = "{name}"', *options]


def test_words_of_a_producer_become_those_of_the_contract() -> None:
    text = propose_mapping([{"type": "REFUND"}, {"type": "sale"}, {"type": "sale"}])
    assert '[fields.transaction_type]\npath = "type"\nvalues = { "REFUND" = "refund" }\n' in text
    assert "# No words of the contract: sale; give theirs in values." in text


def test_numbers_that_are_left_are_attributes() -> None:
    text = propose_mapping([{"a": {"the risk": 1}, "b": {"the risk": Decimal("0.5")}, "c": True, "d": [1], "e": "x"}])
    attributes, nothing = text.split("[attributes]\n")[1].split("# Mapped to nothing:\n")
    assert attributes.split("\n") == ['the_risk = "a.the risk"', 'the_risk_2 = "b.the risk"', "", ""]
    assert nothing == "#   c\n#   d\n#   e\n"
    many = propose_mapping([{f"n{number}": number for number in range(5_000)}])
    assert many.split("[attributes]")[1].count(" = ") == MAX_PROPOSED_ATTRIBUTES
    assert many.count("#   n") == 100
    assert many.endswith("#   and others\n")


def test_names_cannot_break_out_of_the_file() -> None:
    names = ['"]\nversion = "2', "\x9b31m\\", "a.b", "", "x" * 1_000_000, "\N{RIGHT-TO-LEFT OVERRIDE}"]
    text = propose_mapping(
        [{**minor_units(TRANSACTIONS[0]), **dict.fromkeys(names, 1), **dict.fromkeys(["\x1b"], "no")}]
    )
    assert text.replace("\n", "").isprintable()
    assert f"#   {'x' * 70}...\n" in text
    mapping = read_mapping(text.encode())
    assert mapping.version == "1"
    assert set(map(str, mapping.attributes.values())) == {names[0], names[1], "['a.b']", names[5]}


@pytest.mark.parametrize(
    ("objects", "field", "path"),
    [
        ([{"after": {"total": 1}, "amount": 2}], "amount", "after.total"),
        ([{"after": {"x": 1}, "source": {"ts": 1_709_323_200}, "time": 1_709_323_200}], "event_time", "time"),
        ([{"card_id": "x", "pan": "p"}, {"pan": "p"}, {"pan": "p"}], "card_id", "pan"),
        ([{"owner": {"pan": "x"}, "card": "y"}], "card_id", "card"),
        ([{"owner": {"pan": "x"}, "user": "y"}], "card_id", "owner.pan"),
        ([{"account": "x"}], "card_id", "account"),
        ([{"account": "x"}], "account_id", None),
        ([{"account": "x", "card": "y"}], "account_id", "account"),
        ([{"device": {"id": "d"}}], "transaction_id", None),
        ([{"id": "e", "data": {"id": "t"}}], "transaction_id", "data.id"),
        ([{"id": "same", "reference": f"r{number}"} for number in range(3)], "transaction_id", "reference"),
        ([{"local_time": "2024-03-01T20:15"}], "local_time", "local_time"),
        ([{"local_time": "2024-03-01"}], "local_time", None),
        ([{**{f"n{number}": "x" for number in range(1_000)}, "amount": 1}], "amount", None),
    ],
)
def test_the_member_that_fits_best_is_chosen(objects: list[dict[str, Any]], field: str, path: str | None) -> None:
    _, _, section = propose_mapping(objects).partition(f"[fields.{field}]\n")
    assert section.startswith("path" if path is None else f'path = "{path}"\n') == (path is not None)


def test_an_object_that_is_null_in_some_records_is_no_member() -> None:
    assert propose_mapping([{"a": None}, {"a": {"b": True}}]).endswith("\n# Mapped to nothing:\n#   a.b\n")


def test_no_record_is_no_error() -> None:
    assert propose_mapping([]).count("No member fits") == 6
