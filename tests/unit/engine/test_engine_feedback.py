"""The feedback agent's kernel: what a transaction turned out to be, joined to the features that were served."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from pipeline.engine.feedback.decision_store import DecisionStore
from pipeline.engine.feedback.feedback import FeedbackPartition
from pipeline.engine.feedback.feedback_kernel import (
    DecidedBatch,
    FeedbackKernel,
    JoinedRows,
    LabelRow,
    TransactionIdentities,
)
from pipeline.engine.partition_state.decision_segments import MemorySegments
from pipeline.engine.partition_state.pending_items import PendingItems
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.engine.records.results import Result
from pipeline.engine.scores.decision_records import read_feature_messages
from pipeline.features.xxh3 import transaction_hash
from pipeline.learning.labels import KNOWN
from pipeline.learning.sampling import keep_negative
from schemas.messages import Example, FeedbackConfig, LogPosition, Versions
from schemas.records import Record
from schemas.times import US_PER_DAY
from schemas.topics import DEAD_LETTERS, DECISION_FEATURES, EXAMPLES
from tests.helpers.blocks import features_block
from tests.helpers.logs import START, LabelLog, Log, after, decode_example, feature_row, features, label, microseconds

NOW = after(500)
RATE = 0.25
MATURITY_DAYS = 30.0


def sampled(number: int, card: str = "c1") -> bool:
    return keep_negative(transaction_hash(card, f"t{number}"), RATE)


IN = [number for number in range(400) if sampled(number)]
OUT = [number for number in range(400) if not sampled(number)]


class Desk:
    """A partition with its two topics and its store; every call is a batch of its own."""

    def __init__(self, rate: float = RATE, horizon_days: float = 120.0, reported_share: float = 1.0) -> None:
        options = FeedbackConfig(
            label_horizon_us=round(horizon_days * US_PER_DAY),
            maturity_us=round(MATURITY_DAYS * US_PER_DAY),
            negative_sample_rate=rate,
            reported_share=reported_share,
        )
        self.store, self.segments = MemoryStore(), MemorySegments()
        self.options = options
        self.state = FeedbackPartition(options, self.store, segments=self.segments)
        self.decisions, self.labels = Log(DECISION_FEATURES), LabelLog()

    def decide(self, number: int, at: datetime = START, **changes: Any) -> list[Example]:
        return examples(self.work(self.decisions.append(features(number, at, **changes), at)))

    def work(self, record: Record) -> Result:
        result = self.state.process([record], NOW)
        self.state.commit()
        return result

    def say(
        self, number: int, at: datetime, known: str = "fraud", arrived: datetime | None = None, **changes: Any
    ) -> list[Example]:
        return examples(self.report(number, at, known, arrived, **changes))

    def report(
        self, number: int, at: datetime, known: str = "fraud", arrived: datetime | None = None, **changes: Any
    ) -> Result:
        return self.work(self.labels.append(label(number, at, known, **changes), arrived or at))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def examples(result: Result) -> list[Example]:
    assert {output.topic for output in result.outputs} <= {EXAMPLES}
    return [decode_example(output.value or b"") for output in result.outputs]


def emitted(found: list[Example]) -> list[tuple[str, str, int, float]]:
    return [(example.transaction_id, example.label, example.revision, example.weight) for example in found]


def test_an_example_holds_the_features_as_served(desk: Desk) -> None:
    versions = Versions(lightgbm="l1", river="r@7", policy="p", kernel="k", rates="x")
    seen = {"amount": 1.5, "card_usual_amount": None, "one of a later release": 2.0}
    desk.decide(8, after(1), logit=-2.5, score=0.125, features=seen, versions=versions, merchant_id="m4")
    result = desk.report(8, after(2), source="chargeback", arrived=after(3))
    (output,) = result.outputs
    assert output.key == b"c1"
    (example,) = examples(result)
    (served,) = read_feature_messages(desk.decisions.records[0].value)
    for name in ("transaction_id", "card_id", "merchant_id", "event_time", "amount_base", "logit", "river_logit",
                 "score", "log"):  # fmt: skip
        assert getattr(example, name) == getattr(served, name)
    assert (example.features, example.versions) == (seen, versions)
    assert example.log == LogPosition(partition=0, offset=16)
    assert (example.label, example.label_source, example.known_at) == ("fraud", "chargeback", after(3))
    assert (example.weight, example.revision) == (1.0, 0)
    assert result.counts == {("label", "first"): 1, ("example", "fraud"): 1}


def test_a_label_may_come_before_its_decision(desk: Desk) -> None:
    assert desk.say(5, after(hours=1)) == []
    assert desk.say(5, after(hours=2), "legitimate", card_id="c2") == []
    assert desk.decide(5, card_id="c3") == []
    assert emitted(desk.decide(5)) == [("t5", "fraud", 0, 1.0)]
    assert desk.decide(6) == []


def test_a_label_in_the_batch_of_its_decision_is_joined(desk: Desk) -> None:
    records = [desk.decisions.append(features(number)) for number in (1, 2)]
    labels = [desk.labels.append(label(2, after(1)), after(1))]
    assert emitted(examples(desk.state.process([*records, *labels], NOW))) == [("t2", "fraud", 0, 1.0)]


def test_frauds_are_kept_and_legitimate_ones_sampled_with_their_weight(desk: Desk) -> None:
    for number in range(400):
        desk.decide(number, after(minutes=number))
    found = [example for number in range(200) for example in desk.say(number, after(1))]
    assert emitted(found) == [(f"t{number}", "fraud", 0, 1.0) for number in range(200)]
    found = [
        example for number in range(200, 400) for example in desk.say(number, after(1), "legitimate", source="issuer")
    ]
    assert emitted(found) == [(f"t{number}", "legitimate", 0, 4.0) for number in IN if number >= 200]
    assert sum(example.weight for example in found) == pytest.approx(200, rel=0.3)
    assert desk.report(OUT[-1], after(2), "legitimate", source="audit").counts == {("label", "confirmed"): 1}


def test_what_is_not_sampled_is_counted(desk: Desk) -> None:
    desk.decide(OUT[0])
    result = desk.report(OUT[0], after(1), "legitimate", source="issuer")
    assert result.counts == {("label", "first"): 1, ("label", "not_sampled"): 1}


@pytest.mark.parametrize("number", [IN[0], OUT[0]])
def test_a_reviewers_verdict_is_the_example(desk: Desk, number: int) -> None:
    desk.decide(number)
    assert emitted(desk.say(number, after(1), "legitimate", source="analyst")) == [(f"t{number}", "legitimate", 0, 1.0)]
    assert desk.decide(OUT[1], after(2 * MATURITY_DAYS)) == []


@pytest.mark.parametrize("number", [IN[0], OUT[0]])
def test_a_correction_is_a_further_revision(desk: Desk, number: int) -> None:
    desk.decide(number)
    name = f"t{number}"
    assert emitted(desk.say(number, after(1))) == [(name, "fraud", 0, 1.0)]
    assert desk.say(number, after(1)) == []
    assert desk.say(number, after(2), source="audit") == []
    # It stands for itself where no legitimate transaction of its kind would have been kept.
    assert emitted(desk.say(number, after(3), "legitimate", source="audit")) == [(name, "legitimate", 1, 1.0)]
    assert emitted(desk.say(number, after(4), "unknown", source="audit")) == [(name, "withdrawn", 2, 1.0)]
    assert emitted(desk.say(number, after(5), source="audit")) == [(name, "fraud", 3, 1.0)]


@pytest.mark.parametrize("number", [IN[0], OUT[0]])
def test_a_correction_is_an_example_for_certain_whoever_makes_it(desk: Desk, number: int) -> None:
    desk.decide(number)
    desk.say(number, after(1), source="customer")
    assert emitted(desk.say(number, after(2), "legitimate", source="issuer")) == [(f"t{number}", "legitimate", 1, 1.0)]


def test_a_label_of_what_was_presumed_stands_for_its_sample(desk: Desk) -> None:
    desk.decide(IN[0])
    assert emitted(desk.decide(OUT[0], after(2 * MATURITY_DAYS))) == [(f"t{IN[0]}", "presumed_legitimate", 0, 4.0)]
    found = desk.say(IN[0], after(2 * MATURITY_DAYS), "legitimate", source="issuer")
    assert emitted(found) == [(f"t{IN[0]}", "legitimate", 1, 4.0)]


Update = tuple[float | None, str | None, float, bool]


def updates(found: list[Example]) -> list[Update]:
    return [(example.online_weight, example.former, example.former_weight, example.held) for example in found]


def test_a_correction_undoes_what_was_learned_and_a_withdrawal_undoes_it_alone(desk: Desk) -> None:
    desk.decide(IN[0])
    assert updates(desk.say(IN[0], after(1), source="customer")) == [(1.0, None, 0.0, False)]
    found = desk.say(IN[0], after(2), "legitimate", source="issuer")
    assert updates(found) == [(1.0, "fraud", 1.0, False)]
    assert updates(desk.say(IN[0], after(3), "disputed", source="issuer")) == [(0.0, "legitimate", 1.0, False)]
    assert updates(desk.say(IN[0], after(4), source="analyst")) == [(1.0, None, 0.0, False)]


def test_updates_of_the_online_model_are_balanced_by_the_share_that_is_reported_in_time() -> None:
    desk = Desk(reported_share=0.8)
    for number in (IN[0], IN[1], OUT[0], OUT[1]):
        desk.decide(number, score=0.5)
    assert updates(desk.say(OUT[0], after(1))) == [(1.25, None, 0.0, False)]
    # 1 - q, where q = p (1 - F) / (1 - p F) = .5 x .2 / .6
    assert [day.online_weight for day in desk.decide(OUT[2], after(MATURITY_DAYS))] == [pytest.approx(4 * 5 / 6)] * 2
    # What is reported later is allowed for, sampled or not.
    for number in (IN[0], OUT[1]):
        assert updates(desk.say(number, after(MATURITY_DAYS + 1))) == [(0.0, None, 0.0, False)]
    # It was not learned, so that there is nothing to undo.
    for number, weight in ((IN[0], 0.0), (OUT[1], 1.0)):
        found = desk.say(number, after(MATURITY_DAYS + 2), "legitimate", source="audit")
        assert updates(found) == [(weight, None, 0.0, False)]


def test_a_surge_of_a_source_is_held_and_changes_nothing_of_what_was_learned() -> None:
    desk = Desk(rate=1.0)
    for number in range(400):
        desk.decide(number)
    for hour in range(24 * 8):
        assert not any(item.held for item in desk.say(hour, after(hours=hour + 1), source="customer"))
    moment = after(hours=24 * 8 + 1)
    found = [item for number in range(200, 240) for item in desk.say(number, moment, source="customer")]
    assert [item.held for item in found] == [False] * 20 + [True] * 20
    assert not any(item.held for number in range(240, 280) for item in desk.say(number, moment, source="issuer"))
    assert [item.held for item in desk.say(280, after(hours=24 * 8 + 2), source="customer")] == [False]
    # One that is held was not learned: a correction has nothing to undo.
    corrected = [item for number in (219, 220) for item in desk.say(number, moment, "legitimate", source="audit")]
    assert [example.former for example in corrected] == ["fraud", None]


def test_rules_and_open_cases_teach_nothing(desk: Desk) -> None:
    desk.decide(0)
    assert desk.say(0, after(1), source="rule") == []
    assert desk.say(0, after(1), "disputed") == []
    assert desk.say(0, after(1), "something else", source="audit") == []


def test_what_nobody_reports_is_presumed_legitimate_once_mature(desk: Desk) -> None:
    first, second, reported = IN[:3]
    for number in (first, OUT[0], reported):
        desk.decide(number)
    desk.say(reported, after(2))
    assert desk.decide(second, after(MATURITY_DAYS) - timedelta(microseconds=1)) == []
    (example,) = desk.decide(OUT[1], after(MATURITY_DAYS))
    assert emitted([example]) == [(f"t{first}", "presumed_legitimate", 0, 4.0)]
    assert (example.label_source, example.known_at) == (None, after(MATURITY_DAYS))
    assert emitted(desk.decide(OUT[2], after(2 * MATURITY_DAYS))) == [(f"t{second}", "presumed_legitimate", 0, 4.0)]
    assert desk.decide(OUT[3], after(3 * MATURITY_DAYS)) == []


def test_a_report_after_the_presumption_is_a_revision(desk: Desk) -> None:
    number = IN[0]
    desk.decide(number)
    desk.decide(OUT[0], after(MATURITY_DAYS))
    assert emitted(desk.say(number, after(MATURITY_DAYS + 1))) == [(f"t{number}", "fraud", 1, 1.0)]


def test_a_report_known_after_maturity_is_a_revision_even_where_it_is_read_first(desk: Desk) -> None:
    """Times decide: a replay reads all labels before all decisions."""
    for number in (IN[0], OUT[0]):
        desk.decide(number)
    assert emitted(desk.say(IN[0], after(MATURITY_DAYS + 1))) == [(f"t{IN[0]}", "fraud", 1, 1.0)]
    assert emitted(desk.say(OUT[0], after(MATURITY_DAYS + 1))) == [(f"t{OUT[0]}", "fraud", 0, 1.0)]
    assert desk.decide(OUT[1], after(2 * MATURITY_DAYS)) == []


def test_a_withdrawn_report_leaves_no_presumption_behind(desk: Desk) -> None:
    number = IN[0]
    desk.decide(number)
    assert emitted(desk.say(number, after(1))) == [(f"t{number}", "fraud", 0, 1.0)]
    assert emitted(desk.say(number, after(2), "unknown", source="audit")) == [(f"t{number}", "withdrawn", 1, 1.0)]
    assert desk.decide(OUT[0], after(2 * MATURITY_DAYS)) == []


def test_a_disputed_transaction_is_presumed_like_any_other(desk: Desk) -> None:
    desk.decide(IN[0])
    desk.say(IN[0], after(1), "disputed")
    assert emitted(desk.decide(OUT[0], after(MATURITY_DAYS))) == [(f"t{IN[0]}", "presumed_legitimate", 0, 4.0)]


def test_a_label_past_its_horizon_teaches_nothing() -> None:
    desk = Desk(rate=1e-9, horizon_days=40)
    desk.decide(0)
    assert desk.report(0, after(40, microseconds=1)).counts == {("label", "too_late"): 1}
    assert emitted(desk.say(0, after(40), arrived=after(40))) == [("t0", "fraud", 0, 1.0)]


def test_a_waiting_label_is_given_up_after_its_grace_period(desk: Desk) -> None:
    # Until then a partition of profiled that has not come yet holds the clock.
    for day in (0, 35):
        desk.decide(400 + day, after(day))
    desk.say(404, after(36))
    result = desk.state.process([desk.decisions.append(features(0, after(43)))], NOW)
    assert result.counts["label", "unknown_transaction"] == 0
    result = desk.state.process([desk.decisions.append(features(1, after(43, hours=1)))], NOW)
    assert (result.counts["label", "unknown_transaction"], result.given_up) == (1, [])
    assert desk.decide(404, after(35.5)) == []


def test_what_is_given_up_while_a_partition_has_dropped_out_is_named(desk: Desk) -> None:
    slow = LogPosition(partition=1, offset=0)
    desk.decide(0)
    desk.decide(1, log=slow)
    desk.say(404, after(1))
    assert desk.work(desk.decisions.append(features(2, after(34)))).counts["label", "unknown_transaction"] == 0
    result = desk.work(desk.decisions.append(features(3, after(35))))
    assert (result.counts["label", "unknown_transaction"], result.given_up) == (1, ["labels 0 0"])
    desk.say(405, after(36))
    # However long that partition has not come, it may.
    assert desk.work(desk.decisions.append(features(4, after(110)))).given_up == ["labels 0 1"]
    desk.decide(5, after(110), log=LogPosition(partition=1, offset=1))
    desk.say(406, after(111))
    assert desk.work(desk.decisions.append(features(6, after(130)))).given_up == []


def test_a_label_finds_a_decision_that_stands_behind_it_in_its_batch() -> None:
    store = MemoryStore()
    kernel = FeedbackKernel(DecisionStore(store, MemorySegments()), PendingItems(store))
    names = TransactionIdentities.from_ids(pa.array(["c1"]), pa.array(["t0"]))
    number, zero = microseconds(START), np.zeros(1, np.int64)
    decided = DecidedBatch(names, [number], [1], [b"decision"], zero, zero)
    report = LabelRow(5, KNOWN.index("fraud"), number, number, int(names.hash[0]), "analyst")
    found = kernel.process(Desk().options, decided, JoinedRows(names.digest, [report], [0]), 2, Result())
    assert [(item.position, item.label) for item in found] == [(1, "fraud")]


def test_a_label_that_no_label_agent_wrote_is_left_to_the_card_agent(desk: Desk) -> None:
    desk.decide(0)
    result = desk.state.process([desk.labels.append(None), desk.labels.append(b"x")], NOW)
    assert result.outputs == []
    assert result.counts == {("label", "invalid"): 2}
    assert desk.say(0, after(1))


@pytest.mark.parametrize(
    "garbage", [b"{}", b"", None, b"\xff", b"FPFB" * 99, features(1)[:-1], b"FPBK" + features(1)[4:]]
)
def test_an_unreadable_decision_is_a_dead_letter_and_changes_nothing(desk: Desk, garbage: bytes | None) -> None:
    desk.decide(0)
    result = desk.state.process([desk.decisions.append(garbage)], NOW)
    assert [(output.topic, output.value) for output in result.outputs] == [(DEAD_LETTERS, garbage)]
    assert result.counts == {("dead_letter", "unreadable"): 1}
    assert desk.say(0, after(1))


@pytest.mark.parametrize("year", [1, 1989, 2100, 9999])
def test_a_decision_of_another_century_moves_no_time(desk: Desk, year: int) -> None:
    desk.decide(0)
    forged = features(1, START.replace(year=year))
    result = desk.state.process([desk.decisions.append(forged)], NOW)
    assert result.counts == {("dead_letter", "unreadable"): 1}
    assert desk.say(0, after(1))


def test_rows_that_are_quarantined_are_not_there(desk: Desk) -> None:
    record = desk.decisions.append(features_block([feature_row(number, after(number)) for number in range(3)]))
    desk.work(msgspec.structs.replace(record, skipped_rows=(1,)))
    found = [desk.say(number, after(9)) for number in range(3)]
    assert [[message.transaction_id for message in source] for source in found] == [["t0"], [], ["t2"]]


def test_a_repeated_decision_teaches_once(desk: Desk) -> None:
    """At-least-once delivery may write a decision twice."""
    desk.decide(IN[0])
    desk.decide(IN[0])
    assert emitted(desk.decide(OUT[0], after(MATURITY_DAYS))) == [(f"t{IN[0]}", "presumed_legitimate", 0, 4.0)]


def test_of_two_decisions_of_a_transaction_the_last_one_is_kept(desk: Desk) -> None:
    """The score agent may decide a batch again with other models; an example that is there stays as it is."""
    desk.decide(8, logit=-1.0)
    desk.decide(9, logit=-1.0)
    assert [item.logit for item in desk.say(8, after(1))] == [-1.0]
    assert desk.decide(8, logit=-2.0) == desk.decide(9, logit=-2.0) == []
    assert [item.logit for item in desk.say(9, after(1))] == [-2.0]
    assert [item.logit for item in desk.say(8, after(2), "legitimate", source="audit")] == [-2.0]


@pytest.mark.parametrize("seed", range(3))
def test_a_replay_leaves_the_state_that_live_processing_leaves(seed: int) -> None:
    """A replay reads all committed labels, then all committed decisions; live they came as they happened."""
    random = np.random.default_rng(seed)
    live, replayed = Desk(horizon_days=40), Desk(horizon_days=40)
    moments = happenings(random, 500)
    cut = 2 * len(moments) // 3
    lived = Result()
    for batch in batches(moments[:cut], random):
        result = process(live, batch)
        lived.counts += result.counts
    past = [record for _, record in moments[:cut]]
    for records in np.array_split(np.arange(cut), 4):
        replayed.state.process([past[i] for i in records if past[i].topic == "accepted-labels"], None)
    for records in np.array_split(np.arange(cut), 4):
        result = replayed.state.process([past[i] for i in records if past[i].topic == "features"], None)
        assert result.outputs == []
    assert {what for what, _ in lived.counts} == {"label", "example"}
    assert {detail for what, detail in lived.counts if what == "example"} == {
        "fraud",
        "legitimate",
        "presumed_legitimate",
        "withdrawn",
    }
    emitted = 0
    for batch in batches(moments[cut:], random):
        after_live, after_replay = process(live, batch), process(replayed, batch)
        assert examples(after_live) == examples(after_replay)
        assert after_live.counts == after_replay.counts
        emitted += len(after_live.outputs)
    assert emitted > 40


def happenings(random: np.random.Generator, size: int) -> list[tuple[float, Record]]:
    """Ninety days of decisions and labels with their days, in the order in which they arrive."""
    moments: list[tuple[float, str, bytes]] = []
    for number, days in enumerate(np.sort(random.uniform(0, 90, size)).tolist()):
        moments.append((days + 0.001, "features", features(number, after(days))))
        if random.random() < 0.5:
            for delay in random.choice([0.0, 1, 5, 25, 35, 45], int(random.integers(1, 4))).tolist():
                source = str(random.choice(["analyst", "customer", "audit", "rule"]))
                known = str(random.choice(["fraud", "legitimate", "disputed"], p=[0.4, 0.4, 0.2]))
                group = number if random.random() < 0.95 else 10_000
                moments.append(
                    (days + delay, "accepted-labels", label(group, after(days + delay), known, source=source))
                )
    logs = {"features": Log(DECISION_FEATURES), "accepted-labels": LabelLog()}
    in_order = sorted(moments, key=lambda moment: moment[0])
    return [(days, logs[topic].append(value, after(days))) for days, topic, value in in_order]


def batches(moments: list[tuple[float, Record]], random: np.random.Generator) -> Iterator[list[Record]]:
    first = 0
    while first < len(moments):
        upto = first + int(random.integers(1, 12))
        yield [record for _, record in moments[first:upto]]
        first = upto


def process(desk: Desk, batch: list[Record]) -> Result:
    result = desk.state.process(batch, NOW)
    desk.state.commit()
    return result
