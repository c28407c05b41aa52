"""The order in which a replay reads several topics, without a broker."""

import json
from collections.abc import Iterator
from importlib.resources import files

import msgspec
import pytest

from pipeline.kafka.readers.replay_reader import ReplayBatch, decode_progress, in_recorded_order, read_markers
from schemas.messages import FeedbackConfig, Progress, RecordPosition
from schemas.records import Record


class Recorded:
    """A reader of a topic that holds records at given offsets."""

    def __init__(self, topic: str, offsets: list[int], position: int = 0) -> None:
        self.topic, self.position = topic, position
        self._offsets = offsets

    def read_to(self, end: int, most: int = 2) -> list[Record]:
        found = [offset for offset in self._offsets if self.position <= offset < end][:most]
        self.position = found[-1] + 1 if len(found) == most else max(end, self.position)
        return [Record(self.topic, 0, offset, 0, b"", b"") for offset in found]


def replayed(readers: list[Recorded], markers: list[Progress], ends: dict[str, int]) -> list[list[tuple[str, int]]]:
    batches: Iterator[ReplayBatch] = in_recorded_order(readers, iter(markers), ends, lambda topic: topic)  # type: ignore[arg-type]
    return [[(record.topic, record.offset) for record in batch.records] for batch in batches]


def marker(starts: dict[str, int], ends: dict[str, int]) -> Progress:
    return Progress(agent="card", starts=starts, ends=ends)


def test_batches_come_as_they_were_read() -> None:
    markers = [marker({"b": 0}, {"b": 1}), marker({"a": 0, "b": 1}, {"a": 3, "b": 2}), marker({"a": 3}, {"a": 4})]
    assert replayed([Recorded("a", [0, 1, 2, 3]), Recorded("b", [0, 1])], markers, {"a": 4, "b": 2}) == [
        [("b", 0)],
        [("a", 0), ("a", 1), ("a", 2), ("b", 1)],
        [("a", 3)],
    ]


def test_what_no_marker_tells_of_comes_topic_by_topic() -> None:
    assert replayed([Recorded("a", [0, 2]), Recorded("b", [1])], [], {"a": 3, "b": 2}) == [
        [("a", 0), ("a", 2)],
        [("b", 1)],
    ]


def test_records_from_before_the_first_marker_are_a_batch_before_its_own() -> None:
    assert replayed([Recorded("a", [0, 1, 2]), Recorded("b", [0])], [marker({"a": 2}, {"a": 3})], {"a": 3, "b": 1}) == [
        [("a", 0), ("a", 1)],
        [("a", 2)],
        [("b", 0)],
    ]


def test_a_marker_of_what_is_not_committed_does_not_lead_beyond_it() -> None:
    assert replayed([Recorded("a", [0, 1, 2])], [marker({"a": 0}, {"a": 3})], {"a": 2}) == [[("a", 0), ("a", 1)]]


def test_a_batch_that_was_recorded_twice_is_replayed_once() -> None:
    twice = [marker({"a": 0}, {"a": 2})] * 2
    assert replayed([Recorded("a", [0, 1, 2])], [*twice, marker({"a": 2}, {"a": 3})], {"a": 3}) == [
        [("a", 0), ("a", 1)],
        [("a", 2)],
    ]


def test_a_replay_from_a_snapshot_starts_behind_it() -> None:
    markers = [marker({"a": 0}, {"a": 2}), marker({"a": 2}, {"a": 3})]
    assert replayed([Recorded("a", [0, 1, 2], position=2)], markers, {"a": 3}) == [[("a", 2)]]


def test_what_a_marker_says_was_quarantined_is_not_replayed() -> None:
    at = [
        RecordPosition(topic="a", partition=0, offset=1),
        RecordPosition(topic="a", partition=0, offset=3, end=2**60),
        RecordPosition(topic="b", partition=0, offset=0),
    ]
    skipped = Progress(agent="card", starts={"a": 1}, ends={"a": 5}, quarantined=at)
    alone = Progress(agent="card", starts={"a": 5}, ends={"a": 6}, quarantined=[at[1]])
    markers = [marker({"a": 0}, {"a": 1}), skipped, alone]
    assert replayed([Recorded("a", [0, 1, 2, 3, 4, 5, 6])], markers, {"a": 7}) == [[("a", 0)], [("a", 2)], [("a", 6)]]


def test_garbage_among_markers_is_refused_and_the_rest_is_read() -> None:
    class Log:
        """A partition of ``progress``, read at once."""

        def __init__(self, *values: bytes | None) -> None:
            self.left = [Record("progress", 0, n, 0, b"card", value, ()) for n, value in enumerate(values)]

        def read_to(self, end: int) -> list[Record]:
            del end
            left, self.left = self.left, []
            return left

    good = msgspec.json.encode(marker({"a": 0}, {"a": 1}))
    refused: list[str] = []
    log = Log(b"{", good, b"[" * 5_000, b"\xff", None, good)
    assert len(list(read_markers(log, "card", 6, refused.append))) == 2  # type: ignore[arg-type]
    assert refused == ["progress"] * 4


def test_a_batch_comes_with_its_own_rules_and_what_no_marker_tells_of_without() -> None:
    old, new = (FeedbackConfig(label_horizon_us=days, maturity_us=days, negative_sample_rate=1.0) for days in (1, 2))
    markers = [
        Progress(agent="feedback", starts={"a": 1}, ends={"a": 2}, config=old),
        Progress(agent="feedback", starts={"a": 2}, ends={"a": 3}, config=new),
        Progress(agent="feedback", starts={"a": 3}, ends={"a": 4}),
    ]
    readers = [Recorded("a", [0, 1, 2, 3, 4])]
    found = in_recorded_order(readers, iter(markers), {"a": 5}, lambda topic: topic)  # type: ignore[arg-type]
    assert [([record.offset for record in batch.records], batch.config) for batch in found] == [
        ([0], None),
        ([1], old),
        ([2], new),
        ([3], None),
        ([4], None),
    ]


@pytest.mark.parametrize(
    ("agent", "field", "value"),
    [
        ("card", "label_horizon_us", -1),
        ("card", "dedup_horizon_us", 1 << 63),
        ("card", "future_tolerance_us", 10**30),
        ("feedback", "label_horizon_us", -1),
        ("feedback", "maturity_us", 10**30),
        ("feedback", "reported_share", 0.0),
        ("feedback", "reported_share", 1e300),
        ("feedback", "negative_sample_rate", -0.5),
    ],
)
def test_a_marker_with_a_config_that_no_settings_give_is_no_marker(agent: str, field: str, value: float) -> None:
    """A restore ended with an overflow, or a division by zero."""
    name = {"card": "progress-full", "feedback": "progress-feedback"}[agent]
    marker = json.loads((files("schemas") / f"golden/v1/{name}.json").read_bytes())
    decode_progress(json.dumps(marker).encode())
    marker["rules"][field] = value
    with pytest.raises(msgspec.ValidationError):
        decode_progress(json.dumps(marker).encode())
