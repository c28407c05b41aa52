"""The card agent answers alike whether compiled code or the decoder reads its transactions."""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine import accept
from pipeline.engine.card import CardOptions, CardPartition
from pipeline.engine.results import Result
from pipeline.engine.state import MemoryStore
from pipeline.features.catalogue import US_PER_DAY
from schemas.messages import ProfiledTransaction
from schemas.records import Record
from schemas.topics import PROFILED, TRANSACTIONS
from tests.contract.records import ARRIVED_US, RATES, TOLERANCE_US
from tests.contract.test_codec_fuzz import amounts_in_any_currency, changed_messages, plausible_messages, spliced_bytes
from tests.property.test_backtest_plain import nothing_is_plain, plain_times, spelled, usual

OPTIONS = CardOptions(RATES, TOLERANCE_US, 120 * US_PER_DAY, 120 * US_PER_DAY, 1)
NOW = datetime(2026, 1, 1, 12, 30, 0, 5, tzinfo=UTC)
batches = st.lists(
    st.none()
    | st.one_of(plausible_messages, changed_messages, spliced_bytes, amounts_in_any_currency, spelled, plain_times),
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
        patch.setattr(accept, "read_plain", nothing_is_plain)
        assert found == profiled(values)


@given(batches)
def test_profiled_transactions_are_written_as_msgspec_writes_them(values: list[bytes | None]) -> None:
    encode = msgspec.json.Encoder(decimal_format="number").encode
    for output in profiled(values).outputs:
        if output.topic is PROFILED:
            message = msgspec.json.decode(output.value or b"", type=ProfiledTransaction)
            assert encode(message) == output.value
            assert output.key == message.merchant_id.encode()


def test_usual_messages_need_no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(accept, "decode_transaction")
    result = profiled(usual())
    repeats = result.counts["duplicate", ""] + result.counts["dead_letter", "repeat_differs"]
    assert (result.counts["accepted", ""], repeats) == (1, len(usual()) - 1)
