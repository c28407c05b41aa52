"""Declared features over a field of the contract and two of the producer's own, read in all ways.

``python -m tests.helpers.declared_fields`` prints as a JSON object what the columns hold, and what windows get of them.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

DECLARED: Final = """
[fields.shop]
type = "text"
meaning = "kind of shop"

[fields.risk]
type = "number"
meaning = "risk of the device"

[fields.unread]
type = "text"
meaning = "text that no feature reads"

[[features]]
entity = "card"
aggregate = "distinct"
field = "country"
windows = ["1d"]

[[features]]
entity = "card"
aggregate = "new"
field = "shop"
windows = ["1d"]

[[features]]
entity = "merchant"
aggregate = "mean"
field = "risk"
where = "country = 'BE' or shop = 'web'"
windows = ["90d"]
"""
NAMES: Final = ("country", "shop", "risk")
PLAIN: Final = (("BE", "web", 0.25), (None, None, None), ("", "", 1.0), ("FR", "it's", 0.0))
"""Values of the three fields that are written in the usual way."""
ODD: Final = ((32, "Österreich", 0.5), ("BE", 7, "much"))
"""A number that stands for its text in a field of the contract, and does not among attributes; a text that is none."""


def main() -> None:
    """Read the same rows as records, by both ways, from files, from a frame and from the records of a replay."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(DECLARED)
        file.flush()
        os.environ["FRAUD_PIPELINE_FEATURES_FILE"] = file.name
        import pipeline  # noqa: F401 (which declares them)
    from pipeline.backtest import frame_tables
    from pipeline.backtest.input.acceptance import Acceptance
    from pipeline.backtest.input.acceptance import accept_transactions as accept_table
    from pipeline.engine.records import accept
    from pipeline.engine.records.columns import Transactions
    from pipeline.engine.records.inputs import card_inputs, fill_columns
    from pipeline.features.catalogue import CARD_INPUTS, FEATURES, INPUT_COLUMNS
    from pipeline.history.files import file_tables
    from pipeline.history.frames import read_transactions
    from pipeline.replay.messages import ENCODER, event_times_us, transaction_messages
    from tests.contract.records import ARRIVED_US, RATES, TOLERANCE_US, TRANSACTION

    def found(rows: Transactions, rejects: Sequence[Any] = ()) -> list[Any]:
        assert not rejects, rejects
        assert rows.attributes is not None
        numbers = [None if np.isnan(number) else number for number in rows.attributes[:, 0].tolist()]
        columns = rows.text("country").to_pylist(), rows.text("shop").to_pylist(), numbers
        return [list(values) for values in zip(*columns, strict=True)]

    def record(number: int, values: Sequence[Any]) -> bytes:
        row = dict(zip(NAMES, values, strict=True))
        country = {} if row["country"] is None else {"country": row["country"]}
        attributes = {name: row[name] for name in ("shop", "risk") if row[name] is not None}
        own: Mapping[str, Any] = {"attributes": {**attributes, "more": 1}} if attributes else {}
        return json.dumps({**TRANSACTION, "transaction_id": f"t{number}", **country, **own}).encode()

    def scanned(values: list[bytes]) -> tuple[Any, Transactions]:
        return accept.read_fast_path(values, np.full(len(values), ARRIVED_US), RATES)

    def decoded(values: list[bytes]) -> list[Any]:
        # A name with an escape is none that the scanner reads.
        odd = [value[:-1] + b',"\\u0061":1}' for value in values]
        assert not scanned(odd)[0].any()
        return found(*accept.accept_transactions(odd, np.full(len(odd), ARRIVED_US), RATES, TOLERANCE_US))

    def from_tables(tables: Any) -> list[Any]:
        (table,) = tables
        return found(*accept_table(table, Acceptance(RATES, TOLERANCE_US)))

    plain = [record(number, values) for number, values in enumerate(PLAIN)]
    every = [record(number, values) for number, values in enumerate((*PLAIN, *ODD))]
    names = ("country", "attribute_shop", "attribute_risk")
    table = pa.Table.from_pylist(
        [
            TRANSACTION | {"transaction_id": f"t{number}"} | dict(zip(names, values, strict=True))
            for number, values in enumerate(PLAIN)
        ]
    )
    both = pa.Table.from_pylist(
        [
            TRANSACTION | {"transaction_id": f"t{number}", "country": country, "attributes": attributes}
            for number, (country, attributes) in enumerate(
                (values[0], json.dumps({"shop": values[1], "risk": values[2]})) for values in PLAIN
            )
        ]
    )
    rows = accept.accept_transactions(every, np.full(len(every), ARRIVED_US), RATES, TOLERANCE_US)[0]
    features = np.full((len(rows), len(FEATURES)), 3.0)
    fill_columns(rows, features)
    inputs = card_inputs(rows)
    assert inputs is not None
    with tempfile.TemporaryDirectory() as name:
        csv, parquet = Path(name) / "rows.csv", Path(name) / "rows.parquet"
        pacsv.write_csv(table, csv)
        pq.write_table(table, parquet)
        (frame,) = read_transactions(parquet)
        reported = {
            "scanner": found(scanned(plain)[1]),
            "plain": scanned(every)[0].tolist(),
            "accepted": found(rows),
            "decoder": decoded(every),
            "csv": from_tables(file_tables(csv)),
            "parquet": from_tables(file_tables(parquet)),
            "objects": from_tables([both]),
            "frame": from_tables(frame_tables(frame)),
            "replay": decoded([*map(ENCODER.encode, transaction_messages(frame, event_times_us(frame)))]),
            "inputs": [given.field for given in CARD_INPUTS],
            "codes": [[None if np.isnan(code) else code for code in row] for row in inputs.tolist()],
            "carried": [None if np.isnan(value) else value for value in features[:, INPUT_COLUMNS[-1]].tolist()],
            "declared": sorted(rows.declared),
        }
    json.dump(reported, sys.stdout)


if __name__ == "__main__":
    main()
