"""Features of each decision, and those of sampled cards and merchants computed again from the logs alone."""

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
from tests.chaos.records import Entry, Place
from tests.chaos.run import Check, Run, key_of, place_of
from tests.reference.features import card_cases, card_features, merchant_features, tolerance

SAMPLE_COST = 1_500_000
"""Pairs of rows that the reference may look at, for cards and for merchants; a few seconds each."""
REPEATED = (
    "transaction_id", "card_id", "merchant_id", "event_time", "amount_base", "score", "logit", "river_logit",
    "versions", "source", "log",
)  # fmt: skip
"""Fields of a decision that its row of ``features`` repeats."""

Row = dict[str, Any]


def features_stand_beside_decisions(run: Run) -> Check:
    """Each decision has one row on ``features`` that agrees with it; where it is selected it has the same features."""
    check = Check("one row of features a decision")
    decisions, rows = _by_source(run, "decisions"), _by_source(run, "features")
    check.compared = {
        "decisions": sum(map(len, decisions.values())),
        "rows": sum(map(len, rows.values())),
        "decisions_with_features": 0,
    }
    for source in decisions.keys() | rows.keys():
        decided, found = decisions.get(source, []), rows.get(source, [])
        counts = len(decided), len(found)
        if 0 in counts or (run.rules.exactly_once and counts != (1, 1)):
            check.differs(f"{source} has {counts[0]} decisions, and {counts[1]} rows of features")
            continue
        _check_row(check, source, decided, found)
    return check


def _by_source(run: Run, topic: str) -> dict[Place, list[tuple[Entry, Row]]]:
    """Messages by the position of the producer's record, which identifies a decision."""
    found: dict[Place, list[tuple[Entry, Row]]] = defaultdict(list)
    for entry, log in run.logs.decoded(topic):
        found[place_of(log["source"])].append((entry, log))
    return found


def _check_row(check: Check, source: Place, decided: list[tuple[Entry, Row]], found: list[tuple[Entry, Row]]) -> None:
    # Of a batch that failed there may be decisions by other models, whose rows were not written any more.
    if not any(all(item[name] == row[name] for name in REPEATED) for _, item in decided for _, row in found):
        for name in REPEATED:
            check.same(f"{source}: {name} of the row of features", found[-1][1][name], decided[-1][1][name])
    partition, features = found[-1][0].partition, found[-1][1]["features"]
    for entry, _ in (*decided, *found):
        check.same(f"{source}: partition of {entry.topic}", entry.partition, partition)
    for _, row in found[:-1]:
        check.same(f"{source}: features of rows", _bits(row["features"]), _bits(features))
    for _, item in decided:
        served = item.get("features")
        check.same(f"{source}: bears features", served is not None, item["selection"] is not None)
        if served is not None:
            check.count("decisions_with_features")
            check.same(f"{source}: features of the decision", _bits(served), _bits(features))


def _bits(features: dict[str, float | None]) -> dict[str, bytes | None]:
    return {name: None if value is None else struct.pack("<d", value) for name, value in features.items()}


def features_equal_the_reference(run: Run, seed: int = 0, cost: int = SAMPLE_COST) -> Check:
    """Compare what the models saw of a sample of entities, all of them where there are few, with the reference."""
    check = Check("features equal the reference")
    random = np.random.default_rng(seed)
    for name, entity, rows, reference in (
        ("cards", "card_id", card_rows(run), card_features),
        ("merchants", "merchant_id", merchant_rows(run), merchant_features),
    ):
        chosen = _sample(Counter(row[entity] for row in rows), random, cost)
        sampled = [row for row in rows if row[entity] in chosen]
        check.compared[name] = len(chosen)
        check.compared[f"all_{name}"] = len({row[entity] for row in rows})
        check.count("values", 0)
        if not sampled:
            continue
        computed = reference(pd.DataFrame(sampled)).to_dict("records")
        for row, values in zip(sampled, computed, strict=True):
            certain = name == "merchants" or row["card_id"] not in run.cards_read_again
            if row["kind"] == "transaction" and certain:
                _compare(check, run, row, values)
    return check


def cases_follow_from_the_log(run: Run) -> Check:
    """Every transaction's case and its number within it, against the reference."""
    check = Check("cases follow from the log")
    rows = card_rows(run)
    check.count("transactions", 0)
    for row, case in zip(rows, card_cases(pd.DataFrame(rows)).to_dict("records"), strict=True):
        if row["card_id"] in run.cards_read_again:
            continue
        check.count("transactions")
        wanted = (f"{row['card_id']}-{case['case_start_us'] // 1_000_000}", case["case_sequence"])
        check.same(f"{row['transaction']}: case", row["case"], wanted)
    return check


def card_features_travel_unchanged(run: Run) -> Check:
    """Compare the card features that the models saw, and what follows from them, with the profiled rows."""
    check = Check("card features travel unchanged")
    check.count("decisions", 0)
    for entry, item in run.profiled_as_written:
        packed = base64.b64decode(item["card_features"])
        values = struct.unpack(f"<{len(packed) // 8}d", packed)
        for row in run.features_at.get(entry.log, ()):
            check.count("decisions")
            named = row["features"]
            outlier = (named["card_amount_to_usual"] or 0.0) > 3 and named["card_count_30d"] >= 5
            check.same(f"{key_of(item)}: outlier", item["outlier"], outlier)
            seen = list(named.values())[: len(values)]
            if any(not _agree("", s, v) for s, v in zip(seen, values, strict=True)):
                check.differs(f"{key_of(item)}: the models saw other card features than the profiled record has")
    return check


def _compare(check: Check, run: Run, row: Row, values: dict[Hashable, Any]) -> None:
    found = run.features_at.get(row["log"])
    if not found:
        check.differs(f"{row['transaction']} has no row of features to compare")
        return
    for name, value in values.items():
        for item in found:
            check.count("values")
            seen = item["features"].get(str(name))
            if not _agree(str(name), seen, float(value)):
                check.differs(f"{row['transaction']} {name}: the models saw {seen!r}, the reference has {value!r}")


def _agree(name: str, seen: float | None, right: float) -> bool:
    if seen is None or math.isnan(right):
        return seen is None and math.isnan(right)
    return abs(seen - right) <= tolerance(name) * abs(right)


def card_rows(run: Run) -> list[Row]:
    """Return accepted transactions as the card agents read them; the newest event before each, within its partition."""
    rows = []
    for accepted in run.accepted.values():
        newest = 0
        for _, entry, row in accepted:
            case = row["case_id"], row["case_sequence"]
            rows.append({**_stated(row), "partition_newest_us": newest, "case": case, "log": entry.log})
            newest = max(newest, row["event_time_us"])
    return rows


def merchant_rows(run: Run) -> list[Row]:
    """Return transactions and labels as the score agents read them."""
    newest: dict[int, int] = defaultdict(int)
    rows = []
    taken_in = {entry.log for entry, _ in run.profiled}
    for entry, item in run.logs.decoded("profiled"):
        log = entry.log
        if item["kind"] == "transaction" and log not in taken_in:
            continue  # written again, and passed over
        row: Row = {"partition_newest_us": newest[entry.partition], "card_id": item["card_id"], "log": log}
        if item["kind"] == "transaction":
            newest[entry.partition] = max(newest[entry.partition], item["event_time_us"])
            row |= {**_stated(item), "outlier": item["outlier"], "known": "none", "known_at_us": 0}
        else:
            row |= {
                "kind": "label",
                "transaction": key_of(item),
                "merchant_id": item["merchant_id"],
                "event_time_us": item["event_time_us"],
                "amount_minor": 0,
                "counts": False,
                "outlier": False,
                "known": item["known"],
                "known_at_us": item["known_at_us"],
            }
        rows.append(row)
    return rows


def _stated(row: Row) -> Row:
    """A transaction from its producer's own record."""
    stated = row["transaction"]
    time = datetime.fromisoformat(stated["event_time"]).astimezone(UTC)
    wall = datetime.fromisoformat(stated["local_time"]) if "local_time" in stated else time
    of_day = wall - wall.replace(hour=0, minute=0, second=0, microsecond=0)
    return {
        "kind": "transaction",
        "transaction": key_of(row),
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
