"""What the simulation has found, each as a short story of its own."""

import logging
import re
from contextlib import nullcontext

import pytest
from confluent_kafka import TopicPartition

from pipeline.kafka.cluster.call_thread import CallTimedOut
from pipeline.kafka.cluster.errors import Aborted
from schemas.messages import Quarantine
from schemas.records import Output
from schemas.topics import PROFILED
from tests.helpers.logs import START, after, label, transaction
from tests.helpers.pages import shown
from tests.simulation.activation import switch_learning
from tests.simulation.checks import check
from tests.simulation.model_kafka import Fate, SimProducer
from tests.simulation.names import AGENT_NAMES, PREFIX
from tests.simulation.reading import Logs, decode_control, decode_decision
from tests.simulation.straight import check_straight
from tests.simulation.world import World


def buy(within: World, number: int) -> None:
    """Write a transaction of a card of either partition that is reported as a fraud."""
    within.tick(60)
    card = f"c{number % 2}"
    ids = {"card_id": card, "merchant_id": f"m{number % 3}"}
    within.cluster.write(PREFIX + "transactions", None, card.encode(), transaction(number, START, **ids))
    within.cluster.write(PREFIX + "labels", None, card.encode(), label(number, after(minutes=1), card_id=card))


def committed(world: World, agent: str, topic: str = "labels") -> int:
    """Return how far an agent has committed the first partition of a topic."""
    return world.cluster.group(PREFIX + agent).committed.get((PREFIX + topic, 0), (0, ""))[0]


def test_a_restore_ends_in_front_of_an_unreadable_batch_that_nobody_has_come_to(world: World) -> None:
    """A worker that died between two adjacent ones could never be replaced: its successors failed to restore."""
    world.cluster.write(PREFIX + "labels", 0, b"c1", label(0, START))
    world.cluster.damage(PREFIX + "labels", 0, 2)
    world.cluster.damage(PREFIX + "labels", 0, 2)
    for _ in range(20):
        if committed(world, "label") == 3:
            break
        world.step(0, "label")
    assert committed(world, "label") == 3
    world.kill(0)
    world.start(0)
    world.drain()
    assert committed(world, "label") == 5


def test_an_agent_that_reads_carefully_quarantines_what_another_one_has_quarantined(world: World) -> None:
    """It skipped the range, and its own dead letter and control record were missing."""
    world.cluster.damage(PREFIX + "accepted-labels", 0, 2)
    for _ in range(20):
        if committed(world, "feedback", "accepted-labels") == 2:
            break
        world.step(0, "feedback")
    assert committed(world, "feedback", "accepted-labels") == 2
    # The card agent has marked that it begins, and dies: its successor takes steps.
    for _ in range(2):
        world.step(0, "card")
    world.kill(0)
    world.start(0)
    world.drain()
    assert {(log.stage, log.at, log.end) for log in Logs(world.cluster).dead} == {
        ("feedback", ("accepted-labels", 0, 0), 2),
        ("card", ("accepted-labels", 0, 0), 2),
    }


def test_a_record_that_kills_right_behind_an_orderly_stop_is_quarantined(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Its partition's workers died of it for ever: each saw that the partition had been given up in order."""
    caplog.set_level(logging.INFO)
    world.cluster.write(PREFIX + "transactions", 0, b"c1", transaction(0, START))
    world.drain()
    world.stop(0)
    world.start(0)
    for number in range(1, 6):
        name = "t!kill-card" if number == 3 else f"t{number}"
        world.cluster.write(PREFIX + "transactions", 0, b"c1", transaction(number, START, transaction_id=name))
    world.drain()
    logs = Logs(world.cluster)
    (dead,) = logs.dead
    assert (dead.code, logs.at(dead.at).value) == ("set_aside", transaction(3, START, transaction_id="t!kill-card"))
    (quarantine,) = [item for _, item in logs.messages_of("control", decode_control) if isinstance(item, Quarantine)]
    assert quarantine.error_type == "ProcessDied"
    assert sum(1 for _ in logs.messages_of("decisions", decode_decision)) == 5
    check(logs)
    check_straight(world)
    (page,) = shown("docs/operating.md", "card: transactions partition")
    log = re.sub(r"\d+", "N", caplog.text.replace(PREFIX, ""))
    assert [line for line in page.shown.splitlines() if re.sub(r"\d+", "N", line) not in log] == []


def test_a_topic_that_left_a_partition_number_and_came_back_costs_no_record(world: World) -> None:
    """The client has taken records of the topics that stayed, and the batch that they were for is given up."""
    world.cluster.write(PREFIX + "transactions", 0, b"c1", transaction(0, START))
    world.drain()
    for number in (1, 2):
        world.cluster.write(PREFIX + "transactions", 0, b"c1", transaction(number, START))
    worker = world.workers[0]
    assert worker is not None
    session = worker.loops["card"]._session
    session._client.fetch(0)
    consumer, moved = session._client.consumer, [TopicPartition(PREFIX + "accepted-labels", 0)]
    assert session._client._records._positions[PREFIX + "transactions", 0] == 3
    # No broker is there, so that no mark says that they were given up in order, and reads from there anew.
    session._producers._brokers_down.set()
    session._assignment.on_revoke(consumer, moved)
    session._assignment.on_assign(consumer, moved)
    world.drain()
    decisions = Logs(world.cluster).messages_of("decisions", decode_decision)
    assert sorted(decision.source.offset for _, decision in decisions) == [0, 1, 2]


@pytest.mark.parametrize("fate", list(Fate))
def test_whatever_way_a_transaction_of_any_agent_ends_its_batch_counts_once(world: World, fate: Fate) -> None:
    """Random runs seldom come to those of each agent."""
    for number in range(6):
        buy(world, number)
    for agent in AGENT_NAMES:
        for _ in range(4):
            if world.workers[0] is None:
                world.start(0)
            world.cluster.fate = fate
            world.step(0, agent)
    world.drain()
    check(Logs(world.cluster))
    check_straight(world)


def test_a_late_transaction_is_remembered_from_when_it_came(world: World) -> None:
    """Deduplication counts from the stream time of its acceptance, not from its own time, which lies 30 days back."""
    world.tick(30 * 86_400)
    for number, at in ((0, after(days=30)), (1, START), (1, START)):
        world.cluster.write(PREFIX + "transactions", 0, b"c1", transaction(number, at))
    world.drain()
    logs = Logs(world.cluster)
    decided = [decision.transaction_id for _, decision in logs.messages_of("decisions", decode_decision)]
    assert sorted(decided) == ["t0", "t1"]
    check(logs)


def test_a_number_is_read_once_its_topics_have_all_come_one_by_one(world: World) -> None:
    """What came in part and went again is not held, and holds nothing back."""
    world.drain()
    worker = world.workers[0]
    assert worker is not None
    session = worker.loops["card"]._session
    assignment, consumer = session._assignment, session._client.consumer
    transactions, labels = ([TopicPartition(PREFIX + topic, 0)] for topic in ("transactions", "accepted-labels"))
    # No broker is there, so that no mark says that they were given up in order.
    session._producers._brokers_down.set()
    for change, part in (
        (assignment.on_revoke, labels),
        (assignment.on_revoke, transactions),
        (assignment.on_assign, transactions),
        (assignment.on_revoke, transactions),
        (assignment.on_assign, labels),
    ):
        change(consumer, part)
        assert {number for _, number in session.assigned} == {number for _, number in session.committed} == {1}
    assignment.on_assign(consumer, transactions)
    assert {number for _, number in session.assigned} == {0, 1}
    world.cluster.write(PREFIX + "transactions", 0, b"c1", transaction(0, START))
    world.drain()
    assert len(list(Logs(world.cluster).messages_of("decisions", decode_decision))) == 1


def late(world: World) -> int:
    """Return how many outputs without records were committed."""
    log = world.cluster.logs[PREFIX + "profiled", 0]
    return sum(record.value == b"late" for record in log.records(range(log.end)))


def test_outputs_without_records_are_refused_once_the_partitions_have_moved(world: World) -> None:
    """Their offsets move nothing, and let the group refuse what a worker writes that has not heard of its loss."""
    buy(world, 0)
    world.drain()
    worker = world.workers[0]
    assert worker is not None
    session, group = worker.loops["card"]._session, world.cluster.group(PREFIX + "card")
    before = {partition: offset for partition, (offset, _) in group.committed.items() if offset}
    outputs, batch = [Output(PROFILED, b"k", b"late", partition=0)], session.empty_batch()
    session.commit(session.empty_batch(), outputs)
    assert {partition: offset for partition, (offset, _) in group.committed.items() if offset} == before
    assert late(world) == 1
    group.expel(session._client.consumer)
    with pytest.raises(Aborted):
        session.commit(batch, outputs)
    assert late(world) == 1


@pytest.mark.parametrize("is_committed", [True, False])
def test_the_mark_tells_whether_outputs_without_records_were_committed(
    world: World, monkeypatch: pytest.MonkeyPatch, *, is_committed: bool
) -> None:
    """Where nobody hears of it: the offsets are the same either way."""
    buy(world, 0)
    world.drain()
    worker = world.workers[0]
    assert worker is not None
    session = worker.loops["card"]._session
    commit = SimProducer.commit_transaction

    def silent(producer: SimProducer, timeout: float) -> None:
        if not any(value == b"late" for _, _, _, value, _, _ in producer.written):
            commit(producer, timeout)
            return
        producer.pending = is_committed
        raise CallTimedOut("the coordinator does not answer")

    monkeypatch.setattr(SimProducer, "commit_transaction", silent)
    with nullcontext() if is_committed else pytest.raises(Aborted):
        session.commit(session.empty_batch(), [Output(PROFILED, b"k", b"late", partition=0)])
    assert late(world) == is_committed


def test_nothing_is_learned_while_learning_is_frozen(world: World) -> None:
    """Random runs seldom come to it; the learn agent keeps its partition, and goes on from its offsets."""
    switch_learning(world, frozen=True)
    for number in range(4):
        buy(world, number)
    for agent in 20 * AGENT_NAMES:
        world.step(0, agent)
    assert world.cluster.logs[PREFIX + "examples", 0].end > 0
    assert committed(world, "learn", "examples") == 0
    switch_learning(world, frozen=False)
    world.drain()
    assert committed(world, "learn", "examples") > 0
    check(Logs(world.cluster))
