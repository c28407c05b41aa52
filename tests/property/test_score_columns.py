"""Blocks of ``profiled`` as columns, and the messages that are made of them."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.encoding import block_writing
from pipeline.engine.encoding.blocks import LABEL, MOST_BYTES, MOST_ROWS, TRANSACTION
from pipeline.engine.encoding.row_columns import ORIGINAL
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.engine.scores.block_messages import read_messages
from pipeline.engine.scores.decider import Decider
from pipeline.engine.scores.decision_messages import ALERT, DECISION
from pipeline.engine.scores.profiled import read_rows
from pipeline.engine.scores.score import ScorePartition
from schemas.messages import Alert, Decision, LogPosition, ProfiledTransaction, Transaction
from schemas.times import US_PER_DAY
from schemas.topics import ALERTS, DECISIONS, PROFILED, TRANSACTIONS
from tests.contract.records import RATES, TOLERANCE_US
from tests.helpers.champion import active, decide
from tests.helpers.logs import (
    START,
    LabelLog,
    Log,
    after,
    decode_alert,
    decode_decision,
    decode_profiled,
    label,
    to,
    transaction,
)
from tests.unit.engine.test_engine_card import busy_logs

OPTIONS = CardOptions(RATES, TOLERANCE_US, 120 * US_PER_DAY, 120 * US_PER_DAY, 1)
NOW = datetime(2026, 1, 1, 12, 30, 15, 5, tzinfo=UTC)
ENCODER = msgspec.json.Encoder(decimal_format="number")
MODELS = active(threshold=0.01, audit_rate=0.3)
HERE = LogPosition(partition=0, offset=0)


def test_rows_of_a_block_that_is_refused_leave_the_others_as_they_are() -> None:
    transactions, labels, log = Log(TRANSACTIONS), LabelLog(), Log(PROFILED)
    card = CardPartition(OPTIONS, None, MemoryStore())
    bought = [transactions.append(transaction(number, after(number)), after(number)) for number in range(3)]
    log.append(b"{}")
    log.take_whole(card.process([*bought, labels.append(label(1, after(4)), after(4))], START))
    log.append(b"{}")
    rows = read_rows(log.records)
    assert list(rows.refused) == [0, 2]
    assert rows.record.tolist() == [1] * 4
    assert (rows.rows_of(range(0, 1)), rows.rows_of(range(1, 2)), rows.rows_of(range(2, 3))) == (
        range(0, 0), range(0, 4), range(4, 4),
    )  # fmt: skip
    assert rows.kinds.tolist() == [TRANSACTION, TRANSACTION, TRANSACTION, LABEL]
    assert rows.follows.tolist() == [False, True, True, False]
    assert rows.log.known.tolist() == [0, 0, 0, 1]
    assert rows.log.identities[3] == rows.identity(1)
    assert rows.log.merchants[3].tolist() == rows.log.merchants[1].tolist()
    originals = [rows.subjects.text[first:end] for first, end in rows.subjects.spans[ORIGINAL].tolist()]
    assert originals == [*(record.value for record in bought), labels.records[0].value]


def cuts(size: int, random: np.random.Generator) -> list[slice]:
    """Slices of random lengths that cover ``size`` items."""
    ends = [0, *np.unique(random.integers(0, size, int(random.integers(0, 12)))).tolist(), size]
    return [slice(first, end) for first, end in pairwise(ends)]


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 7, MOST_ROWS]), st.sampled_from([1, 20_000, MOST_BYTES]))
def test_decisions_do_not_depend_on_how_rows_are_cut_into_blocks(seed: int, most_rows: int, most_bytes: int) -> None:
    random = np.random.default_rng(seed)
    transactions, labels = busy_logs(seed % 8, 120)
    card, rows, blocks = CardPartition(OPTIONS, None, MemoryStore()), Log(PROFILED), Log(PROFILED)
    records = sorted([*transactions.records, *labels.records], key=lambda record: record.timestamp_ms)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_writing, "MOST_ROWS", most_rows)
        patch.setattr(block_writing, "MOST_BYTES", most_bytes)
        for part in cuts(len(records), random):
            result = card.process(records[part], NOW)
            rows.take(result)
            blocks.take_whole(result)
    assert len(blocks.records) <= len(rows.records)
    whole, state, found = decide(ScorePartition(), rows.records, MODELS, NOW), ScorePartition(), []
    for part in cuts(len(blocks.records), random):
        found.append(decide(state, blocks.records[part], MODELS, NOW))
        state.commit()
    for topic, decode in ((DECISIONS, decode_decision), (ALERTS, decode_alert)):
        expected: list[Any] = [decode(output.value or b"") for output in to(topic, whole)]
        read: list[Any] = [decode(output.value or b"") for result in found for output in to(topic, result)]
        assert [msgspec.structs.replace(item, log=HERE) for item in read] == [
            msgspec.structs.replace(item, log=HERE) for item in expected
        ]
        places = [(item.log.offset, item.log.row) for item in read]
        assert places == sorted(set(places))
        named = [read_messages(blocks.records[offset].value)[row] for offset, row in places]
        assert [item.source for item in named] == [item.source for item in read]
    assert sum((result.counts for result in found), Counter()) == whole.counts
    replayed = ScorePartition()
    for part in cuts(len(blocks.records), random):
        replayed.replay(blocks.records[part])
        replayed.commit()
    assert replayed.digest() == state.digest()


ODD = ["plain", 'with "quotes"', "back\\slash", "line\nend", "a\x01", "\x7f", "käse", "日本", "/", "\u2028"]


@pytest.mark.parametrize("seed", range(4))
def test_decisions_and_alerts_are_the_bytes_that_msgspec_writes(seed: int) -> None:
    random = np.random.default_rng(seed)
    transactions = Log(TRANSACTIONS)
    for number in range(300):
        zone = timedelta(minutes=int(random.choice([0, 0, 330, -570, 1_439])))
        at = after(hours=number) + timedelta(microseconds=int(random.choice([0, 1, 500_000])))
        local = (at + zone).replace(tzinfo=None).isoformat(timespec=random.choice(["auto", "microseconds"]))
        sign = "-" if zone < timedelta() else "+"
        minutes = abs(zone) // timedelta(minutes=1)
        offset = f"{sign}{minutes // 60:02}:{minutes % 60:02}" if zone or random.random() < 0.5 else "Z"
        fields = {
            "transaction_id": f"t{number}" if random.random() < 0.8 else f"{random.choice(ODD)}{number}",
            "card_id": str(random.choice(ODD)) if random.random() < 0.3 else f"c{number % 7}",
            "merchant_id": str(random.choice(ODD)) if random.random() < 0.3 else "m1",
            "event_time": local + offset,
            "amount": random.choice(["12.50", "0.01", "1e2", "7", "1900.00"]),
            "currency": random.choice(["EUR", "USD"]),
            "transaction_type": random.choice([None, "refund", "cash", 'odd "type"']),
        }
        transactions.append(transaction(number, at, **fields), at)
    log = Log(PROFILED, partition=2)
    log.take(CardPartition(OPTIONS, None, MemoryStore()).process(transactions.records, START))
    result = Decider("EUR", 1, all_features=seed % 2 == 0).process([(ScorePartition(), log.records)], MODELS, NOW)
    decisions, alerts = to(DECISIONS, result), to(ALERTS, result)
    assert len(decisions) == len(log.records) == 300
    assert len(alerts) > 50
    for output, record in zip(decisions, log.records, strict=True):
        decision, message = decode_decision(output.value or b""), decode_profiled(record.value or b"")
        assert isinstance(message, ProfiledTransaction)
        stated = msgspec.json.decode(message.transaction, type=Transaction)
        expected = msgspec.structs.replace(
            decision,
            event_time=stated.event_time,
            amount=stated.amount,
            currency=stated.currency,
            transaction_type=stated.transaction_type,
            ingested_at=message.ingested_at,
            decided_at=NOW,
            **{name: getattr(message, name) for name in ("transaction_id", "card_id", "merchant_id", "case_id")},
        )
        assert (decision.features is None) == (seed % 2 == 1 and decision.selection is None)
        written = ENCODER.encode(expected)
        lists = (b'"rule_hits":[],', b'"shadow_hits":[],', b'"list_hits":[],', b'"overruled":{},')
        for absent in (b'"features":null,', *lists):
            written = written.replace(absent, b"")
        assert output.value == written
        assert output.key == message.card_id.encode()
    for output in alerts:
        alert = decode_alert(output.value or b"")
        assert output.value == ENCODER.encode(alert)
        assert output.key == alert.card_id.encode()


def test_the_shapes_have_the_fields_of_the_messages() -> None:
    # One place holds what rules and lists say, where they do.
    elsewhere = ("shadow_hits", "list_hits", "overruled")
    assert tuple(name or "rule_hits" for name in DECISION) == tuple(
        name for name in Decision.__struct_fields__ if name not in elsewhere
    )
    assert tuple(ALERT) == Alert.__struct_fields__
