"""A group's offsets from before its results: real ones end a worker, and forged ones nobody."""

import msgspec
import pytest

from pipeline.kafka.cluster.errors import SessionError
from schemas.messages import Progress
from tests.helpers.logs import START, after, decision, label, transaction
from tests.simulation.names import PREFIX, SPECS
from tests.simulation.world import World

AGENTS = ("card", "score", "feedback")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.kafka.session.offsets.FORGETFUL_S", 0.0)


def buy(within: World, number: int) -> None:
    """Write a transaction that is reported as a fraud."""
    within.tick(60)
    within.cluster.write(PREFIX + "transactions", 0, b"c1", transaction(number, START))
    within.cluster.write(PREFIX + "labels", 0, b"c1", label(number, after(minutes=1)))


@pytest.mark.parametrize("agent", AGENTS)
def test_offsets_that_a_coordinator_has_lost_are_not_gone_on_from(world: World, agent: str) -> None:
    buy(world, 0)
    world.drain()
    group = world.cluster.group(PREFIX + agent)
    lost = dict(group.committed)
    buy(world, 1)
    world.drain()
    world.stop(0)
    group.committed |= lost
    with pytest.raises(SessionError, match="the brokers know older offsets"):
        world.drain()


@pytest.mark.parametrize("agent", AGENTS)
def test_a_result_that_names_the_end_of_the_log_ends_nobody(world: World, agent: str) -> None:
    """Whoever could write one record ended every worker, at each start, for as long as the record was there."""
    buy(world, 0)
    world.drain()
    buy(world, 1)
    before = AGENTS.index(agent)
    for name in 3 * ("label", *AGENTS[:before]):
        world.step(0, name)
    world.stop(0)
    cluster = world.cluster
    for number in range(2):
        ends = {topic.name: cluster.logs[PREFIX + topic.name, number].end for topic in SPECS[agent].reads}
        if agent == "score":
            log = {"partition": number, "offset": ends["profiled"]}
            cluster.write(PREFIX + "decisions", number, b"c1", decision(log=log))
        else:
            marker = Progress(agent=agent, starts=ends, ends=ends)
            cluster.write(PREFIX + "progress", number, agent.encode(), msgspec.json.encode(marker))
    world.drain()
    assert world.idle()
