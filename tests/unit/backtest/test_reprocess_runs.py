"""Decisions of a backtest as messages, and what the commands and pages of exports and reprocessing say."""

import dataclasses
import json
import re
import signal
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import msgspec
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline.backtest import Decisions
from pipeline.backtest.input.merge import Numbering
from pipeline.backtest.input.span import RangeError
from pipeline.backtest.reprocess.reprocess import Reprocessed, refuse_own, run_name
from pipeline.backtest.reprocess.writer import DecisionMessages, RunWriter
from pipeline.backtest.reprocess.written_runs import (
    DECIDED,
    RUN,
    Present,
    ReprocessError,
    RunTopics,
    hashes_of_block,
    hashes_of_decision,
    look,
)
from pipeline.backtest.runner.request import Request
from pipeline.cli import main
from pipeline.commands import backtest, export
from pipeline.engine.encoding.row_columns import CARD
from pipeline.engine.records.partitioner import partition_of
from pipeline.engine.scores.decision_messages import NOT_READ
from pipeline.engine.scores.decision_records import read_feature_messages
from pipeline.exports import topic_export
from pipeline.exports.parquet_files import Origin, TopicFiles
from pipeline.exports.rows import RowFormat
from pipeline.exports.topic_export import Exported, TopicExport
from pipeline.kafka.writers.producer import DeliveryFailed, TopicRecord
from pipeline.settings import Settings
from schemas.messages import Decision, RecordPosition
from schemas.records import Headers, Record
from schemas.topics import MODELS, TOPICS
from tests.contract.records import RATES
from tests.helpers.backtest_inputs import backtest_of
from tests.helpers.blocks import features_block
from tests.helpers.champion import active
from tests.helpers.histories import busy_history, play
from tests.helpers.live import Live
from tests.helpers.logs import after, decision, feature_row
from tests.helpers.schemas import violations
from tests.unit.backtest.test_backtest import models, options, run

ROOT = Path(__file__).resolve().parents[3]


def test_messages_are_those_of_the_live_kernels() -> None:
    history, card = busy_history(7), options(3)
    live = play(history, Live(models(), card)).decisions
    writer, now = DecisionMessages(Numbering(3), 2, RATES, all_features=True), after(500)
    parts = run(history, card, 100)
    values = [value for part in parts for value in writer.values(writer.batch(part, now))]
    rows = [int(row) for part in parts for row in part.transactions.row]
    assert len(values) == len(live) > 100
    assert {item.currency for item in live} > {"EUR"}
    schema = json.loads((ROOT / "schemas/json/decision.json").read_text(encoding="utf-8"))
    for value, row, other in zip(values, rows, live, strict=True):
        transaction = msgspec.json.decode(value, type=Decision)
        assert (transaction.ingested_at, transaction.decided_at, transaction.log.offset) == (now, now, NOT_READ)
        assert transaction.log.partition == partition_of(transaction.merchant_id, 2)
        assert transaction.source == RecordPosition(topic="transactions", partition=row % 3, offset=row // 3)
        moved = {name: getattr(other, name) for name in ("ingested_at", "decided_at", "log", "source")}
        assert msgspec.structs.replace(transaction, **moved) == other
        assert transaction.event_time.utcoffset() == timedelta(0)
    assert violations(json.loads(values[0]), schema) == []


def test_decisions_bear_features_as_live_and_blocks_have_those_of_all() -> None:
    card, now = options(3), after(500)
    writer, slim = (DecisionMessages(Numbering(3), 2, RATES, all_features=all_) for all_ in (True, False))
    served, blocks = [], []
    for part in run(busy_history(7), card, 100):
        batch = writer.batch(part, now)
        whole = [msgspec.json.decode(value, type=Decision) for value in writer.values(batch)]
        for written, value in zip(whole, slim.values(slim.batch(part, now)), strict=True):
            bears = {"features": written.features if written.selection is not None else None}
            assert msgspec.json.decode(value, type=Decision) == msgspec.structs.replace(written, **bears)
        served += whole
        for block in writer.blocks(batch, batch.subjects.texts(CARD)):
            rows = read_feature_messages(block.value)
            blocks += rows
            assert {partition_of(row.card_id, 3) for row in rows} == {block.partition}
    assert {decision.selection is None for decision in served} == {True, False}
    found = {(row.source.partition, row.source.offset): row for row in blocks}
    assert len(found) == len(blocks) == len(served) > 100
    for written in served:
        row = found[written.source.partition, written.source.offset]
        for name in ("transaction_id", "card_id", "merchant_id", "event_time", "amount_base", "score", "logit",
                     "river_logit"):  # fmt: skip
            assert getattr(row, name) == getattr(written, name)
        assert (row.features, row.versions, row.source, row.log) == (
            written.features,
            msgspec.structs.replace(written.versions, rules="", lists=""),
            written.source,
            written.log,
        )


def test_topics_of_a_pipeline_are_refused_whatever_their_prefix() -> None:
    for prefix in ("", "shop-"):
        settings = Settings(topic_prefix=prefix)
        for topic in TOPICS:
            for name in (topic.name, f"replay-{topic.name}"):
                with pytest.raises(ReprocessError, match="is the name of a topic of the pipeline"):
                    refuse_own(name, settings)
        refuse_own("decisions-candidate", settings)
        with pytest.raises(ReprocessError, match="has no name"):
            refuse_own("", settings)
    for into, prefix in (("__consumer_offsets", ""), ("__transaction_state", ""), ("_own", "_")):
        with pytest.raises(ReprocessError, match=f"^{prefix}{into} is the name of a topic of Kafka's own"):
            refuse_own(into, Settings(topic_prefix=prefix))
    refuse_own("__mine", Settings(topic_prefix="shop-"))


def named(monkeypatch: pytest.MonkeyPatch, settings: Settings, *, learn: bool = False, partitions: int = 3) -> str:
    monkeypatch.setattr(Request, "partitions", partitions)
    asked = backtest_of(models={"candidate": active()}, learn=learn, settings=settings, bootstrap="127.0.0.1:1")
    (candidate,) = asked.candidates().values()
    ids = {"transactions": "a", "labels": "b"}
    return run_name(asked, 7, candidate, asked.card_options(partitions), "cluster", ids)


@pytest.mark.parametrize("learn", [False, True])
def test_a_run_is_named_by_the_settings_that_its_decisions_depend_on(
    monkeypatch: pytest.MonkeyPatch, learn: bool
) -> None:
    settings = Settings()
    base = named(monkeypatch, settings, learn=learn)
    assert named(monkeypatch, settings, learn=learn) == base
    assert named(monkeypatch, settings, learn=not learn) != base
    assert named(monkeypatch, settings, learn=learn, partitions=4) != base
    for always, changed in (
        (True, {"deduplication_days": 3.0}),
        (True, {"label_grace_days": 50.0}),
        (True, {"future_tolerance_s": 7.0}),
        (True, {"decision_features": "all"}),
        (False, {"maturity_days": 9.0}),
        (False, {"negative_sample_rate": 0.123}),
    ):
        other = named(monkeypatch, settings.model_copy(update=changed), learn=learn)
        assert (other != base) == (always or learn), changed


TOPICS_OF_RUN = RunTopics("candidate", "candidate-features")


def headers(run: str | None, total: int | None = None) -> Headers:
    reported = {RUN: run, DECIDED: None if total is None else str(total)}
    return tuple((name, value.encode()) for name, value in reported.items() if value is not None)


def decided(offset: int, run: str | None, total: int | None = None) -> Record:
    return Record("candidate", 0, offset, 0, b"c1", decision(offset), headers(run, total))


def block(numbers: Iterable[int], run: str | None, total: int | None = None) -> Record:
    rows = [feature_row(number) for number in numbers]
    return Record("candidate-features", 0, 0, 0, None, features_block(rows), headers(run, total))


def held(decisions: Iterable[Record], blocks: Iterable[Record]) -> Present:
    return Present(look([[*decisions]], hashes_of_decision), look([[*blocks]], hashes_of_block))


def test_a_run_of_which_records_are_gone_is_not_complete() -> None:
    decisions = [decided(0, "r"), decided(1, "r"), decided(2, "r", 4), decided(3, "r", 4)]
    blocks = [block([1, 0], "r"), block([2, 3], "r", 4)]
    whole = held(decisions, blocks)
    assert (whole.decisions.size, whole.features.size, whole.total) == (4, 4, 4)
    whole.refuse_other(TOPICS_OF_RUN, "r")
    for lacking, text in (
        (held(decisions[1:], blocks), "topic candidate holds 3 of the 4 decisions that run r has written"),
        (held(decisions, blocks[1:]), "topic candidate-features holds the features of 2 of the 4 decisions that run r"),
        (held(decisions, blocks[:1]), "topic candidate-features holds the features of 2 of the 4 decisions that run r"),
        (held(decisions, []), "topic candidate-features holds the features of 0 of the 4 decisions that run r"),
        (held([], blocks), "topic candidate holds 0 of the 4 decisions that run r has written"),
        (held(decisions[:1], blocks[:1]), "candidate holds 1 decisions of run r, .* the features of 2: the others"),
    ):
        with pytest.raises(ReprocessError, match=rf"{text}.*--replace"):
            lacking.refuse_other(TOPICS_OF_RUN, "r")
    begun = held(decisions[:2], blocks[:1])
    assert (begun.decisions.size, begun.features.size, begun.total) == (2, 2, None)
    begun.refuse_other(TOPICS_OF_RUN, "r")
    held([], []).refuse_other(TOPICS_OF_RUN, "r")
    other = look([[block([1], "r")]], hashes_of_block)
    assert begun.features.fingerprint not in (0, whole.features.fingerprint, other.fingerprint)
    assert begun.decisions.fingerprint not in (0, whole.decisions.fingerprint, begun.features.fingerprint)


def test_records_that_cannot_be_read_count_as_deleted() -> None:
    decisions = [decided(0, "r"), decided(1, "r", 2)]
    blocks = [block([0], "r"), block([1], "r", 2)]
    broken = [msgspec.structs.replace(record, value=(record.value or b"")[:-1]) for record in (decisions[0], blocks[0])]
    for found, text in (
        (held([broken[0], decisions[1]], blocks), "candidate holds 1 of the 2 decisions"),
        (held(decisions, [broken[1], blocks[1]]), "candidate-features holds the features of 1 of the 2 decisions"),
    ):
        with pytest.raises(ReprocessError, match=rf"{text}.*Begin anew with --replace"):
            found.refuse_other(TOPICS_OF_RUN, "r")


def test_other_runs_are_seen_in_either_topic() -> None:
    for found, text in (
        (held([decided(0, "r")], [block([0], "r")]), "topic candidate holds 1 decisions of run r; this one is other"),
        (held([], [block([0], "r")]), "candidate-features holds the features of 1 decisions of run r; this one is"),
        (held([decided(0, "other")], [block([0], "other"), block([1, 2], "r")]), "candidate-features .* of run r;"),
    ):
        found.refuse_foreign(TOPICS_OF_RUN)
        with pytest.raises(ReprocessError, match=text):
            found.refuse_other(TOPICS_OF_RUN, "other")
    for foreign, name in (
        (held([decided(0, None)], []), "candidate"),
        (held([], [block([0], "r"), block([1], None)]), "candidate-features"),
    ):
        with pytest.raises(ReprocessError, match=f"^topic {name} holds records that no backtest has written"):
            foreign.refuse_foreign(TOPICS_OF_RUN)


class Writes:
    """Takes note of transactions."""

    def __init__(self, happened: list[object], *, fenced: bool = False) -> None:
        self._happened, self._fenced = happened, fenced
        self.transactions: list[tuple[list[TopicRecord], Headers]] = []

    def write(self, records: list[TopicRecord], headers: list[tuple[str, bytes | None]]) -> None:
        if self._fenced:
            raise DeliveryFailed("somebody else wrote at the same time")
        self.transactions.append((records, tuple(headers)))
        self._happened.append(sum(record.topic == "candidate" for record in records))

    def of(self, topic: str) -> list[Record]:
        return [
            Record(topic, record.partition or 0, 0, 0, record.key, record.value, headers)
            for records, headers in self.transactions
            for record in records
            if record.topic == topic
        ]

    @property
    def present(self) -> Present:
        return held(self.of("candidate"), self.of("candidate-features"))


def writer_to(producer: Any, present: Present, begun: Callable[[], None] = lambda: None) -> RunWriter:
    messages = DecisionMessages(Numbering(3), 2, RATES)
    return RunWriter(producer, TOPICS_OF_RUN, "run", present, messages, begun)


def take_all(writer: RunWriter, parts: Iterable[Decisions]) -> None:
    for part in parts:
        writer.take("", part)


def test_what_is_replaced_goes_once_the_new_run_has_begun_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.backtest.reprocess.writer._TRANSACTION_ROWS", 40)
    history, card = busy_history(7), options(3)
    happened: list[object] = []

    def writer(*, fenced: bool = False) -> RunWriter:
        return writer_to(Writes(happened, fenced=fenced), Present(), lambda: happened.append("replaced"))

    with pytest.raises(ReprocessError):
        writer().finish()
    (whole,) = run(history, card)
    with pytest.raises(DeliveryFailed):
        writer(fenced=True).take("", whole)
    assert happened == []
    begun, decisions = writer(), 0
    for part in run(history, card, 100):
        begun.take("", part)
        decisions += len(part)
    begun.finish()
    assert happened[:3] == [40, "replaced", 40]
    assert happened.count("replaced") == 1
    assert sum(item for item in happened if isinstance(item, int)) == begun.written == decisions


def test_each_transaction_has_decisions_and_their_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.backtest.reprocess.writer._TRANSACTION_ROWS", 40)
    producer = Writes([])
    writer = writer_to(producer, Present())
    take_all(writer, run(busy_history(7), options(3), 37))
    writer.finish()
    for records, _ in producer.transactions:
        places = [
            msgspec.json.decode(record.value, type=Decision).source for record in records if record.topic == "candidate"
        ]
        rows = [row for record in records if record.topic != "candidate" for row in read_feature_messages(record.value)]
        assert sorted(places, key=str) == sorted((row.source for row in rows), key=str)
        assert {partition_of(row.card_id, 3) for row in rows} == {
            record.partition for record in records if record.topic != "candidate"
        }
    reported = [dict(headers) for _, headers in producer.transactions]
    assert {item[RUN] for item in reported} == {b"run"}
    assert [DECIDED in item for item in reported] == [False] * (len(reported) - 1) + [True]
    assert (producer.present.total, producer.present.decisions.size) == (writer.written, writer.written)
    producer.present.refuse_other(TOPICS_OF_RUN, "run")


def test_a_run_goes_on_behind_what_is_there_if_that_is_what_it_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.backtest.reprocess.writer._TRANSACTION_ROWS", 40)
    parts = run(busy_history(7), options(3), 100)
    producer = Writes([])
    first = writer_to(producer, Present())
    take_all(first, parts[:2])
    begun = producer.present
    assert 0 < begun.decisions.size == begun.features.size == first.written < sum(map(len, parts[:2]))
    rest = writer_to(producer, begun)
    take_all(rest, parts)
    rest.finish()
    whole = producer.present
    assert whole.decisions.size == whole.features.size == whole.total == sum(map(len, parts))

    moved = parts[0].features.copy()
    moved[0, -1] = 7.0
    score = parts[0].score.copy()
    score[1] += 1e-9
    for changes in ({"features": moved}, {"score": score}):
        other = writer_to(Writes([]), begun)
        with pytest.raises(ReprocessError, match="are not those that it makes now"):
            take_all(other, [dataclasses.replace(parts[0], **changes), *parts[1:]])


def test_the_page_tells_every_option() -> None:
    cells = re.findall(r"^\| (`[^|]*) \|", (ROOT / "docs/export.md").read_text(encoding="utf-8"), re.MULTILINE)
    reported = {option for cell in cells for option in re.findall(r"`(--[a-z-]+)`", cell)}
    assert reported == {name for item in export.command.params if isinstance(item, click.Option) for name in item.opts}


def into(topic: str) -> list[str]:
    return ["backtest", "--decisions", f"topic:{topic}"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["export", "out"], 2, "name a cluster with --bootstrap"),
        (["export", "out", "nobody", "--bootstrap", "127.0.0.1:1"], 1, "'nobody' is no topic of the pipeline"),
        ([*into("mine")], 1, "a cluster to read topics of"),
        ([*into("decisions"), "--bootstrap", "127.0.0.1:1"], 1, "is the name of a topic"),
        ([*into(""), "--bootstrap", "127.0.0.1:1"], 1, "the topic has no name"),
        ([*into("mine"), "--bootstrap", "127.0.0.1:1", "--budget", "5"], 1, "leave --train, --budget, --pace"),
        ([*into("mine"), "--json", "report.json"], 2, "decisions to a topic have no report"),
        ([*into("mine"), "--compare", "live"], 2, "decisions to a topic have no report"),
        (["backtest", "--replace"], 2, "name it with --decisions topic:TOPIC"),
    ],
)
def test_what_cannot_be_done_is_reported(arguments: list[str], code: int, text: str, tmp_path: Path) -> None:
    environment = {"FRAUD_PIPELINE_DATA_DIR": str(tmp_path), "KAFKA_BOOTSTRAP_SERVERS": None}
    result = CliRunner().invoke(main, arguments, env=environment)
    assert (result.exit_code, text in result.output.replace("\n", " ")) == (code, True), result.output
    assert not Path("out").exists()


def export_of(left: int) -> Callable[..., list[Exported]]:
    def run(self: TopicExport, progress: object, stopped: Callable[[], bool]) -> list[Exported]:
        del self, progress
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        return [Exported("transactions", Path("out"), 5), Exported("labels", Path("out"), 5, left=left)]

    return run


def reprocessed(complete: bool) -> Callable[..., Reprocessed]:
    def run(*_: object, stopped: Callable[[], bool], **_more: object) -> Reprocessed:
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        return Reprocessed("run", "candidate", 0, 5, complete, ())

    return run


def nothing_reached(*_: object, **_more: object) -> Reprocessed:
    signal.raise_signal(signal.SIGINT)
    raise RangeError("nothing that was reached before it was stopped")


def twice(*_: object, **_more: object) -> Reprocessed:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    raise AssertionError("the second one ends the program")


@pytest.mark.parametrize(
    ("source", "name", "run", "code"),
    [
        (TopicExport, "run", export_of(3), 130),
        (TopicExport, "run", export_of(0), 0),
        (TopicExport, "run", twice, 130),
        (backtest, "reprocess", reprocessed(complete=False), 130),
        (backtest, "reprocess", reprocessed(complete=True), 0),
        (backtest, "reprocess", nothing_reached, 130),
        (backtest, "reprocess", twice, 130),
    ],
)
def test_an_exit_code_tells_that_something_is_left_after_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, source: object, name: str, run: Callable[..., object], code: int
) -> None:
    monkeypatch.setattr(source, name, run)
    before = signal.getsignal(signal.SIGINT)
    arguments = ["export", "out"] if source is TopicExport else into("candidate")
    result = CliRunner().invoke(main, [*arguments, "--bootstrap", "127.0.0.1:1"])
    assert result.exit_code == code, result.output
    assert ("the same command goes on from here" in result.output) == (
        code == 130 and run not in {nothing_reached, twice}
    )
    assert signal.getsignal(signal.SIGINT) is before


class Log:
    """A partition of 3,000 records."""

    def __init__(self, *_: object) -> None:
        self.position = 0

    def read_to(self, end: int, most: int) -> list[Record]:
        first, self.position = self.position, min(self.position + most, end)
        return [Record("models", 0, offset, 0, b"k", b"{}") for offset in range(first, self.position)]

    def close(self) -> None:
        pass


def test_a_file_has_no_more_rows_than_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(topic_export, "RangeReader", Log)
    rows = RowFormat(MODELS)
    files = TopicFiles(tmp_path / "models", Origin("cluster", "models", "id", 1), rows.schema)
    run = topic_export._Run("", Settings(), 1_000, lambda _: None, lambda: False)
    exported = Exported("models", files.directory, left=3_000)
    run.write(topic_export._TopicLog("models", rows, files, [(0, range(3_000))], {}, exported))
    paths = sorted(files.directory.rglob("*.parquet"))
    assert [pq.read_metadata(path).num_rows for path in paths] == [1_000] * 3
    assert files.covered(0) == [range(0, 1_000), range(1_000, 2_000), range(2_000, 3_000)]
    assert (exported.records, exported.left) == (3_000, 0)
