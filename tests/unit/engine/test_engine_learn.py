"""The learn agent's kernel: a replay over ``examples`` that knows how far it has come and what it has published."""

import msgspec
import numpy as np
import pytest

from pipeline.engine.feedback.learn import LearnPartition, model_record
from pipeline.features.catalogue import FEATURES
from pipeline.scoring.payload import payload_digest
from pipeline.scoring.river_factory import new_learner, resume_learner
from schemas.messages import ModelVersion
from schemas.records import Record
from schemas.topics import DEAD_LETTERS, EXAMPLES, MODELS
from tests.helpers.champion import no_files
from tests.helpers.logs import START, Log
from tests.helpers.models import example


def examples(count: int, **changes: object) -> list[Record]:
    """``examples`` with a hole after every tenth record, as the markers of transactions leave them."""
    log = Log(EXAMPLES)
    for number in range(count):
        log.append(msgspec.json.encode(example(number, **changes)))
    return [msgspec.structs.replace(record, offset=record.offset + record.offset // 10) for record in log.records]


def fresh(next_offset: int = 0) -> LearnPartition:
    return LearnPartition(new_learner(), next_offset)


def resumed(payload: bytes) -> LearnPartition:
    learner, offset = resume_learner(payload, None, no_files)
    return LearnPartition(learner, offset)


def test_it_learns_in_order_and_knows_the_next_offset() -> None:
    records = examples(25)
    state = fresh()
    assert (state.next_offset, state.unpublished) == (0, False)
    result = state.learn(records[:12])
    assert (state.next_offset, state.unpublished) == (13, True)
    assert result.outputs == []
    assert result.counts == {("training_update", "learned"): 12}
    state.learn(records[12:])
    assert state.next_offset == 27
    assert state.publish().version.endswith("@27")


def test_no_records_are_no_progress() -> None:
    state = fresh(5)
    assert state.learn([]).counts == {}
    assert (state.next_offset, state.unpublished) == (5, False)


def test_what_was_replayed_before_is_not_learned_again() -> None:
    records = examples(30)
    state, once = fresh(), fresh()
    state.learn(records[:20])
    result = state.learn(records[10:])
    once.learn(records)
    assert result.counts == {("training_update", "learned"): 10}
    assert state.publish().to_payload() == once.publish().to_payload()
    assert state.learn(records).counts == {}
    assert not state.unpublished


def test_publishing_takes_the_present_version_and_is_due_again_after_an_example() -> None:
    records = examples(20)
    state = fresh()
    state.learn(records[:10])
    first = state.publish()
    assert not state.unpublished
    before = first.to_payload()
    state.learn(records[10:])
    assert state.unpublished
    assert first.to_payload() == before
    second = state.publish()
    assert second.version != first.version
    assert second.version.rpartition("@")[0] == first.version.rpartition("@")[0]
    assert second.to_payload() != before


@pytest.mark.parametrize("cut", [1, 10, 39])
def test_going_on_from_a_published_version_gives_identical_weights(cut: int) -> None:
    records = examples(40)
    straight = fresh()
    straight.learn(records[:cut])
    published = straight.publish().to_payload()
    straight.learn(records[cut:])
    again = resumed(published)
    assert (again.next_offset, again.unpublished) == (records[cut - 1].offset + 1, False)
    # A restart reads the topic from its beginning.
    again.learn(records)
    assert again.publish().to_payload() == straight.publish().to_payload()
    assert again.publish().to_payload() != published


# Its weight alone took the model out of its bounds, and every worker that learned ended, at each start.
HEAVY = msgspec.json.encode(example(1, online_weight=1e308))


@pytest.mark.parametrize("garbage", [b"[]", b"", None, b"\xff", b"[" * 5_000, b'{"features":{"amount":NaN}}', HEAVY])
def test_an_unreadable_example_is_a_dead_letter_and_teaches_nothing(garbage: bytes | None) -> None:
    log = Log(EXAMPLES)
    log.append(msgspec.json.encode(example(0)))
    log.append(garbage)
    state, without = fresh(), fresh()
    result = state.learn(log.records)
    assert result.counts["dead_letter", "unreadable"] == 1
    (letter,) = result.outputs
    assert (letter.topic, letter.value) == (DEAD_LETTERS, garbage)
    assert dict(letter.headers)["dead-letter-offset"] == b"1"
    without.learn(log.records[:1])
    assert state.next_offset == 2
    learned, expected = (msgspec.json.decode(item.publish().to_payload()) for item in (state, without))
    assert learned["weights"] == expected["weights"]


def test_the_record_of_a_version_names_its_digest() -> None:
    state = fresh()
    state.learn(examples(3))
    model = state.publish()
    output = model_record("river", model.version, model.to_payload(), START)
    assert (output.topic, output.key, output.headers) == (MODELS, payload_digest(model.to_payload()).encode(), ())
    message = msgspec.json.decode(output.value or b"", type=ModelVersion)
    assert (message.name, message.version, message.published_at) == ("river", model.version, START)
    assert bytes(message.payload) == model.to_payload()
    assert message.digest == payload_digest(model.to_payload())


def test_figures_are_of_committed_examples_and_each_counts_once() -> None:
    records = examples(20)
    state = fresh()
    for _ in range(2):
        state.learn(records[:10])
        assert state.prequential.examples == 0
        state.rollback()
    state.learn(records[:10])
    state.commit()
    state.commit()
    assert state.prequential.examples == 10


def test_an_undo_costs_no_more_than_the_examples_since_the_last_save(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engine.feedback.learn.RELEARN_AT_MOST", 10)
    records = examples(40)
    state, once = fresh(), fresh()
    for first in range(0, 40, 4):
        state.learn(records[first : first + 4])
        state.commit()
        assert len(state._since) <= 10
        state.learn(records[first + 4 : first + 6])
        state.rollback()
    once.learn(records)
    assert state.publish().to_payload() == once.publish().to_payload()


def test_a_configured_classifier_is_taken_back_too() -> None:
    records = examples(40)
    state, once = (LearnPartition(new_learner("river.tree.HoeffdingTreeClassifier")) for _ in range(2))
    for first in range(0, 40, 8):
        state.learn(records[first : first + 20])
        state.rollback()
        state.learn(records[first : first + 8])
        state.commit()
    once.learn(records)
    features = np.array([[float(row)] * len(FEATURES) for row in range(5)])
    logits = np.linspace(-3, 3, 5)
    np.testing.assert_array_equal(state.publish().logit(features, logits), once.publish().logit(features, logits))
