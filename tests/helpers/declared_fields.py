"""A contract with more fields that kernels read: ``python -m tests.helpers.declared_fields`` reads them in all ways.

They are declared at the one place, before anything else is imported, and nothing else is changed. Prints as a JSON
object what the columns hold.
"""

import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

COUNTRY: Final = '    country: Annotated[Description | None, _field("as you have it")] = None\n'
DECLARED: Final = (
    COUNTRY.replace(")]", ", kernels=True)]"),
    '    risk: Annotated[Annotated[float, Meta(ge=0, le=1)] | None, _field("of the device", kernels=True)] = None\n',
)
PLAIN: Final = (("BE", 0.25), (None, None), ("", 1.0), ("FR", 0.0))
"""Values of the two fields that are written in the usual way."""
ODD: Final = (("Österreich", 0.5), (32, 1e-3), ("BE", 1.5), ("BE", "much"))
"""Values that the decoder reads: a number that stands for its text, and two risks that it refuses."""


def declare() -> None:
    """Declare the fields; raises RuntimeError where the contract was imported already."""
    if "schemas.messages" in sys.modules:
        raise RuntimeError("schemas.messages is imported already")
    path = Path(__file__).resolve().parents[2] / "schemas/messages.py"
    source = path.read_text(encoding="utf-8")
    if COUNTRY not in source:
        raise RuntimeError("the declaration of country has changed: adapt it here")
    module = sys.modules["schemas.messages"] = ModuleType("schemas.messages")
    exec(compile(source.replace(COUNTRY, "".join(DECLARED)), path, "exec"), module.__dict__)


def main() -> None:
    """Read the same rows as records, by both ways, from files, from a frame and as a kernel gets them."""
    declare()
    from pipeline.backtest import frame_tables
    from pipeline.backtest.engine.column_kernels import Engine
    from pipeline.backtest.input.acceptance import TRANSACTION_FIELDS, Acceptance
    from pipeline.backtest.input.acceptance import accept_transactions as accept_table
    from pipeline.backtest.input.order import Order, merged
    from pipeline.engine.records import accept
    from pipeline.engine.records.columns import Transactions, no_labels
    from pipeline.features import kernel
    from pipeline.history.files import FIELDS, file_tables
    from pipeline.history.frames import read_transactions
    from pipeline.replay.messages import ENCODER, event_times_us, transaction_messages
    from schemas.export import exported
    from tests.contract.records import ARRIVED_US, RATES, TOLERANCE_US, TRANSACTION
    from tests.helpers.features import OPTIONS
    from tests.helpers.generated import fields_table

    rules = Acceptance(RATES, TOLERANCE_US)

    def found(rows: Transactions, rejects: Any = ()) -> list[Any]:
        columns = zip(*(rows.declared[name].to_pylist() for name in ("country", "risk")), strict=True)
        read = {number: list(values) for number, values in zip(rows.row.tolist(), columns, strict=True)}
        refused = {reject.row: reject.code for reject in rejects}
        return [value for _, value in sorted((read | refused).items())]

    def records(values: Any) -> list[bytes]:
        rows = [
            TRANSACTION | {"transaction_id": f"t{number}", "country": country, "risk": risk}
            for number, (country, risk) in enumerate(values)
        ]
        return [json.dumps({name: value for name, value in row.items() if value is not None}).encode() for row in rows]

    def scanned(values: list[bytes]) -> tuple[Any, Any]:
        return accept.read_fast_path(values, np.full(len(values), ARRIVED_US), RATES)

    def decoded(values: list[bytes]) -> list[Any]:
        # A name with an escape is none that the scanner reads.
        odd = [value[:-1] + b',"\\u0061":1}' for value in values]
        assert not scanned(odd)[0].any()
        return found(*accept.accept_transactions(odd, np.full(len(odd), ARRIVED_US), RATES, TOLERANCE_US))

    def from_tables(tables: Any) -> list[Any]:
        (table,) = tables
        return found(*accept_table(table, rules))

    plain, every = records(PLAIN), records((*PLAIN, *ODD))
    texts = [{name: None if value is None else str(value) for name, value in json.loads(row).items()} for row in every]
    table = pa.Table.from_pylist(texts, pa.schema([(name, pa.string()) for name in (*TRANSACTION, "country", "risk")]))
    typed = pa.Table.from_pylist([json.loads(row) for row in plain])
    rows = scanned(plain)[1]
    seen: list[Any] = []

    def spy(*columns: Any) -> int:
        numbers, texts = columns[-6:-4]
        seen.append([[[None if np.isnan(number) else number for number in row] for row in numbers], texts.tolist()])
        return len(columns[-1])

    kernel.profile_cards = spy  # type: ignore[assignment]
    engine = Engine(OPTIONS)
    engine.profile(merged(rows, no_labels(), Order.EVENT_TIME))
    with tempfile.TemporaryDirectory() as name:
        csv, parquet = Path(name) / "rows.csv", Path(name) / "rows.parquet"
        pacsv.write_csv(table, csv)
        pq.write_table(typed, parquet)
        (frame,) = read_transactions(parquet)
        reported = {
            "scanner": found(rows),
            "plain": scanned(every)[0].tolist(),
            "decoder": decoded(every),
            "csv": from_tables(file_tables(csv)),
            "parquet": from_tables(file_tables(parquet)),
            "frame": from_tables(frame_tables(frame)),
            "replay": decoded([*map(ENCODER.encode, transaction_messages(frame, event_times_us(frame)))]),
            "kernel": seen[0],
            "names": [name in names for names in (TRANSACTION_FIELDS, FIELDS) for name in ("country", "risk")],
            "schema": json.loads(exported()["transaction.json"])["$defs"]["Transaction"]["properties"]["risk"],
            "page": [line for line in fields_table().splitlines() if "risk" in line],
        }
    json.dump(reported, sys.stdout)


if __name__ == "__main__":
    main()
