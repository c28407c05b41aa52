"""Random declarations of features, and histories that go where their windows break."""

import json
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

SECOND: Final = 1_000_000
MINUTE, HOUR, DAY = 60 * SECOND, 3_600 * SECOND, 86_400 * SECOND
START_US: Final = 1_709_251_200 * SECOND
SPAN_US: Final = 150 * DAY
"""Longer than the longest window and its horizon."""
OWN_NUMBERS: Final = ("score", "basket", "huge")
OWN_TEXTS: Final = ("shop", "wifi")
TEXTS: Final = ("country", "channel", "mcc", "device_id", "account_id", "currency", "transaction_type", *OWN_TEXTS)
"""Texts that filters read."""
DISTINCT: Final = (*TEXTS, "merchant_id", "card_id", "ip")
NUMBERS: Final = ("amount", "hour", "weekday", *OWN_NUMBERS)
MOST_FEATURES: Final = 190
MOST_INPUTS: Final = 15
CHOSEN: Final = ("1h", "1d", "7d", "30d")
_WORDS: Final[dict[str, tuple[str | None, ...]]] = {
    "country": ("BE", "FR", "Österreich", "be", "", None),
    "channel": ("web", "app", "WEB", "pos", None),
    "mcc": ("5411", "5412", "6011", "7995", None),
    "device_id": (*(f"d{number}" for number in range(40)), None),
    "account_id": (*(f"a{number}" for number in range(8)), None),
    "ip": (*(f"10.0.0.{number}" for number in range(200)), None),
    "shop": ("web", "it's", "東京", "50%", "a_b", None),
    "wifi": (*(f"w{number}" for number in range(20_000)), None),
}
_CARD_FEATURES: Final = ("card_merchant_count", "card_count_30d", "card_count_1d", "card_seconds_since_last")


class Name(NamedTuple):
    """A declared feature of a card that a filter can read."""

    name: str
    exact: bool


def random_declaration(seed: int, tables: int, first: int = 0) -> dict[str, Any]:
    """Return a declaration of so many feature tables, as a file has them; their names count from ``first``."""
    random = np.random.default_rng(seed)
    fields: dict[str, dict[str, Any]] = {
        name: {"type": "number", "meaning": f"{name} by the producer"} for name in OWN_NUMBERS
    }
    fields |= {name: {"type": "text", "meaning": f"{name} by the producer", "personal": True} for name in OWN_TEXTS}
    features: list[dict[str, Any]] = []
    declared: dict[str, list[Name]] = {"card": [], "merchant": []}
    left = MOST_FEATURES
    for entity in ("card", "merchant"):
        pool = _inputs(random, entity, declared["card"])
        of_entity = tables - tables // 2 if entity == "card" else tables // 2
        for _ in range(of_entity):
            table = _table(random, entity, first + len(features), pool, declared[entity])
            windows = table.get("windows", ["one"])[: max(1, left - (tables - len(features)))]
            if "windows" in table:
                table["windows"] = windows
            left -= len(windows)
            features.append(table)
            declared[entity] += _names(table)
    # In any order of entities: filters of merchants read features of cards wherever they stand.
    order = np.argsort(random.random(len(features)) * 0.5 + np.arange(len(features)) / len(features), kind="stable")
    cards, merchants = ([table for table in features if table["entity"] == entity] for entity in ("card", "merchant"))
    mixed = [(merchants if features[number]["entity"] == "merchant" else cards).pop(0) for number in order.tolist()]
    extends = ("none", "default", "all")[int(random.choice(3, p=[0.6, 0.3, 0.1]))]
    return {"extends": extends, "fields": fields, "features": mixed}


def changed_declaration(declaration: dict[str, Any], seed: int, tables: int, first: int) -> dict[str, Any]:
    """Return a declaration of some of these tables and so many new ones, with the fields that it reads alone."""
    random = np.random.default_rng([seed, 3])
    own = {name.name for table in declaration["features"] for name in _names(table)}
    kept: list[dict[str, Any]] = []
    for table in sorted(declaration["features"], key=lambda table: table["entity"]):
        there = {name.name for other in kept for name in _names(other)}
        read = own.intersection(re.findall(r"\w+", f"{table.get('where')} {table.get('inputs')}"))
        if read <= there and random.random() < 0.6:
            kept.append(table)
    new = random_declaration(seed, tables, first)
    features = [*kept, *new["features"]] if random.random() < 0.5 else [*new["features"], *kept]
    words = {*re.findall(r"\w+", " ".join(f"{table.get('field')} {table.get('where')}" for table in features))}
    fields = {name: field for name, field in new["fields"].items() if name in words}
    return {**new, "fields": fields, "features": features}


def as_toml(declaration: dict[str, Any]) -> str:
    """Return a declaration as its file."""
    lines = [f"extends = {json.dumps(declaration['extends'])}"]
    for name, table in declaration["fields"].items():
        lines += [f"[fields.{name}]", *_lines(table)]
    for table in declaration["features"]:
        lines += ["[[features]]", *_lines(table)]
    return "\n".join(lines) + "\n"


def _lines(table: dict[str, Any]) -> list[str]:
    # Texts of JSON are texts of TOML.
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]


def _one(random: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(random.integers(len(choices)))]


def _inputs(random: np.random.Generator, entity: str, cards: Sequence[Name]) -> list[tuple[str, str | None]]:
    """Return fields under filters; there may be only so many of an entity."""
    pool: list[tuple[str, str | None]] = [("", None), ("amount", None)]
    while len(pool) < MOST_INPUTS:
        field = _one(random, (*NUMBERS, *DISTINCT, "", "amount", "hour"))
        where = None if random.random() < 0.4 and field else _filter(random, entity, cards, 2)
        pool.append((field, where))
    return pool


def _table(
    random: np.random.Generator, entity: str, number: int, pool: Sequence[tuple[str, str | None]], known: Sequence[Name]
) -> dict[str, Any]:
    if len(known) > 1 and random.random() < 0.1:
        pair = [_one(random, known).name, _one(random, [*known, Name(f"{entity}_count_30d", True)]).name]
        return {"entity": entity, "aggregate": "ratio", "name": f"ratio_{number}", "inputs": pair}
    field, where = _one(random, pool)
    aggregates = ["count", "seconds_since_last", "seconds_since_first"]
    if not field and where is not None:
        aggregates += ["share", "share"]
    if field in DISTINCT:
        aggregates += ["distinct", "distinct", "new", "new"]
    if field in NUMBERS:
        aggregates += ["sum", "mean", "std", "min", "max"]
    if field == "hour":
        aggregates += ["usual_hour"] * 4
    aggregate = _one(random, aggregates)
    table: dict[str, Any] = {"entity": entity, "aggregate": aggregate}
    if field and aggregate != "usual_hour" and (field != "amount" or aggregate == "count" or random.random() < 0.5):
        table["field"] = field
    if where is not None:
        table["where"] = where
    table["windows"] = _windows(random)
    if where is None and "field" not in table and aggregate in ("count", "sum", "mean") and random.random() < 0.3:
        # One that is built in.
        table["windows"] = [_one(random, CHOSEN)]
        return table
    table["name"] = f"{'own' if random.random() < 0.5 else aggregate}_{number}"
    return table


def _names(table: dict[str, Any]) -> list[Name]:
    exact = table["aggregate"] not in ("ratio", "std") and table.get("field") != "huge"
    if table["aggregate"] == "ratio":
        return [Name(f"{table['entity']}_{table['name']}", False)]
    if "name" not in table:
        return []
    return [Name(f"{table['entity']}_{table['name']}_{window}", exact) for window in table["windows"]]


def _windows(random: np.random.Generator) -> list[str]:
    """Return windows from a minute to 90 days, in any order."""
    size = 8 if random.random() < 0.03 else int(random.integers(1, 5))
    found: dict[int, str] = {}
    while len(found) < size:
        unit, most = _one(random, (("m", 6_000), ("h", 2_160), ("d", 90), ("d", 90)))
        count = int(np.exp(random.uniform(0, np.log(most))) + 0.5)
        found[count * {"m": MINUTE, "h": HOUR, "d": DAY}[unit]] = f"{count}{unit}"
    return list(found.values())


def _filter(random: np.random.Generator, entity: str, cards: Sequence[Name], depth: int) -> str:
    if depth and random.random() < 0.45:
        inner = [_filter(random, entity, cards, depth - 1) for _ in range(int(random.integers(2, 4)))]
        drawn = random.random()
        if drawn < 0.25:
            return f"not ({inner[0]})"
        return f"({_one(random, (' and ', ' or ')).join(inner)})"
    if entity == "merchant" and random.random() < 0.3:
        # Exact ones alone: of others the last bit differs, and with it what a filter says.
        name = _one(random, [*_CARD_FEATURES, *(name.name for name in cards if name.exact)])
        return f"{name} {_one(random, ('=', '<>', '<', '<=', '>', '>='))} {int(random.integers(0, 4))}"
    return _number_test(random) if random.random() < 0.5 else _text_test(random)


def _number_test(random: np.random.Generator) -> str:
    name = _one(random, NUMBERS)
    typical = {"amount": 60, "hour": 24, "weekday": 7, "score": 1, "basket": 5, "huge": 1_000_000}[name]
    low, high = sorted(np.round(random.uniform(0, typical, 2), int(random.integers(0, 3))).tolist())
    sign = _one(random, ("=", "<>", "<", "<=", ">", ">="))
    return str(
        _one(
            random,
            (
                f"{name} {sign} {low}", f"{name} between {low} and {high}", f"{name} > {low}", f"{name} < {high}",
                f"{name} is null", f"{name} is not null", f"coalesce({name}, {low}) {sign} {high}",
                f"abs({name} - {low}) < {high}", f"{name} * 2 + score / 4 {sign} {high}", f"-{name} < -{low}",
                f"{name} in ({round(low)}, {round(high)}, {low})", f"hour < {low} or hour >= {high}",
            ),
        )
    )  # fmt: skip


def _text_test(random: np.random.Generator) -> str:
    name = _one(random, TEXTS)
    words = [word for word in _WORDS.get(name, ("EUR", "USD", "purchase")) if word is not None]
    first, second = (str(_one(random, words)).replace("'", "''") for _ in range(2))
    return str(
        _one(
            random,
            (
                f"{name} = '{first}'", f"{name} <> '{first}'", f"{name} in ('{first}', '{second}')", f"{name} is null",
                f"{name} not in ('{first}', '{second}')", f"{name} like '{first[:1]}%'", f"{name} not like '_{first}%'",
                f"lower({name}) = '{first.lower()}'", f"{name} < '{first}'", f"{name} = shop", f"{name} is not null",
                f"coalesce({name}, '{second}') = '{first}'",
            ),
        )
    )  # fmt: skip


def random_history(seed: int, rows: int, declaration: dict[str, Any]) -> pd.DataFrame:
    """Return transactions as producers write them, in the order in which they arrive.

    Times are whole seconds; some repeat, some are late, up to beyond the horizon, and some lie exactly one window
    behind another, or a microsecond beside that. Texts and numbers are missing, None.
    """
    random = np.random.default_rng([seed, 1])
    windows = [window for table in declaration["features"] for window in table.get("windows", ())] or ["1d"]
    spans_us = [int(window[:-1]) * {"m": MINUTE, "h": HOUR, "d": DAY}[window[-1]] for window in windows]
    cards, merchants = max(3, rows // 60), max(3, rows // 120)
    steps = random.exponential(SPAN_US / SECOND / rows, rows) * random.choice([0, 1, 1, 2], rows)
    arrived = START_US + np.cumsum(np.round(steps).astype(np.int64)) * SECOND
    late = random.choice([0, MINUTE, HOUR, DAY, 8 * DAY], rows, p=[0.8, 0.06, 0.05, 0.05, 0.04])
    # Some so late that the horizon lies in their windows, and some behind it.
    longest = max(30 * DAY, *spans_us)
    deep = longest + 7 * DAY + random.integers(-longest // SECOND, 2 * DAY // SECOND, rows) * SECOND
    late = np.where(random.random(rows) < 0.04, deep, late)
    times = arrived - late
    card = np.minimum(random.geometric(2.5 / cards, rows), cards)
    merchant = np.minimum(random.geometric(3 / merchants, rows), merchants)
    if seed % 5 == 0:
        # One with more transactions in 90 days than different values are counted.
        merchant[random.random(rows) < 0.3] = 1
    for row in np.flatnonzero(random.random(rows) < 0.1).tolist():
        # At the edge of a window that an earlier one of the card, or of the merchant, lies in.
        own = card if random.random() < 0.5 else merchant
        of_same = np.flatnonzero(own[:row] == own[row])[-20:]
        if len(of_same):
            edge = int(times[_one(random, of_same.tolist())]) + _one(random, spans_us) + int(random.integers(-1, 2))
            times[row] = min(edge, int(arrived[row]))
    currency = random.choice(["EUR", "USD", "JPY", "KWD"], rows, p=[0.7, 0.15, 0.1, 0.05])
    digits = pd.Series(currency).map({"EUR": 2, "USD": 2, "JPY": 0, "KWD": 3}).tolist()
    minor = [
        int(value * 10**places) + 1 for value, places in zip(random.lognormal(3.5, 1.2, rows), digits, strict=True)
    ]
    columns: dict[str, Any] = {
        "transaction_id": [f"t{row}" for row in range(rows)],
        "event_time_us": times,
        "arrived_us": arrived,
        "card_id": [f"c{number}" for number in card],
        "merchant_id": [f"m{number}" for number in merchant],
        "amount": [f"{value / 10**places:.{places}f}" for value, places in zip(minor, digits, strict=True)],
        "currency": currency,
        "transaction_type": _drawn(random, rows, ("purchase", "cash", "refund", "verification", None), 0.3),
        "local_time": _drawn(random, rows, ("2024-03-05T23:59:59", "2024-02-29T08:30:00.25", None), 0.7),
        "fraud": random.random(rows) < 0.05,
    }
    for name, words in _WORDS.items():
        columns[name] = _drawn(random, rows, words, 0.1)
    columns["score"] = _numbers(random, np.round(random.normal(0, 1, rows), int(random.integers(2, 9))))
    columns["basket"] = _numbers(random, random.integers(0, 9, rows) / 2)
    huge = random.choice([1e-7, 5e-7, 1.5e-6, 1e6, -1e9, 8.9e9, 9.1e9, 1e300, -1e300], rows)
    columns["huge"] = _numbers(random, np.where(random.random(rows) < 0.5, huge, random.normal(0, 1e6, rows)))
    return pd.DataFrame(columns)


def _drawn(random: np.random.Generator, rows: int, words: Sequence[str | None], none: float) -> list[str | None]:
    drawn = [words[number] for number in random.integers(0, len(words), rows)]
    return [None if missing else word for word, missing in zip(drawn, random.random(rows) < none, strict=True)]


def _numbers(random: np.random.Generator, values: Any) -> Any:
    return np.where(random.random(len(values)) < 0.15, np.nan, values)
