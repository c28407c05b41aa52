"""When the learn agent publishes a layer on a new LightGBM version."""

import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from agents.learn import LearnPartitions
from agents.models import ModelWatch
from agents.partitions import Environment
from pipeline.engine.models import ActiveModels
from pipeline.scoring.river_factory import new_learner
from schemas.messages import ModelVersion
from schemas.topics import EXAMPLES, MODELS
from tests.helpers.champion import active
from tests.helpers.logs import Log
from tests.unit.model_helpers import example

NOW = datetime(2024, 3, 1, tzinfo=UTC)


@dataclass
class _Board:
    active: ActiveModels
    river: None = None


@dataclass
class _Watch:
    board: _Board

    def refresh(self) -> _Board:
        return self.board


def lesson(number: int, lightgbm: str) -> bytes:
    return msgspec.json.encode(example(number, lightgbm=lightgbm))


def published(result: Any) -> list[ModelVersion]:
    return [msgspec.json.decode(output.value, type=ModelVersion) for output in result.outputs if output.topic is MODELS]


def test_a_layer_that_begins_behind_the_first_example_is_published_before_its_first_lesson() -> None:
    board = _Board(active())
    agent = LearnPartitions(
        cast(Environment, None),
        lambda version, _: new_learner(version, None),
        lambda _model: None,
        cast(ModelWatch, _Watch(board)),
        3_600.0,
    )
    log = Log(EXAMPLES)
    assert agent.ready()
    agent.process([log.append(lesson(0, "base"))], NOW)
    agent.settle([0])
    promoted = copy.copy(board.active.lightgbm)
    promoted.version = "another"
    board.active = ActiveModels(promoted, board.active.river, board.active.policy)
    assert agent.ready()
    (first,) = published(agent.process([log.append(lesson(1, "another"))], NOW))
    assert first.version.endswith("@1")
    agent.undo([0])
    (again,) = published(agent.process([log.records[-1]], NOW))
    assert again == first
    agent.settle([0])
    assert published(agent.process([log.append(lesson(2, "another"))], NOW)) == []
