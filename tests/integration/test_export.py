"""Exports of real topics: every record once and in its order, whatever ends them, and backtested as the topics are."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import NewTopic

from pipeline.backtest.report import build_report
from pipeline.backtest.runner.result import BacktestResult
from pipeline.demo.processes import settings_environment
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.exports.parquet_files import ExportError
from pipeline.exports.topic_export import Asked, Exported, ExportProgress, TopicExport, named
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.kafka.cluster.clients import admin_client, producer_config
from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.scoring.river_factory import first_river
from pipeline.settings import Settings
from schemas.records import Record
from schemas.topics import DECISION_FEATURES, LABELS, TRANSACTIONS, Topic
from tests.helpers.backtest_inputs import backtest_of
from tests.helpers.blocks import features_block
from tests.helpers.champion import policy
from tests.helpers.logs import after, feature_row, label, microseconds, transaction
from tests.helpers.models import small_model
from tests.helpers.topics import Cluster
from tests.helpers.waiting import TIMEOUT_S, eventually

pytestmark = pytest.mark.broker


@lru_cache(maxsize=2)
def transactional(bootstrap: str, transactional_id: str) -> Producer:
    """For all transactions of a test: each new one waits for its id."""
    producer = Producer(producer_config(bootstrap, transactional_id=transactional_id))
    producer.init_transactions(TIMEOUT_S)
    return producer


def transacted(cluster: Cluster, topic: Topic, values: list[tuple[bytes, float]], *, commit: bool) -> None:
    """Write values of card c1, each so many days after the start, in one transaction."""
    name = cluster.settings.topic(topic.name)
    producer = transactional(cluster.bootstrap, f"{name}-test")
    producer.begin_transaction()
    for value, days in values:
        producer.produce(name, value, b"c1", timestamp=microseconds(after(days)) // 1_000)
    if commit:
        producer.commit_transaction(TIMEOUT_S)
    else:
        # Or the records never reach the log.
        assert producer.flush(TIMEOUT_S) == 0
        producer.abort_transaction(TIMEOUT_S)


def fill(cluster: Cluster, stretch: float = 1.0) -> None:
    """Two days of a dozen cards, of which some come late, are labelled, or cannot be read; and what was aborted.

    Of as many records, ``stretch`` times as much time.
    """
    random = np.random.default_rng(0)
    for number in range(400):
        minutes = 7.0 * stretch * number
        card = f"c{random.integers(12)}"
        fields: dict[str, Any] = {"card_id": card, "merchant_id": f"m{random.integers(5)}"}
        fields["amount"] = round(float(random.lognormal(3, 0.8)), 2)
        if number % 31 == 0:
            fields["of_ours"] = {"basket": [1, 2]}
        if number % 37 == 0:
            fields["amount"] = 1.23456
        late = float(random.choice([0, 0, 0, 90, 1_440]))
        value = transaction(number, after(minutes=minutes - late), **fields)
        cluster.write(TRANSACTIONS, value, card.encode(), after(minutes=minutes))
        if number % 3 == 0:
            reported = after(minutes=minutes + 60 * stretch)
            cluster.say((card, f"t{number}"), reported, "fraud" if number % 2 else "legitimate")
        if number % 50 == 0:
            cluster.buy(number, after(minutes=minutes), card_id=card)
            cluster.write(TRANSACTIONS, b"\xff{", None, after(minutes=minutes), [("who", b"knows"), ("none", None)])
            cluster.write(TRANSACTIONS, None, card.encode(), after(minutes=minutes))
            cluster.write(LABELS, b"{}", card.encode(), after(minutes=minutes))
        if number % 120 == 0:
            cluster.flush()
            source = [
                (transaction(9_000 + n, after(minutes=minutes), card_id="c1"), minutes / 1_440) for n in range(20)
            ]
            transacted(cluster, TRANSACTIONS, source, commit=False)
            transacted(cluster, TRANSACTIONS, source[:2], commit=number > 0)
    cluster.flush()
    transacted(cluster, LABELS, [(label(1, after(2)), 2.0)] * 3, commit=False)


def export(cluster: Cluster, directory: Path, *topics: str, file_rows: int = 60, **asked: int) -> list[Exported]:
    wanted = [named(topic) for topic in topics or ("transactions", "labels")]
    return TopicExport(cluster.bootstrap, cluster.settings, directory, wanted, Asked(**asked), file_rows).run()


def files(directory: Path, topic: Topic) -> list[Path]:
    return sorted((directory / topic.name).rglob("*.parquet"))


def kept(directory: Path, topic: Topic) -> list[dict[str, Any]]:
    return [row for path in files(directory, topic) for row in pq.ParquetFile(path).read().to_pylist()]


def same(rows: list[dict[str, Any]], records: list[Record]) -> None:
    """Each record once, the records of a partition in their order."""
    by_partition: dict[int, list[Record]] = {}
    for record in records:
        by_partition.setdefault(record.partition, []).append(record)
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["partition"], []).append(row)
    assert sorted(found) == sorted(by_partition)
    for number, expected in by_partition.items():
        assert [row["offset"] for row in found[number]] == [record.offset for record in expected]
        for row, record in zip(found[number], expected, strict=True):
            assert (row["key"], round(row["timestamp"].timestamp() * 1_000)) == (record.key, record.timestamp_ms)
            headers = tuple((row["name"], row["value"]) for row in row["headers"] or [])
            assert headers == record.headers
            if row["error"] is not None or row["value"] is not None:
                assert row["value"] == record.value


def backtest(cluster: Cluster, history: Path | None, **asked: Any) -> BacktestResult:
    # A directory has no topic of models.
    base = small_model()
    models = ActiveModels(base, first_river(), policy())
    return backtest_of(history, models={"candidate": models}, settings=cluster.settings, **asked).run()


def test_a_backtest_of_an_export_is_that_of_the_topics(cluster: Cluster, tmp_path: Path) -> None:
    fill(cluster)
    sold, reported = export(cluster, tmp_path / "out")
    records = cluster.read(TRANSACTIONS)
    assert (sold.records, reported.records) == (len(records), len(cluster.read(LABELS)))
    assert (sold.undecoded, reported.undecoded) == (16, 8)
    same(kept(tmp_path / "out", TRANSACTIONS), records)
    same(kept(tmp_path / "out", LABELS), cluster.read(LABELS))

    # As readers see it: one table, one schema, partitions as the brokers have them.
    whole = ds.dataset(tmp_path / "out" / "transactions", partitioning="hive").to_table()
    assert whole.num_rows == len(records)
    assert whole.column("kafka_partition").to_pylist() == whole.column("partition").to_pylist()
    frame = pd.read_parquet(tmp_path / "out" / "transactions", columns=["amount", "event_time", "kafka_partition"])
    assert len(frame) == len(records)
    schemas = [pq.read_schema(path) for path in files(tmp_path / "out", TRANSACTIONS)]
    assert len(schemas) > 6
    assert all(schema.equals(schemas[0], check_metadata=True) for schema in schemas)

    for asked in ({}, {"start": after(1)}, {"start": after(1), "learn": True, "thresholds": [0.2, 0.5]}):
        live, again = (backtest(cluster, history, **asked) for history in (None, tmp_path / "out"))
        assert len(live.variants[0].decisions) > 100
        for variant, other in zip(live.variants, again.variants, strict=True):
            pd.testing.assert_frame_equal(variant.decisions, other.decisions, check_exact=True)
        same_report(live, again)
        assert again.parameters["partitions"] == 3


def same_report(live: BacktestResult, again: BacktestResult) -> None:
    """Of topics, and of their export."""
    assert again.counts == live.counts
    assert again.warnings == live.warnings
    assert (again.from_us, again.to_us, again.warm_up_from_us) == (live.from_us, live.to_us, live.warm_up_from_us)
    order = ["transaction_id", "labelled_at", "label"]
    item, other = (result.labels.sort_values(order, ignore_index=True) for result in (live, again))
    pd.testing.assert_frame_equal(item, other)
    item, other = (build_report(result).metrics for result in (live, again))
    pd.testing.assert_frame_equal(item, other, check_exact=True)


def test_a_part_of_an_export_is_counted_and_measured_as_that_of_the_topics(cluster: Cluster, tmp_path: Path) -> None:
    """A month, of which some lies before the warm-up and some behind the range, with marks of transactions between."""
    fill(cluster, stretch=15.0)
    export(cluster, tmp_path / "out")
    day_s = 86_400.0
    part: dict[str, Any] = {"start": after(16), "end": after(24), "warm_up_s": 4 * day_s, "lateness_s": 2 * day_s}
    found = {}
    for name, asked in (
        ("whole", {}),
        ("part", part),
        ("learning", {**part, "learn": True}),
        ("to the end", {**part, "end": None}),
        ("due", {**part, "labels": "delay", "label_delay_s": 2 * day_s}),
    ):
        live, again = (backtest(cluster, history, **asked) for history in (None, tmp_path / "out"))
        pd.testing.assert_frame_equal(live.variants[0].decisions, again.variants[0].decisions, check_exact=True)
        same_report(live, again)
        found[name] = live
    whole, cut = found["whole"].counts, found["part"].counts
    assert len(found["part"].variants[0].decisions) > 80
    # A part has fewer of each, and labels of transactions before it, which are no errors.
    for name in ("refused transactions: amount_too_many_decimals", "labels: first"):
        assert 0 < cut[name] < whole[name]
    assert cut["labels: transaction_not_read"] > 0
    assert "refused labels: label_without_transaction" not in cut


def test_an_export_that_is_killed_goes_on_where_whole_files_end(cluster: Cluster, tmp_path: Path) -> None:
    fill(cluster)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pipeline.cli", "export", str(out), "transactions", "--file-rows", "10"]
    for _ in range(3):
        before = len(files(out, TRANSACTIONS))
        process = subprocess.Popen(command, env=environment(cluster.settings), stderr=subprocess.DEVNULL)
        deadline_s = time.monotonic() + TIMEOUT_S
        # On a busy machine it may have written all before anybody sees a file.
        while len(files(out, TRANSACTIONS)) == before and process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait(TIMEOUT_S)
    whole = {path: path.stat().st_mtime_ns for path in files(out, TRANSACTIONS)}
    assert whole
    partial = kept(out, TRANSACTIONS)
    (done,) = export(cluster, out, "transactions")
    records = cluster.read(TRANSACTIONS)
    same(kept(out, TRANSACTIONS), records)
    assert done.records == len(records) - len(partial)
    # What was whole stays as it was, and what was not is gone.
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    assert list((out / "transactions").rglob(".*.unfinished")) == []

    (nothing,) = export(cluster, out, "transactions")
    assert nothing.records == 0
    files(out, TRANSACTIONS)[1].unlink()
    cluster.buy(900, after(3), card_id="c3")
    cluster.flush()
    (more,) = export(cluster, out, "transactions")
    assert 1 < more.records < 100
    same(kept(out, TRANSACTIONS), cluster.read(TRANSACTIONS))


def environment(settings: Settings) -> dict[str, str]:
    return {**os.environ, **settings_environment(settings)}


def test_what_was_read_is_whole_when_somebody_ends_it(cluster: Cluster, tmp_path: Path) -> None:
    fill(cluster)
    steps: list[ExportProgress] = []
    run = TopicExport(cluster.bootstrap, cluster.settings, tmp_path, [named("transactions"), named("labels")])
    ended = run.run(steps.append, lambda: len(steps) > 0)
    records = cluster.read(TRANSACTIONS)
    assert 0 < ended[0].records < len(records)
    assert ended[1].records == 0
    assert 0 < steps[-1].share < 1
    rows = kept(tmp_path, TRANSACTIONS)
    assert len(rows) == ended[0].records
    assert (ended[0].left > 0, ended[1].left > 0) == (True, True)
    with pytest.raises(ExportError, match=r"transactions lacks offsets .* give the command of the export again"):
        backtest(cluster, tmp_path)
    again = run.run(steps.append)
    assert {item.left for item in again} == {0}
    for path in files(tmp_path, TRANSACTIONS):
        path.rename(path.with_suffix(".kept"))
        if files(tmp_path, TRANSACTIONS):
            with pytest.raises(ExportError, match="transactions lacks offsets"):
                backtest(cluster, tmp_path)
        path.with_suffix(".kept").rename(path)
    shutil.rmtree(tmp_path / "labels")
    with pytest.raises(ExportError, match="labels lacks offsets"):
        backtest(cluster, tmp_path)
    run.run()
    assert backtest(cluster, tmp_path).warnings == backtest(cluster, None).warnings
    assert again[0].records + ended[0].records == len(records)
    assert steps[-1].share == 1
    same(kept(tmp_path, TRANSACTIONS), records)
    same(kept(tmp_path, LABELS), cluster.read(LABELS))


def test_ranges_are_those_of_records(cluster: Cluster, tmp_path: Path) -> None:
    for number in range(60):
        cluster.buy(number, after(number), card_id=f"c{number % 7}")
    cluster.flush()

    def days(first: float, last: float | None) -> dict[str, int]:
        to = {} if last is None else {"to_ms": microseconds(after(last)) // 1_000}
        return {"from_ms": microseconds(after(first)) // 1_000, **to}

    def bought() -> list[int]:
        return sorted(int(row["transaction_id"][1:]) for row in kept(tmp_path, TRANSACTIONS))

    export(cluster, tmp_path, "transactions", **days(20, 30))
    assert bought() == list(range(20, 30))
    export(cluster, tmp_path, "transactions", **days(20, 40))
    assert bought() == list(range(20, 40))
    with pytest.raises(ExportError, match="a hole would be left"):
        export(cluster, tmp_path, "transactions", **days(50, None))
    with pytest.raises(ExportError, match="beyond the range"):
        export(cluster, tmp_path, "transactions", **days(20, 25))
    with pytest.raises(ExportError, match="has no record in the range: choose another one"):
        export(cluster, tmp_path / "other", "transactions", **days(100, None))
    with pytest.raises(ExportError, match="the range is empty"):
        export(cluster, tmp_path / "other", "transactions", **days(9, 9))
    with pytest.raises(ExportError, match="holds no record"):
        export(cluster, tmp_path / "other", "labels")
    sold, reported = export(cluster, tmp_path)
    assert bought() == list(range(60))
    assert (sold.records, reported.records, reported.note is None) == (40, 0, False)

    name = cluster.settings.topic(TRANSACTIONS.name)
    middle = next(path for path in files(tmp_path, TRANSACTIONS) if not path.name.startswith(f"{0:020d}"))
    first, end = map(int, middle.stem.split("-"))
    source = int(middle.parent.name.partition("=")[2])
    lost = [TopicPartition(name, number, end if number == source else 4) for number in range(3)]
    client = admin_client(cluster.bootstrap)
    for future in client.delete_records(lost).values():
        future.result()
    cluster.buy(60, after(60), card_id="c1")
    cluster.flush()
    # What is gone from the topic is in the files.
    export(cluster, tmp_path, "transactions")
    assert bought() == list(range(61))
    with pytest.raises(ExportError, match=r"ends before the first record that topic .* still holds"):
        export(cluster, tmp_path / "late", "transactions", **days(0, 2))
    middle.unlink()
    with pytest.raises(ExportError, match=f"partition {source} no longer holds offsets {first} to {end}"):
        export(cluster, tmp_path, "transactions")


def test_where_all_was_aborted_nothing_is_read_twice(cluster: Cluster, tmp_path: Path) -> None:
    transacted(cluster, LABELS, [(label(1, after(1)), 1.0)] * 3, commit=False)
    for n in range(2):
        (done,) = export(cluster, tmp_path, "labels")
        # Three records and a mark: none of them is one, and all of them are passed.
        assert (done.records, done.present) == (0, 4 * n)
    assert [pq.read_metadata(path).num_rows for path in files(tmp_path, LABELS)] == [0]
    cluster.say(("c1", "t1"), after(2))
    cluster.flush()
    (done,) = export(cluster, tmp_path, "labels")
    assert (done.records, done.present) == (1, 4)
    assert [row["offset"] for row in kept(tmp_path, LABELS)] == [4]
    # Nobody stumbles over a file without rows.
    assert len(pd.read_parquet(tmp_path / "labels")) == 1


def test_a_topic_made_anew_is_another_one(cluster: Cluster, tmp_path: Path) -> None:
    cluster.buy(1, after(1))
    cluster.flush()
    export(cluster, tmp_path, "transactions")
    client = admin_client(cluster.bootstrap)
    name = cluster.settings.topic(TRANSACTIONS.name)
    for future in client.delete_topics([name], operation_timeout=30).values():
        future.result()
    eventually(lambda: name not in client.list_topics(timeout=TIMEOUT_S).topics)
    anew = Cluster(cluster.settings)
    anew.buy(2, after(1))
    anew.flush()
    with pytest.raises(ExportError, match="name another directory"):
        export(anew, tmp_path, "transactions")
    assert [row["transaction_id"] for row in kept(tmp_path, TRANSACTIONS)] == ["t1"]


def test_a_compacted_topic_has_gaps_and_all_topics_can_be_exported(cluster: Cluster, tmp_path: Path) -> None:
    name = cluster.settings.topic("compacted")
    config = {
        "cleanup.policy": "compact", "segment.ms": "50", "min.cleanable.dirty.ratio": "0.001",
        "max.compaction.lag.ms": "100", "min.compaction.lag.ms": "0", "delete.retention.ms": "0",
    }  # fmt: skip
    client = admin_client(cluster.bootstrap)
    client.create_topics([NewTopic(name, num_partitions=2, replication_factor=1, config=config)])[name].result()
    producer = Producer(producer_config(cluster.bootstrap))
    deadline_s = time.monotonic() + TIMEOUT_S
    written = 0
    while not (gaps := list(holes(cluster, name))) and time.monotonic() < deadline_s:
        for _ in range(20):
            producer.produce(name, transaction(written), f"k{written % 3}".encode())
            written += 1
        assert producer.flush(TIMEOUT_S) == 0
        time.sleep(0.3)
    assert gaps
    # What the cleaner takes away meanwhile may be in files.
    export(cluster, tmp_path, "compacted=transactions", file_rows=3)
    rows = kept(tmp_path, Topic("compacted", "", None, "", "one"))
    expected = {
        (record.partition, record.offset) for record in read_topic(cluster.bootstrap, name, settings=cluster.settings)
    }
    found = [(row["partition"], row["offset"]) for row in rows]
    assert len(found) == len(set(found))
    assert expected <= set(found)

    cluster.publish()
    cluster.buy(1, after(1))
    cluster.flush()
    ensure_topics(cluster.bootstrap, cluster.settings)
    some = export(cluster, tmp_path, "models", "transactions", "dead-letters", "decisions")
    assert [item.records > 0 for item in some] == [True, True, False, False]
    versions = pq.read_table(tmp_path / "models")
    assert versions.column("name").to_pylist() == ["lightgbm", "policy", "rules"]
    assert versions.column("payload").null_count == 0


def holes(cluster: Cluster, name: str) -> Iterator[int]:
    last: dict[int, int] = {}
    for record in read_topic(cluster.bootstrap, name, settings=cluster.settings):
        if record.offset > last.get(record.partition, -1) + 1:
            yield record.offset
        last[record.partition] = record.offset


def test_features_have_a_row_for_each_decision(cluster: Cluster, tmp_path: Path) -> None:
    sizes = [1, 3, 2, 7, 1, 1, 4, 2, 5, 1]
    number = 0
    for at, size in enumerate(sizes):
        rows = [feature_row(number + n, score=(number + n) / 100) for n in range(size)]
        cluster.write(DECISION_FEATURES, features_block(rows), None, after(at), partition=at % 2)
        number += size
    cluster.write(DECISION_FEATURES, b"nonsense", None, after(20), partition=1)
    cluster.flush()
    name = DECISION_FEATURES.name
    (done,) = export(cluster, tmp_path, name, file_rows=5)
    assert (done.records, done.rows, done.undecoded) == (len(sizes) + 1, number + 1, 1)
    counts = [pq.read_metadata(path).num_rows for path in files(tmp_path, DECISION_FEATURES)]
    # Whole records; the one of seven rows has a file to itself.
    assert counts == [4, 4, 5, 3, 7, 5]
    frame = pd.read_parquet(tmp_path / name).sort_values("source_offset", ignore_index=True)
    decided = frame.dropna(subset=["transaction_id"])
    assert decided["transaction_id"].tolist() == [f"t{n}" for n in range(number)]
    assert decided["score"].tolist() == [n / 100 for n in range(number)]
    assert frame["value"].dropna().tolist() == [b"nonsense"]

    cluster.write(DECISION_FEATURES, features_block([feature_row(number), feature_row(number + 1)]), None, after(21))
    cluster.flush()
    done = cluster.command("export", str(tmp_path), name, code=0)
    assert "1 records written to" in done.output
    assert "as 2 rows; " in done.output
    assert len(pd.read_parquet(tmp_path / name)) == number + 3


def test_the_command_says_what_it_wrote_and_what_cannot_be(cluster: Cluster, tmp_path: Path) -> None:
    cluster.buy(1, after(1))
    cluster.write(TRANSACTIONS, b"nonsense", b"c1", after(1))
    cluster.flush()
    done = cluster.command("export", str(tmp_path / "out"), code=0)
    assert "2 records written to" in done.output
    assert "1 of which could not be decoded and are kept as bytes" in done.output
    assert "holds no record" in done.output
    assert "3 offsets were there already" not in done.output
    again = cluster.command("export", str(tmp_path / "out"))
    assert "2 offsets were there already" in again.output
    for arguments, text in (
        (["nobody"], "is no topic of the pipeline"),
        (["nobody=labels"], "there is no topic"),
        (["--from", "2031-01-01"], "has no record in the range"),
        (["--to", "2001-01-01"], "ends before the first record"),
    ):
        refused = cluster.command("export", str(tmp_path / "refused"), *arguments)
        assert (refused.exit_code, text in refused.output) == (1, True), refused.output
    unreachable = cluster.command("export", str(tmp_path / "refused"), "--bootstrap", "127.0.0.1:1")
    assert "no Kafka broker answers" in unreachable.output
