"""Files of transactions as tables of the wire contract: Parquet and CSV, in bounded memory, with a column mapping."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pipeline.features.attributes import COLUMNS
from pipeline.history.canonical_columns import PASSED_ON, UnusableSource, numbers
from pipeline.settings.secret_files import is_url
from schemas.fields import DECLARED_FIELDS
from schemas.mapping import TRUTH

REQUIRED: Final = tuple(field.name for field in DECLARED_FIELDS if field.required and field.name != "currency")
"""Fields that a file must have a column for: one currency may be said for all of it."""
FIELDS: Final = (*REQUIRED, "currency", *TRUTH, *PASSED_ON, *COLUMNS)

HANDBOOK: Final[Mapping[str, str]] = {
    "transaction_id": "TRANSACTION_ID",
    "event_time": "TX_DATETIME",
    "card_id": "CUSTOMER_ID",
    "merchant_id": "TERMINAL_ID",
    "amount": "TX_AMOUNT",
    "fraud": "TX_FRAUD",
    "fraud_type": "TX_FRAUD_SCENARIO",
}
CANONICAL: Final[Mapping[str, str]] = {name: name for name in FIELDS}
CANONICAL_ATTRIBUTES: Final[Mapping[str, str]] = {name: name for name in COLUMNS}
PRESETS: Final[Mapping[str, Mapping[str, str]]] = {"canonical": CANONICAL, "handbook": HANDBOOK}
ZERO_AMOUNT_TYPES: Final[Mapping[str, str]] = {"handbook": "verification"}
"""The transaction type of rows with amount zero, which a purchase may not have, by preset. The Handbook's simulator
rounds small draws to zero and has no types."""

_OTHER_DECIMALS: Final = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}
_DECIMALS: Final = {code: decimals for decimals, codes in _OTHER_DECIMALS.items() for code in codes.split()}
STAMP: Final = "timestamp"
"""Column of when the record arrived, as Kafka stamps it; absent or null: at its own time."""
SEQUENCE: Final = "sequence"
"""Column of a whole number by which a recorded order goes."""
CHUNK_ROWS: Final = 16_384
"""Rows of a table: large enough for what one costs, small enough for its features to stay near the processor."""

PARQUET: Final = (".parquet", ".pq")
TABLES: Final = (*PARQUET, ".csv", ".csv.gz")
JSON_LINES: Final = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
_SEPARATORS: Final = {b";": "semicolons", b"\t": "tabs", b"|": "vertical bars"}
_HEADER_BYTES: Final = 65_536
_DAY_FIRST: Final = re.compile(r"\d{1,2}[./-]\d{1,2}[./-]\d{4}\b")
_PLAIN_TIME: Final = r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)?$"
_OFFSET: Final = re.compile(r":\S*(?:[Zz]|[+-]\d\d(?::?\d\d)?)$")
_SINCE_1970: Final = re.compile(r"\d{9,19}(\.\d+)?")


@dataclass(frozen=True, slots=True)
class ColumnMapping:
    """The assignment of a file's columns to fields.

    ``columns`` maps names of ``FIELDS`` to the file's own; ``currency`` holds where no column is mapped to it, and
    ``time_zone`` for times without an offset (a local time that occurs twice is taken as the first of the two).
    ``zero_amount_type`` is the ``transaction_type`` of rows with amount zero, where no column is mapped to that.
    """

    columns: Mapping[str, str] = field(default_factory=lambda: dict(CANONICAL))
    currency: str = "EUR"
    time_zone: str = "UTC"
    zero_amount_type: str | None = None


def currency_decimals(currency: str) -> int:
    """Decimals of a currency's minor unit (ISO 4217); two where nothing else is known.

    >>> currency_decimals("EUR"), currency_decimals("JPY"), currency_decimals("KWD")
    (2, 0, 3)
    """
    return _DECIMALS.get(currency, 2)


def resolve_mapping(path: Path) -> ColumnMapping:
    """Find the mapping for a file whose columns have the names of a preset.

    Args:
        path: A Parquet or CSV file; its columns and its first time are read.

    Raises:
        UnusableSource: The file lacks a required column, or cannot be read.
    """
    present = column_names(path)
    preset = next((name for name, names in PRESETS.items() if {*map(names.get, REQUIRED)} <= {*present}), "canonical")
    taken = {*FIELDS, *PRESETS[preset].values()}
    attributes = {
        column: name
        for column, name in COLUMNS.items()
        # A column that holds another field, such as the truth, is no attribute of the same name.
        if column not in present and name not in taken
    }
    mapped = {**CANONICAL_ATTRIBUTES, **PRESETS[preset], **attributes}
    columns = {name: column for name, column in mapped.items() if column in present}
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise UnusableSource(
            f"{path}: no column is known for {', '.join(missing)}; say which is it in a mapping, and give that with "
            f"--mapping (the file has {', '.join(present)})"
        )
    _check_first_time(path, columns["event_time"])
    return ColumnMapping(columns, zero_amount_type=ZERO_AMOUNT_TYPES.get(preset))


def _check_first_time(path: Path, column: str) -> None:
    """Refuse a file whose first time is written in a way that no row could be read by."""
    table = next(read_tables(path, [column], batch_rows=1), None)
    value = table.column(column)[0].as_py() if table is not None and table.num_rows else None
    text = "" if value is None else str(value)
    if _DAY_FIRST.match(text):
        way = "begins with day or month"
    elif _SINCE_1970.fullmatch(text):
        way = "counts from 1970"
    else:
        return
    raise UnusableSource(f"{path}, row 1, column {column}: {text} {way}; write it as 2018-04-01T00:00:31Z")


def file_tables(path: Path, mapping: ColumnMapping | None = None, chunk_rows: int = CHUNK_ROWS) -> Iterator[pa.Table]:
    """A file of transactions as tables with the columns of the wire contract.

    Columns `STAMP` and `SEQUENCE` are read where the file has them.

    Args:
        path: A Parquet or CSV file.
        mapping: The file's own names (`resolve_mapping`). Its currency holds where no column says one, and its
            ``zero_amount_type`` for amounts of zero. None: the mapping is found by the file's columns.
        chunk_rows: Most rows of a table.

    Raises:
        UnusableSource: The file cannot be read, or its times are numbers.
    """
    mapping = mapping or resolve_mapping(path)
    present = column_names(path)
    names = dict(mapping.columns) | {name: name for name in (STAMP, SEQUENCE) if name in present}
    for table in read_tables(path, list(dict.fromkeys(names.values())), chunk_rows):
        columns = {name: table.column(column) for name, column in names.items()}
        kind = columns["event_time"].type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            raise UnusableSource(
                f"{path}: column {mapping.columns['event_time']} holds numbers; write times as "
                "2018-04-01T00:00:31Z, so that their unit and zone are known"
            )
        if pa.types.is_date(kind):
            columns["event_time"] = columns["event_time"].cast(pa.timestamp("us"))
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            columns["event_time"] = _plain_times(columns["event_time"].cast(pa.string()))
        if "currency" not in columns:
            columns["currency"] = pa.array([mapping.currency] * table.num_rows, pa.string())
        if mapping.zero_amount_type is not None and "transaction_type" not in columns:
            zero = numbers(columns["amount"])[0] == 0
            columns["transaction_type"] = pc.if_else(pa.array(zero), mapping.zero_amount_type, None)
        yield pa.table(columns)


def _plain_times(column: pa.ChunkedArray) -> pa.Array:
    """Write ISO 8601 that the wire contract does not take, such as a date alone, as it does."""
    given = column.combine_chunks()
    others = pc.fill_null(pc.invert(pc.match_substring_regex(given, _PLAIN_TIME)), False)
    if not pc.any(others).as_py():
        return given
    texts = given.filter(others).to_pylist()
    times = pd.to_datetime(pd.Series(texts), format="ISO8601", errors="coerce", utc=True)
    written = [
        f"{time:%Y-%m-%dT%H:%M:%S.%f}{'Z' if _OFFSET.search(text) else ''}" if is_time else text
        for text, time, is_time in zip(texts, times, times.notna(), strict=True)
    ]
    return pc.replace_with_mask(given, others, pa.array(written, given.type))


def refuse_url(path: Path) -> None:
    """Raise `UnusableSource` for a path that was a URL, such as ``s3://``."""
    if is_url(path):
        raise UnusableSource(f"{path} is a URL: copy it to a disk of this machine, and name its path there")


def is_json(path: Path) -> bool:
    """Tell whether a file holds JSON lines, by its name."""
    return path.name.lower().endswith(JSON_LINES)


@contextmanager
def reading(path: Path) -> Iterator[bool]:
    """Yield whether a file is Parquet; what fails in the context raises `UnusableSource`."""
    refuse_url(path)
    if not path.is_file():
        raise UnusableSource(f"there is no file {path}")
    parquet = path.name.lower().endswith(PARQUET)
    if not path.name.lower().endswith((*TABLES, *JSON_LINES)):
        raise UnusableSource(f"{path}: unknown file type; use .parquet, .pq, .csv, .csv.gz, .jsonl or .jsonl.gz")
    try:
        yield parquet
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        advice = "; save it as UTF-8" if re.search("utf-?8", str(error), re.IGNORECASE) else ""
        kind = "parquet" if parquet else "JSON lines" if is_json(path) else "csv"
        raise UnusableSource(f"{path} cannot be read as {kind}: {error}{advice}") from error


def column_names(path: Path) -> list[str]:
    """The columns of a file; raises `UnusableSource` for one that cannot be read."""
    with reading(path) as parquet:
        if parquet:
            return list(pq.read_schema(path).names)
        if is_json(path):
            raise UnusableSource(f"{path} has no columns: say where its fields are in a mapping (--mapping)")
        # Before a parser divides the rows at commas, which may stand in amounts.
        with pa.input_stream(path) as stream:
            header = stream.read(_HEADER_BYTES).partition(b"\n")[0]
        if not header:
            raise UnusableSource(f"{path} is empty: write a line of column names, then a transaction a line")
        for separator, word in _SEPARATORS.items():
            if b"," not in header and separator in header:
                raise UnusableSource(
                    f"{path}: its columns stand between {word}: write commas between columns, and points in amounts"
                )
        with pacsv.open_csv(path) as reader:
            return list(reader.schema.names)


def read_tables(path: Path, columns: list[str], batch_rows: int) -> Iterator[pa.Table]:
    """Yield columns of a file in tables; those of a CSV are text, empty ones null.

    Args:
        path: A Parquet or CSV file.
        columns: Names of its columns.
        batch_rows: Most rows of a table.

    Raises:
        UnusableSource: The file cannot be read.
    """
    with reading(path) as parquet:
        if parquet:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=batch_rows, columns=columns):
                    yield pa.Table.from_batches([batch])
            return
        # All is read as text: a type guessed from the first block fails in a later one, and identifiers lose zeros.
        convert = pacsv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
        )
        with pacsv.open_csv(path, convert_options=convert) as reader:
            for batch in reader:
                for first in range(0, batch.num_rows, batch_rows):
                    yield pa.Table.from_batches([batch.slice(first, batch_rows)])
