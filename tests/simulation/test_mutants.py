"""The simulation finds what it looks for: each of these mistakes in the product breaks an invariant in it."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

import pipeline.engine.records.accepted_labels
import pipeline.kafka.readers.replay_reader
from agents.learn import LearnPartitions
from agents.partitions import KernelPartitions
from pipeline.engine.cards.card_join import CardJoin
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.feedback.feedback import FeedbackPartition
from pipeline.engine.feedback.learn import LearnPartition
from pipeline.engine.records.results import Result
from pipeline.engine.scores.decider import Decider
from pipeline.engine.scores.deduplication import ReadInputs
from pipeline.features.kernel import CardWindows, MerchantWindows
from pipeline.kafka.readers.group_client import GroupClient
from pipeline.kafka.readers.log_consumer import LogConsumer
from pipeline.kafka.records.batch import Batch
from pipeline.kafka.session.assignment import Assignment
from pipeline.kafka.session.quarantine import QuarantinedRecords, Quarantines
from pipeline.kafka.session.session import Session
from pipeline.learning.label_sources import LabelSources
from pipeline.models.active import ModelSubscriber
from pipeline.state.store import RocksStore
from schemas.records import Output
from schemas.topics import CONTROL, DECISIONS
from tests.simulation import test_found
from tests.simulation.machine import SimulatedPipeline
from tests.simulation.world import World

Patch = pytest.MonkeyPatch
EXAMPLES = 100
"""Runs until a mistake must have shown; most show in the first few."""
QUICK = ("stores are not rolled back", "restores read topic by topic", "a quarantine has no control record")
"""What every test run looks for; the others are looked for where ``SIMULATION_EXAMPLES`` is set."""


def nothing(*_: Any, **__: Any) -> None:
    """A step that was forgotten."""


def forgotten(kind: type, method: str) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(kind, method, nothing)


def lost_offset(patch: Patch) -> None:
    """A batch commits one record more than it read."""
    commit = Session.commit

    def commit_more(session: Session, batch: Batch, outputs: Sequence[Output]) -> None:
        partition = next((at for at in batch.ends if len(batch.records) > 1), None)
        if partition is not None:
            batch.ends[partition] += 1
            session._client.positions[partition] += 1
        commit(session, batch, outputs)

    patch.setattr(Session, "commit", commit_more)


def unknown_is_lost(patch: Patch) -> None:
    """A transaction without word of its end is taken for aborted, whatever the marks say."""
    patch.setattr("pipeline.kafka.session.attempts._decode", lambda _: None)
    patch.setattr("pipeline.kafka.session.session.write_mark", lambda _: b"{}")


def doubled_decision(patch: Patch) -> None:
    process = Decider.process

    def process_twice(*args: Any) -> Result:
        result: Result = process(*args)
        decided = [output for output in result.outputs if output.topic is DECISIONS]
        if len(decided) > 2:
            result.outputs.append(decided[0])
        return result

    patch.setattr(Decider, "process", process_twice)


def labelled_at(patch: Patch) -> None:
    """A label counts from when it says that it was given."""
    accept = pipeline.engine.records.accepted_labels.accept_labels

    def believed(*args: Any) -> Any:
        rows, *others = accept(*args)
        return replace(rows, known_at_us=rows.labelled_at_us), *others

    patch.setattr(pipeline.engine.records.accepted_labels, "accept_labels", believed)


def quarantine_without_control(patch: Patch) -> None:
    outputs = Quarantines.outputs

    def only_dead_letter(*args: Any) -> Result:
        result: Result = outputs(*args)
        result.outputs = [output for output in result.outputs if output.topic is not CONTROL]
        return result

    patch.setattr(Quarantines, "outputs", only_dead_letter)


def current_rules(patch: Patch) -> None:
    """A restore judges by the settings of now."""
    patch.setattr(CardPartition, "process", _under_own_rules(CardPartition.process))
    patch.setattr(FeedbackPartition, "process", _under_own_rules(FeedbackPartition.process))


def _under_own_rules(process: Callable[..., Result]) -> Callable[..., Result]:
    return lambda state, records, now, options=None: process(state, records, now)


def order_of_topics(patch: Patch) -> None:
    """A restore reads topic by topic, and no markers."""
    patch.setattr("pipeline.kafka.session.restore.read_markers", lambda *_: iter(()))


def restored_one_short(patch: Patch) -> None:
    in_order = pipeline.kafka.readers.replay_reader.in_recorded_order

    def one_short(readers: Any, markers: Any, ends: Mapping[str, int], name_of: Any) -> Any:
        return in_order(readers, markers, {topic: max(0, end - 1) for topic, end in ends.items()}, name_of)

    patch.setattr("pipeline.kafka.session.restore.in_recorded_order", one_short)


def versions_at_the_start(patch: Patch) -> None:
    """A worker looks for new versions only when it starts."""
    refresh = ModelSubscriber.refresh

    def once(subscriber: ModelSubscriber) -> Any:
        return subscriber.model_set if subscriber._started else refresh(subscriber)

    patch.setattr(ModelSubscriber, "refresh", once)


def rollback_of_one_partition(patch: Patch) -> None:
    rollback = KernelPartitions.rollback

    def undo_first(self: Any, partitions: Collection[int]) -> None:
        rollback(self, sorted(partitions)[:1])

    patch.setattr(KernelPartitions, "rollback", undo_first)


def range_of_another_agent(patch: Patch) -> None:
    """Careful reading skips what another agent has quarantined."""
    init = LogConsumer.__init__

    def skipping(*args: Any, **options: Any) -> None:
        init(*args, **{**options, "skip_refused": True})

    patch.setattr(LogConsumer, "__init__", skipping)


def no_seek(patch: Patch) -> None:
    """A partition number that is whole again is read on from where its client stands."""
    on_assign = Assignment.on_assign

    def without_seek(assignment: Assignment, *args: Any) -> None:
        with Patch.context() as within:
            within.setattr(GroupClient, "seek", nothing)
            on_assign(assignment, *args)

    patch.setattr(Assignment, "on_assign", without_seek)


MUTANTS: dict[str, Callable[[Patch], None]] = {
    "card windows are not rolled back": forgotten(CardWindows, "rollback"),
    "stores are not rolled back": forgotten(RocksStore, "rollback"),
    "the index is not rolled back": forgotten(CardJoin, "rollback"),
    "merchant windows are not rolled back": forgotten(MerchantWindows, "rollback"),
    "read inputs are not rolled back": forgotten(ReadInputs, "rollback"),
    "the online model is not rolled back": forgotten(LearnPartition, "rollback"),
    "one partition is rolled back": rollback_of_one_partition,
    "an offset is lost": lost_offset,
    "an unknown end is an abort": unknown_is_lost,
    "a decision is doubled": doubled_decision,
    "labels count from labelled_at": labelled_at,
    "a label may claim any source": lambda patch: patch.setattr(LabelSources, "check", lambda *_: None),
    "restores forget quarantines": lambda patch: patch.setattr(
        QuarantinedRecords, "without", lambda _, __, records: records
    ),
    "restores forget markers' quarantines": lambda patch: patch.setattr(
        pipeline.kafka.readers.replay_reader, "_without", lambda batch, *_: batch
    ),
    "a quarantine has no control record": quarantine_without_control,
    "restores judge by today's settings": current_rules,
    "restores read topic by topic": order_of_topics,
    "restores end one record short": restored_one_short,
    "versions are read at the start only": versions_at_the_start,
    "a freeze is not heeded": lambda patch: patch.setattr(LearnPartitions, "on_hold", lambda _: False),
}


@pytest.mark.parametrize("name", MUTANTS if "SIMULATION_EXAMPLES" in os.environ else QUICK)
def test_the_simulation_finds(name: str, monkeypatch: Patch) -> None:
    MUTANTS[name](monkeypatch)
    run = settings(
        max_examples=EXAMPLES,
        stateful_step_count=30,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    with pytest.raises((AssertionError, RuntimeError, LookupError)):
        run_state_machine_as_test(SimulatedPipeline, settings=run)


@pytest.mark.parametrize(
    ("mistake", "story"),
    [
        (
            range_of_another_agent,
            test_found.test_an_agent_that_reads_carefully_quarantines_what_another_one_has_quarantined,
        ),
        (no_seek, test_found.test_a_topic_that_left_a_partition_number_and_came_back_costs_no_record),
    ],
)
def test_a_story_finds(
    mistake: Callable[[Patch], None],
    story: Callable[[World], None],
    monkeypatch: Patch,
    request: pytest.FixtureRequest,
) -> None:
    """Random runs seldom or never come to it."""
    mistake(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError, LookupError)):
        story(request.getfixturevalue("world"))
