"""Every value on ``features`` under changing declarations of features, against the reference in pandas.

A row is profiled under one declaration and decided under another, or the same: blocks name both. Its card's features
are those of the first, its merchant's those of the second. Values that the windows of merchants need and the first one
does not carry are missing, as are features that only the second one has.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tests.chaos.check_features import Row, card_rows, merchant_rows
from tests.chaos.records import Entry
from tests.chaos.run import Check, Run, key_of
from tests.helpers.declarations import OWN_NUMBERS, OWN_TEXTS, TEXTS
from tests.reference.declared import DAY, features_of, field_of, horizon_of, is_chosen, tolerances
from tests.reference.features import card_features, merchant_features, tolerance

USUAL_HORIZON = 37 * DAY
"""Horizon of the reference of built-in features."""
CARRIED = "travels"
"""Name of the column that is true where a block carries an input of the merchants' windows."""

Input = tuple[str, str | None]


class Declared(NamedTuple):
    """A declaration, and the names of its features in order."""

    tables: dict[str, Any]
    card_names: tuple[str, ...]
    names: tuple[str, ...]


def features_equal_declared(run: Run, declared: Mapping[str, Declared]) -> Check:
    """Compare each value that the models saw; ``declared`` by kernel version."""
    check = Check("features equal the reference under the declaration that each row names")
    cards = _frame(run, [(entry, item) for accepted in run.accepted.values() for _, entry, item in accepted])
    frame = _frame(run, run.profiled)
    if unknown := {*frame["kernel"]} - declared.keys():
        check.differs(f"rows were profiled by {sorted(unknown)}")
        return check
    of_cards = {kernel: _of_cards(run, one, cards).loc[frame.index] for kernel, one in declared.items()}
    names = sorted({name for found in of_cards.values() for name in found})
    seen = pd.DataFrame(np.nan, index=frame.index, columns=names)
    for kernel, found in of_cards.items():
        of_kernel = frame["kernel"] == kernel
        seen.loc[of_kernel, found.columns] = found[of_kernel]
    for kernel in declared:
        _compare(check, run, kernel, declared, frame, seen)
    return check


def _compare(
    check: Check, run: Run, kernel: str, declared: Mapping[str, Declared], frame: pd.DataFrame, seen: pd.DataFrame
) -> None:
    """Compare the rows that were decided under a declaration."""
    one = declared[kernel]
    got = {log: found for log in frame.index for found in run.features_at.get(log, ())
           if found["versions"]["kernel"] == kernel}  # fmt: skip
    if not got:
        return
    merchants = _of_merchants(run, kernel, declared, frame.assign(**seen))
    decided = frame.index.isin(got)
    want, rows = seen.join(merchants)[decided], frame[decided]
    allowed = tolerances(one.tables, want, rows)
    check.count("rows", len(rows))
    if crossing := int((rows["kernel"] != kernel).sum()):
        check.count("crossing", crossing)
    names = [name for name in one.names if not name.startswith("input_")]
    check.count(f"features of {kernel}", len(names))
    if missing := [name for name in names if name not in want]:
        check.differs(f"{kernel} has no reference of {missing}")
    found = [got[log] for log in rows.index]
    for item in found:
        if [*item["features"]] != [*one.names]:
            check.differs(f"{key_of(item)} has other features than {kernel} declares")
            return
    for name in names:
        values = np.array([item["features"][name] for item in found], np.float64)
        right = want[name].to_numpy(np.float64)
        if name in one.card_names:
            lacking = ~rows["kernel"].map({other: name in declared[other].card_names for other in declared}).to_numpy(
                bool
            )
            right = np.where(lacking, np.nan, right)
        slack = np.maximum(allowed.get(name, 0.0), tolerance(name) * np.abs(np.nan_to_num(right)))
        with np.errstate(invalid="ignore"):
            equal = (np.isnan(values) & np.isnan(right)) | (np.abs(values - right) <= slack) | (values == right)
        check.count("values", len(values))
        check.count("values that are there", int((~np.isnan(values)).sum()))
        for row in np.flatnonzero(~equal).tolist():
            by = rows["kernel"].iloc[row]
            check.differs(
                f"{key_of(found[row])} {name}: the models saw {values[row]!r}, the reference has {right[row]!r} "
                f"(profiled by {by}, decided by {kernel}, at {rows.index[row]})"
            )


def _of_cards(run: Run, one: Declared, frame: pd.DataFrame) -> pd.DataFrame:
    found = features_of("card", one.tables, frame)
    given = card_features(_with_horizon(card_rows(run), one.tables))
    given.index = frame.index
    own = {f"attribute_{name}": frame[name] for name in OWN_NUMBERS}
    return found.assign(**{name: given[name] for name in given if name not in found}, **own)


def _of_merchants(run: Run, kernel: str, declared: Mapping[str, Declared], frame: pd.DataFrame) -> pd.DataFrame:
    tables, columns, features = declared[kernel].tables, dict[str, Any](), list[dict[str, Any]]()
    carried = {other: _carried(one) for other, one in declared.items()}
    for table in tables["features"]:
        value = _input(table)
        if table["entity"] == "merchant" and value is not None:
            column = f"{CARRIED}{'x' * len(columns)}"
            columns[column] = frame["kernel"].map({other: value in carried[other] for other in declared})
            where = column if value[1] is None else f"({value[1]}) and {column}"
            # A name, so that it stays one of windows.
            label = table.get("name") or "_".join(filter(None, (table["aggregate"], table.get("field"))))
            features.append({**table, "where": where, "name": label})
        else:
            features.append(table)
    found = features_of("merchant", {**tables, "features": features}, frame.assign(**columns))
    rows = merchant_rows(run)
    given = merchant_features(_with_horizon(rows, tables))[[row["kind"] == "transaction" for row in rows]]
    given.index = pd.Index([row["log"] for row in rows if row["kind"] == "transaction"], tupleize_cols=False)
    given = given.loc[frame.index]
    return found.assign(**{name: given[name] for name in given if name not in found})


def _input(table: Mapping[str, Any]) -> Input | None:
    """Return the value that a table's windows need of each transaction; None for none but its amount."""
    if table["aggregate"] == "ratio" or is_chosen(table):
        return None
    value = field_of(table), table.get("where")
    return None if value in (("", None), ("amount", None)) else value


def _carried(one: Declared) -> set[Input | None]:
    """Return the values that blocks of a declaration carry."""
    own = {(name, None) for name, field in one.tables["fields"].items() if field["type"] == "number"}
    return {_input(table) for table in one.tables["features"] if table["entity"] == "merchant"} | own


def _with_horizon(rows: Sequence[Row], tables: Mapping[str, Any]) -> pd.DataFrame:
    """Return rows for the reference of built-in features, as if its horizon were that of a declaration."""
    beyond = horizon_of(tables) - USUAL_HORIZON
    return pd.DataFrame([{**row, "partition_newest_us": row["partition_newest_us"] - beyond} for row in rows])


def _frame(run: Run, profiled: Sequence[tuple[Entry, dict[str, Any]]]) -> pd.DataFrame:
    """Return transactions as the reference reads them, by their place on ``profiled``; ``kernel`` profiled them."""
    clocks = {row["log"]: row for row in card_rows(run)}
    rows, places = [], []
    for entry, item in profiled:
        stated, clock = item["transaction"], clocks[entry.log]
        attributes = stated.get("attributes") or {}
        row = {name: stated.get(name) for name in (*TEXTS, "ip") if name not in OWN_TEXTS}
        row["mcc"] = None if row["mcc"] is None else str(row["mcc"])
        row |= {name: value if isinstance(value := attributes.get(name), str) else None for name in OWN_TEXTS}
        row |= {name: np.nan if isinstance(value := attributes.get(name), str | None) else float(value)
                for name in OWN_NUMBERS}  # fmt: skip
        places.append(entry.log)
        rows.append({
            **{name: clock[name] for name in ("card_id", "merchant_id", "event_time_us", "amount_minor", "counts")},
            **row,
            "transaction_type": stated.get("transaction_type") or "purchase",
            "amount": clock["amount_minor"] / 100,
            "hour": clock["hour"],
            "weekday": clock["weekday"],
            "card_partition": run.home(item["card_id"]),
            "merchant_partition": entry.partition,
            "kernel": item["kernel"],
        })  # fmt: skip
    return pd.DataFrame(rows, index=pd.Index(places, tupleize_cols=False))
