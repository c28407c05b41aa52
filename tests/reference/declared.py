"""Declared features, computed the slow and obvious way: each row looks at all earlier rows again.

Written from the declaration's own text (TOML) and ``docs/features.md``, and sharing nothing with the kernels: no code,
no constants, no plan. Values are Python integers, filters are DuckDB's, a text stands for itself.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

SECOND = 1_000_000
DAY = 24 * 60 * 60 * SECOND
UNITS = {"m": 60 * SECOND, "h": 3_600 * SECOND, "d": DAY}
NAN = math.nan
BUILT_IN = ("1h", "1d", "7d", "30d")
"""Windows that the built-in count, sum, largest and smallest amount have."""
SCALES = {"amount": 100, "hour": 60, "weekday": 1, "": 1}
MILLIONTHS = 1_000_000
LARGEST = 2**53
CLOCK = [
    tuple(round(2**30 * turn(2 * math.pi * minute / 1_440)) for turn in (math.sin, math.cos)) for minute in range(1_440)
]
"""Direction of each minute of the day."""


def declared_features(declaration: Mapping[str, Any], frame: pd.DataFrame) -> pd.DataFrame:
    """Return the features of windows and ratios that a declaration asks for, one row for each row of ``frame``.

    Features that a declaration can choose among the built-in ones (`chosen`) are there too, whether it does or not.

    Args:
        declaration: Tables of the file.
        frame: Transactions in log order: texts and numbers by the names that filters know, None or NaN for none;
            ``event_time_us``, ``amount_minor``, ``counts``, and the partition of each entity, ``card_partition`` and
            ``merchant_partition``. Where a log is not whole, ``partition_newest_us`` has the newest event time
            before each row.
    """
    cards = features_of("card", declaration, frame)
    # A merchant's filter reads any feature of the card.
    return cards.join(features_of("merchant", declaration, frame.assign(**cards)))


def features_of(entity: str, declaration: Mapping[str, Any], frame: pd.DataFrame) -> pd.DataFrame:
    """Return those of one entity, as `declared_features`; for merchants ``frame`` has the features of cards, too."""
    tables = declaration.get("features", [])
    pasts = histories(frame, entity, horizon_of(declaration))
    found = chosen(entity, frame, pasts)
    for table in tables:
        if table["entity"] != entity:
            continue
        if table["aggregate"] == "ratio":
            first, second = (found[name] for name in table["inputs"])
            found[f"{entity}_{table['name']}"] = [a / b if b > 0 else NAN for a, b in zip(first, second, strict=True)]
        elif not is_chosen(table):
            found |= windowed(table, frame, pasts)
    return pd.DataFrame(found, index=frame.index)


def horizon_of(declaration: Mapping[str, Any]) -> int:
    """Return how far behind the newest event the oldest one lies that windows hold: the longest window and a week."""
    named = [window for table in declaration.get("features", []) for window in table.get("windows", ())]
    return max([30 * DAY, *map(length, named)]) + 7 * DAY


def histories(frame: pd.DataFrame, entity: str, horizon: int) -> list[list[int]]:
    """Return the rows that each row can look back on, by event time and then by log."""
    times, counts = frame["event_time_us"].tolist(), frame["counts"].tolist()
    names, partitions = frame[f"{entity}_id"].tolist(), frame[f"{entity}_partition"].tolist()
    newest: dict[int, int] = {}
    entered: dict[str, list[int]] = {}
    found = []
    known = frame["partition_newest_us"].tolist() if "partition_newest_us" in frame else None
    for row, (time, name, partition) in enumerate(zip(times, names, partitions, strict=True)):
        floor = (newest.get(partition, -(2**62)) if known is None else known[row]) - horizon
        earlier = entered.setdefault(name, [])
        found.append(sorted((r for r in earlier if floor < times[r] <= time), key=lambda r: (times[r], r)))
        if counts[row]:
            earlier.append(row)
        newest[partition] = max(newest.get(partition, time), time)
    return found


def windowed(table: Mapping[str, Any], frame: pd.DataFrame, pasts: Sequence[Sequence[int]]) -> dict[str, list[float]]:
    """Return the features of a table, by name."""
    aggregate = table["aggregate"]
    field, given = field_of(table), table.get("field", "")
    scale, values = steps(frame, field, table.get("where"))
    times = frame["event_time_us"].tolist()
    label = table.get("name") or "_".join(filter(None, (aggregate, given)))
    lengths = {window: length(window) for window in table["windows"]}
    found: dict[str, list[float]] = {f"{table['entity']}_{label}_{window}": [] for window in lengths}
    for time, own, past in zip(times, values, pasts, strict=True):
        past_times, past_values = [times[row] for row in past], [values[row] for row in past]
        for column, us in zip(found.values(), lengths.values(), strict=True):
            first = bisect_right(past_times, time - us)
            column.append(statistic(aggregate, time, own, past_times[first:], past_values[first:], scale))
    return found


def field_of(table: Mapping[str, Any]) -> str:
    """Return the name of the field whose values a table reads; empty for none."""
    defaults = {"usual_hour": "hour", **dict.fromkeys(("sum", "mean", "std", "min", "max"), "amount")}
    return str(table.get("field") or defaults.get(table["aggregate"], ""))


def steps(frame: pd.DataFrame, field: str, where: str | None) -> tuple[int, list[Any]]:
    """Return how many steps a unit has, and each row's value: a whole number of steps, a text, or None for none."""
    scale = SCALES.get(field, MILLIONTHS)
    values: list[Any]
    if not field:
        values = [1] * len(frame)
    elif field == "amount":
        values = frame["amount_minor"].tolist()
    elif pd.api.types.is_float_dtype(frame[field]):
        values = [whole(value, scale) for value in frame[field].tolist()]
    else:
        scale, values = 1, [None if pd.isna(value) else value for value in frame[field]]
    if where is not None:
        values = [value if held else None for value, held in zip(values, holding(where, frame), strict=True)]
    return scale, values


def holding(where: str, frame: pd.DataFrame) -> list[bool]:
    """Return for which rows a filter is true; a number divided by zero is NULL, as is NaN."""
    # A literal such as 0.1 is a decimal in DuckDB.
    sql = re.sub(r"('(?:[^']|'')*')|\b(\d[\d.]*)", lambda found: found[1] or f"{found[2]}::double", where)
    read = [str(name) for name in frame if re.search(rf"\b{name}\b", where)]
    rows = pa.table({name: pa.array(frame[name], from_pandas=True) for name in read} | {"row": range(len(frame))})
    with duckdb.connect() as connection:
        connection.execute("set ieee_floating_point_ops = false")
        connection.register("rows", rows)
        found = connection.execute(f"select coalesce(({sql}), false) from rows order by row").fetchall()
    return [held for (held,) in found]


def whole(value: float, scale: int) -> int | None:
    """Return a number in steps, half to even; None for none, and for one that is too large.

    >>> whole(0.0000005, 1_000_000), whole(0.0000015, 1_000_000), whole(math.nan, 1)
    (0, 2, None)
    """
    return round(value * scale) if abs(value * scale) < LARGEST else None


def statistic(
    name: str, time: int, own: Any, past_times: Sequence[int], past_values: Sequence[Any], scale: int
) -> float:
    """Return an aggregate of a window for a row at a time with a value of its own.

    Args:
        name: The aggregate.
        time: Event time of the row.
        own: Its value, None for none.
        past_times: Event times of the window's transactions.
        past_values: Their values.
        scale: Steps of a unit.
    """
    values = [value for value in past_values if value is not None]
    count = len(values)
    if name == "count":
        return float(count)
    if name == "distinct":
        return float(min(len(set(values)), 1_000))
    if name == "sum":
        return float(sum(values)) / scale
    if name == "share":
        return count / len(past_values) if past_values else NAN
    if name == "new":
        return NAN if own is None else float(own not in values)
    if name == "usual_hour":
        return NAN if own is None else from_usual(own % 1_440, [value % 1_440 for value in values])
    if not count:
        return NAN
    if name == "mean":
        return float(sum(values)) / count / scale
    if name == "std":
        return math.sqrt(count * sum(value * value for value in values) - sum(values) ** 2) / count / scale
    if name in ("min", "max"):
        return float(min(values) if name == "min" else max(values)) / scale
    times = [at for at, value in zip(past_times, past_values, strict=True) if value is not None]
    return (time - {"seconds_since_last": max, "seconds_since_first": min}[name](times)) / SECOND


def from_usual(minute: int, minutes: Sequence[int]) -> float:
    """Return how far a minute lies from the circular mean of others, in hours."""
    sine, cosine = (sum(CLOCK[other][way] for other in minutes) for way in (0, 1))
    if sine == cosine == 0:
        return NAN
    apart = abs(minute / 60 - math.atan2(sine, cosine) * (12 / math.pi)) % 24
    return min(apart, 24 - apart)


def is_chosen(table: Mapping[str, Any]) -> bool:
    """Return whether a table chooses built-in features."""
    plain = not {"where", "name"} & set(table) and table.get("field", "amount") == "amount"
    names = {"sum", "mean", "std", "min", "max"} | (set() if "field" in table else {"count"})
    return plain and table["aggregate"] in names and {*table["windows"]} <= {*BUILT_IN}


def chosen(entity: str, frame: pd.DataFrame, pasts: Sequence[Sequence[int]]) -> dict[str, list[float]]:
    """Return the built-in features that declared filters and ratios read here."""
    found: dict[str, list[float]] = {}
    for aggregate in ("count", "sum", "min", "max"):
        found |= windowed({"entity": entity, "aggregate": aggregate, "windows": BUILT_IN}, frame, pasts)
    last = {"entity": entity, "aggregate": "seconds_since_last", "windows": ["30d"]}
    found[f"{entity}_seconds_since_last"] = windowed(last, frame, pasts)[f"{entity}_seconds_since_last_30d"]
    if entity == "card":
        times, merchants = frame["event_time_us"].tolist(), frame["merchant_id"].tolist()
        latest = [
            [row for row in past if times[row] > at - 30 * DAY][-32:] for at, past in zip(times, pasts, strict=True)
        ]
        found["card_merchant_count"] = [
            float(sum(merchants[row] == own for row in rows)) for own, rows in zip(merchants, latest, strict=True)
        ]
    return found


def length(window: str) -> int:
    """Return the length of a window, in microseconds."""
    return int(window[:-1]) * UNITS[window[-1]]


def tolerances(declaration: Mapping[str, Any], features: pd.DataFrame, frame: pd.DataFrame) -> dict[str, Any]:
    """Return how far each feature may lie from its reference, shape (n,) or a number: 0 but for roots and huge sums.

    A sum of 2**63 steps and more is rounded twice, and the variance of numbers of more than 15 digits is as exact as
    floating-point numbers are.
    """
    found: dict[str, Any] = dict.fromkeys(features.columns, 0.0)
    for table in declaration.get("features", []):
        if table["aggregate"] == "ratio":
            # Exact, or of two of which one is off by its last bits.
            slack = sum(np.max(found[name]) for name in table["inputs"]) > 0
            name = f"{table['entity']}_{table['name']}"
            found[name] = 1e-6 * np.abs(np.nan_to_num(features[name].to_numpy())) if slack else 0.0
        elif not is_chosen(table) and table["aggregate"] in ("sum", "mean", "std"):
            label = table.get("name") or "_".join(filter(None, (table["aggregate"], table.get("field", ""))))
            largest = np.nanmax(np.abs(frame[table.get("field", "amount")].to_numpy(np.float64)), initial=0.0)
            for window in table["windows"]:
                name = f"{table['entity']}_{label}_{window}"
                size = np.abs(np.nan_to_num(features[name].to_numpy()))
                if table["aggregate"] == "std":
                    found[name] = 1e-12 * size + (1e-7 * min(largest, 1e10) if largest > 1e6 else 0.0)
                elif largest > 1e6:
                    found[name] = 1e-15 * size
    return found
