"""Transactions that are accepted a batch at once are those, and as, the decoder accepts one by one."""

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine import card
from pipeline.engine.accepted import FEW, accepted_at_once
from pipeline.engine.card import CardOptions, CardPartition
from pipeline.engine.results import Result
from pipeline.engine.state import MemoryStore
from pipeline.features.catalogue import US_PER_DAY
from schemas.codec import LATEST_US, decode_transaction
from schemas.records import Record
from schemas.topics import TRANSACTIONS
from tests.contract.records import ARRIVED_US, RATES, TOLERANCE_US
from tests.contract.test_codec_fuzz import amounts_in_any_currency, changed_messages, plausible_messages, spliced_bytes
from tests.property.test_backtest_plain import plain_times, spelled, usual

OPTIONS = CardOptions(RATES, TOLERANCE_US, 120 * US_PER_DAY, 120 * US_PER_DAY, 1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
batches = st.lists(
    st.none()
    | st.one_of(plausible_messages, changed_messages, spliced_bytes, amounts_in_any_currency, spelled, plain_times),
    max_size=20,
)


def profiled(values: Sequence[bytes | None], few: int) -> Result:
    records = [
        Record(TRANSACTIONS.name, 0, number, ARRIVED_US // 1_000, b"key", value) for number, value in enumerate(values)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "FEW", few)
        return CardPartition(OPTIONS, None, MemoryStore()).process(records, NOW)


@given(batches)
def test_what_is_accepted_at_once_the_decoder_accepts_alike(values: list[bytes | None]) -> None:
    found = accepted_at_once(values, RATES)
    assert len(found) == len(values)
    for value, one in zip(values, found, strict=True):
        if one is not None:
            expected = decode_transaction(value, record_timestamp_us=LATEST_US, future_tolerance_us=0, rates=RATES)
            # As text too: 1 is no True, and 0 no 0.0.
            assert (one, repr(one)) == (expected, repr(expected))


@given(batches)
def test_the_card_agent_answers_alike_both_ways(values: list[bytes | None]) -> None:
    assert profiled(values, few=0) == profiled(values, few=len(values))


def test_usual_messages_are_accepted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert None not in accepted_at_once(usual(), RATES)
    assert accepted_at_once([], RATES) == []
    assert accepted_at_once([None, b"", b"{}", b"x" * 100_000], RATES) == [None] * 4
    # In a large batch the decoder is not asked at all.
    monkeypatch.delattr(card, "decode_transaction")
    values = usual() * (FEW // len(usual()) + 1)
    result = profiled(values, FEW)
    assert result.counts["accepted", ""] == 1
    assert result.counts["duplicate", ""] == len(values) - 1
