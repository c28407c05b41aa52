"""Every feature of sampled cards and merchants, computed again the slow way from the recorded logs alone."""

import base64
import math
import struct
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from tests.chaos.arithmetic import EPOCH, US
from tests.chaos.run import Check, Run, key_of
from tests.reference.features import card_cases, card_features, merchant_features

SAMPLE_COST = 1_500_000
"""Pairs of rows that the reference may look at, for cards and for merchants; a few seconds each."""
DIVIDED = ("mean", "std", "amount_to", "deviation", "surge", "risk")
"""Features whose last bits depend on the order of divisions and roots; all others are equal to the last bit."""
RELATIVE_TOLERANCE = 1e-12

Row = dict[str, Any]


def features_equal_the_reference(run: Run, seed: int = 0, cost: int = SAMPLE_COST) -> Check:
    """Served features of a sample of entities, all of them where there are few, against the reference."""
    check = Check("features equal the reference")
    random = np.random.default_rng(seed)
    for name, entity, rows, reference in (
        ("cards", "card_id", _card_rows(run), card_features),
        ("merchants", "merchant_id", _merchant_rows(run), merchant_features),
    ):
        chosen = _sample(Counter(row[entity] for row in rows), random, cost)
        sampled = [row for row in rows if row[entity] in chosen]
        check.compared[name] = len(chosen)
        check.compared[f"all_{name}"] = len({row[entity] for row in rows})
        if not sampled:
            continue
        computed = reference(pd.DataFrame(sampled)).to_dict("records")
        for row, values in zip(sampled, computed, strict=True):
            if row["kind"] == "transaction":
                _compare(check, run, row["transaction"], values)
    if not check.compared.get("values"):
        check.differs("nothing was compared")
    return check


def cases_follow_from_the_log(run: Run) -> Check:
    """Every transaction's case and its number within it, against the reference."""
    check = Check("cases follow from the log")
    rows = _card_rows(run)
    for row, case in zip(rows, card_cases(pd.DataFrame(rows)).to_dict("records"), strict=True):
        wanted = (f"{row['card_id']}-{case['case_start_us'] // 1_000_000}", case["case_sequence"])
        check.same(f"{row['transaction']}: case", row["case"], wanted)
    check.compared = {"transactions": len(rows)}
    return check


def card_features_travel_unchanged(run: Run) -> Check:
    """What the score agent served of the card is what the card agent computed."""
    check = Check("card features travel unchanged")
    for _, one in run.profiled:
        packed = base64.b64decode(one["card_features"])
        values = struct.unpack(f"<{len(packed) // 8}d", packed)
        decision = run.decision_of.get(key_of(one))
        if decision is None:
            continue
        served = list(decision["features"].values())[: len(values)]
        if any(not _agree("", s, v) for s, v in zip(served, values, strict=True)):
            check.differs(f"{key_of(one)}: the decision has other card features than the profiled record")
        check.compared["transactions"] = check.compared.get("transactions", 0) + 1
    return check


def _compare(check: Check, run: Run, key: tuple[str, str], values: dict[Hashable, Any]) -> None:
    decision = run.decision_of.get(key)
    if decision is None:
        check.differs(f"{key} has no decision to compare")
        return
    for name, value in values.items():
        check.compared["values"] = check.compared.get("values", 0) + 1
        served = decision["features"].get(str(name))
        if not _agree(str(name), served, float(value)):
            check.differs(f"{key} {name}: served {served!r}, the reference has {value!r}")


def _agree(name: str, served: float | None, right: float) -> bool:
    if served is None or math.isnan(right):
        return served is None and math.isnan(right)
    tolerance = RELATIVE_TOLERANCE if any(part in name for part in DIVIDED) else 0.0
    return abs(served - right) <= tolerance * abs(right)


def _card_rows(run: Run) -> list[Row]:
    """Accepted transactions as the card agents read them; the newest event before each, within its partition."""
    rows = []
    for accepted in run.accepted.values():
        newest = 0
        for _, one in accepted:
            rows.append({**_stated(one), "partition_newest_us": newest, "case": (one["case_id"], one["case_sequence"])})
            newest = max(newest, one["event_time_us"])
    return rows


def _merchant_rows(run: Run) -> list[Row]:
    newest: dict[int, int] = defaultdict(int)
    rows = []
    for entry, one in run.logs.decoded("profiled"):
        row: Row = {"partition_newest_us": newest[entry.partition]}
        if one["kind"] == "transaction":
            newest[entry.partition] = max(newest[entry.partition], one["event_time_us"])
            row |= {**_stated(one), "known": "none", "known_at_us": 0}
        else:
            row |= {
                "kind": "label",
                "transaction": key_of(one),
                "merchant_id": one["merchant_id"],
                "event_time_us": one["event_time_us"],
                "amount_minor": 0,
                "counts": False,
                "known": one["known"],
                "known_at_us": one["known_at_us"],
            }
        rows.append(row)
    return rows


def _stated(one: Row) -> Row:
    """A transaction from its producer's own record."""
    stated = one["transaction"]
    time = datetime.fromisoformat(stated["event_time"]).astimezone(UTC)
    wall = datetime.fromisoformat(stated["local_time"]) if "local_time" in stated else time
    of_day = wall - wall.replace(hour=0, minute=0, second=0, microsecond=0)
    return {
        "kind": "transaction",
        "transaction": key_of(one),
        "card_id": stated["card_id"],
        "merchant_id": stated["merchant_id"],
        "event_time_us": (time - EPOCH) // US,
        "amount_minor": round(stated["amount"] * 100),
        "counts": stated.get("transaction_type", "purchase") in ("purchase", "cash"),
        "hour": of_day / timedelta(hours=1),
        "weekday": float(wall.weekday()),
    }


def _sample(sizes: Counter[str], random: np.random.Generator, cost: int) -> set[str]:
    """Entities in random order for as long as they are affordable: the reference looks at every pair of rows."""
    chosen: set[str] = set()
    names: Iterable[str] = random.permutation(sorted(sizes)).tolist()
    for name in names:
        if cost < sizes[name] ** 2 and chosen:
            continue
        cost -= sizes[name] ** 2
        chosen.add(name)
    return chosen
