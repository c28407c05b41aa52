"""Any bytes end as a message that the next agents can handle, or as a named error.

``FUZZ_EXAMPLES`` sets how many are tried: 2,000 by default, 100,000 by ``make chaos``.
"""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import TypeVar

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pipeline.engine.records.results import Result
from schemas import codec
from schemas.codec import AcceptedTransaction, encode
from schemas.errors import InvalidMessage
from schemas.messages import Label, ProfiledTransaction, RecordPosition, Transaction
from schemas.money import RateTable
from schemas.records import Record
from schemas.topics import DEAD_LETTERS
from tests.contract.records import (
    LABEL,
    RATES,
    TRANSACTION,
    WITH_AMOUNT,
    accept,
    take,
    transaction,
)

T = TypeVar("T")
FUZZ_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "2000"))

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["NaN", "1_0", "1e5", "-0", "0", "1E+20", "0E-30", "\ud83d", "purchase", "verification", "EUR", "KWD"]
    )
    | st.sampled_from(["2024-03-01T00:00:00Z", "2024-03-01 00:00", "2024-W09-5T00:00", "9999-12-31T00:00:00Z"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
changed_messages = st.builds(
    lambda base, changes: json.dumps({**base, **changes}).encode(),
    st.sampled_from((TRANSACTION, LABEL)),
    st.dictionaries(
        st.sampled_from((*Transaction.__struct_fields__, *Label.__struct_fields__, "unknown")), json_values, max_size=3
    ),
)
plausible_messages = st.fixed_dictionaries(
    {
        **{
            name: st.text(st.characters(), min_size=1, max_size=5)
            for name in ("transaction_id", "card_id", "merchant_id")
        },
        "event_time": st.datetimes(datetime(1989, 12, 1), datetime(2024, 4, 1)).map(lambda t: f"{t.isoformat()}+01:00"),  # noqa: DTZ001
        "amount": st.integers(-5, 10**15)
        | st.floats(0, 1e12)
        | st.decimals(0, 10**12, places=2).map(str)
        | st.sampled_from(["1E+2", "1e-2", "0E+30", "1.50000", "00", "1.", ".5"]),
        "currency": st.sampled_from(["EUR", "USD", "JPY", "KWD", "XTS"]),
    },
    optional={
        "transaction_type": st.sampled_from(["purchase", "verification"]) | st.text(max_size=3),
        "local_time": st.datetimes().map(datetime.isoformat) | st.text(max_size=20),
        "attributes": st.dictionaries(st.text(max_size=3), st.none() | st.floats() | st.text(max_size=3), max_size=3),
        "unknown": json_values,
    },
).map(lambda fields: json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass"))
spliced_bytes = st.builds(
    lambda base, start, length, patch: base[: start % len(base)] + patch + base[start % len(base) + length :],
    changed_messages
    | plausible_messages
    | st.sampled_from((WITH_AMOUNT, transaction(local_time="2024-03-01T10:00:00"))),
    st.integers(0, 400),
    st.integers(0, 4),
    st.binary(max_size=6) | st.sampled_from((b'"', b"\\", b"\\u", b"\\ud800", b"[", b"{", b"}", b"9e9", b"-", b"\x00")),
)


@settings(max_examples=FUZZ_EXAMPLES)
@given(st.one_of(plausible_messages, changed_messages, spliced_bytes, st.binary(max_size=64)))
def test_any_bytes_end_as_a_message_or_a_named_error(value: bytes) -> None:
    accepted = result_of(accept, value)
    event(f"transaction: {accepted.code if isinstance(accepted, InvalidMessage) else 'accepted'}")
    if isinstance(accepted, InvalidMessage):
        check_dead_letter(accepted, "transactions", value)
    else:
        check_accepted(accepted, value)
    label = result_of(take, value)
    if isinstance(label, InvalidMessage):
        check_dead_letter(label, "labels", value)
    else:
        assert take(encode(label)) == label


amount_texts = st.from_regex(rb'"?-?0?[0-9]{0,20}(\.[0-9]{0,6})?([eE][+-]?[0-9]{1,2})?"?', fullmatch=True)
amounts_in_any_currency = st.builds(
    lambda text, currency, more: WITH_AMOUNT.replace(b"12.34", text).replace(b"EUR", currency.encode())[:-1] + more,
    amount_texts | st.sampled_from((b"0.00", b"00.10", b"1.", b'"1."', b"100000000000", b"1e400", b'"NaN"', b"true")),
    st.sampled_from(sorted(RATES.currencies)),
    st.sampled_from(
        (
            b"}", b',"amount":7}', b',"amount":true}', b',"\\u0061mount":true}', b',"currency":"eur"}',
            b',"unknown":1.}', b',"attributes":{"amount":"7"}}', b',"channel":"amount"}',
            b',"transaction_type":"verification"}',
        )
    ),
)  # fmt: skip


@settings(max_examples=FUZZ_EXAMPLES)
@given(st.one_of(plausible_messages, changed_messages, spliced_bytes, amounts_in_any_currency))
def test_what_is_read_the_short_way_is_read_alike(value: bytes) -> None:
    got = result_of(accept, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "_read_plain", no_short_way)
        expected = result_of(accept, value)
    if isinstance(expected, InvalidMessage):
        assert isinstance(got, InvalidMessage)
        assert (got.code, str(got)) == (expected.code, str(expected))
    else:
        assert isinstance(got, AcceptedTransaction)
        assert content(got) == content(expected)


def content(accepted: AcceptedTransaction) -> dict[str, object]:
    """All that it says; its message says the amount as a number or as JSON."""
    message = msgspec.structs.asdict(accepted.message)
    return msgspec.structs.asdict(accepted) | {"message": message | {"amount": None}}


def no_short_way(value: bytes | None, rates: RateTable) -> None:
    """For `codec._read_plain`."""
    del value, rates


def result_of(decode: Callable[[bytes], T], value: bytes) -> T | InvalidMessage:
    """The message or the named error; any other exception fails the test."""
    try:
        return decode(value)
    except InvalidMessage as error:
        refused = error
    assert refused.code in codec.CODES
    str(refused).encode()
    return refused


def check_dead_letter(refused: InvalidMessage, topic: str, value: bytes) -> None:
    """A refused record can become a dead letter: one record, its bytes as they were, its reason in readable headers."""
    headers = (("trace", value[:8]), ("empty", None))
    record = Record(topic, 1, 7, 1_709_294_400_000, value[:16], value, headers)
    result = Result()
    result.dead_letter(record, "card", refused.code, str(refused))
    (output,) = result.outputs
    assert (output.topic, output.key, output.value) == (DEAD_LETTERS, record.key, value)
    assert output.headers[:2] == headers
    reason = {name: (text or b"").decode() for name, text in output.headers[2:]}
    assert reason["dead-letter-error"] == refused.code
    assert (reason["dead-letter-topic"], reason["dead-letter-offset"]) == (topic, "7")
    assert reason["dead-letter-message"]


def check_accepted(accepted: AcceptedTransaction, value: bytes) -> None:
    """What the next agents do with an accepted transaction works: write it, embed its bytes, read them again."""
    json.loads(value, parse_int=Decimal)
    message = msgspec.json.decode(value, type=Transaction)
    assert 0 <= accepted.amount_base_minor <= codec.MAX_AMOUNT_BASE_MINOR
    assert msgspec.json.decode(encode(message), type=Transaction) == message
    profiled = ProfiledTransaction(
        transaction_id=accepted.message.transaction_id,
        card_id=accepted.message.card_id,
        merchant_id=accepted.message.merchant_id,
        event_time_us=accepted.event_time_us,
        amount_base_minor=accepted.amount_base_minor,
        rates_version=RATES.version,
        counts=True,
        card_features=b"",
        kernel="k",
        case_id="c",
        case_sequence=1,
        source=RecordPosition(topic="t", partition=0, offset=0),
        ingested_at=datetime(2024, 3, 1, tzinfo=UTC),
        transaction=msgspec.Raw(value),
    )
    again = msgspec.json.decode(encode(profiled), type=ProfiledTransaction)
    assert msgspec.json.decode(again.transaction, type=Transaction) == message
