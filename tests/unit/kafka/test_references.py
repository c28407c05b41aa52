"""References below 0 are neither written to nor read from the topics that show readers what to do."""

from datetime import UTC, datetime

import msgspec
import pytest

from pipeline.kafka.checks.offset_checks import _decode_decided
from pipeline.kafka.readers.replay_reader import decode_progress
from pipeline.kafka.records.batch import Batch
from pipeline.kafka.records.member import Member
from pipeline.kafka.session.quarantine import control_record, decode_control
from pipeline.kafka.session.session import batch_markers
from pipeline.settings import Settings
from schemas.messages import Activation, Control, Progress, Quarantine, RecordPosition, VersionReference
from schemas.topics import LABELS, TRANSACTIONS

NOW = datetime(2024, 5, 1, tzinfo=UTC)
MEMBER = Member("", Settings(), "card", (TRANSACTIONS, LABELS))
INVALID = -1001


def activation(offset: int) -> Activation:
    return Activation(
        versions=[VersionReference(name="policy", version="p", digest="d" * 64, offset=offset)], activated_at=NOW
    )


def quarantine(**changes: int) -> Quarantine:
    position = RecordPosition(**{"topic": "features", "partition": 1, "offset": 4, "end": 6} | changes)  # type: ignore[arg-type]
    return Quarantine(agent="card", position=position, error_type="e", message="m", quarantined_at=NOW)


def batch(**ends: int) -> Batch:
    at = {("transactions", 0): 3} | {(topic, 0): end for topic, end in ends.items()}
    return Batch([], None, dict.fromkeys(at, 0), at)


@pytest.mark.parametrize(
    "item",
    [
        activation(INVALID),
        quarantine(offset=INVALID),
        quarantine(end=INVALID),
        quarantine(partition=-1),
        quarantine(row=-1),
    ],
)
def test_a_control_record_that_names_what_cannot_be_is_neither_written_nor_read(item: Control) -> None:
    with pytest.raises(msgspec.ValidationError):
        control_record(item)
    with pytest.raises(msgspec.ValidationError):
        decode_control(msgspec.json.encode(item))


def test_a_marker_that_names_what_cannot_be_is_neither_written_nor_read() -> None:
    (written,) = batch_markers(MEMBER, batch(labels=2), None)
    assert decode_progress(written.value or b"").ends == {"transactions": 3, "labels": 2}
    with pytest.raises(msgspec.ValidationError):
        batch_markers(MEMBER, batch(labels=INVALID), None)
    for starts, ends in (({"labels": INVALID}, {}), ({}, {"labels": INVALID})):
        with pytest.raises(msgspec.ValidationError):
            decode_progress(msgspec.json.encode(Progress(agent="card", starts=starts, ends=ends)))


def test_a_decision_of_no_log_shows_nothing_of_an_agents_offsets() -> None:
    for offset in (-1, INVALID):
        with pytest.raises(msgspec.ValidationError):
            _decode_decided(b'{"log": {"partition": 0, "offset": %d}}' % offset)


def test_what_is_sound_is_written() -> None:
    assert decode_control(control_record(activation(0)).value or b"") == activation(0)
