"""What the learn agent publishes when LightGBM versions come and go."""

import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from agents.learn import LearnPartitions
from agents.partitions import Environment
from pipeline.engine.models import ActiveModels
from pipeline.models.active import ModelSubscriber
from pipeline.scoring.river_factory import load_river, new_learner, resume_learner
from pipeline.scoring.river_model import RiverLearner, RiverModel
from schemas.messages import ModelVersion
from schemas.topics import EXAMPLES, MODELS
from tests.helpers.champion import active, no_files
from tests.helpers.logs import Log
from tests.unit.model_helpers import example

NOW = datetime(2024, 3, 1, tzinfo=UTC)


@dataclass
class _Board:
    active: ActiveModels
    river: RiverModel | None = None
    published: dict[str, RiverModel] = field(default_factory=dict)
    """The newest River version on each LightGBM version."""


@dataclass
class _Watch:
    board: _Board

    def refresh(self) -> _Board:
        return self.board


def lesson(number: int, lightgbm: str) -> bytes:
    return msgspec.json.encode(example(number, lightgbm=lightgbm))


def published(result: Any) -> list[ModelVersion]:
    return [msgspec.json.decode(output.value, type=ModelVersion) for output in result.outputs if output.topic is MODELS]


def learner_of(lightgbm: str, published_: RiverModel | None, examples_start: int) -> RiverLearner:
    if published_ is None:
        return new_learner(lightgbm, None, examples_start)
    return resume_learner(published_.to_payload(), lightgbm, None, no_files)[0]


def agent_on(board: _Board, publish_interval_s: float = 0.0) -> LearnPartitions:
    nothing = cast(Environment, None)
    return LearnPartitions(
        nothing, learner_of, lambda _: None, cast(ModelSubscriber, _Watch(board)), publish_interval_s
    )


def promote(board: _Board, version: str) -> None:
    promoted = copy.copy(board.active.lightgbm)
    promoted.version = version
    board.active = ActiveModels(promoted, board.active.river, board.active.policy)
    board.river = board.published.get(version)


def board_on(version: str) -> _Board:
    board = _Board(active())
    promote(board, version)
    return board


def hear(board: _Board, message: ModelVersion) -> None:
    model = load_river(bytes(message.payload), None, no_files)
    board.published[model.lightgbm_version] = model
    board.river = board.published.get(board.active.lightgbm.version)


def teach(agent: LearnPartitions, log: Log, version: str) -> list[ModelVersion]:
    """One more example on ``version``, committed."""
    told = published(agent.process([log.append(lesson(len(log.records), version))], NOW))
    agent.settle([0])
    return told


def publish(agent: LearnPartitions) -> list[ModelVersion]:
    """What it publishes without an example, committed."""
    told = published(agent.process([], NOW)) if agent.ready() and agent.due() else []
    agent.settle([])
    return told


def test_a_layer_that_begins_behind_the_first_example_is_published_before_its_first_lesson() -> None:
    board = board_on("base")
    agent = agent_on(board, publish_interval_s=3_600.0)
    log = Log(EXAMPLES)
    assert agent.ready()
    agent.process([log.append(lesson(0, "base"))], NOW)
    agent.settle([0])
    promote(board, "another")
    assert agent.ready()
    (first,) = published(agent.process([log.append(lesson(1, "another"))], NOW))
    assert first.version.endswith("@1")
    agent.undo([0])
    (again,) = published(agent.process([log.records[-1]], NOW))
    assert again == first
    agent.settle([0])
    assert published(agent.process([log.append(lesson(2, "another"))], NOW)) == []


def test_a_layer_after_a_rollback_does_not_bear_the_name_of_the_one_before() -> None:
    board, log = board_on("v1"), Log(EXAMPLES)
    agent = agent_on(board)
    assert agent.ready()
    told = [message for _ in range(5) for message in teach(agent, log, "v1")]
    for version in ("v2", "v1", "v2"):
        promote(board, version)
        told += publish(agent)
        hear(board, told[-1])
    told += teach(agent, log, "v2")
    digests = {(message.version, message.digest) for message in told}
    assert len(digests) == len({version for version, _ in digests}) == 5 + 3
    assert {message.version.rpartition("@")[2] for message in told} == {"1", "2", "3", "4", "5", "6"}


def test_a_promotion_that_is_taken_back_at_once_costs_no_lesson() -> None:
    board, log = board_on("v1"), Log(EXAMPLES)
    agent = agent_on(board)
    assert agent.ready()
    (told,) = [teach(agent, log, "v1") for _ in range(5)][-1]
    hear(board, told)
    promote(board, "v2")
    assert agent.ready()
    promote(board, "v1")
    assert publish(agent) == []
    (next_,) = teach(agent, log, "v1")
    assert next_.version == told.version.replace("@5", "@6")


def test_a_layer_of_the_last_owner_is_gone_on_from() -> None:
    board, log = board_on("v1"), Log(EXAMPLES)
    first = agent_on(board)
    assert first.ready()
    told = teach(first, log, "v1")
    behind = board_on("v1")
    hear(behind, told[-1])
    promote(board, "v2")
    assert first.ready()
    told += [message for _ in range(4) for message in teach(first, log, "v2")]
    # The next owner began before it heard of v2, and hears of it together with the layer of the last owner.
    second = agent_on(behind)
    assert second.ready()
    second.process(log.records[1:], NOW)
    second.settle([0])
    promote(behind, "v2")
    hear(behind, told[-1])
    assert publish(second) == []
    (by_second,) = teach(second, log, "v2")
    (by_first,) = published(first.process(log.records[-1:], NOW))
    assert by_second == by_first
