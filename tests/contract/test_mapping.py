"""A mapping makes of a producer's own JSON what its producer would have written by the contract, or leaves it."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import AcceptedTransaction, decode_transaction
from schemas.errors import InvalidMessage
from schemas.mapping import FieldMapping, InvalidMapping, Mapper, load_mapping, read_mapping
from tests.contract.records import RATES
from tests.helpers.logs import START, microseconds, transaction
from tests.helpers.mappings import CENTS, CORE, core, foreign

ARRIVED_US = microseconds(datetime(2026, 1, 1, tzinfo=UTC))
FLAT = b"""\
version = "flat-1"

[fields]
transaction_id = { path = "ref" }
event_time = { path = "when", zone = "Europe/Zurich" }
card_id = { path = ["card.no"] }
merchant_id = { path = "lines.0.shop" }
amount = { path = "sum", decimal = "," }
currency = { constant = "EUR" }
"""
STATED = {"ref": "r1", "when": "2024-03-01 12:00:00", "card.no": "c", "lines": [{"shop": "m"}], "sum": "1'234,50"}


def accepted(value: bytes | None) -> AcceptedTransaction:
    return decode_transaction(value, record_timestamp_us=ARRIVED_US, future_tolerance_us=0, rates=RATES)


def mapped(stated: Any, mapping: FieldMapping | bytes = FLAT) -> Any:
    """Return a record as the contract reads it."""
    mapper = Mapper(read_mapping(mapping) if isinstance(mapping, bytes) else mapping, RATES)
    value = stated if isinstance(stated, bytes) else json.dumps(stated).encode()
    return accepted(mapper.mapped(value))


def test_an_envelope_with_milliseconds_and_cents_is_the_transaction_that_it_is_of() -> None:
    stated = transaction(7, START, amount=12.5, currency="GBP")
    same, own = mapped(foreign(stated), core()), accepted(stated)
    assert (same.event_time_us, same.amount_minor, same.amount_base_minor) == (
        own.event_time_us // 1_000 * 1_000,
        own.amount_minor,
        own.amount_base_minor,
    )
    for name in ("transaction_id", "card_id", "merchant_id", "currency", "transaction_type"):
        assert getattr(same.message, name) == getattr(own.message, name)


def test_a_time_of_a_zone_a_comma_and_a_constant() -> None:
    found = mapped(STATED)
    assert found.message.event_time == datetime(2024, 3, 1, 11, tzinfo=UTC)
    assert (found.amount_minor, found.message.currency, found.message.card_id) == (123_450, "EUR", "c")


@pytest.mark.parametrize(
    ("when", "hour"),
    [
        ("2024-07-01T12:00:00", 10),
        ("2024-07-01T12:00:00+05:00", 7),
        ("20240701T120000", 10),
        # The first of the two.
        ("2024-10-27 02:30:00", 0),
    ],
)
def test_only_a_time_without_an_offset_is_of_the_zone(when: str, hour: int) -> None:
    assert mapped(STATED | {"when": when}).message.event_time.astimezone(UTC).hour == hour


@pytest.mark.parametrize(
    ("unit", "number"),
    [("s", 1_709_294_400), ("ms", 1_709_294_400_000), ("us", "1709294400000000"), ("ns", 1_709_294_400_000_000_999)],
)
def test_a_number_counts_in_its_unit(unit: str, number: int | str) -> None:
    mapping = FLAT.replace(b'zone = "Europe/Zurich"', b'unit = "%s"' % unit.encode())
    assert mapped(STATED | {"when": number}, mapping).event_time_us == 1_709_294_400_000_000


@pytest.mark.parametrize(("cents", "currency", "minor"), [(1250, "EUR", 1250), ("1250", "JPY", 1250)])
def test_minor_units_are_those_of_the_currency(cents: int | str, currency: str, minor: int) -> None:
    mapping = FLAT.replace(b'decimal = ","', b"minor = true").replace(b'constant = "EUR"', b'path = "ccy"')
    assert mapped(STATED | {"sum": cents, "ccy": currency}, mapping).amount_minor == minor


def test_words_attributes_and_whole_numbers_become_the_contracts() -> None:
    mapping = (
        FLAT.replace(
            b"\n[fields]",
            b'\n[fields]\ntransaction_type = { path = "kind", values = { 7 = "refund" } }\n'
            b'channel = { path = "channel" }',
        )
        + b'[attributes]\nrisk = "x.risk"\nnew = "x.new"\nword = "x.word"\nabsent = "x.y.z"\n'
    )
    stated = STATED | {"kind": 7, "channel": 5, "x": {"risk": 0.25, "new": True, "word": "w"}}
    found = mapped(stated, mapping).message
    assert (found.transaction_type, found.channel) == ("refund", "5")
    assert found.attributes == {"risk": 0.25, "new": 1.0, "word": "w", "absent": None}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"sum": "NaN"}, "invalid_value"),
        ({"sum": "1_000"}, "invalid_value"),
        ({"sum": {"a": 1}}, "wrong_type"),
        ({"sum": True}, "wrong_type"),
        ({"sum": "1,2,3"}, "invalid_value"),
        ({"sum": "12.50"}, "invalid_value"),
        ({"sum": "1.25E+1e"}, "invalid_value"),
        ({"when": "2024030112000"}, "invalid_value"),
        ({"when": "2024-W09-5T10:00"}, "invalid_value"),
        ({"when": "2024-03-31 02:30:00"}, "invalid_value"),
        ({"when": 5}, "invalid_value"),
        ({"when": "noon"}, "invalid_value"),
        ({"when": "2024-03-01"}, "invalid_value"),
        ({"when": None}, "missing_field"),
        ({"lines": []}, "missing_field"),
        ({"lines": "m"}, "missing_field"),
        ({"card.no": ["c"]}, "wrong_type"),
    ],
)
def test_what_fits_no_field_is_refused_with_a_code_of_the_contract(change: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidMessage) as refused:
        mapped(STATED | change)
    assert refused.value.code == code


@pytest.mark.parametrize(
    "value",
    [
        None, b"", b"[]", b'"text"', b"{", b"\xff{}", b"7", b"[" * 10_000, b'{"a":' * 5_000, b"{}" + b" " * 2**20,
        b'{"when":' + b"9" * 10_000 + b"}", b'{"sum":1e999999999}', b'{"x":1e99999999999999999999}',
        b'{"ref":"\\ud800"}',
    ],
)  # fmt: skip
def test_hostile_bytes_are_refused_and_raise_nothing_else(value: bytes | None) -> None:
    for mapping in (read_mapping(FLAT), core()):
        with pytest.raises(InvalidMessage):
            accepted(Mapper(mapping, RATES).mapped(value))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=5,
)


@given(st.fixed_dictionaries(dict.fromkeys(STATED, JSON)), st.sampled_from(["s", "ms", "us", "ns"]), st.booleans())
def test_any_json_is_accepted_or_refused(stated: dict[str, Any], unit: str, minor: bool) -> None:
    mapping = FLAT.replace(b'zone = "Europe/Zurich"', b'unit = "%s"' % unit.encode())
    if minor:
        mapping = mapping.replace(b'decimal = ","', b"minor = true")
    with suppress(InvalidMessage):
        value = Mapper(read_mapping(mapping), RATES).mapped(json.dumps(stated).encode())
        assert isinstance(json.loads(value), dict)
        assert accepted(value).amount_minor >= 0


@pytest.mark.parametrize(
    ("amount", "minor"),
    [
        (b"1250", 1250), (b'"1250"', 1250), (b"1.25e3", 1250), (b'"1.25E+3"', 1250), (b'"1250e0"', 1250),
        (b"1250.0", 1250), (b"12.5", None), (b"1e999999999", None), (b'"1e9999"', None), (b"true", None),
        (b'"12,50"', None), (b'"0x10"', None), (b"1" * 200, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("more", [b"", b',"x":1e99999999999999999999', b',"y":[[1]],"x":"\\ud83d\\ude00"'])
def test_no_record_with_the_contracts_names_is_read_by_another_unit(
    amount: bytes, minor: int | None, more: bytes
) -> None:
    """Whatever stands beside it, and however its amount is written."""
    value = transaction(1, START).replace(b"12.34", amount)[:-1] + more + b"}"
    try:
        found = accepted(Mapper(read_mapping(CENTS), RATES).mapped(value))
    except InvalidMessage:
        assert minor is None
    else:
        assert found.amount_minor == minor


def test_names_and_bytes_are_limited_as_those_of_the_contract() -> None:
    mapper = Mapper(read_mapping(CENTS), RATES)
    for value, code in (
        (b"{%s}" % b",".join(b'"%d":1' % number for number in range(2_000)), "too_many_fields"),
        (b"{}" + b" " * 2**20, "too_large"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "too_deep"),
        (b'{"a":"\xff"}', "not_utf8"),
        (b"[]", "wrong_type"),
        (None, "null_value"),
    ):
        with pytest.raises(InvalidMessage) as refused:
            mapper.mapped(value)
        assert refused.value.code == code


def test_a_mapping_travels_as_json_and_says_the_same() -> None:
    mapping = core()
    assert load_mapping(mapping.content) == mapping
    assert load_mapping(mapping.content).digest == mapping.digest != core((b"core-1", b"core-2")).digest
    with pytest.raises(InvalidMapping):
        load_mapping(b"[" * 5_000)
    with pytest.raises(InvalidMapping, match="lacks transaction_id"):
        load_mapping(msgspec.json.encode({"version": "x", "fields": {}}))


@pytest.mark.parametrize(
    ("old", "new", "saying"),
    [
        (b"ref", b"ref\n", "it is no TOML: .*line 4"),
        (b'version = "flat-1"', b"", "version"),
        (b"merchant_id", b"merchnt_id", r"\[fields.merchnt_id\]: there is no such field; did you mean merchant_id"),
        (b"path = \"ref\"", b"pth = \"ref\"", r"\[fields.transaction_id\]: there is no pth; did you mean path"),
        (b'{ path = "ref" }', b'"ref"', r"\[fields.transaction_id\]: Expected `object`, got `str`"),
        (b'{ path = "ref" }', b"{}", "give either a path or a constant"),
        (b'path = "ref"', b'path = "ref", minor = true', "minor belongs to amount"),
        (b'path = "sum"', b'path = "sum", values = { a = "b" }', "values belong to a text"),
        (b'path = "sum"', b'constant = "1"', "a constant stands alone"),
        (b'path = "ref"', b'path = "ref", filled = true', "filled belongs to fraud"),
        (b"[fields]", b'[fields]\nfraud = { path = "f", filled = true, values = { a = "1" } }', "filled stands alone"),
        (b"Europe/Zurich", b"Europe/Zurch", "no time zone 'Europe/Zurch'"),
        (b"Europe/Zurich", b"../../etc/passwd", "no time zone"),
        (b'zone = "Europe/Zurich"', b'zone = "UTC", unit = "s"', "either unit or zone"),
        (b'currency = { constant = "EUR" }', b"", "it lacks currency"),
        (b'"EUR"', b'""', r"\[fields.currency\]: Expected `str` matching regex"),
        (b'path = "ref"', b'path = "a..b"', "the path has an empty name"),
        (b'"flat-1"', b'" "', "the version is no word"),
        (b"[fields]", b"[more]\na = 1\n[fields]", "there is no more; there are version, fields, attributes"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_in_a_sentence(old: bytes, new: bytes, saying: str) -> None:
    assert old in FLAT
    with pytest.raises(InvalidMapping, match=saying) as refused:
        read_mapping(FLAT.replace(old, new))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"\xff", b"a = " + b"[" * 50_000, CORE + b"#" * 70_000, b"fields = 1"])
def test_hostile_files_are_refused(content: bytes) -> None:
    with pytest.raises(InvalidMapping):
        read_mapping(content)
