"""Rows and files of exports: nothing of a record is lost, and a directory is taken for what it is."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.backtest.input.acceptance import Acceptance, accept_labels, accept_transactions
from pipeline.backtest.input.label_book import LabelBook
from pipeline.backtest.input.merge import Numbering
from pipeline.backtest.input.topic_source import labels_of, transactions_of
from pipeline.engine.records.columns import Reject
from pipeline.exports.intended_contents import Contents, Offsets, check_whole, contents_path, note_contents
from pipeline.exports.parquet_files import ExportError, Missing, Origin, TopicFiles, missing, origin_of
from pipeline.exports.rows import ERROR, VALUE, RowFormat
from pipeline.exports.topic_export import named, row_format
from pipeline.features.catalogue import FEATURES
from pipeline.kafka.readers.replay_reader import RecordColumns
from pipeline.learning.label_sources import NOT_ALLOWED, LabelSources
from pipeline.settings import Settings
from pipeline.settings.rate_table import load_rates
from schemas.mapping import Mapper, read_mapping
from schemas.messages import Transaction
from schemas.records import Record
from schemas.topics import DEAD_LETTERS, DECISIONS, LABELS, MODELS, TOPICS, TRANSACTIONS, Topic
from tests.helpers.logs import after, decision, label, microseconds, transaction
from tests.helpers.mappings import CENTS

GOLDEN = Path(__file__).resolve().parents[3] / "schemas" / "golden"
ORIGIN = Origin("cluster", "transactions", "id", 3)


def records(topic: Topic, values: list[bytes | None]) -> list[Record]:
    at_ms = microseconds(after(1)) // 1_000
    return [Record(topic.name, 0, offset, at_ms, b"k", value) for offset, value in enumerate(values)]


def columns(values: list[bytes | None]) -> RecordColumns:
    at_ms = np.full(len(values), microseconds(after(1)) // 1_000)
    return RecordColumns(0, np.arange(len(values)), at_ms, values)


def table(topic: Topic, values: list[bytes | None]) -> pa.Table:
    form = RowFormat(topic)
    return pa.Table.from_batches([form.rows(records(topic, values))], form.schema)


SAID_BY_COLUMNS = [
    transaction(1),
    transaction(2, amount=0.07, currency="JPY"),
    transaction(3, attributes={"a": 1, "b": None, "c": "x"}, schema_version=2),
    transaction(4, amount="12.50", local_time="2024-03-01T23:59:59+05:00", mcc="é\u0000"),
    transaction(5, amount=-3),
    transaction(6, amount=1.2345),
    transaction(7, amount=9_999_999.99),
]
KEPT_AS_BYTES = [
    transaction(20, amount=1e-9),
    transaction(21, amount=12_345_678.91),
    transaction(22, amount="1_000"),
    transaction(23, amount="NaN"),
    transaction(24, of_ours={"deep": [1, 2]}),
    transaction(25, event_time="9999-12-31T23:59:59-12:00"),
    transaction(26, event_time="0001-01-01T00:00:00Z"),
    transaction(27, schema_version=10**30),
    transaction(28, mcc=5411),
    transaction(28).replace(b'"EUR"', b'"EUR","amount":3'),
    transaction(28).replace(b'"EUR"', b'"EUR","amount":4,"am\\u006funt":3'),
    transaction(45).replace(b"12.34", b"1e400"),
    transaction(29, note="x" * 1_100_000),
    transaction(30, account_id="x" * 1_100_000),
    transaction(31).replace(b'"EUR"', b'"EUR","ours":"\xff"'),
]
NOT_DECODED: list[bytes | None] = [
    b"", b"nonsense", b"\xff\xfe", b"[]", b"null", None, transaction(40, amount=None), transaction(41, card_id=""),
    transaction(42, card_id="x" * 257), transaction(43, event_time="yesterday"), transaction(44, amount={}),
    b'{"a":' * 5_000, transaction(46, currency="eur"),
    transaction(47, card_id="\ud800"), transaction(48).replace(b'"EUR"', b'"EUR","amount":"abc","amount":3'),
]  # fmt: skip


def test_columns_say_what_the_record_does_or_its_bytes_are_kept() -> None:
    values = [*SAID_BY_COLUMNS, *KEPT_AS_BYTES, *NOT_DECODED]
    rows = table(TRANSACTIONS, values).to_pylist()
    reported, kept, without = (rows[: len(SAID_BY_COLUMNS)], rows[len(SAID_BY_COLUMNS) : -len(NOT_DECODED)],
                           rows[-len(NOT_DECODED) :])  # fmt: skip
    for row, value in zip(reported, SAID_BY_COLUMNS, strict=True):
        assert (row[VALUE], row[ERROR]) == (None, None)
        emitted = {name: row[name] for name in Transaction.__struct_fields__ if row[name] is not None}
        if "attributes" in emitted:
            emitted["attributes"] = json.loads(emitted["attributes"])
        emitted["amount"] = str(emitted["amount"])
        assert msgspec.convert(emitted, Transaction, strict=False) == msgspec.json.decode(value, type=Transaction)
    assert [row[VALUE] for row in kept] == KEPT_AS_BYTES
    assert [row[ERROR] for row in kept] == [None] * len(kept)
    assert [row["transaction_id"] for row in kept if row["transaction_id"] is None] == []
    assert [row[VALUE] for row in without] == NOT_DECODED
    assert all(row[ERROR] for row in without)
    assert {row["transaction_id"] for row in without} == {None}
    assert [row["offset"] for row in rows] == list(range(len(values)))


@pytest.mark.parametrize("shuffled", [0, 1])
def test_rows_are_accepted_and_refused_as_the_records_are(shuffled: int) -> None:
    acceptance = Acceptance(load_rates(Settings()), 3_600_000_000)
    values: list[bytes | None] = [
        *SAID_BY_COLUMNS, *KEPT_AS_BYTES, *NOT_DECODED, transaction(50, amount="1e1"), transaction(51, amount=0),
        transaction(52, currency="XXX"), transaction(53, after(9)), transaction(54, amount="+5"),
    ]  # fmt: skip
    if shuffled:
        np.random.default_rng(0).shuffle(values)  # type: ignore[arg-type]
    rejects: list[Reject] = []
    expected = transactions_of(columns(values), acceptance, Numbering(1), rejects).rows
    found, refused = accept_transactions(table(TRANSACTIONS, values), acceptance)
    assert [(reject.row, reject.code) for reject in refused] == [(reject.row, reject.code) for reject in rejects]
    assert {reject.code for reject in refused} > {"null_value", "too_large", "not_utf8", "amount_too_many_decimals"}
    for name in ("row", "transaction_id", "card_id", "event_time_us", "amount_minor", "amount_base_minor", "hour"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name


def test_a_record_of_too_many_names_keeps_its_bytes_and_is_refused_as_it_was() -> None:
    values: list[bytes | None] = [transaction(1, attributes={f"k{number}": "x" for number in range(1_000)})]
    rows = table(TRANSACTIONS, values)
    assert rows[VALUE].to_pylist() == values
    _, rejects = accept_transactions(rows, Acceptance(load_rates(Settings()), 0))
    assert [reject.code for reject in rejects] == ["too_many_fields"]


def test_labels_are_accepted_and_refused_as_the_records_are() -> None:
    sources = LabelSources({"labels": frozenset({"analyst"})}, simulated=False)
    acceptance = Acceptance(load_rates(Settings()), 3_600_000_000, sources=sources)
    values: list[bytes | None] = [
        label(1), label(2, known="odd"), label(3, note="ours", of_ours=1), label(4, after(9)), None, b"{}",
        label(5, source="x" * 65), label(6, source="audit"), label(7, source="audit", note="x" * 3000),
    ]  # fmt: skip
    rejects: list[Reject] = []
    expected = labels_of(columns(values), acceptance, Numbering(1), rejects, LabelBook(), "labels").rows
    found, refused = accept_labels(table(LABELS, values), acceptance, topic="labels")
    assert [(reject.row, reject.code) for reject in refused] == [(reject.row, reject.code) for reject in rejects]
    assert [reject.code for reject in refused[-2:]] == [NOT_ALLOWED, NOT_ALLOWED]
    assert len(refused) == 6
    for name in ("row", "transaction_id", "known", "rank", "known_at_us"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_every_topic_has_columns_of_its_own_that_no_record_changes(topic: Topic) -> None:
    schema = row_format(topic).schema
    assert len(set(schema.names)) == len(schema.names)
    raw = topic.name in {"rerouted", "accepted-labels", "profiled", "dead-letters"}
    assert (ERROR in schema.names) is not raw
    none = row_format(topic).rows([])
    assert (none.schema.equals(schema), none.num_rows) == (True, 0)
    values: list[bytes | None] = [b"\xff", None, b"{}"]
    found = row_format(topic).rows(records(topic, values))
    assert found.schema.equals(schema)
    assert found.column(VALUE).to_pylist() == values


def written() -> list[tuple[str, Path]]:
    """Topic and file of each golden message whose topic is not kept as bytes."""
    source = {"transaction": "transactions", "label": "labels", "decision": "decisions", "alert": "alerts",
          "example": "examples", "progress": "progress"}  # fmt: skip
    # Rows of features are no records of their own.
    paths = sorted(path for path in GOLDEN.rglob("*.json") if not path.stem.startswith("decision-features"))
    return [(topic, path) for path in paths for kind, topic in source.items() if path.stem.startswith(kind)]


@pytest.mark.parametrize(
    ("name", "path"), [pytest.param(name, path, id=f"{path.parent.name}/{path.name}") for name, path in written()]
)
def test_messages_as_they_are_written_need_no_bytes(name: str, path: Path) -> None:
    topic = next(topic for topic in TOPICS if topic.name == name)
    value = path.read_bytes().strip()
    (row,) = table(topic, [value]).to_pylist()
    assert row[ERROR] is None
    flat = dict(flattened(json.loads(value)))
    reported = {name: item for name, item in row.items() if item is not None}
    unknown = {name for name in flat if name not in RowFormat(topic).schema.names}
    assert (row[VALUE] is not None) == bool(unknown), unknown
    assert {name for name, item in flat.items() if item is not None} - unknown <= set(reported)


def flattened(fields: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    whole = {"attributes", "starts", "ends", "rules", "transaction", "label"}
    for name, value in fields.items():
        if name == "features" and isinstance(value, dict):
            yield from ((f"feature_{feature}", number) for feature, number in value.items())
        elif isinstance(value, dict) and name not in whole:
            yield from flattened(value, f"{before}{name}_")
        else:
            yield f"{before}{name}", value


def test_features_are_columns_and_those_of_another_release_stay_bytes() -> None:
    known = {name: float(number) for number, name in enumerate(FEATURES)}
    values = [decision(1, features=known), decision(2, features={"amount": None, "of_old": 1.0}), decision(3)]
    rows = table(DECISIONS, [*values]).to_pylist()
    assert {name: rows[0][f"feature_{name}"] for name in FEATURES} == known
    assert [row[VALUE] for row in rows] == [None, values[1], None]
    assert (rows[2]["feature_amount"], rows[2]["feature_card_usual_amount"]) == (12.34, None)
    assert rows[0]["versions_lightgbm"] == "base"
    assert (rows[0]["source_offset"], rows[0]["log_offset"]) == (1, 2)


def test_a_decision_without_features_has_nulls_in_their_columns() -> None:
    slim = decision(1, features=None)
    absent = slim.replace(b'"features":null,', b"")
    assert len(absent) < len(slim)
    rows = table(
        DECISIONS, [absent, slim, decision(2, features={}), decision(3, features={"amount": None})]
    ).to_pylist()
    assert {row[f"feature_{name}"] for row in rows for name in FEATURES} == {None}
    assert [row[VALUE] is None for row in rows] == [True, True, False, False]
    assert [row[ERROR] for row in rows] == [None] * 4
    assert [row["amount"] for row in rows] == [12.34] * 4


def test_headers_and_keys_are_kept() -> None:
    record = Record("dead-letters", 2, 7, 5, None, None, (("why", b"x"), ("empty", None), ("why", b"\xff")))
    (row,) = RowFormat(DEAD_LETTERS).rows([record]).to_pylist()
    assert row["headers"] == [
        {"name": "why", "value": b"x"}, {"name": "empty", "value": None}, {"name": "why", "value": b"\xff"},
    ]  # fmt: skip
    assert (row["key"], row[VALUE], row["partition"], row["offset"]) == (None, None, 2, 7)


@pytest.mark.parametrize(
    ("covered", "expected"),
    [
        ([], Missing([range(5, 10)], True)),
        ([range(5, 10)], Missing([], True)),
        ([range(0, 7)], Missing([range(7, 10)], True)),
        ([range(7, 20)], Missing([range(5, 7)], True)),
        ([range(6, 7), range(8, 9)], Missing([range(5, 6), range(7, 8), range(9, 10)], True)),
        ([range(0, 4)], Missing([range(5, 10)], False)),
        ([range(0, 5)], Missing([range(5, 10)], True)),
        ([range(11, 12)], Missing([range(5, 10)], False)),
        ([range(0, 2), range(4, 20)], Missing([], False)),
    ],
)
def test_what_is_missing_is_what_no_file_holds(covered: list[range], expected: Missing) -> None:
    assert missing(range(5, 10), covered) == expected


def files(directory: Path, origin: Origin = ORIGIN, topic: Topic = TRANSACTIONS) -> TopicFiles:
    return TopicFiles(directory / "transactions", origin, RowFormat(topic).schema)


def write(files: TopicFiles, number: int, start: int, end: int) -> Path:
    with files.part(number, start) as part:
        part.add(RowFormat(TRANSACTIONS).rows(records(TRANSACTIONS, [transaction(item) for item in range(start, end)])))
        part.finish(end)
    return files.directory / f"kafka_partition={number}" / f"{start:020d}-{end:020d}.parquet"


def fill_the_disk(files: TopicFiles) -> None:
    with files.part(0, 5) as part:
        part.add(RowFormat(TRANSACTIONS).rows(records(TRANSACTIONS, [transaction(5)])))
        assert files.covered(0) == [range(0, 5)]
        raise OSError("the disk is full")


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    source = files(tmp_path)
    with source.held():
        write(source, 0, 0, 5)
        with pytest.raises(OSError, match="full"):
            fill_the_disk(source)
        assert [path.name for path in (source.directory / "kafka_partition=0").iterdir()] == [
            "00000000000000000000-00000000000000000005.parquet"
        ]
    left = source.directory / "kafka_partition=0" / ".00000000000000000005.unfinished"
    left.write_bytes(b"PAR1")
    with source.held():
        assert not left.exists()
        assert source.covered(0) == [range(0, 5)]
        write(source, 0, 5, 9)
        write(source, 1, 0, 2)
        with pytest.raises(ExportError, match="another process exports into"), files(tmp_path).held():
            pass
    whole = ds.dataset(source.directory, partitioning="hive").to_table()
    assert whole.num_rows == 11
    assert pq.read_table(source.directory).column("kafka_partition").to_pylist() == [0] * 9 + [1] * 2
    assert origin_of(pq.read_schema(write(source, 2, 0, 1))) == ORIGIN
    assert pq.read_schema(write(source, 2, 1, 2)).equals(source.schema, check_metadata=True)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.rename(path.with_name("notes.parquet")), "is no file of an export"),
        (lambda path: path.with_name(f"{3:020d}-{9:020d}.parquet").write_bytes(path.read_bytes()), "hold offset 3"),
        (lambda path: pq.write_table(pa.table({"a": [1]}), path), "has other columns"),
    ],
)
def test_what_is_there_is_checked(tmp_path: Path, spoil: Any, text: str) -> None:
    source = files(tmp_path)
    spoil(write(source, 0, 0, 5))
    with pytest.raises(ExportError, match=text):
        source.covered(0)


@pytest.mark.parametrize(
    "other", [Origin("elsewhere", "transactions", "id", 3), Origin("cluster", "transactions", "new", 3)]
)
def test_a_directory_of_another_cluster_or_topic_is_refused(tmp_path: Path, other: Origin) -> None:
    write(files(tmp_path, other), 0, 0, 5)
    with pytest.raises(ExportError, match=r"holds topic transactions .*: name another directory"):
        files(tmp_path).covered(0)
    with pytest.raises(ExportError, match="has other columns than this release writes"):
        files(tmp_path, other, LABELS).covered(0)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A topic's directory with offsets 0 to 9 of partition 0 in three files, 4 to 7 of partition 1, none of 2."""
    source = files(tmp_path)
    for number, start, end in ((0, 0, 3), (0, 3, 5), (0, 5, 9), (1, 4, 7)):
        write(source, number, start, end)
    note_contents(source.directory, Contents(ORIGIN, {0: Offsets(0, 9), 1: Offsets(4, 7)}))
    return source.directory


def part(directory: Path, number: int, start: int, end: int) -> Path:
    return directory / f"kafka_partition={number}" / f"{start:020d}-{end:020d}.parquet"


def test_a_whole_export_is_taken_as_it_is(whole: Path) -> None:
    assert check_whole(whole) == []
    # What another export is about to add is no part of it.
    (whole / "kafka_partition=0" / f".{9:020d}.unfinished").write_bytes(b"PAR1")
    assert check_whole(whole) == []
    foreign = whole.parent / "foreign" / "kafka_partition=0"
    foreign.mkdir(parents=True)
    pq.write_table(pa.table({"a": [1]}), foreign / "0.parquet")
    assert check_whole(foreign.parent) == []
    assert check_whole(whole.parent / "nothing") == []


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda source: part(source, 0, 0, 3).unlink(), "lacks offsets 0 to 3 of partition 0"),
        (lambda source: part(source, 0, 3, 5).unlink(), "lacks offsets 3 to 5 of partition 0"),
        (lambda source: part(source, 0, 5, 9).unlink(), "lacks offsets 5 to 9 of partition 0"),
        (lambda source: shutil.rmtree(source / "kafka_partition=1"), "lacks offsets 4 to 7 of partition 1"),
        (shutil.rmtree, "lacks offsets 0 to 9 of partition 0"),
        (lambda source: part(source, 1, 4, 7).write_bytes(b"PAR1"), "is damaged"),
        (lambda source: write(files(source.parent), 0, 4, 6), "hold offset 4"),
        (
            lambda source: shutil.copytree(source / "kafka_partition=1", source / "kept"),
            "is no file of the export beside it",
        ),
        (
            lambda source: write(files(source.parent, Origin("cluster", "transactions", "new", 3)), 2, 0, 1),
            "is no file of the export beside it",
        ),
        (lambda source: contents_path(source).write_text("{}"), "does not tell what an export wrote"),
    ],
)
def test_an_export_that_is_not_whole_is_refused(whole: Path, spoil: Any, text: str) -> None:
    spoil(whole)
    with pytest.raises(ExportError, match=text):
        check_whole(whole)


def test_without_a_note_an_export_is_checked_as_far_as_names_tell(whole: Path) -> None:
    contents_path(whole).unlink()
    (warning,) = check_whole(whole)
    assert "nothing else tells whether all files are there; there is none of partition 2, of 3" in warning
    left = whole / "kafka_partition=1" / f".{7:020d}.unfinished"
    left.write_bytes(b"PAR1")
    with pytest.raises(ExportError, match="was not finished"):
        check_whole(whole)
    left.unlink()
    part(whole, 0, 3, 5).unlink()
    with pytest.raises(ExportError, match="lacks offsets 3 to 5 of partition 0"):
        check_whole(whole)


def test_topics_are_named_by_what_they_hold() -> None:
    assert named("models") == ("models", MODELS)
    assert named("candidate=decisions") == ("candidate", DECISIONS)
    for text in ("candidate", "candidate=candidate", "=decisions", ""):
        with pytest.raises(ExportError, match="is no topic of the pipeline"):
            named(text)


def test_a_mapping_reads_the_bytes_of_every_exported_transaction() -> None:
    values = [transaction(number, amount=1_250 + number) for number in range(3)]
    mapper = Mapper(read_mapping(CENTS), load_rates(Settings()))
    acceptance = Acceptance(load_rates(Settings()), 3_600_000_000, mapper=mapper)
    kept = pa.Table.from_batches([row_format(TRANSACTIONS, mapped=True).rows(records(TRANSACTIONS, values))])
    found, refused = accept_transactions(kept, acceptance)
    assert (found.amount_minor.tolist(), refused) == ([1_250, 1_251, 1_252], [])
    with pytest.raises(ValueError, match="this export lacks the bytes that a mapping reads: export"):
        accept_transactions(table(TRANSACTIONS, values), acceptance)
    # A table that is no export has columns of the contract.
    plain = table(TRANSACTIONS, values).drop_columns([VALUE, ERROR])
    assert accept_transactions(plain, acceptance)[0].amount_minor.tolist() == [125_000, 125_100, 125_200]
