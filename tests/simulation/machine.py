"""A state machine of everything that may befall session and engine, in any order."""

import sys
from datetime import UTC, timedelta
from typing import Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from pipeline.kafka.quarantine import control_record, value_digest
from schemas.messages import Quarantine, RecordPosition
from schemas.records import Record
from tests.helpers.logs import label, transaction
from tests.simulation.activation import LIGHTGBM, POLICIES, activate, content_of, publish_first, write_content
from tests.simulation.checks import check
from tests.simulation.model_kafka import Fate
from tests.simulation.names import AGENT_NAMES, PARTITIONS, PREFIX
from tests.simulation.reading import Logs
from tests.simulation.straight import check_straight
from tests.simulation.world import World

SLOTS = 2
FAULTS = ("!fail", "!kill", "!once")
SUFFIXES = ("",) * 24 + tuple(f"{what}-{agent}" for what in FAULTS for agent in AGENT_NAMES) + (
    "!large-profiled", "!large-decisions", "!large-examples",
)  # fmt: skip
OTHER_SETTINGS = {"dedup_horizon_days": 30.0, "label_horizon_days": 20.0, "maturity_days": 8.0}


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
)
slots = st.integers(0, SLOTS - 1)
fates = st.sampled_from([Fate.COMMIT, Fate.COMMIT, *Fate])
JUNK = (b"", b"{", b"\xff\xfe", b"[]", b'{"transaction_id": "t"}', b'{"kind": "quarantine"}')


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

    # --- Producers and analysts ----------------------------------------------------------------------------------

    @rule(items=st.lists(purchases, min_size=1, max_size=6))
    def buy(self, items: list[tuple[str, str, float, int, str, int | None]]) -> None:
        for card, merchant, amount, late_h, suffix, partition in items:
            number = len(self.bought)
            at = self.world.clock.now(UTC) - timedelta(hours=late_h)
            ids: dict[str, Any] = {"transaction_id": f"t{number}{suffix}", "card_id": card, "merchant_id": merchant}
            value = transaction(number, at, amount=amount, **ids)
            self.bought.append(Bought(number, card, suffix, value))
            self._write("transactions", partition, card, value)

    @rule(numbers=st.lists(st.integers(0, 30), min_size=1, max_size=3), partition=st.sampled_from([None, 0, 1]))
    def repeat(self, numbers: list[int], partition: int | None) -> None:
        for number in numbers:
            if self.bought:
                one = self.bought[-1 - number % len(self.bought)]
                self._write("transactions", partition, one.card, one.value)

    @rule(items=st.lists(labellings, min_size=1, max_size=5), early=st.booleans())
    def say(self, items: list[tuple[int, str, str, int, int | None]], early: bool) -> None:
        for back, known, source, ago_h, partition in items:
            if early or not self.bought:
                # Of a transaction that may come later; the producers' numbers are foreseeable.
                number, card, suffix = len(self.bought) + back % 3, f"c{back % 4}", ""
            else:
                number, card, suffix, _ = self.bought[-1 - back % len(self.bought)]
            at = self.world.clock.now(UTC) - timedelta(hours=ago_h)
            ids = {"transaction_id": f"t{number}{suffix}", "card_id": card}
            self._write("labels", partition, card, label(number, at, known, source=source, **ids))

    @rule(topic=st.sampled_from(["transactions", "labels"]), count=st.integers(1, 3), number=st.integers(0, 1))
    def damage(self, topic: str, count: int, number: int) -> None:
        self.world.cluster.damage(PREFIX + topic, number, count)

    @rule(
        topic=st.sampled_from(
            ["transactions", "labels", "rerouted", "profiled", "decisions", "examples", "progress", "control", "models"]
        ),
        value=st.sampled_from(JUNK),
        number=st.integers(0, 1),
    )
    def junk(self, topic: str, value: bytes, number: int) -> None:
        count = self.world.cluster.partitions[PREFIX + topic]
        self.world.cluster.write(PREFIX + topic, number % count, AGENT_NAMES[number].encode(), value)

    def _write(self, topic: str, partition: int | None, card: str, value: bytes) -> None:
        self.world.cluster.write(PREFIX + topic, partition, card.encode(), value)

    # --- Control -------------------------------------------------------------------------------------------------

    @rule(lightgbm=st.sampled_from([None, *LIGHTGBM]), policy=st.sampled_from([None, *POLICIES]), late=st.booleans())
    def activate(self, lightgbm: str | None, policy: str | None, late: bool) -> None:
        contents = [content_of(name) for name in (lightgbm, policy) if name is not None]
        if contents:
            if not late:
                for content in contents:
                    write_content(self.world, content)
            activate(self.world, *contents)

    @rule(name=st.sampled_from([*LIGHTGBM, *POLICIES]), sound=st.booleans())
    def write_content(self, name: str, sound: bool) -> None:
        content = content_of(name)
        write_content(self.world, content)
        if not sound:
            log = self.world.cluster.logs[PREFIX + "models", 0]
            (record,) = log.records(range(log.end - 1, log.end))
            self.world.cluster.write(record.topic, 0, record.key, (record.value or b"").replace(b"made", b"fake"))

    @rule(topic=st.sampled_from(["transactions", "labels", "profiled", "decisions"]), back=st.integers(0, 5))
    def forge_quarantine(self, topic: str, back: int) -> None:
        """A control record that must be ignored (12): its agent has markers, or it names another digest."""
        agent = {"transactions": "card", "labels": "card", "profiled": "score", "decisions": "feedback"}[topic]
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

    @rule(slot=slots, agent=st.sampled_from(AGENT_NAMES), fate=fates, fetch=st.sampled_from([1, 2, 5, 1 << 20]),
          turn=st.integers(0, 5), stall=st.booleans())  # fmt: skip
    def work(self, slot: int, agent: str, fate: Fate, fetch: int, turn: int, stall: bool) -> None:
        cluster = self.world.cluster
        cluster.fate, cluster.fetch, cluster.turn = fate, fetch, turn
        self.world.step(slot, agent, stall=stall)

    @rule(fate=fates, fetch=st.sampled_from([2, 5, 1 << 20]), at=st.integers(0, 7))
    def work_all(self, fate: Fate, fetch: int, at: int) -> None:
        cluster = self.world.cluster
        cluster.fetch, cluster.turn = fetch, at
        for number, agent in enumerate(AGENT_NAMES * 2):
            cluster.fate = fate if number == at else Fate.COMMIT
            for slot in range(SLOTS):
                self.world.step(slot, agent)

    @rule(agent=st.sampled_from(AGENT_NAMES), number=st.integers(0, PARTITIONS - 1), to=slots)
    def rebalance(self, agent: str, number: int, to: int) -> None:
        group = self.world.cluster.group(PREFIX + agent)
        if group.members and number in group.target:
            group.target[number] = group.members[to % len(group.members)]

    @rule(slot=slots, agent=st.sampled_from(AGENT_NAMES))
    def expel(self, slot: int, agent: str) -> None:
        group = self.world.cluster.group(PREFIX + agent)
        for member in [one for one in group.members if one.client == f"w{slot}"]:
            group.expel(member)

    @rule(slot=slots)
    def kill(self, slot: int) -> None:
        self.world.kill(slot)

    @rule(slot=slots)
    def stop(self, slot: int) -> None:
        self.world.stop(slot)

    @rule(slot=slots, other=st.booleans())
    def start(self, slot: int, other: bool) -> None:
        if self.world.workers[slot] is None:
            self.world.start(slot, **(OTHER_SETTINGS if other else {}))

    @rule(hours=st.sampled_from([0.001, 1, 1, 30, 200, 1_000]))
    def tick(self, hours: float) -> None:
        self.world.tick(hours * 3_600)

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None and self.world.cluster.logs[PREFIX + "control", 0].end:
                self.world.drain()
                check(Logs(self.world.cluster))
                check_straight(self.world)
        finally:
            self.world.close()
