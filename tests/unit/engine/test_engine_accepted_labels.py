"""The label agent's kernel: what it accepts and refuses, and what its readers find."""

from datetime import datetime

import pytest
from pydantic import ValidationError

from pipeline.engine.records.accepted_labels import AcceptedLabels, LabelOptions, accept, read_accepted
from pipeline.engine.records.forwarding import KNOWN_AT, header_names
from pipeline.engine.records.partitioner import partition_of
from pipeline.engine.records.results import Result
from pipeline.learning.label_sources import NOT_ALLOWED, LabelSources
from pipeline.settings import Settings
from schemas.codec import CODES
from schemas.errors import InvalidMessage
from schemas.records import Headers, Record
from schemas.topics import ACCEPTED_LABELS, DEAD_LETTERS, LABELS
from tests.helpers.logs import LABEL_OPTIONS, START, Log, after, label, microseconds, reason, to
from tests.unit.engine.test_engine_card import REFUSED_TRANSACTIONS

TRACE: Headers = (("trace", b"abc"), ("empty", None), ("label-topic", b"a producer's own"))
REFUSED: dict[str, bytes | None] = {
    "null_value": None,
    "not_json": b"fraud",
    "missing_field": b"{}",
    "wrong_type": label(1, label=1),
    "invalid_value": label(1, labelled_at="2024-03-01T12:00:00"),
    "labelled_at_impossible": label(1, labelled_at="2924-03-01T12:00:00Z"),
    "labelled_at_in_future": label(1, labelled_at="2034-03-01T12:00:00Z"),
}


def test_every_code_is_tried() -> None:
    assert REFUSED_TRANSACTIONS.keys() | REFUSED.keys() == CODES


def read_again(result: Result, prefix: str = "") -> AcceptedLabels:
    """What card and feedback agents find, read much later."""
    outputs = enumerate(to(ACCEPTED_LABELS, result))
    return read_accepted(
        [
            Record(ACCEPTED_LABELS.name, output.partition or 0, number, microseconds(after(90)) // 1_000, output.key,
                   output.value, output.headers)
            for number, output in outputs
        ],
        prefix,
    )  # fmt: skip


def test_an_accepted_label_goes_unchanged_to_the_partition_of_its_card() -> None:
    partitions = 7
    log = Log(LABELS, 2)
    record = log.append(label(1, after(1), card_id="card"), after(2), None, TRACE)
    result = accept([record], LabelOptions(0, partitions))
    (output,) = result.outputs
    assert (output.topic, output.key, output.value) == (ACCEPTED_LABELS, b"card", record.value)
    assert output.partition == partition_of("card", partitions)
    assert output.headers == (
        *TRACE,
        ("label-topic", b"labels"),
        ("label-partition", b"2"),
        ("label-offset", b"0"),
        ("label-timestamp-ms", str(record.timestamp_ms).encode()),
        ("label-key", None),
        ("label-known-at-us", str(microseconds(after(2))).encode()),
    )
    assert result.counts == {("label", "accepted"): 1}
    found = read_again(result)
    assert found.records == [record]
    assert found.refused == []


@pytest.mark.parametrize(
    ("labelled_at", "arrived", "known_at"),
    [
        (after(1), after(3), after(3)),
        (after(1, minutes=5), after(1), after(1, minutes=5)),
        (after(2), after(2), after(2)),
    ],
)
def test_a_label_is_known_from_the_later_of_its_time_and_its_arrival(
    labelled_at: datetime, arrived: datetime, known_at: datetime
) -> None:
    found = read_again(accept([Log(LABELS).append(label(0, labelled_at), arrived)], LABEL_OPTIONS))
    assert found.labels.known_at_us.tolist() == [microseconds(known_at)]
    assert found.labels.labelled_at_us.tolist() == [microseconds(labelled_at)]


@pytest.mark.parametrize("code", REFUSED)
def test_a_refused_label_becomes_a_dead_letter_among_others_that_are_accepted(code: str) -> None:
    log = Log(LABELS)
    log.append(label(0))
    bad = log.append(REFUSED[code], START, None, (("trace", b"abc"),))
    log.append(label(2))
    result = accept(log.records, LABEL_OPTIONS)
    (dead,) = to(DEAD_LETTERS, result)
    assert (dead.key, dead.value, dead.headers[0]) == (None, bad.value, ("trace", b"abc"))
    assert (reason(dead, "error"), reason(dead, "stage")) == (code, "label")
    assert [reason(dead, name) for name in ("topic", "partition", "offset")] == ["labels", "0", "1"]
    assert [output.value for output in to(ACCEPTED_LABELS, result)] == [label(0), label(2)]
    assert result.counts == {("label", "accepted"): 2, ("dead_letter", code): 1}


SOUND: Headers = (
    *zip(header_names(ACCEPTED_LABELS), (b"labels", b"0", b"1", b"2", None), strict=True),
    (KNOWN_AT, b"3"),
)
FOREIGN: dict[str, tuple[bytes | None, Headers]] = {
    "no headers": (label(1), ()),
    "another topic": (label(1), (("label-topic", b"decisions"), *SOUND[1:])),
    "no number": (label(1), (*SOUND[:2], ("label-offset", b"-1"), *SOUND[3:])),
    "no time": (label(1), (*SOUND[:5], (KNOWN_AT, None))),
    "too many digits": (label(1), (*SOUND[:5], (KNOWN_AT, b"9" * 19))),
    "not last": (label(1), (*SOUND, ("more", b""))),
    "no label": (b"{}", SOUND),
    "no value": (None, SOUND),
    "labelled behind the time from which it counts": (label(1), SOUND),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_record_that_no_label_agent_wrote_is_refused_alone(name: str) -> None:
    value, headers = FOREIGN[name]
    (good,) = accept([Log(LABELS).append(label(7), after(1))], LABEL_OPTIONS).outputs
    records = [
        Record(ACCEPTED_LABELS.name, 0, number, 0, b"c1", source, with_headers)
        for number, (source, with_headers) in enumerate([(value, headers), (good.value, good.headers)])
    ]
    found = read_accepted(records, "")
    assert found.labels.transaction_id.to_pylist() == ["t7"]
    ((record, error),) = found.refused
    assert record.value == value
    assert str(error)


def test_a_prefix_is_part_of_the_topic_that_is_read() -> None:
    record = Record("blue-labels", 0, 0, microseconds(START) // 1_000, None, label(1), ())
    result = accept([record], LABEL_OPTIONS._replace(topic_prefix="blue-"))
    assert read_again(result, "blue-").records == [record]
    assert len(read_again(result, "green-").refused) == 1


SOURCES = LabelSources({"labels": frozenset({"analyst", "simulator"}), "desk": frozenset({"audit"})}, simulated=False)


@pytest.mark.parametrize(
    ("topic", "source", "accepted"),
    [
        ("labels", "analyst", True),
        ("desk", "audit", True),
        ("labels", "audit", False),
        ("desk", "analyst", False),
        ("labels", "simulator", False),
        ("other", "analyst", False),
    ],
)
def test_a_topic_speaks_for_its_sources_alone(topic: str, source: str, accepted: bool) -> None:
    record = Record(f"blue-{topic}", 0, 0, microseconds(START) // 1_000, None, label(1, source=source), ())
    options = LabelOptions(0, 1, SOURCES, "blue-")
    (output,) = accept([record], options).outputs
    if accepted:
        assert output.topic is ACCEPTED_LABELS
        return
    assert output.topic is DEAD_LETTERS
    assert reason(output, "error") == NOT_ALLOWED
    assert f"source is {source!r}" in reason(output, "message")
    assert ("write the label to a topic of its source" in reason(output, "message")) == (source != "simulator")


def test_a_simulator_labels_where_the_clock_is_simulated() -> None:
    record = Log(LABELS).append(label(1, source="simulator"), START)
    (output,) = accept([record], LabelOptions(0, 1, SOURCES._replace(simulated=True))).outputs
    assert output.topic is ACCEPTED_LABELS


def test_a_forged_audit_does_not_overrule_an_analyst() -> None:
    reported = [("labels", "analyst", "fraud"), ("labels", "audit", "legitimate")]
    records = [
        Record(topic, 0, number, microseconds(START) // 1_000, None, label(1, START, known, source=source), ())
        for number, (topic, source, known) in enumerate(reported)
    ]
    found = read_again(accept(records, LabelOptions(0, 1, SOURCES)))
    assert found.labels.source.to_pylist() == ["analyst"]


@pytest.mark.parametrize("settings", [Settings(), Settings(label_topics={"labels": ("analyst",)})])
def test_what_was_accepted_stays_accepted_whatever_topics_the_settings_name_today(settings: Settings) -> None:
    record = Record("desk", 0, 0, microseconds(START) // 1_000, None, label(1, source="audit"), ())
    result = accept([record], LabelOptions(0, 1, SOURCES))
    assert read_again(result, settings.topic_prefix).records == [record]


def test_a_label_goes_to_a_topic_that_names_its_source_rather_than_to_one_that_speaks_for_all() -> None:
    sources = LabelSources({"labels": frozenset({"*"}), "desk": frozenset({"audit"})}, simulated=False)
    assert [sources.topic_for(source) for source in ("audit", "analyst")] == ["desk", "labels"]
    with pytest.raises(InvalidMessage, match="no simulated clock"):
        sources.topic_for("simulator")


@pytest.mark.parametrize(
    ("topics", "what"),
    [
        ({"decisions": ["analyst"]}, "decisions is a topic of the pipeline"),
        ({"desk": []}, "no sources"),
        ({"no name": ["analyst"]}, "label_topics"),
        ({}, "label_topics"),
    ],
)
def test_unusable_topics_of_labels_are_refused(topics: dict[str, list[str]], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        Settings.model_validate({"label_topics": topics})
