"""The versions that the learn agent publishes, and those that the next owner of its partition goes on from."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from agents.learn import LearnPartitions
from agents.partitions import Environment
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.scoring.kinds import Scorer
from pipeline.scoring.prequential import ScoreMeasures
from pipeline.scoring.river_factory import load_river
from pipeline.settings import Settings
from schemas.messages import ModelVersion
from schemas.topics import EXAMPLES, MODELS
from tests.helpers.champion import active, no_files
from tests.helpers.logs import Log
from tests.helpers.models import example

NOW = datetime(2024, 3, 1, tzinfo=UTC)
Figures = Mapping[str, ScoreMeasures]


@dataclass
class _ModelSet:
    active: ActiveModels
    river: Scorer | None = None
    """The newest published version."""


@dataclass
class _Watch:
    model_set: _ModelSet
    frozen: bool = False

    def refresh(self) -> _ModelSet:
        return self.model_set


def published(result: Any) -> list[ModelVersion]:
    return [msgspec.json.decode(output.value, type=ModelVersion) for output in result.outputs if output.topic is MODELS]


def agent_on(
    watch: _Watch, publish_interval_s: float = 0.0, report: Callable[[Figures], None] = lambda _: None
) -> LearnPartitions:
    settings = Settings(river_publish_interval_s=publish_interval_s)
    metrics = SimpleNamespace(prequential=report)
    environment = SimpleNamespace(settings=settings, agent="learn", metrics=metrics, models=lambda: watch)
    agent = LearnPartitions(cast(Environment, environment))
    assert agent.ready()
    return agent


def promote(model_set: _ModelSet, version: str) -> None:
    promoted = copy.copy(model_set.active.lightgbm)
    promoted.version = version
    model_set.active = ActiveModels(promoted, model_set.active.river, model_set.active.policy)


def teach(agent: LearnPartitions, log: Log, lightgbm: str = "base") -> list[ModelVersion]:
    """Process and commit one more example."""
    number = len(log.records)
    record = log.append(msgspec.json.encode(example(number, lightgbm=lightgbm)))
    reported = published(agent.process([record], NOW))
    agent.commit([0])
    return reported


def test_another_champion_changes_nothing_of_what_is_learned() -> None:
    model_set, log = _ModelSet(active()), Log(EXAMPLES)
    agent, other = agent_on(_Watch(model_set)), agent_on(_Watch(_ModelSet(active())))
    for number in range(40):
        if number == 20:
            promote(model_set, "another")
            assert agent.ready()
        (reported,) = teach(agent, log, "another" if number >= 20 else "base")
        (wanted,) = published(other.process([log.records[-1]], NOW))
        other.commit([0])
        assert reported == wanted
        assert reported.version.endswith(f"@{number + 1}")


def test_the_next_owner_goes_on_from_the_published_version() -> None:
    model_set, log = _ModelSet(active()), Log(EXAMPLES)
    first = agent_on(_Watch(model_set))
    reported = [message for _ in range(40) for message in teach(first, log)]
    model_set.river = load_river(bytes(reported[29].payload), None, no_files)
    second = agent_on(_Watch(model_set))
    (by_second,) = published(second.process(log.records, NOW))
    assert by_second == reported[-1]


def test_a_version_waits_for_its_interval() -> None:
    agent, log = agent_on(_Watch(_ModelSet(active())), publish_interval_s=3_600.0), Log(EXAMPLES)
    assert len(teach(agent, log)) == 1
    assert teach(agent, log) == []
    assert not agent.due()


def test_the_agent_reports_figures_of_what_is_committed_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Figures] = []
    agent, log = agent_on(_Watch(_ModelSet(active())), report=reported.append), Log(EXAMPLES)
    monkeypatch.setattr("agents.learn.FIGURES_INTERVAL_S", 0.0)
    teach(agent, log)
    teach(agent, log)
    assert [list(figures) for figures in reported] == [["lightgbm", "river", "blend"]] * 2
    agent.commit([0])
    assert len(reported) == 2, "nothing is new"
    monkeypatch.setattr("agents.learn.FIGURES_INTERVAL_S", 3_600.0)
    teach(agent, log)
    assert len(reported) == 2


def test_the_agent_is_on_hold_while_learning_is_frozen() -> None:
    watch = _Watch(_ModelSet(active()))
    agent = agent_on(watch)
    assert not agent.on_hold()
    watch.frozen = True
    assert agent.ready()
    assert agent.on_hold()
