"""``features`` as a table: what the models saw of each decision, bit for bit, in files that hold whole records."""

import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.engine.records.partitioner import partition_of
from pipeline.engine.scores import decider as decider_module
from pipeline.engine.scores.decider import Decider
from pipeline.engine.scores.score import ScorePartition
from pipeline.exports.feature_rows import FeatureRowFormat
from pipeline.exports.parquet_files import Origin, TopicFiles
from pipeline.exports.rows import ERROR, VALUE, RowFormat
from pipeline.exports.topic_export import Pieces, row_format
from pipeline.features.catalogue import FEATURES
from schemas.messages import DecisionFeatures, RecordPosition, Versions
from schemas.records import Record
from schemas.topics import DECISION_FEATURES, DECISIONS, PROFILED, Topic
from tests.helpers.blocks import features_block
from tests.helpers.champion import active
from tests.helpers.logs import START, after, feature_row, microseconds, to
from tests.unit.engine.test_engine_card import NOW, busy_logs, options

ROOT = Path(__file__).resolve().parents[3]
PAGE, GOLDEN = ROOT / "docs/export.md", ROOT / "schemas/golden"
AT_MS = microseconds(after(1)) // 1_000
CARD_PARTITIONS = 3


def records(values: Sequence[bytes | None]) -> list[Record]:
    return [Record("features", 2, 10 * n, AT_MS, None, value) for n, value in enumerate(values)]


def rows(values: Sequence[bytes | None]) -> list[dict[str, Any]]:
    found = FeatureRowFormat().rows(records(values))
    assert found.schema.equals(FeatureRowFormat.schema)
    found.validate(full=True)
    return found.to_pylist()


def flat(row: DecisionFeatures) -> dict[str, Any]:
    """A row of ``features`` as the table has it, the features of this release alone."""
    reported = msgspec.to_builtins(row, builtin_types=(datetime,))
    found = {name: reported[name] for name in ("transaction_id", "card_id", "merchant_id", "event_time", "amount_base")}
    found |= {name: reported[name] for name in ("score", "logit", "river_logit")}
    found |= {f"feature_{name}": row.features.get(name) for name in FEATURES}
    for part in ("versions", "source", "log"):
        found |= {f"{part}_{name}": value for name, value in reported[part].items()}
    return found


SEVERAL = [
    feature_row(0, features={name: float(n) for n, name in enumerate(FEATURES)}),
    feature_row(1, transaction_id="é€", card_id="\U0001f600", features=dict.fromkeys(FEATURES)),
    feature_row(
        2,
        START.astimezone(timezone(timedelta(hours=5))),
        merchant_id="x" * 256,
        score=1.0,
        logit=-0.0,
        features={name: -0.0 if n % 2 else 1e-320 for n, name in enumerate(FEATURES)},
        versions=Versions(lightgbm="other", river="other@7", policy="q", kernel="k", rates="2"),
        source=RecordPosition(topic="elsewhere", partition=7, offset=2**60),
    ),
]
REORDERED = [
    feature_row(5, features=dict.fromkeys(reversed(FEATURES), 0.5), versions=Versions(
        lightgbm="base", river="r@1", policy="p", kernel="k2", rates="3"
    )),
    feature_row(6, features=dict.fromkeys(reversed(FEATURES), 1.5), versions=Versions(
        lightgbm="base", river="r@1", policy="p", kernel="k2", rates="4"
    )),
]  # fmt: skip


def test_a_table_has_a_row_for_each_decision() -> None:
    whole = rows([features_block(SEVERAL), features_block(REORDERED), features_block(SEVERAL[:1])])
    meant = [*SEVERAL, *REORDERED, SEVERAL[0]]
    assert len(whole) == len(meant)
    for row, item in zip(whole, meant, strict=True):
        reported = flat(item)
        assert {name: row[name] for name in reported} == reported
        assert (row[VALUE], row[ERROR], row["key"], row["headers"]) == (None, None, None, None)
        assert (row["partition"], round(row["timestamp"].timestamp() * 1_000)) == (2, AT_MS)
    assert [(row["offset"], row["row"]) for row in whole] == [(0, 0), (0, 1), (0, 2), (10, 0), (10, 1), (20, 0)]
    assert str(whole[2]["logit"]) == str(whole[2]["feature_hour"]) == "-0.0"


@pytest.mark.parametrize("path", sorted(GOLDEN.rglob("decision-features*.json")), ids=lambda path: path.parent.name)
def test_a_row_as_it_is_documented_needs_no_bytes(path: Path) -> None:
    item = msgspec.json.decode(path.read_bytes(), type=DecisionFeatures)
    (row,) = rows([features_block([item])])
    reported = flat(item)
    assert {name: row[name] for name in reported} == reported
    assert (row[VALUE], row[ERROR]) == (None, None)


def test_a_block_of_other_features_keeps_its_bytes_once() -> None:
    known = {"amount": 3.0, "hour": None}
    unknown = features_block([feature_row(n, features={"of_old": 1.0, **known}) for n in range(2)])
    fewer = features_block([feature_row(3, features=known)])
    found = rows([unknown, fewer])
    assert [row[VALUE] for row in found] == [unknown, None, None]
    assert [(row["feature_amount"], row["feature_hour"], row["feature_weekday"]) for row in found] == [
        (3.0, None, None)
    ] * 3
    assert [row[ERROR] for row in found] == [None] * 3


def test_a_record_that_is_no_block_is_a_row_with_its_bytes_and_the_reason() -> None:
    good = features_block(SEVERAL)
    broken: list[bytes | None] = [None, b"", b"{}", good[:-1], good[:40] + b"?" + good[41:], b"FPBK" + good[4:]]
    found = rows([*broken[:3], good, *broken[3:]])
    none, whole = [row for row in found if row[ERROR]], [row for row in found if not row[ERROR]]
    assert [row[VALUE] for row in none] == broken
    assert all("block" in row[ERROR] or "checksum" in row[ERROR] or "shorter" in row[ERROR] for row in none)
    assert {row[name] for row in none for name in ("row", "transaction_id", "feature_amount", "score")} == {None}
    assert [row["row"] for row in whole] == [0, 1, 2]
    assert [row["offset"] for row in found] == [0, 10, 20, 30, 30, 30, 40, 50, 60]


def test_headers_and_key_of_a_record_stand_in_its_first_row() -> None:
    record = Record("features", 0, 3, AT_MS, b"k", features_block(SEVERAL), (("who", b"x"),))
    found = FeatureRowFormat().rows([record]).to_pylist()
    own = (b"k", [{"name": "who", "value": b"x"}])
    assert [(row["key"], row["headers"]) for row in found] == [own, (None, None), (None, None)]


def test_no_record_has_no_row() -> None:
    found = FeatureRowFormat().rows([])
    assert (found.num_rows, found.schema.equals(FeatureRowFormat.schema)) == (0, True)


def test_columns_are_named_and_typed_as_those_of_decisions() -> None:
    decisions = RowFormat(DECISIONS).schema
    for field in FeatureRowFormat.schema:
        if field.name != "row":
            assert decisions.field(field.name).equals(field), field


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 7, 100])
def test_files_hold_whole_records_and_no_more_rows_than_they_may(most: int) -> None:
    sizes = [[2, 1], [5, 1, 1], [], [3, 3, 1]]

    def batches() -> Iterator[tuple[pa.RecordBatch, int]]:
        offset = 0
        for counts in sizes:
            offsets = [offset + 2 * n for n, count in enumerate(counts) for _ in range(count)]
            offset += 2 * len(counts)
            yield pa.RecordBatch.from_arrays([pa.array(offsets, pa.int64())], ["offset"]), offset

    pieces, files, at = Pieces(batches()), [], 0
    while at < 16:
        file: list[int] = []
        while at < 16 and (piece := pieces.take(most, len(file))) is not None:
            assert piece.records == len(set(piece.rows.column("offset").to_pylist()))
            file += piece.rows.column("offset").to_pylist()
            at = piece.end
        assert all(offset < at for offset in file)
        files.append(file)
    assert list(chain(*files)) == [2 * n for n, count in enumerate(chain(*sizes)) for _ in range(count)]
    for item, following in pairwise(files):
        assert not {*item} & {*following}
    assert all(len(file) <= most or len(set(file)) == 1 for file in files)


class Decided(NamedTuple):
    """Outputs of two score agents for the same transactions; the second one puts features into all decisions."""

    topics: dict[Topic, list[Record]]
    other_decisions: list[Record]
    saw: NDArray[np.float64]
    """Shape (decisions, len(FEATURES)): what the models saw, in the order of the decisions."""


@pytest.fixture(scope="module")
def decided() -> Decided:
    transactions, labels = busy_logs(3, 400)
    card = CardPartition(options(), None, MemoryStore())
    agents = [
        (ScorePartition(), Decider("EUR", CARD_PARTITIONS, all_features=all_features)) for all_features in (False, True)
    ]
    saw: list[NDArray[np.float64]] = []
    written: list[dict[Topic, list[Record]]] = [{DECISIONS: [], DECISION_FEATURES: []} for _ in agents]
    with pytest.MonkeyPatch.context() as patch:
        really = decider_module.decided

        def watched(models: Any, features: NDArray[np.float64], *others: Any) -> Any:
            saw.append(features.copy())
            return really(models, features, *others)

        patch.setattr(decider_module, "decided", watched)
        for first in range(0, 400, 90):
            batch = [*transactions.records[first : first + 90], *(labels.records if first == 270 else [])]
            for output in to(PROFILED, card.process(batch, NOW)):
                record = Record(PROFILED.name, 0, first, AT_MS, None, output.value)
                for (state, decider), topics in zip(agents, written, strict=True):
                    result = decider.process([(state, [record])], active(threshold=0.5, audit_rate=0.05), NOW)
                    for topic, log in topics.items():
                        for made in to(topic, result):
                            partition = made.partition
                            if partition is None:
                                partition = partition_of((made.key or b"").decode(), CARD_PARTITIONS)
                            log.append(Record(topic.name, partition, len(log), AT_MS, made.key, made.value))
    return Decided(written[0], written[1][DECISIONS], np.concatenate(saw[::2]))


def write(directory: Path, topic: Topic, written: list[Record]) -> None:
    """Write an export of records, and one that nobody can read, in two files a partition."""
    form = row_format(topic)
    files = TopicFiles(directory / topic.name, Origin("cluster", topic.name, "id", CARD_PARTITIONS), form.schema)
    for number in range(CARD_PARTITIONS):
        source = [record for record in written if record.partition == number]
        source.append(Record(topic.name, number, source[-1].offset + 1, AT_MS, None, b"?"))
        cut = len(source) // 2
        for part, start, end in (
            (source[:cut], 0, source[cut].offset),
            (source[cut:], source[cut].offset, source[-1].offset + 1),
        ):
            with files.part(number, start) as file:
                file.add(form.rows(part))
                file.finish(end)


def test_the_page_joins_decisions_with_what_the_models_saw(
    decided: Decided, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for topic, written in decided.topics.items():
        write(tmp_path / "history", topic, written)
    write(tmp_path / "before", DECISIONS, decided.other_decisions)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(code, str(PAGE), "exec"), names)
    frame = names["frame"]

    features = [f"feature_{name}" for name in FEATURES]
    identities = [json.loads(record.value or b"")["transaction_id"] for record in decided.topics[DECISIONS]]
    assert frame["transaction_id"].is_unique
    values = frame.set_index("transaction_id").loc[identities, features].to_numpy(np.float64)
    assert values.shape == decided.saw.shape
    assert len(values) > 200
    assert (values.view(np.int64) == decided.saw.view(np.int64)).all()

    before = pd.read_parquet(tmp_path / "before/decisions").dropna(subset=names["source"])
    pd.testing.assert_frame_equal(frame, before.reset_index(drop=True), check_exact=True)
    slim = names["decisions"]
    assert 0 < slim["selection"].notna().sum() < len(slim)
    assert (slim["feature_amount"].notna() == slim["selection"].notna()).all()
