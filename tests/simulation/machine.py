"""A state machine of everything that may befall session and engine, in any order."""

import sys
from datetime import UTC, timedelta
from typing import Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from pipeline.kafka.session.quarantine import control_record, value_digest
from schemas.messages import Quarantine, RecordPosition
from schemas.records import Record
from tests.helpers.logs import label, transaction
from tests.simulation.activation import (
    LIGHTGBM,
    POLICIES,
    activate,
    content_of,
    publish_first,
    switch_learning,
    write_content,
)
from tests.simulation.checks import check
from tests.simulation.model_kafka import Fate
from tests.simulation.names import AGENT_NAMES, LABEL_TOPICS, PARTITIONS, PREFIX
from tests.simulation.reading import Logs
from tests.simulation.straight import check_straight
from tests.simulation.world import World

SLOTS = 2
FAULTS = ("!fail", "!kill", "!once")
SUFFIXES = ("",) * 24 + tuple(f"{what}-{agent}" for what in FAULTS for agent in AGENT_NAMES) + (
    "!large-profiled", "!large-decisions", "!large-features", "!large-examples",
)  # fmt: skip
OTHER_SETTINGS = {"deduplication_days": 30.0, "label_grace_days": 20.0, "maturity_days": 8.0}


class Bought(NamedTuple):
    """A transaction that a producer wrote, to be written again, labelled, or both."""

    number: int
    card: str
    suffix: str
    value: bytes


purchases = st.tuples(
    st.sampled_from(["c0", "c1", "c2", "c3"]),
    st.sampled_from(["m0", "m1", "m2"]),
    st.sampled_from([3.5, 20.0, 250.75, 950.0]),
    st.sampled_from([0, 0, 0, 0, 1, 30, 80, 200, 1_200, -1]),  # hours that it is late
    st.sampled_from(SUFFIXES),
    st.sampled_from([None, None, None, 0, 1]),  # the partition it is written to; None: its card's
)
labellings = st.tuples(
    st.integers(0, 30),
    st.sampled_from(["fraud", "fraud", "legitimate", "disputed"]),
    st.sampled_from(["analyst", "chargeback", "rule", "audit"]),
    st.sampled_from([0, 0, 1, 30, 300, -100]),  # hours before now that it says that it was given
    st.sampled_from([None, None, None, 0, 1]),
    st.sampled_from([*LABEL_TOPICS]),
)
slots = st.integers(0, SLOTS - 1)
fates = st.sampled_from([Fate.COMMIT, Fate.COMMIT, *Fate])


class Work(NamedTuple):
    """A round of work: each agent of each worker in turn, one of them with what befalls it."""

    agents: tuple[str, ...]
    at: int
    """The step that something befalls."""
    fate: Fate
    fetch: int
    """Most records of a batch."""
    stalls: bool
    """Whether that step leaves its batch, to be worked on when the agent comes round again."""


works = st.lists(
    st.builds(
        Work,
        st.sampled_from([AGENT_NAMES, AGENT_NAMES, *((name,) for name in AGENT_NAMES)]),
        st.integers(0, 7),
        fates,
        st.sampled_from([1, 3, 7, 1 << 20]),
        st.sampled_from([False, False, False, True]),
    ),
    min_size=1,
    max_size=4,
)
JUNK_TOPICS = (
    "transactions", *LABEL_TOPICS, "rerouted", "accepted-labels", "profiled", "features", "examples", "progress",
    "control", "models",
)  # fmt: skip
JUNK = (b"", b"{", b"\xff\xfe", b"[]", b'{"transaction_id": "t"}', b'{"kind": "quarantine"}')


class Event(NamedTuple):
    """Something that happens: a method of `SimulatedPipeline`, and its arguments."""

    name: str
    details: tuple[Any, ...]


def event(name: str, *details: st.SearchStrategy[Any]) -> st.SearchStrategy[Event]:
    return st.builds(Event, st.just(name), st.tuples(*details))


numbers = st.integers(0, PARTITIONS - 1)
ranges = st.lists(st.integers(1, 3), min_size=1, max_size=3)
"""Sizes of batches that nobody can read, one behind the other."""
producers = st.one_of(
    event("buy", st.lists(purchases, min_size=1, max_size=6)),
    event("buy", st.lists(purchases, min_size=1, max_size=6)),
    event("repeat", st.lists(st.integers(0, 30), min_size=1, max_size=3), st.sampled_from([None, 0, 1])),
    event("say", st.lists(labellings, min_size=1, max_size=5), st.booleans()),
    event("say", st.lists(labellings, min_size=1, max_size=5), st.booleans()),
    event("damage", st.sampled_from(["transactions", *LABEL_TOPICS]), ranges, numbers),
    event("junk", st.sampled_from(JUNK_TOPICS), st.sampled_from(JUNK), numbers),
)
trouble = st.one_of(
    event("rebalance", st.sampled_from(AGENT_NAMES), numbers, slots),
    event("rebalance", st.sampled_from(AGENT_NAMES), numbers, slots),
    event("expel", slots, st.sampled_from(AGENT_NAMES)),
    event("kill", slots),
    event("stop", slots),
    event("start", slots, st.booleans()),
    event("start", slots, st.booleans()),
    event("tick", st.sampled_from([0.001, 1, 1, 30, 200, 1_000])),
)
control = st.one_of(
    event("activate", st.sampled_from([None, *LIGHTGBM]), st.sampled_from([None, *POLICIES]), st.booleans()),
    event("write_content", st.sampled_from([*LIGHTGBM, *POLICIES]), st.booleans()),
    event("switch", st.booleans()),
    event(
        "forge_quarantine",
        st.sampled_from(["transactions", "accepted-labels", "profiled", "features"]),
        st.integers(0, 5),
    ),
)
events = st.one_of(producers, producers, trouble, control)


class SimulatedPipeline(RuleBasedStateMachine):
    """Producers, workers and a cluster; every run ends with a check of all that was written."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(SLOTS)
        self.bought: list[Bought] = []

    @initialize(snapshots=st.booleans())
    def begin(self, snapshots: bool) -> None:
        self.world.snapshots = snapshots
        self.world.tick(1)
        publish_first(self.world)
        for slot in range(SLOTS):
            self.world.start(slot)

    @rule(event=events, then=works)
    def happen(self, event: Event, then: list[Work]) -> None:
        getattr(self, f"do_{event.name}")(*event.details)
        self._work(then)

    # --- Producers and analysts ----------------------------------------------------------------------------------

    def do_buy(self, items: list[tuple[str, str, float, int, str, int | None]]) -> None:
        for card, merchant, amount, late_h, suffix, partition in items:
            number = len(self.bought)
            at = self.world.clock.now(UTC) - timedelta(hours=late_h)
            ids: dict[str, Any] = {"transaction_id": f"t{number}{suffix}", "card_id": card, "merchant_id": merchant}
            value = transaction(number, at, amount=amount, **ids)
            self.bought.append(Bought(number, card, suffix, value))
            self._write("transactions", partition, card, value)

    def do_repeat(self, numbers: list[int], partition: int | None) -> None:
        for number in numbers:
            if self.bought:
                record = self.bought[-1 - number % len(self.bought)]
                self._write("transactions", partition, record.card, record.value)

    def do_say(self, items: list[tuple[int, str, str, int, int | None, str]], early: bool) -> None:
        for back, known, source, ago_h, partition, topic in items:
            if early or not self.bought:
                # Of a transaction that may come later; the producers' numbers are foreseeable.
                number, card, suffix = len(self.bought) + back % 3, f"c{back % 4}", ""
            else:
                number, card, suffix, _ = self.bought[-1 - back % len(self.bought)]
            at = self.world.clock.now(UTC) - timedelta(hours=ago_h)
            ids = {"transaction_id": f"t{number}{suffix}", "card_id": card}
            self._write(topic, partition, card, label(number, at, known, source=source, **ids))

    def do_damage(self, topic: str, counts: list[int], number: int) -> None:
        for count in counts:
            self.world.cluster.damage(PREFIX + topic, number, count)

    def do_junk(self, topic: str, value: bytes, number: int) -> None:
        count = self.world.cluster.partitions[PREFIX + topic]
        self.world.cluster.write(PREFIX + topic, number % count, AGENT_NAMES[number].encode(), value)

    def _write(self, topic: str, partition: int | None, card: str, value: bytes) -> None:
        self.world.cluster.write(PREFIX + topic, partition, card.encode(), value)

    # --- Control -------------------------------------------------------------------------------------------------

    def do_activate(self, lightgbm: str | None, policy: str | None, late: bool) -> None:
        contents = [content_of(name) for name in (lightgbm, policy) if name is not None]
        if contents:
            if not late:
                for content in contents:
                    write_content(self.world, content)
            activate(self.world, *contents)

    def do_switch(self, frozen: bool) -> None:
        switch_learning(self.world, frozen=frozen)

    def do_write_content(self, name: str, sound: bool) -> None:
        content = content_of(name)
        write_content(self.world, content)
        if not sound:
            log = self.world.cluster.logs[PREFIX + "models", 0]
            (record,) = log.records(range(log.end - 1, log.end))
            self.world.cluster.write(record.topic, 0, record.key, (record.value or b"").replace(b"made", b"fake"))

    def do_forge_quarantine(self, topic: str, back: int) -> None:
        """A control record that must be ignored (12): its agent has markers, or it names another digest."""
        agent = {
            "transactions": "card",
            "accepted-labels": "card",
            "profiled": "score",
            "features": "feedback",
        }[topic]
        for number in range(PARTITIONS):
            log = self.world.cluster.logs[PREFIX + topic, number]
            record = log.at(log.end - 1 - back)
            if isinstance(record, Record):
                digest = value_digest(record.value if agent != "score" else b"another")
                forged = Quarantine(
                    agent=agent,
                    position=RecordPosition(topic=topic, partition=number, offset=record.offset),
                    digest=digest,
                    error_type="Forged",
                    message="",
                    quarantined_at=self.world.clock.now(UTC),
                )
                output = control_record(forged)
                self.world.cluster.write(PREFIX + "control", 0, output.key, output.value)

    # --- Workers -------------------------------------------------------------------------------------------------

    def _work(self, rounds: list[Work]) -> None:
        cluster = self.world.cluster
        for item in rounds:
            steps = [(slot, agent) for agent in item.agents for slot in range(SLOTS)]
            cluster.fetch, cluster.turn = item.fetch, item.at
            for number, (slot, agent) in enumerate(steps):
                befallen = number == item.at % len(steps)
                cluster.fate = item.fate if befallen else Fate.COMMIT
                self.world.step(slot, agent, stall=item.stalls and befallen)

    def do_rebalance(self, agent: str, number: int, to: int) -> None:
        group = self.world.cluster.group(PREFIX + agent)
        if group.members and number in group.target:
            group.target[number] = group.members[to % len(group.members)]

    def do_expel(self, slot: int, agent: str) -> None:
        group = self.world.cluster.group(PREFIX + agent)
        for member in [member for member in group.members if member.client == f"w{slot}"]:
            group.expel(member)

    def do_kill(self, slot: int) -> None:
        self.world.kill(slot)

    def do_stop(self, slot: int) -> None:
        self.world.stop(slot)

    def do_start(self, slot: int, other: bool) -> None:
        if self.world.workers[slot] is None:
            self.world.start(slot, **(OTHER_SETTINGS if other else {}))

    def do_tick(self, hours: float) -> None:
        self.world.tick(hours * 3_600)

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None and self.world.cluster.logs[PREFIX + "control", 0].end:
                switch_learning(self.world, frozen=False)
                self.world.drain()
                check(Logs(self.world.cluster))
                check_straight(self.world)
        finally:
            self.world.close()
