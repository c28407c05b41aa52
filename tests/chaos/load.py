"""What producers and analysts send during a run: drawn up front from a seed, with everything that may go wrong."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.history.files import resolve_mapping
from pipeline.simulation.simulator import make_profiles, simulate_days
from tests.chaos.arithmetic import DAY_US, EPOCH, partition_of
from tests.chaos.records import Sent
from tests.helpers.declarations import random_history
from tests.helpers.declared_windows import message
from tests.helpers.files import load_transactions

SECOND_US = 1_000_000
HOUR_US = 3_600 * SECOND_US
TRANSACTIONS_A_CARD_AND_DAY = 1.9
CARDS_A_MERCHANT = 4
OVERSIZE_BYTES = 1_200_000
MOST_OVERSIZE = 5
TYPES = ("purchase", "purchase", "purchase", "purchase", "cash", "refund", "reversal", "verification")
SOURCES = ("customer", "analyst", "chargeback", "issuer", "audit", "a bank's own system")

SHARES = {"late": 0.03, "very_late": 0.01, "shuffled": 0.03, "foreign": 0.03, "keyless": 0.01}
"""Shares of transactions; the rest is sent at its own time to its own partition."""
TWINS, REPEATS, CHANGED, BAD, UNKNOWN_LABELS = 0.02, 0.04, 0.01, 0.012, 0.004
ODD = 0.15
"""Share of declared fields as values of other kinds, which stand for the same."""
AGAIN, LATE_LABEL = 0.02, 0.03
"""Of transactions: sent again behind the deduplication horizon, and labelled about the label horizon or behind it."""
AGAIN_DAYS, LATE_LABEL_DAYS = 25.0, 20.0
"""As far behind the horizon at most: behind what the agents remember."""
LABELLED_FRAUD, LABELLED_LEGITIMATE, CORRECTED, EARLY, LABEL_REPEATED, FOREIGN_LABEL = 0.8, 0.06, 0.2, 0.05, 0.05, 0.04


@dataclass(frozen=True)
class Load:
    """How much is sent: about ``rows`` transactions of ``days`` days of event time."""

    seed: int
    rows: int
    days: float
    partitions: int
    data: Path | None = None
    """A file with the Handbook's columns instead of the simulator."""
    horizon_days: float = 10.0
    """Of labels and of repeats, short enough that things come behind it."""
    declaration: dict[str, Any] | None = None
    """A declaration of features: a history that goes where its windows break (`random_history`), with its fields."""


class _Draft(NamedTuple):
    """An input before it has its number; ``clock_us`` is when the simulated clock sends it."""

    clock_us: int
    topic: str
    value: bytes | None
    kind: str
    card: str = ""
    transaction: str = ""
    dead: str | None = None
    placed: str = "home"
    """``home``, ``foreign`` (another partition than its card's) or ``keyless`` (any partition)."""


def ledger(load: Load) -> list[Sent]:
    """All inputs of a run in the order in which they are sent; the same for the same arguments."""
    random = np.random.default_rng((load.seed, 1))
    drafts = sorted(_drafts(load, random), key=lambda draft: draft.clock_us)
    return [_sent(number, draft, load.partitions, random) for number, draft in enumerate(drafts)]


def _sent(number: int, draft: _Draft, partitions: int, random: np.random.Generator) -> Sent:
    key: bytes | None = draft.card.encode() if draft.card else f"key {number}".encode()
    home = partition_of(key or b"", partitions)
    if draft.placed == "foreign":
        partition = (home + int(random.integers(1, max(2, partitions)))) % partitions
    elif draft.placed == "keyless":
        key, partition = None, int(random.integers(partitions))
    else:
        partition = home
    return Sent(
        number=number,
        topic=draft.topic,
        partition=partition,
        timestamp_ms=draft.clock_us // 1_000,
        key=key,
        value=draft.value,
        kind=draft.kind,
        dead=draft.dead,
        card=draft.card,
        transaction=draft.transaction,
    )


def _drafts(load: Load, random: np.random.Generator) -> Iterator[_Draft]:
    frame = _frame(load)
    last_us = int(frame.get("arrived_us", frame["event_us"]).max())
    kinds = random.choice([*SHARES, "plain"], len(frame), p=[*SHARES.values(), 1 - sum(SHARES.values())])
    oversize = 0
    for row, kind in zip(frame.itertuples(index=False), kinds.tolist(), strict=True):
        card, name, event_us = str(row.card_id), str(row.transaction_id), int(str(row.event_us))
        # A declared history has its own late ones.
        clock_us = getattr(row, "arrived_us", min(event_us + _delay_us(kind, random), max(last_us, event_us)))
        placed = kind if kind in ("foreign", "keyless") else "home"
        value = _transaction(row, random) if load.declaration is None else _declared(row, random)
        yield _Draft(clock_us, "transactions", value, kind, card, name, placed=placed)
        if random.random() < TWINS:
            twin = {**json.loads(value), "transaction_id": f"{name}-twin", "amount": 17.25}
            twin["transaction_type"] = "purchase"
            yield _Draft(clock_us, "transactions", _json(twin), "same instant", card, f"{name}-twin")
        if random.random() < REPEATS:
            again_us = clock_us + int(random.uniform(0, 2 * DAY_US)) * int(random.random() < 0.8)
            where = "foreign" if random.random() < 0.4 else "home"
            yield _Draft(again_us, "transactions", value, "repeat", card, name, placed=where)
        if random.random() < CHANGED:
            again_us = clock_us + int(random.uniform(0, 2 * DAY_US))
            changed = _json({**json.loads(value), "amount": 99_999.25})
            yield _Draft(again_us, "transactions", changed, "changed repeat", card, name)
        yield from _behind_horizons(clock_us, last_us, load.horizon_days, card, name, value, random)
        yield from _labels(clock_us, card, name, bool(row.fraud), random)
        if random.random() < BAD:
            bad = _bad(clock_us, value, oversize < MOST_OVERSIZE, random)
            oversize += bad.kind == "oversize"
            yield bad
        if random.random() < UNKNOWN_LABELS:
            label = _label(clock_us, card, f"{name}-unheard-of", "fraud", "analyst")
            yield _Draft(
                clock_us, "labels", label, "unknown", card, f"{name}-unheard-of", dead="label_without_transaction"
            )


def _frame(load: Load) -> pd.DataFrame:
    if load.declaration is not None:
        # All amounts in one currency: the checks know no rates.
        history = random_history(load.seed, load.rows, load.declaration)
        return history.assign(currency="EUR", event_us=history["event_time_us"])
    if load.data is not None:
        frame = load_transactions(load.data, resolve_mapping(load.data))
        frame = frame[frame["event_time"] < frame["event_time"].iloc[0] + timedelta(days=load.days)]
        cards = np.sort(frame["card_id"].unique())
        wanted = max(1, round(len(cards) * min(1.0, load.rows / len(frame))))
        chosen = np.random.default_rng((load.seed, 2)).permutation(cards)[:wanted]
        frame = frame[frame["card_id"].isin(chosen)]
    else:
        cards_wanted = max(8, round(load.rows / load.days / TRANSACTIONS_A_CARD_AND_DAY))
        profiles = make_profiles(
            np.random.default_rng((load.seed, 3)),
            cards=cards_wanted,
            merchants=max(4, cards_wanted // CARDS_A_MERCHANT),
        )
        frame = simulate_days(profiles, load.seed, 0, max(1, round(load.days)))
    frame = frame.assign(event_us=(frame["event_time"] - pd.Timestamp(EPOCH)) // pd.Timedelta(microseconds=1))
    return frame.head(load.rows)


def _delay_us(kind: str, random: np.random.Generator) -> int:
    ranges = {"late": (HOUR_US, 6 * DAY_US), "very_late": (8 * DAY_US, 45 * DAY_US), "shuffled": (0, 600 * SECOND_US)}
    low, high = ranges.get(kind, (0, 0))
    return int(random.uniform(low, high))


def _transaction(row: Any, random: np.random.Generator) -> bytes:
    fields: dict[str, Any] = {
        "transaction_id": row.transaction_id,
        "event_time": row.event_time.isoformat(),
        "card_id": row.card_id,
        "merchant_id": row.merchant_id,
        "amount": max(1, int(row.amount_minor)) / 100,
        "currency": "EUR",
    }
    kind = str(random.choice(TYPES))
    if kind != "purchase" or random.random() < 0.3:
        fields["transaction_type"] = kind
    if kind == "verification":
        fields["amount"] = 0
    if random.random() < 0.05:
        fields["local_time"] = (row.event_time + timedelta(hours=3)).strftime("%Y-%m-%dT%H:%M:%S")
    if random.random() < 0.05:
        fields |= {"note": "Grüße, 買い物", "attributes": {"terminal": "7", "score": 0.5}}
    return _json(fields)


def _declared(row: Any, random: np.random.Generator) -> bytes:
    fields = message(row._asdict(), odd=random.random() < ODD)
    stated = {name: value for name, value in fields.items() if value is not None}
    return _json({**stated, "amount": round(float(row.amount), 2)})


def _labels(clock_us: int, card: str, name: str, fraud: bool, random: np.random.Generator) -> Iterator[_Draft]:
    if random.random() >= (LABELLED_FRAUD if fraud else LABELLED_LEGITIMATE):
        return
    says, kind = "fraud" if fraud else "legitimate", "label"
    delay_us = int(random.exponential(1.5 * DAY_US)) + 60 * SECOND_US
    if random.random() < EARLY:
        delay_us, kind = -HOUR_US // 2, "early label"
    at_us, source = clock_us + delay_us, str(random.choice(SOURCES))
    for _ in range(3):
        value = _label(at_us - int(random.integers(0, 20)) * SECOND_US, card, name, says, source)
        foreign = random.random() < FOREIGN_LABEL
        yield _Draft(at_us, "labels", value, kind, card, name, placed="foreign" if foreign else "home")
        if random.random() < LABEL_REPEATED:
            yield _Draft(at_us + HOUR_US, "labels", value, "repeated label", card, name)
        if random.random() >= CORRECTED:
            return
        at_us += int(random.uniform(HOUR_US, 3 * DAY_US))
        says, kind = str(random.choice(["fraud", "legitimate", "disputed", "unknown"])), "correction"
        source = str(random.choice([*SOURCES, "rule"]))


def _behind_horizons(
    clock_us: int,
    last_us: int,
    horizon_days: float,
    card: str,
    name: str,
    value: bytes,
    random: np.random.Generator,
) -> Iterator[_Draft]:
    left_days = (last_us - clock_us) / DAY_US
    nearest, furthest = 1.02 * horizon_days, min(horizon_days + AGAIN_DAYS, left_days)
    if random.random() < AGAIN and nearest < furthest:
        at_us = clock_us + int(random.uniform(nearest, furthest) * DAY_US)
        yield _Draft(at_us, "transactions", value, "again", card, name)
    nearest, furthest = 0.9 * horizon_days, min(horizon_days + LATE_LABEL_DAYS, left_days)
    if random.random() < LATE_LABEL and nearest < furthest:
        at_us = clock_us + int(random.uniform(nearest, furthest) * DAY_US)
        says = str(random.choice(["fraud", "legitimate"]))
        yield _Draft(at_us, "labels", _label(at_us, card, name, says, "chargeback"), "late label", card, name)


def _label(at_us: int, card: str, name: str, says: str, source: str) -> bytes:
    at = (EPOCH + timedelta(microseconds=at_us)).isoformat()
    return _json({"transaction_id": name, "card_id": card, "label": says, "source": source, "labelled_at": at})


def _bad(clock_us: int, value: bytes, oversize: bool, random: np.random.Generator) -> _Draft:
    fields = json.loads(value)
    ahead = (EPOCH + timedelta(microseconds=clock_us, days=400)).isoformat()
    choices: list[tuple[str, str, str, bytes | None]] = [
        ("garbage", "transactions", "not_json", b"\x00\x01" + random.bytes(30).replace(b"{", b"x").hex().encode()),
        ("cut short", "transactions", "not_json", value[: len(value) // 2]),
        ("broken text", "transactions", "not_utf8", value[:-1] + b',"x":"\xff"}'),
        ("no object", "transactions", "wrong_type", b"[1, 2]"),
        ("no value", "transactions", "null_value", None),
        ("no amount", "transactions", "missing_field", _json({**fields, "amount": ...})),
        ("negative", "transactions", "amount_negative", _json({**fields, "amount": -1})),
        ("currency", "transactions", "currency_unknown", _json({**fields, "currency": "QQQ"})),
        ("a year ahead", "transactions", "event_time_in_future", _json({**fields, "event_time": ahead})),
        ("garbage label", "labels", "not_json", b"fraud!"),
        ("label ahead", "labels", "labelled_at_in_future", _label(clock_us + 400 * DAY_US, "c", "t", "fraud", "audit")),
    ]
    if oversize:
        choices += 2 * [("oversize", "transactions", "too_large", value[:-1] + b',"x":"%s"}' % (b"x" * OVERSIZE_BYTES))]
    kind, topic, code, bad = choices[int(random.integers(len(choices)))]
    return _Draft(clock_us, topic, bad, kind, dead=code)


def _json(fields: dict[str, Any]) -> bytes:
    return json.dumps({name: value for name, value in fields.items() if value is not ...}, ensure_ascii=False).encode()
