"""Tampering with the ends of hostile records is noticed, on logs that are written by hand."""

import hashlib
import json
import struct
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from pipeline.engine.feedback.feedback import FeedbackOptions, FeedbackPartition
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.engine.records.accepted_labels import read_accepted
from pipeline.engine.records.results import Result
from pipeline.engine.scores.block_messages import read_messages
from pipeline.engine.scores.feature_blocks import read_feature_messages
from pipeline.engine.scores.profiled import read_rows
from pipeline.engine.scores.score import ScorePartition
from pipeline.kafka.readers.replay_reader import decode_progress
from pipeline.kafka.records.internal import TrustedRecords, not_counted
from pipeline.kafka.session.quarantine import decode_control
from pipeline.models.contents import sound_versions
from pipeline.settings import Settings
from schemas.errors import UNREADABLE
from schemas.messages import Example
from schemas.records import Record
from schemas.topics import DEAD_LETTERS
from tests.chaos.arithmetic import DAY_US
from tests.chaos.check_hostile import hostile_records_change_nothing, quarantines_are_of_hostile_records
from tests.chaos.garbage import READERS, Content, Garbage, Target, garbage, impossible
from tests.chaos.records import BLOCKS, HOSTILE_HEADER, Entry, Logs, Sent
from tests.chaos.run import Check, Expected, Rules, Run
from tests.chaos.schedule import LAST, schedule

PAYLOAD = b'{"threshold":0.6,"blend":1.0}'
GOOD = Content("policy", "p1", hashlib.sha256(PAYLOAD).hexdigest(), PAYLOAD)
TARGET = Target(GOOD, {("transactions", 0): 7, ("labels", 1): 8, ("profiled", 0): 9})
RULES = Rules(2, 2, 0.3, DAY_US, DAY_US, DAY_US, expected=Expected())
DECODERS: dict[str, Callable[[bytes], object]] = {
    "control": decode_control,
    "progress": decode_progress,
    "profiled": read_messages,
    "features": read_feature_messages,
    "examples": msgspec.json.Decoder(Example).decode,
}
"""As the pipeline reads these topics."""
IMPOSSIBLE = {kind for kind, _ in impossible()}

Change = Callable[[list[Entry]], list[Entry]]


def letter(sent: Sent, agent: str) -> Entry:
    reason: dict[str, object] = {"topic": sent.topic, "partition": sent.partition, "offset": sent.offset}
    reason |= {"stage": agent, "error": sent.dead} | ({"end": sent.end} if sent.end >= 0 else {})
    headers = tuple((f"dead-letter-{name}", str(value).encode()) for name, value in reason.items())
    return Entry("dead-letters", 0, 0, 0, sent.key, sent.value, headers)


def quarantine(sent: Sent, agent: str) -> Entry:
    at = {"topic": sent.topic, "partition": sent.partition, "offset": sent.offset}
    item: dict[str, Any] = {"kind": "quarantine", "agent": agent, "position": at, "message": "for a reason"}
    if sent.end >= 0:
        at["end"] = sent.end
    if sent.value is not None:
        item["digest"] = hashlib.sha256(sent.value).hexdigest()
    return Entry("control", 0, 0, 0, b"quarantine", json.dumps(item).encode())


def entry(topic: str, message: object) -> Entry:
    return Entry(topic, 0, 10_000, 0, b"k", json.dumps(message).encode())


@pytest.fixture(scope="module")
def run() -> Run:
    topics: dict[str, list[Entry]] = defaultdict(list)
    ledger: list[Sent] = []
    for number, record in enumerate(garbage(TARGET, 1)):
        offset = len(topics[record.topic])
        sent = Sent(
            number,
            record.topic,
            0,
            0,
            record.key,
            record.value,
            record.kind,
            record.dead,
            hostile=True,
            agents=record.agents,
        )
        ledger.append(sent._replace(offset=offset))
        header = ((HOSTILE_HEADER, str(number).encode()),)
        topics[record.topic].append(Entry(record.topic, 0, offset, 0, record.key, record.value, header))
    readers = {"transactions": ("card",), "labels": ("label",), "accepted-labels": ("card", "feedback")}
    for number, (topic, agents) in enumerate(readers.items(), 900):
        bomb = Sent(number, topic, 0, 0, None, None, "bomb", "unreadable", hostile=True, agents=agents)
        ledger.append(bomb._replace(offset=1_005, end=1_008))
        for agent in agents:
            position = {"topic": topic, "partition": 0, "offset": 1_005, "end": 1_008}
            topics["progress"].append(entry("progress", {"agent": agent, "quarantined": [position]}))
    for sent in ledger:
        for agent in sent.agents:
            topics["dead-letters"].append(letter(sent, agent))
            if sent.dead == "set_aside" or sent.end >= 0:
                topics["control"].append(quarantine(sent, agent))
    for topic in ("decisions", "examples", "models"):
        topics.setdefault(topic, [])
    return Run(Logs({name: tuple(entries) for name, entries in topics.items()}), ledger, RULES)


def found(run: Run, topic: str, change: Change, check: Callable[[Run], Check]) -> str:
    result = check(Run(run.logs.changed(topic, change), run.ledger, run.rules))
    assert result.differences
    return "\n".join(result.problems)


@pytest.mark.parametrize("check", [hostile_records_change_nothing, quarantines_are_of_hostile_records])
def test_good_logs_pass(run: Run, check: Callable[[Run], Check]) -> None:
    result = check(run)
    assert (result.differences, result.problems) == (0, [])
    assert all(result.compared.values())


@pytest.mark.parametrize(
    "garbage", list(garbage(TARGET, 3)), ids=lambda sent_record: f"{sent_record.topic}: {sent_record.kind}"
)
def test_the_pipeline_believes_no_garbage(garbage: Garbage) -> None:
    if garbage.topic == "models":
        record = Record("models", 0, 0, 0, garbage.key, garbage.value)
        believed = [version.name for _, version in sound_versions([record], TrustedRecords(Settings(), not_counted))]
        # Two have a digest of their own: what they say is for the models' own loaders to refuse.
        assert believed == {"threshold 2.0": ["policy"], "River of nonsense": ["river"]}.get(garbage.kind, [])
    elif garbage.kind.startswith(("forged", "activation")) or garbage.kind == "foreign kernel":
        DECODERS[garbage.topic](garbage.value or b"")
    elif garbage.topic == "profiled":
        result = Result()
        ScorePartition().profile(read_rows([Record("profiled", 0, 0, 0, garbage.key, garbage.value)]), range(1), result)
        assert result.counts == {("dead_letter", "unreadable"): 1}
    elif garbage.topic == "accepted-labels":
        assert len(read_accepted([Record(garbage.topic, 0, 0, 0, garbage.key, garbage.value)], "").refused) == 1
    elif garbage.topic == "features":
        options = FeedbackOptions(DAY_US, DAY_US, 0.5)
        state = FeedbackPartition(options, MemoryStore())
        result = state.process([Record("features", 0, 0, 0, garbage.key, garbage.value)], datetime.now(UTC))
        assert result.counts["dead_letter", "unreadable"] == 1
        assert [output.topic for output in result.outputs] == [DEAD_LETTERS]
    elif garbage.topic not in ("rerouted", "decisions"):
        with pytest.raises(UNREADABLE):
            DECODERS[garbage.topic](garbage.value or b"")
    if garbage.topic in BLOCKS and garbage.dead == "unreadable" and garbage.kind not in IMPOSSIBLE:
        # The checks' own reader takes it for no block either.
        with pytest.raises((AssertionError, struct.error)):
            BLOCKS[garbage.topic](garbage.value or b"")


def test_garbage_goes_to_every_topic_that_agents_read_or_go_by() -> None:
    assert {record.topic for record in garbage(TARGET, 1)} == set(READERS)


def test_a_missing_a_doubled_and_a_wrong_dead_letter_are_found(run: Run) -> None:
    check = hostile_records_change_nothing
    assert "0 dead letters of" in found(run, "dead-letters", lambda e: e[1:], check)
    assert "2 dead letters of" in found(run, "dead-letters", lambda e: [*e, e[0]], check)
    assert "0 dead letters of feedback" in found(run, "dead-letters", lambda e: e[:-1], check)
    wrong = [*letter(run.ledger[-1], "card").headers, ("dead-letter-error", b"not_json")]
    assert "code of the dead letter" in found(
        run, "dead-letters", lambda e: [*e[:-1], e[-1]._replace(headers=tuple(wrong))], check
    )
    assert "value of the dead letter" in found(
        run, "dead-letters", lambda e: [e[0]._replace(value=b"other"), *e[1:]], check
    )


def test_a_hostile_record_that_is_not_there_or_stands_otherwise_is_found(run: Run) -> None:
    check = hostile_records_change_nothing
    assert "is not there" in found(run, "profiled", lambda e: e[1:], check)
    assert "instead of" in found(run, "profiled", lambda e: [e[0]._replace(value=b"x"), *e[1:]], check)


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("decisions", {"log": {"partition": 0, "offset": 3}, "versions": {}}),
        ("decisions", {"source": {"topic": "transactions", "partition": 0, "offset": 1_005}, "versions": {}}),
        ("features", {"log": {"partition": 0, "offset": 3}}),
        ("examples", {"log": {"partition": 0, "offset": 8}}),
        ("profiled", {"source": {"topic": "labels", "partition": 0, "offset": 1_005}}),
        ("profiled", {"read": {"topic": "rerouted", "partition": 0, "offset": 1}}),
    ],
)
def test_an_output_that_was_made_of_something_hostile_is_found(run: Run, topic: str, message: object) -> None:
    text = found(run, topic, lambda e: [*e, entry(topic, message)], hostile_records_change_nothing)
    assert "which is hostile" in text


def test_a_decision_by_a_version_that_only_a_hostile_record_holds_is_found(run: Run) -> None:
    (absurd,) = [sent_record for sent_record in garbage(TARGET, 1) if sent_record.kind == "threshold 2.0"]
    version = json.loads(absurd.value or b"")["version"]
    message = {"log": {"partition": 0, "offset": 9_999}, "versions": {"policy": version}}
    text = found(run, "decisions", lambda e: [*e, entry("decisions", message)], hostile_records_change_nothing)
    assert "was decided by" in text


def test_a_missing_a_doubled_and_a_foreign_quarantine_are_found(run: Run) -> None:
    check = quarantines_are_of_hostile_records
    assert "quarantines: 0 instead of 1" in found(run, "control", lambda e: e[:-1], check)
    assert "quarantines: 2 instead of 1" in found(run, "control", lambda e: [*e, e[-1]], check)
    (failing,) = [sent_record for sent_record in run.ledger if sent_record.dead == "set_aside"]
    other = quarantine(failing._replace(offset=77), "score")
    assert "was not made to fail" in found(run, "control", lambda e: [*e, other], check)
    wrong = quarantine(failing._replace(value=b"other"), "score")
    assert "digest" in found(run, "control", lambda e: [*e, wrong], check)


def test_a_marker_that_does_not_list_what_was_quarantined_is_found(run: Run) -> None:
    text = found(run, "progress", lambda e: e[:-1], quarantines_are_of_hostile_records)
    assert "markers that list it: 0 instead of 1" in text


def test_at_least_once_allows_a_second_dead_letter_and_quarantine(run: Run) -> None:
    loose = Run(run.logs, run.ledger, run.rules._replace(exactly_once=False))
    for topic, check in (
        ("dead-letters", hostile_records_change_nothing),
        ("control", quarantines_are_of_hostile_records),
    ):
        again = check(Run(loose.logs.changed(topic, lambda e: [*e, e[-1]]), loose.ledger, loose.rules))
        assert (again.differences, again.problems) == (0, [])
        assert "0" in found(loose, topic, lambda e: e[:-1], check)


@pytest.mark.parametrize("seed", range(20))
def test_no_broker_is_killed_behind_a_damaged_batch(seed: int) -> None:
    kinds = [fault.kind for fault in schedule(seed, 240.0, 10)]
    assert LAST in kinds
    assert "broker kill" not in kinds[kinds.index(LAST) :]
