"""Whatever bytes come in, the codec ends with a message or a named error, and accepts only what others can read."""

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Never

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.records.accept import accept_transactions
from schemas import codec
from schemas.codec import encode
from schemas.errors import InvalidMessage
from schemas.messages import ModelVersion, Transaction
from tests.contract.records import (
    ARRIVED_US,
    LABEL,
    RATES,
    TOLERANCE_US,
    TRANSACTION,
    WITH_AMOUNT,
    accept,
    hour_and_weekday,
    take,
    transaction,
    with_amount,
    without,
)

REFUSED: list[tuple[str, bytes | None]] = [
    ("null_value", None),
    ("too_large", transaction(note="x" * codec.MAX_VALUE_BYTES)),
    ("not_json", b""),
    ("not_json", b"t1,c1,12.34"),
    ("not_json", WITH_AMOUNT + b"{}"),
    ("not_json", b"\xef\xbb\xbf" + WITH_AMOUNT),
    ("not_json", with_amount(b"NaN")),
    ("not_json", with_amount(b"012")),
    ("wrong_type", WITH_AMOUNT.replace(b'"amount"', b'"amount":true,"amount"')),
    ("wrong_type", WITH_AMOUNT.replace(b'"amount"', rb'"\u0061mount":true,"amount"')),
    ("invalid_value", WITH_AMOUNT.replace(b'"currency"', b'"currency":"eur","currency"')),
    ("invalid_value", WITH_AMOUNT.replace(b'"currency"', rb'"\u0063urrency":"eur","currency"')),
    ("not_json", transaction(card_id="\ud800 lone")),
    ("not_json", transaction(unknown="\udfff lone")),
    ("not_utf8", WITH_AMOUNT.replace(b"c1", b"\xe9")),
    ("not_utf8", WITH_AMOUNT.replace(b"}", b',"unknown":"\xff"}')),
    ("too_deep", with_amount(b'1,"unknown":' + b"[" * 65 + b"]" * 65)),
    ("too_deep", with_amount(b'1,"unknown":' + b"[" * 100_000)),
    ("too_deep", with_amount(b'1,"unknown":' + b'{"a":' * 70 + b"1" + b"}" * 70)),
    ("too_many_fields", transaction(attributes={f"k{number}": number for number in range(60_000)})),
    ("too_many_fields", transaction(**{f"k{number}": "x" for number in range(codec.MAX_NAMES - 5)})),
    ("too_many_fields", with_amount(b'1,"unknown":[' + b'{"a":1},' * 1_000 + b"0]")),
    ("too_many_fields", with_amount(b"1," + b'"a":1,' * 1_000 + b'"a":1')),
    ("missing_field", b"{}"),
    *(("missing_field", without(name)) for name in TRANSACTION),
    ("wrong_type", b"[]"),
    ("wrong_type", b"null"),
    ("wrong_type", transaction(card_id=17)),
    ("wrong_type", transaction(amount=True)),
    ("wrong_type", transaction(amount=None)),
    ("wrong_type", transaction(event_time=1_709_294_370)),
    ("wrong_type", transaction(attributes={"nested": {}})),
    ("wrong_type", transaction(mcc=True)),
    ("invalid_value", with_amount(b'1,"mcc":1e400')),
    ("invalid_value", transaction(card_id="")),
    ("invalid_value", transaction(card_id="c" * 257)),
    ("invalid_value", transaction(currency="eur")),
    ("invalid_value", transaction(event_time="2024-03-01T11:59:30")),
    ("invalid_value", transaction(event_time="yesterday")),
    ("invalid_value", transaction(local_time="noon")),
    ("invalid_value", transaction(local_time="2024-03-01")),
    ("invalid_value", transaction(local_time="2024-02-30T10:00:00")),
    ("invalid_value", transaction(amount="")),
    ("invalid_value", transaction(amount=" 12.34")),
    ("invalid_value", transaction(amount="1_000")),
    ("invalid_value", transaction(amount="+5")),
    ("invalid_value", transaction(amount="\uff11\uff12")),
    ("invalid_value", with_amount(b"1e999999999999999999999")),
    ("invalid_value", with_amount(b'1,"schema_version":' + b"9" * 100_000)),
    ("invalid_value", with_amount(b'1,"attributes":{"a":1e400}')),
    ("currency_unknown", transaction(currency="XTS")),
    ("amount_negative", transaction(amount=-0.01)),
    ("amount_not_finite", transaction(amount="NaN")),
    ("amount_not_finite", transaction(amount="sNaN")),
    ("amount_not_finite", transaction(amount="-Infinity")),
    ("amount_too_large", with_amount(b"100000000000.01")),
    ("amount_too_large", with_amount(b"1e400")),
    ("amount_too_large", with_amount(b"9" * 100_000)),
    ("amount_too_large", transaction(amount="9" * 100_000)),
    ("amount_too_many_decimals", with_amount(b"12.345")),
    ("amount_too_many_decimals", with_amount(b"0.1000000000000000055511151231257827")),
    ("amount_too_many_decimals", with_amount(b"0." + b"1" * 100_000)),
    ("amount_too_many_decimals", with_amount(b"1." + b"0" * 100_000)),
    ("amount_too_many_decimals", with_amount(b"1e-999999")),
    ("amount_too_many_decimals", transaction(amount=0.5, currency="JPY")),
    ("amount_zero", transaction(amount=0)),
    ("amount_zero", transaction(amount="0.00", transaction_type="refund")),
    ("event_time_impossible", transaction(event_time="1989-12-31T23:59:59.999999Z")),
    ("event_time_impossible", transaction(event_time="2100-01-01T00:00:00Z")),
    ("event_time_impossible", transaction(event_time="0001-01-01T00:00:00+23:59")),
    ("event_time_impossible", transaction(event_time="9999-12-31T23:59:59-23:59")),
    ("event_time_in_future", transaction(event_time="2024-03-01T12:05:00.000001Z")),
]


@pytest.mark.parametrize(("code", "value"), REFUSED, ids=[f"{n}-{code}" for n, (code, _) in enumerate(REFUSED)])
def test_what_is_wrong_has_a_name(code: str, value: bytes | None) -> None:
    with pytest.raises(InvalidMessage) as refused:
        accept(value)
    assert refused.value.code == code
    assert len(str(refused.value)) < 400


def test_as_many_names_as_are_allowed_and_colons_in_texts_are_accepted() -> None:
    accept(transaction(**{f"k{number}": "x" for number in range(codec.MAX_NAMES - 6)}))
    accept(transaction(unknown=":" * 5_000))
    accept(transaction(unknown='":' * 5_000))


@pytest.mark.parametrize(
    "field",
    ["account_id", "original_transaction_id", "authorisation", "device_id", "ip", "country", "channel", "mcc"],
)
def test_a_field_that_nothing_reads_may_be_a_number(field: str) -> None:
    number, text = accept(transaction(**{field: 5411})), accept(transaction(**{field: "5411"}))
    assert (getattr(number.message, field), getattr(text.message, field)) == (5411.0, "5411")
    assert msgspec.structs.replace(number.message, **{field: "5411"}) == text.message


@pytest.mark.parametrize("number", [b"9" * 500, b"-" + b"9" * 5_000, b"0." + b"1" * 500, b"1e999", b"-1e-999999"])
def test_numbers_of_any_length_in_unknown_fields_are_let_be(number: bytes) -> None:
    expected = accept(WITH_AMOUNT)
    for value in (
        WITH_AMOUNT[:-1] + b',"unknown":' + number + b"}",
        b'{"unknown":[' + number + b"]," + WITH_AMOUNT[1:],
    ):
        assert accept(value) == expected
    labelled = json.dumps(LABEL).encode()
    assert take(labelled[:-1] + b',"unknown":' + number + b"}") == take(labelled)


def test_every_code_is_provoked() -> None:
    assert {code for code, _ in REFUSED} | {"labelled_at_impossible", "labelled_at_in_future"} == codec.CODES


@pytest.mark.parametrize(
    ("text", "currency", "base_minor"),
    [
        (b"12.34", "EUR", 1234),
        (b"0.01", "EUR", 1),
        (b'"12.34"', "EUR", 1234),
        (b'"12"', "EUR", 1200),
        (b"12", "EUR", 1200),
        (b"12.3400", "EUR", 1234),
        (b"1.2e1", "EUR", 1200),
        (b"1E2", "EUR", 10_000),
        (b"100000000000", "EUR", 10**13),
        (b"100.0", "JPY", 60),
        (b"1.005", "KWD", 291),
        (b"0.1", "USD", 9),
    ],
)
def test_amounts_are_exact(text: bytes, currency: str, base_minor: int) -> None:
    accepted = accept(with_amount(text).replace(b"EUR", currency.encode()))
    assert accepted.amount_base_minor == base_minor


@pytest.mark.parametrize(
    "value",
    [
        WITH_AMOUNT,
        with_amount(b"12"),
        with_amount(b"0.5"),
        with_amount(b'"12.3"'),
        with_amount(b"1005").replace(b"EUR", b"JPY"),
        with_amount(b"1.005").replace(b"EUR", b"KWD"),
        transaction(attributes={"basket": 3}, local_time="2024-03-01T10:00:00"),
        transaction(merchant_id="Bäckerei").replace(rb"\u00e4", "ä".encode()),
    ],
)
def test_what_producers_usually_send_is_read_the_short_way(value: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Never:
        pytest.fail("it was read the long way")

    monkeypatch.setattr(codec, "_read_any", fail)
    assert accept(value).amount_base_minor > 0


def test_zero_is_valid_for_a_verification() -> None:
    accepted = accept(transaction(amount=0, transaction_type="verification"))
    assert (accepted.amount_minor, accepted.amount_base_minor) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "counts"),
    [("purchase", True), ("cash", True), ("refund", False), ("cashier", False), ("not yet invented", False)],
)
def test_purchases_and_cash_count(kind: str, counts: bool) -> None:
    value = transaction(transaction_type=kind)
    rows, _ = accept_transactions([value], np.array([ARRIVED_US]), RATES, TOLERANCE_US)
    assert rows.counts.tolist() == [counts]


def test_the_tolerance_is_inclusive() -> None:
    assert accept(transaction(event_time="2024-03-01T12:05:00Z")).event_time_us == ARRIVED_US + TOLERANCE_US


@given(
    st.datetimes(datetime(1990, 1, 2), datetime(2024, 2, 28)),  # noqa: DTZ001
    st.integers(-23 * 60, 23 * 60),
    st.booleans(),
)
def test_hour_and_weekday_are_those_of_the_clock(naive: datetime, offset_min: int, with_offset: bool) -> None:
    local = naive.replace(tzinfo=timezone(timedelta(minutes=offset_min)))
    utc = local.astimezone(UTC)
    accepted = accept(transaction(event_time=local.isoformat()))
    assert accepted.event_time_us == (utc - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    for got, clock in (
        (accepted, utc),
        (accept(transaction(local_time=(local if with_offset else naive).isoformat())), naive),
    ):
        midnight = clock.replace(hour=0, minute=0, second=0, microsecond=0)
        hour, weekday = hour_and_weekday(got)
        assert hour == pytest.approx((clock - midnight) / timedelta(hours=1), abs=1e-12)
        assert weekday == clock.weekday()


@pytest.mark.parametrize("text", ["2024-03-02T23:30:00z", "2024-03-02 23:30", "2024-03-02t23:30:00.000+09:00"])
def test_local_time_may_be_written_in_several_ways(text: str) -> None:
    accepted = accept(transaction(local_time=text))
    assert hour_and_weekday(accepted) == (23.5, 5.0)


def test_of_a_repeated_key_the_last_one_holds() -> None:
    value = WITH_AMOUNT[:-1] + b',"amount":"7.00","card_id":"c2"}'
    accepted = accept(value)
    assert (accepted.amount_base_minor, accepted.message.card_id) == (700, "c2")


def test_an_escaped_key_does_not_hide_an_amount() -> None:
    with pytest.raises(InvalidMessage) as refused:
        accept(WITH_AMOUNT[:-1] + b',"\\u0061mount":"1_0"}')
    assert refused.value.code == "invalid_value"


@pytest.mark.parametrize("filler", [b'\\"', b"[],", b'"",', b"{},"])
def test_depth_is_measured_in_linear_time(filler: bytes) -> None:
    """A million bytes of brackets or quotes: quadratic work would go on until pytest's time limit."""
    body = filler * (900_000 // len(filler))
    inside = b'"' + body + b'"' if filler == b'\\"' else b"[" + body[:-1] + b"]"
    value = with_amount(b'1,"unknown":[' + b"[]," * 70 + inside + b"]")
    assert accept(value).amount_base_minor == 100


def test_brackets_in_strings_are_no_nesting() -> None:
    assert accept(transaction(unknown='\\"[[' * 200)).amount_base_minor == 1234


@pytest.mark.parametrize("value", [b"{}", None, b"[" * 100_000, b"\xff", json.dumps({**LABEL, "label": 1}).encode()])
def test_a_label_is_refused_by_name(value: bytes | None) -> None:
    with pytest.raises(InvalidMessage) as refused:
        take(value)
    assert refused.value.code in codec.CODES


@pytest.mark.parametrize("labelled_at", ["1970-01-01T00:00:00Z", "2999-01-01T00:00:00Z"])
def test_a_label_from_an_impossible_time_is_refused(labelled_at: str) -> None:
    with pytest.raises(InvalidMessage) as refused:
        take(json.dumps({**LABEL, "labelled_at": labelled_at}).encode())
    assert refused.value.code == "labelled_at_impossible"


def test_a_label_from_the_future_is_refused_because_it_would_outrank_all_that_follow() -> None:
    value = json.dumps({**LABEL, "labelled_at": "2024-03-01T12:05:00Z"}).encode()
    assert take(value).label == "fraud"
    with pytest.raises(InvalidMessage, match="301 s later") as refused:
        take(value, arrived_us=ARRIVED_US - 1_000_000)
    assert refused.value.code == "labelled_at_in_future"


def test_a_negative_amount_is_called_negative_whatever_its_digits() -> None:
    with pytest.raises(InvalidMessage) as refused:
        accept(with_amount(b"-1e400"))
    assert refused.value.code == "amount_negative"


def test_labels_and_sources_are_open() -> None:
    label = take(json.dumps({**LABEL, "label": "suspicious", "source": "neighbour", "more": [1]}).encode())
    assert (label.label, label.source) == ("suspicious", "neighbour")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_json_cannot_hold_is_not_written(number: float) -> None:
    message = msgspec.json.decode(transaction(), type=Transaction)
    with pytest.raises(ValueError, match=r"attributes\.weight"):
        encode(msgspec.structs.replace(message, attributes={"other": None, "name": "x", "weight": number}))
    with pytest.raises(ValueError, match=r"attributes\.weight"):
        encode(msgspec.structs.replace(message, attributes={"other": None, "weight": number}))
    with pytest.raises(ValueError, match="amount"):
        encode(msgspec.structs.replace(message, amount=Decimal(number)))


def test_amounts_are_written_as_numbers() -> None:
    assert b'"amount":12.50,' in encode(msgspec.json.decode(with_amount(b"12.50"), type=Transaction))


def test_payloads_pass_through_the_encoder() -> None:
    version = ModelVersion(
        name="policy",
        version="1",
        digest="0" * 64,
        published_at=datetime(2024, 3, 1, tzinfo=UTC),
        payload=msgspec.Raw(b'{"threshold":0.5}'),
    )
    assert encode(version).endswith(b'"payload":{"threshold":0.5}}')
