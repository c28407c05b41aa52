"""The card agent answers alike whether compiled code or the decoder reads its transactions."""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.encoding import row_columns as col
from pipeline.engine.encoding.json_scanner import ATTRIBUTES, scan
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.engine.records import accept
from pipeline.engine.records.results import Result
from pipeline.engine.scores.block_messages import decode_producer_fields, read_messages, write_messages
from pipeline.engine.scores.profiled import read_rows
from schemas.codec import MAX_NAMES, decode_transaction
from schemas.errors import InvalidMessage
from schemas.messages import ProfiledTransaction
from schemas.records import Record
from schemas.times import US_PER_DAY
from schemas.topics import PROFILED, TRANSACTIONS
from tests.contract.records import ARRIVED_US, RATES, TOLERANCE_US
from tests.contract.test_codec_fuzz import amounts_in_any_currency, changed_messages, plausible_messages, spliced_bytes
from tests.property.test_backtest_fast_path import fast_path_times, nothing_is_on_the_fast_path, spelled, usual

OPTIONS = CardOptions(RATES, TOLERANCE_US, 120 * US_PER_DAY, 120 * US_PER_DAY, 1)
NOW = datetime(2026, 1, 1, 12, 30, 0, 5, tzinfo=UTC)
batches = st.lists(
    st.none()
    | st.one_of(plausible_messages, changed_messages, spliced_bytes, amounts_in_any_currency, spelled, fast_path_times),
    max_size=20,
)


def profiled(values: Sequence[bytes | None]) -> Result:
    records = [
        Record(TRANSACTIONS.name, 0, number, ARRIVED_US // 1_000, b"key", value) for number, value in enumerate(values)
    ]
    return CardPartition(OPTIONS, None, MemoryStore()).process(records, NOW)


@given(batches)
def test_the_card_agent_answers_alike_both_ways(values: list[bytes | None]) -> None:
    found = profiled(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accept, "read_fast_path", nothing_is_on_the_fast_path)
        assert found == profiled(values)


@given(batches)
def test_what_a_block_says_of_a_transaction_is_what_the_decoder_reads(values: list[bytes | None]) -> None:
    for output in profiled(values).outputs:
        if output.topic is not PROFILED:
            continue
        messages = read_messages(output.value)
        rows = read_rows([Record(PROFILED.name, 0, 7, 0, None, output.value)])
        assert rows.refused == {}
        assert write_messages(messages) == write_messages(read_messages(write_messages(messages)))
        for row, message in enumerate(messages):
            assert isinstance(message, ProfiledTransaction)
            fields = decode_producer_fields(message.transaction)
            item = decode_transaction(
                bytes(message.transaction),
                record_timestamp_us=ARRIVED_US,
                future_tolerance_us=TOLERANCE_US,
                rates=RATES,
            )
            transaction = item.message
            columns = (col.ID, col.CARD, col.MERCHANT, col.AMOUNT, col.CURRENCY, col.TYPE)
            texts = [rows.subjects.texts(column)[row] for column in columns]
            names = [
                name.encode() for name in (transaction.transaction_id, transaction.card_id, transaction.merchant_id)
            ]
            assert texts == [
                *names,
                fields.amount_json,
                transaction.currency.encode(),
                transaction.transaction_type.encode(),
            ]
            wholes = rows.subjects.wholes[
                [col.EVENT_US, col.PRODUCER_OFFSET, col.AMOUNT_BASE, col.LOG_OFFSET, col.LOG_ROW], row
            ]
            expected = [
                item.event_time_us,
                fields.offset_min,
                item.amount_base_minor,
                7,
                row,
            ]
            assert wholes.tolist() == expected


def with_attributes(attributes: bytes) -> bytes:
    """A usual transaction with such JSON as its attributes."""
    return usual()[0].replace(b"}", b',"attributes":' + attributes + b"}", 1)


attribute_parts = st.sampled_from([
    "{", "}", ",", ":", " ", '"a"', '"b":', '"a":1', '"b":-0.25', '"c":null', '"d":"x"', '"e":""', '"f":1e5', '"g":01',
    '"h":-', '"i":1.', '"j":{}', '"k":[1]', '"l":true', '"m":"\\n"', '"a" : 7', "null", "nul", '"n":123456789012345678',
    '"o":0.00000000000000000000001',
])  # fmt: skip
any_attributes = st.one_of(
    st.lists(attribute_parts, max_size=8).map("".join),
    st.lists(attribute_parts, max_size=5).map(lambda parts: "{" + ",".join(parts) + "}"),
)


@given(st.lists(any_attributes, min_size=1, max_size=20))
def test_attributes_are_read_alike(texts: list[str]) -> None:
    values = [with_attributes(text.encode()) for text in texts]
    found = scan(values)
    for row, value in enumerate(values):
        first, end = found.spans[ATTRIBUTES, row].tolist()
        try:
            transaction = decode_transaction(
                value, record_timestamp_us=ARRIVED_US, future_tolerance_us=TOLERANCE_US, rates=RATES
            )
        except InvalidMessage:
            assert not found.on_fast_path[row]
            continue
        if found.on_fast_path[row]:
            given_attributes = msgspec.json.decode(found.text[first:end]) if end > first else None
            assert given_attributes == transaction.message.attributes


@pytest.mark.parametrize(
    ("attributes", "fast"),
    [
        (b'{"risk":0.25,"terminal":"7","note":null}', True),
        (b'{ "a" : -1 , "b" : 123456789012345.125 }', True),
        (b"{}", True),
        (b"null", True),
        (b'{"a":1e5}', False),
        (b'{"a":"\\u00fc"}', False),
        (b'{"a":{}}', False),
        (b"{%s}" % b",".join(b'"n%d":1' % number for number in range(MAX_NAMES)), False),
    ],
)
def test_plain_attributes_are_on_the_fast_path(attributes: bytes, fast: bool) -> None:
    found = scan([with_attributes(attributes)])
    assert found.on_fast_path.tolist() == [fast]


def test_usual_messages_need_no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(accept, "decode_transaction")
    result = profiled(usual())
    repeats = result.counts["duplicate", ""] + result.counts["dead_letter", "repeat_differs"]
    assert (result.counts["accepted", ""], repeats) == (1, len(usual()) - 1)
