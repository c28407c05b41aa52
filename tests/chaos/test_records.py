"""The checks' own reader of blocks says what the pipeline shows of them."""

import json
from datetime import timedelta, timezone

import msgspec
import pytest

from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.engine.scores.decider import Decider
from pipeline.engine.scores.decision_records import read_feature_messages
from pipeline.engine.scores.score import ScorePartition
from schemas.records import Record
from schemas.topics import DECISION_FEATURES, DECISIONS, PROFILED
from tests.chaos.check_records import inputs_are_the_ledger, written_again
from tests.chaos.records import NUMBER_HEADER, Entry, Logs, Sent, rows_of
from tests.chaos.run import Rules, Run
from tests.helpers.blocks import features_block
from tests.helpers.champion import active
from tests.helpers.logs import START, feature_row, to
from tests.unit.engine.test_engine_card import NOW, busy_logs, options


def rows(value: bytes) -> list[tuple[int, object]]:
    entries = rows_of(Entry("features", 0, 7, 0, None, value))
    assert {entry.place for entry in entries} == {("features", 0, 7)}
    return [(entry.row, json.loads(entry.value or b"")) for entry in entries]


def test_features_of_a_score_agent_are_read_alike() -> None:
    transactions, labels = busy_logs(5, 200)
    card = CardPartition(options(), None, MemoryStore())
    (block,) = to(PROFILED, card.process([*transactions.records, *labels.records], NOW))
    record = Record(PROFILED.name, 0, 3, 0, None, block.value)
    result = Decider("EUR", 2).process([(ScorePartition(), [record])], active(audit_rate=0.1), NOW)
    values = [output.value or b"" for output in to(DECISION_FEATURES, result)]
    shown = [message for value in values for message in read_feature_messages(value)]
    assert [row for value in values for _, row in rows(value)] == [
        json.loads(msgspec.json.encode(item)) for item in shown
    ]
    assert len(shown) == len(to(DECISIONS, result)) > 100
    assert len(values) == 2


def test_features_of_several_versions_times_and_topics_are_read_alike() -> None:
    at = START.astimezone(timezone(-timedelta(hours=9, minutes=30)))
    value = features_block(
        [
            feature_row(1, at, merchant_id="é€"),
            feature_row(2, features={"amount": -0.0, "card_usual_amount": 1e-320}),
            feature_row(3, START + timedelta(microseconds=7)),
        ]
    )
    shown = [json.loads(msgspec.json.encode(message)) for message in read_feature_messages(value)]
    assert rows(value) == list(enumerate(shown))
    assert str(rows(value)[1][1]["features"]["amount"]) == "-0.0"  # type: ignore[index]


@pytest.mark.parametrize(
    ("numbers", "requests", "odd"),
    [
        ([1, 2, 3], 0, []),
        ([1, 2, 3, 2, 3, 4], 1, []),
        ([1, 1, 2, 2, 2], 3, []),
        ([1, 2, 3, 2, 4], 0, [2]),
        ([1, 2, 3, 3, 2], 1, [2]),
        ([1, 2, 3, 4, 1], 0, [1]),
    ],
)
def test_only_the_newest_request_may_stand_twice(numbers: list[int], requests: int, odd: list[int]) -> None:
    assert written_again(numbers) == (requests, odd)


def test_a_request_stands_twice_only_where_a_broker_has_ended() -> None:
    ledger = [Sent(number, "labels", 0, 7, None, b"label", "plain", None) for number in range(3)]
    order = [0, 1, 1, 2]
    entries = [
        Entry("labels", 0, offset, 7, None, b"label", ((NUMBER_HEADER, b"%d" % number),))
        for offset, number in enumerate(order)
    ]
    run = Run(Logs({"labels": entries}), ledger, Rules(2, 2, 0.3, 1, 1, 1))
    assert inputs_are_the_ledger(run).problems == ["labels 0: 1 requests stand twice, 0 brokers ended"]
    run.rules = run.rules._replace(broker_deaths=1)
    check = inputs_are_the_ledger(run)
    assert (check.differences, check.compared) == (0, {"inputs": 3, "requests written again": 1})
