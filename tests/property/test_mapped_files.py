"""A file in a shape of its own gives the transactions that the card agent makes of the same rows on its topic."""

import csv
import json
import tempfile
from collections import Counter
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.backtest.input.acceptance import Acceptance, accept_transactions
from pipeline.history.frames import read_transactions
from pipeline.history.mapped_files import RECORD, FileMapping, mapped_tables
from schemas.mapping import Mapper, read_mapping
from schemas.topics import DEAD_LETTERS, TRANSACTIONS
from tests.contract.records import RATES
from tests.helpers.logs import START, Log, after, microseconds, reason, to
from tests.helpers.mappings import CORE
from tests.unit.engine.test_mapped_records import MAPPED, bought, work

NOW = after(days=1)
Row = dict[str, Any]
FIELDS: Final = b"""version = "own"
[fields]
merchant_id = { path = "shop" }
currency = { path = "ccy" }
"""
MINOR: Final = (
    FIELDS
    + b"""
transaction_id = { path = "id" }
event_time = { path = "at" }
card_id = { path = "card" }
amount = { path = "cents", minor = true }
fraud = { path = "charged_back", filled = true }
"""
)
MILLISECONDS: Final = (
    FIELDS
    + b"""
transaction_id = { path = "id" }
event_time = { path = "at", unit = "ms" }
card_id = { path = "card" }
amount = { path = "amount", decimal = "," }
fraud = { path = "bad", values = { Y = "fraud", N = "legitimate" } }
"""
)
NESTED: Final = b"""version = "own"
[fields]
transaction_id = { path = "tx.id" }
event_time = { path = "tx.at", zone = "Europe/Zurich" }
card_id = { path = "card.token" }
merchant_id = { path = "card.shops.0" }
amount = { path = "money.value" }
currency = { path = "money.ccy" }
fraud = { path = "bad", values = { Y = "fraud", N = "legitimate" } }

[attributes]
device_risk = "tx.risk"
"""
DEBEZIUM: Final = CORE.replace(
    b"\n[attributes]", b'fraud = { path = "payload.after.bad", values = { Y = "1", N = "0" } }\n\n[attributes]'
)


def minor(row: Row) -> Row:
    return {**row, "at": row["at"].isoformat(), "charged_back": "2018-06-01" if row["bad"] == "Y" else ""}


def milliseconds(row: Row) -> Row:
    amount = "" if row["cents"] is None else str(Decimal(row["cents"]).scaleb(-2)).replace(".", ",")
    return {**row, "at": microseconds(row["at"]) // 1_000, "amount": amount}


def nested(row: Row) -> Row:
    return {
        "tx": {"id": row["id"], "at": f"{row['at']:%Y-%m-%d %H:%M:%S}", "risk": row["risk"]},
        "card": {"token": row["card"], "shops": [row["shop"]]},
        "money": {"value": None if row["cents"] is None else row["cents"] / 100, "ccy": row["ccy"]},
        "bad": row["bad"],
    }


def debezium(row: Row) -> Row:
    state = {**row, "at": microseconds(row["at"]) // 1_000, "card": {"token": row["card"]}, "kind": "sale"}
    return {"payload": {"op": "c", "before": None, "after": state}}


SHAPES: Final = {
    "minor": (MINOR, minor),
    "ms": (MILLISECONDS, milliseconds),
    "nested": (NESTED, nested),
    "debezium": (DEBEZIUM, debezium),
}
FLAT: Final = ("minor", "ms")
"""Shapes that a CSV can have."""
rows = st.fixed_dictionaries(
    {
        "id": st.integers(1, 12),
        "at": st.integers(0, 40_000).map(lambda seconds: START + timedelta(seconds=seconds)),
        "card": st.sampled_from(["c1", "c2", "", None]),
        "shop": st.sampled_from(["m1", "m2"]),
        "cents": st.one_of(st.integers(1, 10**7), st.sampled_from([0, -5, 10**17, None])),
        "ccy": st.sampled_from(["EUR", "EUR", "EUR", "JPY", "KWD", "XXX", None]),
        "risk": st.one_of(st.none(), st.floats(0, 1)),
        "bad": st.sampled_from(["Y", "N"]),
    }
)


def written(directory: Path, kind: str, own: list[Row]) -> tuple[Path, list[bytes]]:
    """Write a file of rows; return it, and the rows as a producer sends them that has the same types."""
    path = directory / f"rows.{kind}"
    if kind == "csv":
        # Without quotes nothing tells an empty text from none.
        texts = [{name: None if value in ("", None) else str(value) for name, value in row.items()} for row in own]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(own[0]))
            writer.writeheader()
            writer.writerows(texts)
        return path, [json.dumps(row).encode() for row in texts]
    sent = [json.dumps(row).encode() for row in own]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(own), path)
    else:
        path.write_bytes(b"\n\n".join(sent))
    return path, sent


@pytest.mark.parametrize(
    ("shape", "kind"),
    [(shape, kind) for shape in SHAPES for kind in ("csv", "parquet", "jsonl") if kind != "csv" or shape in FLAT],
)
@settings(max_examples=10)
@given(given_rows=st.lists(rows, min_size=1, max_size=12))
def test_rows_of_a_file_are_the_records_of_its_topic(shape: str, kind: str, given_rows: list[Row]) -> None:
    content, own = SHAPES[shape]
    mapping = read_mapping(content)
    with tempfile.TemporaryDirectory() as directory:
        path, sent = written(Path(directory), kind, [own(row) for row in given_rows])
        log = Log(TRANSACTIONS)
        for value in sent:
            log.append(value, NOW)
        live = work(log.records, MAPPED._replace(mapper=Mapper(mapping, RATES)))
        letters = [item for item in to(DEAD_LETTERS, live) if reason(item, "error") != "repeat_differs"]
        letters.sort(key=lambda item: int(reason(item, "offset")))

        by_file = FileMapping(mapping, RATES)
        (table,) = mapped_tables(path, by_file)
        accepted, rejects = accept_transactions(table, Acceptance(RATES, 0))
        values = table.column(RECORD).to_pylist()
        live_values = [json.loads(bytes(message.transaction)) for message in bought(live)]
        contract = [json.loads(values[row]) for row in accepted.row.tolist()]
        # A repeat is decided once.
        assert all(value in contract for value in live_values)
        named = {(value["card_id"], value["transaction_id"]) for value in contract}
        assert len(live_values) == len(named)
        assert Counter(reject.code for reject in rejects) == Counter(reason(item, "error") for item in letters)
        for reject, letter in zip(rejects, letters, strict=True):
            assert letter.value == sent[reject.row]
            assert reason(letter, "message").startswith(reject.text)
        assert len(accepted) + len(rejects) == len(sent)

        refused: list[Any] = []
        frames = list(read_transactions(path, by_file, sort=True, rejects=refused))
        replayed = [value for frame in frames for value in frame[RECORD]]
        assert sorted(replayed) == sorted(values[row] for row in accepted.row.tolist())
        assert refused == rejects
        truth = [given_rows[row]["bad"] == "Y" for row in accepted.row.tolist()]
        assert sorted(truth) == sorted(value for frame in frames for value in frame["fraud"])
