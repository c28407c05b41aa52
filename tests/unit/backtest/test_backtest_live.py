"""Differences from live decisions: all are told, to the last bit, each with what was not the same."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from pipeline.backtest import Decisions, Order, replay
from pipeline.backtest.input.live_decisions import LiveDecisions, SourcePosition
from pipeline.backtest.input.span import Span
from pipeline.backtest.input.topic_source import TopicSource
from pipeline.backtest.runner import live_comparison as compared
from pipeline.backtest.runner.live_comparison import LiveComparer
from pipeline.backtest.runner.outcome import warnings_of_comparison
from pipeline.backtest.runner.statistics import ProgressListener, RunStatistics
from pipeline.decision.policy import LARGEST_THRESHOLD
from pipeline.decision.rules import PolicyRule
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.engine.scores.decision_records import read_feature_messages
from pipeline.features.catalogue import FEATURES
from pipeline.scoring.river_factory import first_river
from pipeline.settings import Settings
from schemas.messages import Decision, DecisionFeatures
from schemas.records import Record
from schemas.topics import DECISION_FEATURES, DECISIONS, Topic
from tests.helpers.blocks import features_block
from tests.helpers.histories import START_US, Happening, busy_history, play, transactions
from tests.helpers.live import Live
from tests.helpers.logs import after, decision, feature_row
from tests.unit.backtest.test_backtest import models, options

LONG_AGO = Span(-(2**61), -(2**61), 2**61)


@pytest.fixture(scope="module")
def history() -> list[Happening]:
    """Transactions in the order of their events, so that live and backtest agree."""
    bought = [sent_record for sent_record in busy_history(11, 300, invalid=0.0) if sent_record.kind == "transaction"]
    bought.sort(key=lambda item: item.fields["event_time"])
    return [dataclasses.replace(item, sequence=number) for number, item in enumerate(bought)]


def here(history: list[Happening], scored_by: ActiveModels | None = None) -> tuple[Decisions, list[SourcePosition]]:
    (decisions,) = replay(scored_by or models(), [transactions(history)], options=options())
    return decisions, [(0, int(row)) for row in decisions.transactions.row]


class Logs(NamedTuple):
    """A partition of ``decisions`` and the same one of ``features``."""

    decisions: list[Record]
    features: list[Record]


class KeptFeatures(Live):
    """Keeps blocks of ``features``; decisions bear their features alone where they are selected."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.blocks: list[bytes] = []

    def _append(self, output: Any) -> Record:
        if output.topic is DECISION_FEATURES:
            self.blocks.append(output.value)
        return super()._append(output)


class Lived(NamedTuple):
    """Live decisions, as messages."""

    decisions: list[Decision]
    features: list[DecisionFeatures]

    def logs(self) -> Logs:
        return written(self.decisions, self.features)


@pytest.fixture(scope="module")
def lived(history: list[Happening]) -> Lived:
    live = KeptFeatures(models(), options())
    play(history, live)
    decisions = [msgspec.structs.replace(decision, features=None) for decision in live.decisions]
    return Lived(decisions, [row for block in live.blocks for row in read_feature_messages(block)])


def written(
    decisions: Sequence[Decision], features: Sequence[DecisionFeatures], *, rows: int = 7, later_ms: int = 0
) -> Logs:
    """Return logs that are stamped by the times of the events, and blocks ``later_ms`` later."""
    encode = msgspec.json.Encoder(decimal_format="number").encode
    blocks = [features[first : first + rows] for first in range(0, len(features), rows)]
    return Logs(
        [
            Record(DECISIONS.name, 0, offset, stamp_ms(decision), b"", encode(decision))
            for offset, decision in enumerate(decisions)
        ],
        [
            Record(DECISION_FEATURES.name, 0, offset, stamp_ms(block[-1]) + later_ms, None, features_block(block))
            for offset, block in enumerate(blocks)
        ],
    )


def stamp_ms(decision: Decision | DecisionFeatures) -> int:
    return round(decision.event_time.timestamp() * 1_000)


def live_of(logs: Logs, *, span: Span = LONG_AGO, at_once: int = 50, features: bool = True) -> LiveDecisions:
    class Source(TopicSource):
        def read(self, topic: Topic, number: int, offsets: range, **_: Any) -> Iterator[list[Record]]:
            records = logs.features if topic is DECISION_FEATURES else logs.decisions
            assert (number, len(offsets)) == (0, len(records))
            most = 1 if topic is DECISION_FEATURES else at_once
            for first in range(0, len(records), most):
                yield records[first : first + most]

    source = Source("nowhere", Settings(kafka_bootstrap_servers=None))
    blocks = {0: range(len(logs.features))} if features else None
    return LiveDecisions(source, span, {0: range(len(logs.decisions))}, blocks)


def comparer(
    logs: Logs,
    *,
    span: Span = LONG_AGO,
    at_once: int = 50,
    order: Order = Order.EVENT_TIME,
    began_us: int | None = None,
) -> LiveComparer:
    return LiveComparer(live_of(logs, span=span, at_once=at_once), order, began_us)


def causes(found: LiveComparer) -> dict[str, int]:
    return dict(found.finish().causes)


def test_equal_decisions_have_no_difference_in_whatever_order_they_come(history: list[Happening], lived: Lived) -> None:
    decisions, places = here(history)
    found = comparer(lived.logs())
    backwards = np.arange(len(decisions))[::-1]
    for rows in np.array_split(backwards, 7):
        found.take(decisions.take(rows), [places[row] for row in rows])
    comparison = found.finish()
    assert comparison.differences == []
    assert comparison.compared == len(decisions) > 100


def test_the_last_bit_is_a_difference(history: list[Happening], lived: Lived) -> None:
    decisions, places = here(history)
    features = decisions.features.copy()
    features[3, 0] = np.nextafter(features[3, 0], np.inf)
    score = decisions.score.copy()
    score[5] = np.nextafter(score[5], 1.0)
    found = comparer(lived.logs())
    found.take(dataclasses.replace(decisions, features=features, score=score), places)
    comparison = found.finish()
    assert [
        (difference.transaction_id, difference.cause, difference.differs) for difference in comparison.differences
    ] == [
        (decisions.transactions.transaction_id[3].as_py(), compared.ARRIVAL, "amount"),
        (decisions.transactions.transaction_id[5].as_py(), compared.UNEXPLAINED, "score"),
    ]
    frame = comparison.frame()
    assert frame["score"].tolist() == [decisions.score[3], score[5]]
    assert frame["event_time"].dt.tz is not None


def other_river() -> ActiveModels:
    base = models()
    return dataclasses.replace(base, river=first_river())


def test_scores_under_another_policy_have_the_hits_of_its_old_rules(history: list[Happening]) -> None:
    decisions, _ = here(history)
    half = float(np.median(decisions.features[:, FEATURES.index("amount")]))
    old = PolicyRule(code="old", feature="amount", op=">", value=half, sentence="It is large.")
    own = decisions.models.policy
    policy = own.replace(threshold=LARGEST_THRESHOLD, old_rules=(old,))

    under = decisions.under_policy(policy)

    assert under.frame().equals(decisions.under(decisions.models.under(policy)).frame())
    by_rule = under.frame()["selection"] == "rule"
    assert 0 < by_rule.sum() < len(decisions)
    assert under.under_policy(own).frame().equals(decisions.frame())


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        (lambda decisions: dataclasses.replace(decisions, rates_version="another"), compared.RULES),
        (lambda decisions: decisions.under(other_river()), compared.OTHER_VERSION["river"]),
        (lambda decisions: dataclasses.replace(decisions, case_sequence=decisions.case_sequence + 1), compared.ARRIVAL),
    ],
)
def test_a_cause_is_the_first_thing_that_was_not_the_same(
    history: list[Happening], lived: Lived, changed: Any, cause: str
) -> None:
    decisions, places = here(history)
    # Whatever is different must show, or there is nothing to explain.
    different = dataclasses.replace(changed(decisions), score=decisions.score + 1e-9)
    found = comparer(lived.logs())
    found.take(different, places)
    assert causes(found) == {cause: len(decisions)}


def test_merchant_features_alone_differ_where_partitions_were_read_otherwise(
    history: list[Happening], lived: Lived
) -> None:
    decisions, places = here(history)
    features = decisions.features.copy()
    features[:, -1] += 1.0
    features[:, -1] = np.where(np.isnan(features[:, -1]), 1.0, features[:, -1])
    found = comparer(lived.logs())
    found.take(dataclasses.replace(decisions, features=features), places)
    assert causes(found) == {compared.BETWEEN: len(decisions)}


def test_windows_that_began_later_explain_what_lies_within_their_reach(history: list[Happening], lived: Lived) -> None:
    decisions, places = here(history)
    shifted = dataclasses.replace(decisions, features=decisions.features + 1.0)
    middle_us = int(np.median(decisions.transactions.event_time_us))
    found = comparer(lived.logs(), began_us=middle_us - compared.FULL_AFTER_US)
    found.take(shifted, places)
    before = int((decisions.transactions.event_time_us < middle_us).sum())
    assert causes(found) == {compared.WINDOWS: before, compared.ARRIVAL: len(decisions) - before}


def test_what_only_one_side_decided_is_reported(history: list[Happening], lived: Lived) -> None:
    decisions, places = here(history)
    found = comparer(written(lived.decisions[10:], lived.features))
    found.take(decisions.take(np.arange(len(decisions) - 20)), places[:-20])
    assert causes(found) == {compared.ONLY_HERE: 10, compared.ONLY_LIVE: 20}

    stopped = comparer(lived.logs())
    stopped.take(decisions.take(np.arange(100)), places[:100])
    assert stopped.finish(partial=True).differences == []

    of_range = Span(START_US, int(decisions.transactions.event_time_us[50]), 2**61)
    part = comparer(lived.logs(), span=of_range)
    assert causes(part) == {compared.ONLY_LIVE: int((decisions.transactions.event_time_us >= of_range.from_us).sum())}


@pytest.mark.parametrize("rows", [1, 40, 512])
@pytest.mark.parametrize("later_ms", [-(10**12), -50, 50, 10**12])
def test_features_are_joined_whichever_comes_first(
    history: list[Happening], lived: Lived, rows: int, later_ms: int
) -> None:
    decisions, places = here(history)
    found = comparer(written(lived.decisions, lived.features, rows=rows, later_ms=later_ms), at_once=20)
    for part in np.array_split(np.arange(len(decisions)), 5):
        found.take(decisions.take(part), [places[row] for row in part])
    comparison = found.finish()
    assert comparison.differences == []
    assert (comparison.compared, comparison.without_features) == (len(decisions), 0)


def test_features_are_found_by_name_and_those_of_decisions_are_not_read(history: list[Happening], lived: Lived) -> None:
    decisions, places = here(history)
    wrong = [msgspec.structs.replace(decision, features=dict.fromkeys(FEATURES, 1.0)) for decision in lived.decisions]
    backwards = [
        msgspec.structs.replace(feature, features={"another": 1.0, **dict(reversed(feature.features.items()))})
        for feature in lived.features
    ]
    found = comparer(written(wrong, backwards))
    found.take(decisions, places)
    assert found.finish().differences == []

    lacking = [
        msgspec.structs.replace(
            feature, features={name: feature for name, feature in feature.features.items() if name != "amount"}
        )
        for feature in lived.features
    ]
    found = comparer(written(wrong, lacking))
    found.take(decisions, places)
    assert {difference.differs for difference in found.finish().differences} == {"amount"}


def damaged(record: Record) -> Record:
    value = bytearray(record.value or b"")
    value[-1] ^= 1
    return msgspec.structs.replace(record, value=bytes(value))


@pytest.mark.parametrize("damage", [lambda _: [], lambda record: [damaged(record)]])
def test_a_decision_without_recorded_features_is_compared_in_everything_else(
    history: list[Happening], lived: Lived, damage: Callable[[Record], list[Record]]
) -> None:
    decisions, places = here(history)
    whole = lived.logs()
    lost = Logs(whole.decisions, [*damage(whole.features[0]), *whole.features[1:]])
    features, score = decisions.features + 1.0, decisions.score.copy()
    features[7:] = decisions.features[7:]
    score[3] += 1e-9
    found = comparer(lost)
    found.take(dataclasses.replace(decisions, features=features, score=score), places)
    comparison = found.finish()
    assert (comparison.compared, comparison.without_features) == (len(decisions), 7)
    assert [
        (difference.transaction_id, difference.cause, difference.differs) for difference in comparison.differences
    ] == [(decisions.transactions.transaction_id[3].as_py(), compared.NO_FEATURES, "score")]
    (warning,) = warnings_of_comparison(comparison)
    assert f"7 of {len(decisions)} live decisions have no recorded features" in warning

    statistics = RunStatistics(LONG_AGO, 0, ProgressListener(None, lambda: False))
    statistics.comparison = comparison
    assert statistics.reported_counts()["compared with live without recorded features"] == 7

    found = comparer(whole)
    found.take(decisions, places)
    statistics.comparison = found.finish()
    assert warnings_of_comparison(statistics.comparison) == []
    assert statistics.reported_counts() == {"compared with live": len(decisions)}


def messages(numbers: Sequence[int], **changes: Any) -> list[Decision]:
    return [msgspec.json.decode(decision(n, after(n), **changes), type=Decision) for n in numbers]


def rows_of(numbers: Sequence[int], amount: float = 1.0) -> list[DecisionFeatures]:
    return [feature_row(n, after(n), features={"amount": amount}) for n in numbers]


@pytest.mark.parametrize("later_ms", [-(10**12), 50, 10**12])
@pytest.mark.parametrize("rows", [1, 3])
def test_of_repeated_records_the_last_one_counts(later_ms: int, rows: int) -> None:
    # Behind them is another decision, which is read before the second copies of the features.
    decisions = [*messages([0, 1], score=0.1), *messages([0, 1], score=0.2), *messages([5])]
    features = [*rows_of([0, 1]), *rows_of([0, 1], 2.0), *rows_of([5])]
    logs = written(decisions, features, rows=rows, later_ms=later_ms)
    for number in (0, 1):
        found = live_of(logs, at_once=4).find((0, number))
        assert found is not None
        assert found.features is not None
        assert (found.decision.score, found.features[FEATURES.index("amount")]) == (0.2, 2.0)


def test_what_has_no_other_side_does_not_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.backtest.input.live_decisions._MOST_UNPAIRED", 10)
    monkeypatch.setattr("pipeline.backtest.input.live_decisions._DECISIONS_READ", 1)
    monkeypatch.setattr("pipeline.backtest.input.live_decisions.MOST_ROWS", 1)
    numbers = range(200)
    without = live_of(written(messages(numbers), rows_of(range(150, 200)), rows=1), at_once=1)
    found = without.find((0, 0))
    assert found is not None
    assert found.features is None
    # Read as far as many decisions lack their features, and not to the end of the log.
    assert len(without.waiting) + len(without._unpaired) < 20
    paired = without.find((0, 160))
    assert paired is not None
    assert paired.features is not None

    orphans = live_of(written(messages(range(150, 200)), rows_of(numbers), rows=1), at_once=1)
    while orphans.pull():
        assert len(orphans._unpaired) <= 20
    assert [place for place, item in orphans.waiting.items() if item.features is not None] == [
        (0, number) for number in range(150, 200)
    ]


def test_features_of_other_event_times_are_passed_over() -> None:
    start_us, end_us = (round(after(day).timestamp() * 1e6) for day in (3, 6))
    span = Span(start_us, start_us, end_us)
    live = live_of(written(messages(range(10)), rows_of(range(10))), span=span, at_once=1)
    while live.pull():
        assert live._unpaired.keys() <= {(0, 3), (0, 4), (0, 5)}
    assert {place: item.features is None for place, item in live.waiting.items()} == {
        (0, 3): False, (0, 4): False, (0, 5): False,
    }  # fmt: skip


def test_features_are_not_read_where_nobody_compares_them() -> None:
    live = live_of(written(messages([0]), rows_of([0])), features=False)
    found = live.find((0, 0))
    assert found is not None
    assert found.features is None
    assert found.decision.transaction_id == "t0"
