"""The two hops without kernels do the same, whatever writes: each transaction is decided once."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.broker import EmbeddedBroker
from pipeline.kafka.readers.topic_reader import read_topic
from schemas.records import Record
from schemas.topics import DECISION_FEATURES, DECISIONS, PROFILED, PROGRESS, TRANSACTIONS, Topic
from tests.benchmarks import chain, report
from tests.benchmarks.chain import ENGINES, FLOOR, QUICK, Engine, measure, running_engine
from tests.benchmarks.load import Load
from tests.benchmarks.tables import as_text
from tests.benchmarks.traffic import Item, Traffic, a_while_ago, items
from tests.benchmarks.two_hops.__main__ import FEATURES_BYTES, PROGRESS_BYTES, ROW_BYTES, decide, profile
from tests.benchmarks.two_hops.raw_writer import Answer, RawError, RawTransactions, array, text, varint
from tests.helpers.offsets import committed_offsets

COUNT = 400
TRAFFIC = Traffic(cards=100, merchants=50, history_days=1)


@pytest.fixture
def transactions() -> list[Item]:
    return list(items(TRAFFIC.measured(a_while_ago(60), COUNT), TRAFFIC.seed, labelled=0.0))


def read(load: Load, topic: Topic) -> list[Record]:
    return list(read_topic(load.servers, load.settings.topic(topic.name), settings=load.settings))


@pytest.mark.broker
@pytest.mark.parametrize("name", [FLOOR, "writer", "writer-librdkafka", "session"])
def test_each_way_decides_every_transaction_once_and_commits_its_offset(
    name: str, transactions: list[Item], broker: EmbeddedBroker, tmp_path: Path
) -> None:
    blocks = profile([(0, item.value) for item in transactions], 4)[:-1]
    expected = sorted(output.value or b"" for output in decide([(0, block.value or b"") for block in blocks])[:-1])
    with running_engine(name, broker, tmp_path / f"hops-{name}") as load:
        load.fill(transactions)
        assert sorted(record.value or b"" for record in read(load, DECISIONS)) == expected
        for topic, size in ((PROFILED, ROW_BYTES), (DECISION_FEATURES, FEATURES_BYTES)):
            assert sum(len(record.value or b"") for record in read(load, topic)) == size * COUNT
        assert {len(record.value or b"") for record in read(load, PROGRESS)} == {PROGRESS_BYTES}
        topic_name, group = load.settings.topic(TRANSACTIONS.name), load.settings.topic("card")
        committed = committed_offsets(load.servers, group, [topic_name], settings=load.settings)
        assert sum(committed.values()) == COUNT


@pytest.mark.broker
def test_a_measured_part_has_a_row_for_each_engine_and_says_which_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "broken", Engine(lambda settings, place: chain._process(["false"], settings, place)))
    options = replace(QUICK, engines=(FLOOR, "broken", "writer"), rates=(100, 200), traffic=TRAFFIC)
    part = measure(options, lambda _: None)
    assert [(row["rate"], row["engine"]) for row in part["rows"]] == [
        (rate, name) for rate in (100, 200) for name in (FLOOR, "writer")
    ]
    assert {found["answered"] for row in part["rows"] for found in row["rounds"]} == {1.0}
    assert list(part["failed"]) == ["broken"]
    assert "broken was not measured: it ended with status 1" in as_text(report.chain(part))


def test_an_engine_is_shown_beside_the_floor_where_both_kept_up() -> None:
    rows = [
        {"rate": rate, "engine": name, "p50_ms": p50, "p99_ms": p99}
        for rate, name, p50, p99 in (
            (500, FLOOR, 10.0, 20.0),
            (500, "pipeline", 25.0, 90.0),
            (5_000, FLOOR, 20.0, 40.0),
            (5_000, "pipeline", None, None),
        )
    ]
    table = report.chain({"rows": rows, "failed": {}})
    assert table.head == ("engine", "500/s", "p99", "5,000/s", "p99")
    assert table.rows == ((FLOOR, "1.00", "1.00", "1.00", "1.00"), ("pipeline", "2.50", "4.50", "-", "-"))


@pytest.mark.parametrize("number", [0, 127, 128, 300, 1 << 28])
def test_what_the_raw_writer_encodes_can_be_read(number: int) -> None:
    answer = Answer(varint(number) + text("four") + array([text(b"x"), text(None)]) + b"\7")
    assert answer.length() == number
    answer.skip_text()
    for _ in range(answer.length() - 1):
        answer.skip_text()
    assert answer.take("b") == (7,)


@pytest.mark.broker
def test_the_raw_writer_ends_at_an_error_that_does_not_pass(broker: EmbeddedBroker) -> None:
    with (
        closing(RawTransactions(broker.bootstrap_servers, "raw-fenced", "raw-group")) as raw,
        closing(RawTransactions(broker.bootstrap_servers, "raw-fenced", "raw-group")),
        pytest.raises(RawError, match="error"),
    ):
        raw.commit({}, [])
