"""Records of ``profiled`` as columns: compiled code reads nothing that the decoder would not read alike."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from pipeline.engine import profiled
from pipeline.engine.card import CardOptions, CardPartition
from pipeline.engine.decider import Decider
from pipeline.engine.decision_messages import ALERT, DECISION
from pipeline.engine.forwarding import forward
from pipeline.engine.profiled import LABEL, REFUSED, TRANSACTION, ProfiledRows, read_rows
from pipeline.engine.profiled_scan import scan_profiled
from pipeline.engine.score import ScorePartition
from pipeline.engine.state import MemoryStore
from pipeline.engine.subjects import AMOUNT, CURRENCY, SAME_RATES, STATED_OFFSET, STATED_US, TEXTS, TYPE, WHOLES
from pipeline.features.catalogue import CARD_FEATURES, US_PER_DAY
from schemas.messages import Alert, Decision, ProfiledTransaction, Transaction
from schemas.records import Record
from schemas.topics import ALERTS, DECISIONS, PROFILED, REROUTED, TRANSACTIONS
from tests.contract.records import ARRIVED_US, RATES, TOLERANCE_US
from tests.helpers.champion import active
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
from tests.property.test_accepted import batches
from tests.property.test_backtest_plain import usual

OPTIONS = CardOptions(RATES, TOLERANCE_US, 120 * US_PER_DAY, 120 * US_PER_DAY, 1)
NOW = datetime(2026, 1, 1, 12, 30, 15, 5, tzinfo=UTC)
ENCODER = msgspec.json.Encoder(decimal_format="number")
STATED = (AMOUNT, CURRENCY, TYPE)
MODELS = active(threshold=0.01, audit_rate=0.3)


def written(values: Sequence[bytes | None], *, read_at: datetime = NOW) -> list[Record]:
    """What the card agent writes of some records."""
    records = [
        Record(TRANSACTIONS.name, 0, number, ARRIVED_US // 1_000, b"key", value) for number, value in enumerate(values)
    ]
    log = Log(PROFILED, partition=3)
    return log.take(CardPartition(OPTIONS, None, MemoryStore()).process(records, read_at))


def told(rows: ProfiledRows, transactions: NDArray[np.intp] | None = None) -> dict[str, Any]:
    """All that columns say of transactions, of all unless some are named, and of what is refused."""
    of = np.flatnonzero(rows.kinds == TRANSACTION) if transactions is None else transactions
    subjects = rows.told(of)
    found: dict[str, Any] = {name: subjects.texts(column) for column, name in enumerate(TEXTS)}
    found |= {name: subjects.wholes[column].tolist() for column, name in enumerate(WHOLES[:SAME_RATES])}
    found["features"] = rows.features[of, : len(CARD_FEATURES)].view(np.uint64).tolist()
    found["kinds"] = rows.kinds[of].tolist()
    found["refused"] = {row: str(error) for row, error in rows.refused.items() if transactions is None}
    return found


def slowly(records: Sequence[Record]) -> ProfiledRows:
    """The columns as the decoder alone fills them."""
    with pytest.MonkeyPatch.context() as patch:

        def nothing(values: Sequence[bytes | None], features: Any) -> Any:
            subjects, plain = scan_profiled(values, features)
            features[:] = np.nan
            return subjects, np.zeros_like(plain)

        patch.setattr(profiled, "scan_profiled", nothing)
        return read_rows(records)


@given(batches)
def test_what_the_card_agent_writes_is_read_alike_both_ways(values: list[bytes | None]) -> None:
    records = written(values)
    assert told(read_rows(records)) == told(slowly(records))


@pytest.mark.parametrize("cut", [0, 1])
def test_a_record_that_was_tampered_with_is_read_alike_both_ways(cut: int) -> None:
    """Each byte in its turn is another, or is gone."""
    (record,) = written(usual()[:1])
    value = record.value or b""
    changed = [
        msgspec.structs.replace(record, value=value[:at] + sign + value[at + cut :])
        for at in range(len(value))
        for sign in (b"", b'"', b"\\", b"0", b"9", b"{", b"}", b",", b" ", b"\xff", b"A", b"\n", b"\\n")
    ]
    fast, slow = read_rows(changed), slowly(changed)
    plain = np.setdiff1d(np.flatnonzero(fast.kinds == TRANSACTION), list(fast.decoded))
    assert 100 < len(plain) < len(changed) / 2
    assert told(fast, plain) == told(slow, plain)


def test_what_the_card_agent_writes_is_usually_read_without_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record for value in usual() for record in written([value])]
    assert len(records) == len(usual())
    passed = forward(Record(TRANSACTIONS.name, 1, 7, ARRIVED_US // 1_000, b"k", transaction(1)), REROUTED, "c1", 0)
    card = CardPartition(OPTIONS, None, MemoryStore())
    read = Record(REROUTED.name, 0, 5, ARRIVED_US // 1_000, passed.key, passed.value, passed.headers)
    records += Log(PROFILED).take(card.process([read], NOW))
    expected = told(slowly(records))
    monkeypatch.delattr(profiled, "read_profiled")
    monkeypatch.delattr(profiled, "_decode_stated")
    rows = read_rows(records)
    assert (rows.subjects.rows, rows.decoded) == (len(records), {})
    assert told(rows) == expected
    assert rows.input(len(records) - 1) == ("rerouted", 0)


def test_labels_and_refused_records_stand_among_transactions() -> None:
    transactions, labels, log = Log(TRANSACTIONS), LabelLog(), Log(PROFILED)
    card = CardPartition(OPTIONS, None, MemoryStore())
    bought = [transactions.append(transaction(number, after(number)), after(number)) for number in range(3)]
    log.take(card.process([*bought, labels.append(label(1, after(4)), after(4))], START))
    log.append(b"{}")
    rows = read_rows(log.records)
    assert rows.kinds.tolist() == [TRANSACTION] * 3 + [LABEL, REFUSED]
    assert rows.follows.tolist() == [False, True, True, False, False]
    assert rows.log.known.tolist() == [0, 0, 0, 1, 0]
    assert rows.log.identities[3] == rows.identity(1)
    assert rows.log.merchants[3].tolist() == rows.log.merchants[1].tolist()


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
    result = Decider("EUR").process([(ScorePartition(), log.records)], MODELS, NOW)
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
        assert output.value == ENCODER.encode(expected)
        assert output.key == message.card_id.encode()
    for output in alerts:
        alert = decode_alert(output.value or b"")
        assert output.value == ENCODER.encode(alert)
        assert output.key == alert.card_id.encode()


def test_the_shapes_have_the_fields_of_the_messages() -> None:
    assert tuple(DECISION) == Decision.__struct_fields__
    assert tuple(ALERT) == Alert.__struct_fields__


def test_what_a_producer_wrote_is_known_of_decided_rows_alone() -> None:
    """A fold, and a repeat, need nothing of it."""
    (record,) = written([transaction(1, merchant_id="ä")])
    rows = read_rows([record])
    assert list(rows.decoded) == [0]
    assert [rows.subjects.texts(column) for column in STATED] == [[b""]] * 3
    subjects = rows.told(np.array([0]))
    assert [subjects.texts(column) for column in STATED] == [[b"12.34"], [b"EUR"], [b"purchase"]]
    assert subjects.wholes[[STATED_US, STATED_OFFSET], 0].tolist() == [START.timestamp() * 1_000_000, 0]
