"""Histories that go where a replay could differ from the live kernels, as columns and as records."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from tests.helpers.live import Live, moment

SECOND = 1_000_000
HOUR = 3_600 * SECOND
DAY = 24 * HOUR
START_US = 1_709_251_200 * SECOND

_TRANSACTION = {
    "transaction_id": pa.string(), "event_time": pa.timestamp("us", "UTC"), "card_id": pa.string(),
    "merchant_id": pa.string(), "amount": pa.string(), "currency": pa.string(), "transaction_type": pa.string(),
    "local_time": pa.string(), "country": pa.string(), "device_id": pa.string(), "mcc": pa.string(),
    "timestamp": pa.timestamp("us", "UTC"), "sequence": pa.int64(),
}  # fmt: skip
_LABEL = {
    "transaction_id": pa.string(), "card_id": pa.string(), "label": pa.string(), "source": pa.string(),
    "labelled_at": pa.timestamp("us", "UTC"), "timestamp": pa.timestamp("us", "UTC"), "sequence": pa.int64(),
}  # fmt: skip


@dataclass(frozen=True)
class Happening:
    """A record, when it arrived, and where it stands."""

    kind: str
    fields: dict[str, Any]
    at_us: int
    sequence: int


def transactions(history: list[Happening]) -> pa.Table:
    """The transactions as columns."""
    return _table(history, "transaction", _TRANSACTION)


def labels(history: list[Happening]) -> pa.Table:
    """The labels as columns."""
    return _table(history, "label", _LABEL)


def cut(table: pa.Table, rows: int | None) -> list[pa.Table]:
    """Tables of so many rows; None: all in one."""
    size = rows or max(1, table.num_rows)
    return [table.slice(first, size) for first in range(0, table.num_rows, size)]


def play(history: list[Happening], live: Live, publish_every_us: int | None = None) -> Live:
    """Carry the records through the live kernels, in their order; published is what a replay publishes, and when."""
    stream_time_us, period = 0, None
    for sent_record in history:
        if sent_record.kind == "label":
            live.label(sent_record.fields, sent_record.at_us)
            continue
        if (
            publish_every_us is not None
            and (event_us := live.event_time_us(sent_record.fields, sent_record.at_us)) is not None
        ):
            stream_time_us = max(stream_time_us, event_us)
            if period is not None and stream_time_us // publish_every_us != period:
                live.publish()
            period = stream_time_us // publish_every_us
        live.transaction(sent_record.fields, sent_record.at_us)
    return live


def _table(history: list[Happening], kind: str, types: dict[str, pa.DataType]) -> pa.Table:
    rows = [
        {**sent_record.fields, "timestamp": moment(sent_record.at_us), "sequence": sent_record.sequence}
        for sent_record in history
        if sent_record.kind == kind
    ]
    return pa.table(
        {
            name: pa.array([str(row[name]) if name == "mcc" and name in row else row.get(name) for row in rows], type)
            for name, type in types.items()
        }
    )


def busy_history(seed: int, size: int = 500, *, invalid: float = 0.06) -> list[Happening]:
    """Two months of a few cards: late, at one instant, repeated after seconds and weeks, labelled in every way."""
    random = np.random.default_rng(seed)
    history: list[Happening] = []
    bought: list[dict[str, Any]] = []
    now_us = START_US
    for sequence in range(size):
        now_us += int(
            random.choice(
                [0, 0, SECOND, HOUR, 5 * HOUR, 12 * HOUR, 3 * DAY], p=[0.2, 0.1, 0.25, 0.25, 0.12, 0.07, 0.01]
            )
        )
        kind = "label" if bought and random.random() < 0.3 else "transaction"
        if kind == "label":
            fields, at_us = _label(random, bought, now_us, size)
        elif bought and random.random() < 0.12:
            fields, at_us = dict(bought[int(random.integers(len(bought)))]), now_us
            if random.random() < 0.5:
                fields["event_time"] = moment(now_us)
        else:
            fields, at_us = _transaction(random, sequence, now_us)
            bought.append(fields)
        if random.random() < invalid:
            fields, at_us = _spoilt(random, kind, fields, at_us)
        history.append(Happening(kind, fields, at_us, sequence))
    return history


def _drawn(random: np.random.Generator, shares: dict[Any, float]) -> Any:
    return list(shares)[int(random.choice(len(shares), p=list(shares.values())))]


def _transaction(random: np.random.Generator, number: int, now_us: int) -> tuple[dict[str, Any], int]:
    late_us = _drawn(random, {0: 0.8, HOUR: 0.1, 3 * DAY: 0.05, 20 * DAY: 0.03, 50 * DAY: 0.02})
    currency, digits = _drawn(random, {("EUR", 2): 0.7, ("USD", 2): 0.1, ("JPY", 0): 0.1, ("KWD", 3): 0.1})
    minor = int(random.lognormal(np.log(40), 1.0) * 10**digits) + 1
    event_us = now_us - late_us - int(random.integers(0, SECOND))
    type_ = _drawn(random, {None: 0.5, "purchase": 0.2, "cash": 0.1, "refund": 0.1, "verification": 0.1})
    amount = Decimal(0 if type_ == "verification" and random.random() < 0.5 else minor).scaleb(-digits)
    clocks = {None: 0.7, "2024-03-05T23:59:59": 0.1, "2024-02-29 08:30:00.25": 0.1, "2024-03-05T01:02:03+05:00": 0.1}
    local = _drawn(random, clocks)
    return {
        "transaction_id": f"t{number}",
        "event_time": moment(event_us),
        "card_id": f"c{random.integers(6)}",
        "merchant_id": f"m{random.integers(4)}",
        "amount": str(amount),
        "currency": currency,
        "transaction_type": type_,
        "local_time": local,
        "country": ("DE", "FR", None, "Österreich")[number % 4],
        "device_id": f"d{number % 13}",
        "mcc": 5_400 + number % 3,
    }, now_us


def _label(
    random: np.random.Generator, bought: list[dict[str, Any]], now_us: int, size: int
) -> tuple[dict[str, Any], int]:
    recent = bought[-40:]
    row = recent[int(random.integers(len(recent)))]
    transaction_id, card_id = row["transaction_id"], row["card_id"]
    drawn = random.random()
    if drawn < 0.15:
        # Of a transaction that is yet to come, soon or in weeks, if it will be of this card.
        ahead = int(random.integers(1, 60 if drawn < 0.08 else 300))
        transaction_id = f"t{int(transaction_id[1:]) + ahead}"
    elif drawn < 0.2:
        transaction_id = f"t{size + 1}"
    at_us = now_us - int(random.choice([0, 0, HOUR, 4 * DAY, 9 * DAY]))
    return {
        "transaction_id": transaction_id,
        "card_id": card_id,
        "label": str(
            random.choice(["fraud", "legitimate", "disputed", "unknown", "odd"], p=[0.45, 0.35, 0.1, 0.05, 0.05])
        ),
        "source": str(random.choice(["analyst", "audit", "customer", "chargeback", "rule", "simulator", "our own"])),
        "labelled_at": moment(at_us),
    }, now_us if random.random() < 0.7 else now_us + int(random.choice([0, DAY, 12 * DAY]))


def _spoilt(random: np.random.Generator, kind: str, fields: dict[str, Any], at_us: int) -> tuple[dict[str, Any], int]:
    """The same, so that the decoder refuses it."""
    changes: list[dict[str, Any]] = [{"card_id": ""}, {"transaction_id": None}, {"card_id": "x" * 257}]
    if kind == "label":
        changes += [{"label": None}, {"source": "s" * 65}, {"labelled_at": moment(0)}]
    else:
        changes += [
            {"amount": "-1.00"}, {"amount": "0.00", "transaction_type": None}, {"amount": "1.23456"}, {"amount": "NaN"},
            {"amount": "1e30"}, {"amount": "abc"}, {"amount": "99999999999999"}, {"currency": "XXX"},
            {"currency": "eur"}, {"currency": None}, {"event_time": None}, {"event_time": moment(0)},
            {"merchant_id": None}, {"local_time": "yesterday"}, {"amount": None},
        ]  # fmt: skip
    change = changes[int(random.integers(len(changes) + 1)) - 1] if random.random() < 0.9 else {}
    # A clock that is ahead.
    return {**fields, **change}, at_us if change else at_us - 30 * DAY
