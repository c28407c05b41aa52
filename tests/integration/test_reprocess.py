"""Reprocessing of real topics: what is decided again stands beside the live decisions, whole, and never among them."""

from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pytest
from click.testing import Result
from confluent_kafka import TopicPartition

from pipeline.backtest.reprocess.reprocess import Reprocessed, reprocess
from pipeline.backtest.reprocess.written_runs import DECIDED, RUN, ReprocessError, features_topic
from pipeline.engine.records.partitioner import partition_of
from pipeline.engine.scores.decision_messages import NOT_READ
from pipeline.engine.scores.decision_records import read_feature_messages
from pipeline.exports.topic_export import TopicExport, named
from pipeline.kafka.cluster.admin import end_offsets, ensure_topics
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.log_offsets import partition_numbers
from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.kafka.writers.producer import DeliveryFailed, TopicRecord, TransactionalProducer
from schemas.messages import Decision, DecisionFeatures
from schemas.records import Record
from schemas.topics import DECISION_FEATURES, DECISIONS, TRANSACTIONS
from tests.helpers.backtest_inputs import backtest_of
from tests.helpers.logs import after
from tests.helpers.topics import Cluster, Starter, shop
from tests.helpers.waiting import TIMEOUT_S

pytestmark = pytest.mark.broker

INTO = "candidate"


@pytest.fixture
def bought(cluster: Cluster) -> Cluster:
    """Two days of transactions, of which a third is labelled, and a model; nobody has decided them."""
    cluster.publish()
    for number, (key, at) in enumerate(shop(cluster, range(300), seed=1).items()):
        if number % 3 == 0:
            cluster.say(key, at, "fraud" if number % 2 else "legitimate")
    cluster.write(TRANSACTIONS, b"nonsense", b"c1", after(1))
    cluster.flush()
    return cluster


@pytest.fixture(autouse=True)
def _small_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.backtest.reprocess.writer._TRANSACTION_ROWS", 16)


def written(cluster: Cluster, name: str = INTO) -> list[Record]:
    return list(read_topic(cluster.bootstrap, cluster.settings.topic(name), settings=cluster.settings))


def places(cluster: Cluster) -> set[tuple[str, int, int]]:
    records = [*written(cluster), *written(cluster, features_topic(INTO))]
    return {(record.topic, record.partition, record.offset) for record in records}


def decided(records: list[Record]) -> dict[tuple[int, int], Decision]:
    messages = [msgspec.json.decode(record.value or b"", type=Decision) for record in records]
    found = {(message.source.partition, message.source.offset): message for message in messages}
    assert len(found) == len(messages)
    return found


def seen(records: list[Record]) -> dict[tuple[int, int], tuple[int, DecisionFeatures]]:
    """Partition of the block and features, by the position of the transaction."""
    rows = [(record.partition, row) for record in records for row in read_feature_messages(record.value)]
    found = {(row.source.partition, row.source.offset): (partition, row) for partition, row in rows}
    assert len(found) == len(rows)
    return found


def again(cluster: Cluster, into: str = INTO, *, replace: bool = False, **asked: Any) -> Reprocessed:
    return reprocess(backtest_of(settings=cluster.settings, **asked), into, replace=replace)


def test_live_decisions_come_again_beside_themselves(cluster: Cluster, start: Starter, tmp_path: Path) -> None:
    cluster.publish()
    shop(cluster, range(120), seed=1)
    cluster.flush()
    worker = start(cluster.settings)
    own = [cluster.settings.topic(topic.name) for topic in (DECISIONS, DECISION_FEATURES)]
    worker.until(lambda: len(cluster.decisions()) >= 120)
    assert worker.stop() == 0, worker.output
    before = end_offsets(cluster.bootstrap, own)

    done = again(cluster, order="recorded")
    assert (done.written, done.present, done.complete) == (120, 0, True)
    records, live = written(cluster), {}
    for record in cluster.read(DECISIONS):
        transaction = msgspec.json.decode(record.value or b"", type=Decision)
        live[transaction.source.partition, transaction.source.offset] = (record.partition, record.key, transaction)
    for record, transaction in zip(records, decided(records).values(), strict=True):
        partition, key, other = live[transaction.source.partition, transaction.source.offset]
        # Keyed and placed alike, and the same but for when it was decided, and where nobody read it.
        assert (record.partition, record.key) == (partition, key)
        assert transaction.log.offset == NOT_READ
        assert transaction.log.partition == other.log.partition == partition_of(transaction.merchant_id, 2)
        moved = {"log": other.log, "ingested_at": other.ingested_at, "decided_at": other.decided_at}
        assert msgspec.structs.replace(transaction, **moved) == other
    assert len(records) == len(live)
    # What the models saw of each, in the same partition.
    blocks, of_live = seen(written(cluster, features_topic(INTO))), seen(cluster.read(DECISION_FEATURES))
    assert blocks.keys() == of_live.keys() == live.keys()
    for place, (partition, row) in blocks.items():
        of_partition, other_row = of_live[place]
        assert partition == of_partition
        assert row.log == decided(records)[place].log
        assert msgspec.structs.replace(row, log=other_row.log) == other_row
    assert {item.features is None for _, _, item in live.values()} == {True, False}
    assert end_offsets(cluster.bootstrap, own) == before

    # By another threshold, and compared in a notebook as the page says.
    again(cluster, "strict", thresholds=[0.0])
    topics = [named("decisions"), named("strict=decisions"), named("strict-features=features")]
    TopicExport(cluster.bootstrap, cluster.settings, tmp_path, topics).run()
    columns = ["source_partition", "source_offset", "action", "score", "value"]
    ours, theirs = (pd.read_parquet(tmp_path / name, columns=columns) for name in ("decisions", "strict"))
    both = ours.merge(theirs, on=["source_partition", "source_offset"], suffixes=("_live", "_strict"))
    assert len(both) == 120
    assert (both["action_strict"] == "alert").all()
    assert 0 < (both["action_live"] == "alert").sum() < 120
    assert both["value_strict"].isna().all()
    seen_by_theirs = pd.read_parquet(tmp_path / "strict-features", columns=columns[:2] + columns[3:4])
    joined = theirs.merge(seen_by_theirs, on=["source_partition", "source_offset"], suffixes=("", "_of_features"))
    assert len(joined) == 120
    assert (joined["score"] == joined["score_of_features"]).all()


def test_messages_are_what_the_backtest_decides(bought: Cluster) -> None:
    asked: dict[str, Any] = {"start": after(0.5), "end": after(1.2), "thresholds": [0.3]}
    done = again(bought, **asked)
    (variant,) = backtest_of(settings=bought.settings, **asked).run().variants
    found = decided(written(bought))
    assert done.written == len(found) == len(variant.decisions) > 50
    by_key = {(transaction.card_id, transaction.transaction_id): transaction for transaction in found.values()}
    for row in variant.decisions.itertuples():
        decision = by_key[row.card_id, row.transaction_id]
        assert (decision.score, decision.action, decision.selection is None) == (
            row.score,
            row.action,
            pd.isna(row.selection),
        )
        assert (decision.event_time, decision.amount_base, decision.threshold) == (row.event_time, row.amount_base, 0.3)
        assert float(decision.amount) == decision.amount_base
    assert {item.versions.lightgbm for item in found.values()} == {variant.models["lightgbm"]}
    assert sorted(partition_numbers(admin_client(bought.bootstrap), done.topic)) == [0, 1, 2]
    headers = [dict(record.headers) for record in written(bought)]
    assert {header[RUN] for header in headers} == {done.run.encode()}
    # A reader knows by the last transaction that all is there.
    reported = [header[DECIDED] for header in headers if DECIDED in header]
    assert set(reported) == {str(done.written).encode()}
    assert 0 < len(reported) <= 16
    blocks = written(bought, features_topic(INTO))
    assert {place: row.score for place, (_, row) in seen(blocks).items()} == {
        place: decision.score for place, decision in found.items()
    }
    emitted = [dict(record.headers) for record in blocks]
    assert {header[RUN] for header in emitted} == {done.run.encode()}
    assert {header[DECIDED] for header in emitted if DECIDED in header} == set(reported)
    assert sorted(partition_numbers(admin_client(bought.bootstrap), features_topic(done.topic))) == [0, 1, 2]
    # As live, decisions bear features where they are selected, or all do.
    assert all((decision.features is None) == (decision.selection is None) for decision in found.values())
    bought.settings = bought.settings.model_copy(update={"decision_features": "all"})
    again(bought, "full", **asked)
    full = decided(written(bought, "full"))
    assert {place: item.features for place, item in full.items()} == {
        place: row.features for place, (_, row) in seen(blocks).items()
    }


@pytest.mark.parametrize("learn", [False, True])
def test_a_run_that_was_interrupted_goes_on(bought: Cluster, monkeypatch: pytest.MonkeyPatch, learn: bool) -> None:
    monkeypatch.setattr("pipeline.backtest.input.merge.CHUNK_ROWS", 50)
    write = TransactionalProducer.write
    calls: list[int] = []

    def failing(self: TransactionalProducer, records: list[TopicRecord], headers: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            # The broker has a part of the transaction already when the program dies.
            self._producer.begin_transaction()
            for record in [*records[:3], *records[-1:]]:
                self._producer.produce(record.topic, record.value, record.key, headers=headers)
            assert self._producer.flush(TIMEOUT_S) == 0
            raise DeliveryFailed("the program was killed")
        write(self, records, headers)

    monkeypatch.setattr(TransactionalProducer, "write", failing)
    with pytest.raises(DeliveryFailed):
        again(bought, learn=learn)
    first = written(bought)
    assert len(first) == 4 * 16
    assert all(DECIDED not in dict(record.headers) for record in first)
    assert seen(written(bought, features_topic(INTO))).keys() == decided(first).keys()

    done = again(bought, learn=learn)
    assert (done.present, done.written, done.complete) == (64, 236, True)
    item, other = decided(written(bought)), again(bought, "other", learn=learn)
    assert other.written == len(item) == 300
    same = decided(written(bought, "other"))
    assert {place: (decision.score, decision.action) for place, decision in item.items()} == {
        place: (decision.score, decision.action) for place, decision in same.items()
    }
    ours, theirs = (
        {place: row.features for place, (_, row) in seen(written(bought, features_topic(name))).items()}
        for name in (INTO, "other")
    )
    assert ours == theirs
    assert ours.keys() == item.keys()
    # Once more, there is nothing to do.
    assert again(bought, learn=learn)[2:5] == (300, 0, True)

    stopped = reprocess(backtest_of(settings=bought.settings, learn=learn), "stopped", stopped=lambda: True)
    assert (stopped.complete, stopped.written < 300) == (False, True)
    rest = again(bought, "stopped", learn=learn)
    assert (rest.present, rest.present + rest.written, rest.complete) == (stopped.written, 300, True)


def test_other_runs_and_other_topics_are_left_alone(bought: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    first = again(bought, end=after(1))
    with pytest.raises(ReprocessError, match=rf"decisions of run {first.run}; this one is"):
        again(bought, end=after(1), thresholds=[0.9])
    second = again(bought, end=after(1), thresholds=[0.9], replace=True)
    assert second.run != first.run
    found = written(bought)
    assert {dict(record.headers)[RUN] for record in found} == {second.run.encode()}
    assert len(decided(found)) == second.written == first.written
    blocks = written(bought, features_topic(INTO))
    assert {dict(record.headers)[RUN] for record in blocks} == {second.run.encode()}
    assert seen(blocks).keys() == decided(found).keys()

    for name in ("decisions", "transactions", "other-decisions", "alerts", "features", "candidate-features"):
        with pytest.raises(ReprocessError, match="is the name of a topic of the pipeline"):
            again(bought, name, replace=True)
    with pytest.raises(ReprocessError, match="name one model and one threshold"):
        again(bought, "two", thresholds=[0.1, 0.2])

    # Somebody's topic, with a record that is no run's.
    producer = TransactionalProducer(bought.bootstrap, bought.settings, "somebody")
    for into in ("foreign", "foreign-too"):
        again(bought, into, end=after(1))
        name = bought.settings.topic(into if into == "foreign" else features_topic(into))
        producer.write([TopicRecord(name, b"k", b"v")], [])
        with pytest.raises(ReprocessError, match=f"topic {name} holds records that no backtest has written"):
            again(bought, into, end=after(1), replace=True)

    # The features of a pipeline with another prefix.
    prefix = bought.settings.topic("shop-")
    ensure_topics(bought.bootstrap, bought.settings.model_copy(update={"topic_prefix": prefix}))
    with pytest.raises(ReprocessError, match=f"{prefix}features is the name of a topic of the pipeline that has"):
        again(bought, "shop", end=after(1), replace=True)
    assert bought.read(DECISIONS) == []


def test_a_log_that_has_changed_meanwhile_is_seen(bought: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.backtest.input.merge.CHUNK_ROWS", 50)
    stopped = reprocess(backtest_of(settings=bought.settings), INTO, stopped=lambda: len(written(bought)) > 0)
    assert not stopped.complete
    assert stopped.written > 0
    # Late, and so among what is decided already.
    bought.buy(1_000, after(0.01), card_id="c3", amount=700)
    bought.flush()
    with pytest.raises(ReprocessError, match="transactions or labels have come, or gone"):
        again(bought)
    done = again(bought, replace=True)
    assert (done.written, done.present, done.complete) == (301, 0, True)


def test_who_comes_later_is_the_only_one_who_writes(bought: Cluster) -> None:
    name = bought.settings.topic(INTO)
    done = again(bought, end=after(0.3))
    producer = TransactionalProducer(bought.bootstrap, bought.settings, f"{name}-reprocess")
    producer.write([TopicRecord(name, b"k", b"1")], [])
    other = TransactionalProducer(bought.bootstrap, bought.settings, f"{name}-reprocess")
    with pytest.raises(DeliveryFailed, match="somebody else wrote to topic"):
        producer.write([TopicRecord(name, b"k", b"2")], [])
    other.write([TopicRecord(name, b"k", b"3")], [])
    values = {record.value for record in written(bought)}
    assert {b"1", b"3"} <= values
    assert b"2" not in values
    assert len(values) == done.written + 2


def test_a_transaction_that_a_killed_run_left_open_is_ended_without_a_word(
    bought: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Or a line that another client has caused hides ours.
    monkeypatch.setattr("pipeline.kafka.cluster.client_log.REPEAT_S", 0.0)
    name = bought.settings.topic(INTO)
    killed = TransactionalProducer(bought.bootstrap, bought.settings, f"{name}-reprocess")
    killed._producer.begin_transaction()
    killed._producer.produce(bought.settings.topic(TRANSACTIONS.name), b"v", b"k")
    assert killed._producer.flush(TIMEOUT_S) == 0
    assert again(bought, end=after(0.3)).complete
    assert [record.getMessage() for record in caplog.records if record.name.startswith("pipeline.kafka")] == []


def run(cluster: Cluster, *arguments: str) -> Result:
    return cluster.command("backtest", "--decisions", f"topic:{INTO}", *arguments)


def test_the_command_says_how_it_ended(bought: Cluster) -> None:
    done = run(bought, "--from", "2024-03-01T12:00", "--threshold", "0.4")
    assert done.exit_code == 0, done.output
    assert "the run is complete" in done.output
    assert f"{len(written(bought))} decisions of run" in done.output
    again = run(bought, "--from", "2024-03-01T12:00", "--threshold", "0.4")
    assert "0 decisions of run" in again.output
    client = admin_client(bought.bootstrap)
    for name, holds in ((features_topic(INTO), "holds the features of"), (INTO, "holds")):
        some = [TopicPartition(bought.settings.topic(name), 0, -1)]
        for future in client.delete_records(some).values():
            future.result()
        left = len(written(bought)) if name == INTO else len(seen(written(bought, name)))
        fewer = run(bought, "--from", "2024-03-01T12:00", "--threshold", "0.4")
        assert fewer.exit_code == 1
        assert f"topic {bought.settings.topic(name)} {holds} {left} of the" in fewer.output.replace("\n", " ")
    for arguments, text in (
        ([], "another range, other options or other settings"),
        (["--replace", "--from", "2031-01-01"], "choose another range"),
        (["--model", "0123456789ab"], "has no lightgbm version 0123456789ab"),
        (["--decisions", "topic:decisions"], "is the name of a topic of the pipeline"),
    ):
        before = places(bought)
        refused = run(bought, *arguments)
        assert places(bought) == before
        assert (refused.exit_code, text in refused.output.replace("\n", " ")) == (1, True), refused.output

    lost = [TopicPartition(bought.settings.topic(TRANSACTIONS.name), number, -1) for number in range(3)]
    for future in client.delete_records(lost).values():
        future.result()
    before = places(bought)
    gone = run(bought, "--replace", "--to", "2024-03-01")
    assert "holds no record" in gone.output
    assert places(bought) == before != set()
