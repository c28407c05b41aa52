"""The pipeline believes nothing of what chaos runs write in the agents' place."""

import hashlib
import struct
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import pytest

from pipeline.engine.feedback.feedback import FeedbackPartition
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.engine.records.accepted_labels import read_accepted
from pipeline.engine.records.results import Result
from pipeline.engine.scores.block_messages import read_messages
from pipeline.engine.scores.decision_records import read_feature_messages
from pipeline.engine.scores.profiled import read_rows
from pipeline.engine.scores.score import ScorePartition
from pipeline.kafka.readers.replay_reader import decode_progress
from pipeline.kafka.records.internal import TrustedRecords, not_counted
from pipeline.kafka.session.quarantine import decode_control
from pipeline.models.contents import sound_versions
from pipeline.settings import Settings
from schemas.errors import UNREADABLE
from schemas.messages import Example, FeedbackConfig
from schemas.records import Record
from schemas.topics import DEAD_LETTERS
from tests.chaos.arithmetic import DAY_US
from tests.chaos.garbage import READERS, Content, Garbage, Target, garbage, impossible
from tests.chaos.records import BLOCKS

PAYLOAD = b'{"threshold":0.6,"blend":1.0}'
GOOD = Content("policy", "p1", hashlib.sha256(PAYLOAD).hexdigest(), PAYLOAD)
TARGET = Target(GOOD, {("transactions", 0): 7, ("labels", 1): 8, ("profiled", 0): 9})
DECODERS: dict[str, Callable[[bytes], object]] = {
    "control": decode_control,
    "progress": decode_progress,
    "profiled": read_messages,
    "features": read_feature_messages,
    "examples": msgspec.json.Decoder(Example).decode,
}
"""As the pipeline reads these topics."""
IMPOSSIBLE = {kind for kind, _ in impossible()}


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
        options = FeedbackConfig(label_horizon_us=DAY_US, maturity_us=DAY_US, negative_sample_rate=0.5)
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
