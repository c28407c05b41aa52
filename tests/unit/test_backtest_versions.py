"""Versions that decisions name are found again: published ones, and River versions folded from examples."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.backtest import versions
from pipeline.backtest.versions import ModelLibrary
from pipeline.engine.learn import LearnPartition, model_record
from pipeline.kafka.quarantine import control_record, value_digest
from pipeline.rates import RatesError
from pipeline.scoring.errors import ModelError
from pipeline.scoring.river_factory import new_learner
from pipeline.settings import Settings
from schemas.messages import CardRules, Example, Quarantine, RecordPosition
from schemas.records import Record
from schemas.topics import CONTROL, EXAMPLES, MODELS
from tests.helpers.champion import policy
from tests.unit.model_helpers import example, small_model

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENCODE = msgspec.json.Encoder(decimal_format="number").encode


def taught(number: int) -> Example:
    return example(number, lightgbm=small_model().version)


def example_records() -> list[Record]:
    return [Record(EXAMPLES.name, 0, n, 0, b"", ENCODE(one)) for n, one in enumerate(map(taught, range(40)))]


class Topics:
    """Topics in memory, in place of a cluster's."""

    def __init__(self, **records: list[Record]) -> None:
        self._records = records

    def read(self, bootstrap: str, topic: str, **more: Any) -> Iterator[Record]:
        start = (more.get("start") or {}).get(0, 0)
        return iter([record for record in self._records[topic] if record.offset >= start])


def library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: list[Record], control: list[Record] | None = None
) -> ModelLibrary:
    topics = Topics(models=models, control=control or [], examples=example_records())
    monkeypatch.setattr(versions, "read_topic", topics.read)
    return ModelLibrary(Settings(data_dir=tmp_path, kafka_bootstrap_servers=None), "a cluster")


def model(offset: int, name: str, version: str, payload: bytes) -> Record:
    output = model_record(name, version, payload, NOW)
    return Record(MODELS.name, 0, offset, 0, output.key, output.value)


@pytest.mark.parametrize("start", [0, 7])
def test_a_river_version_that_is_gone_is_folded_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start: int
) -> None:
    base = small_model().version
    learn = LearnPartition(new_learner(base, None, start), start)
    learn.learn(example_records()[:15])
    first = learn.publish()
    learn.learn(example_records()[15:31])
    second = learn.publish()
    known = library(monkeypatch, tmp_path, [model(0, "river", second.version, second.to_payload())])
    for one in (first, second):
        found = known.river(one.version, base)
        assert (found.version, found.to_payload()) == (one.version, one.to_payload())
    assert known.latest_river(base).version == second.version
    assert known.latest_river("0123456789ab").version.endswith("@0")
    with pytest.raises(ModelError, match="no online model on LightGBM"):
        known.river("0123456789ab@9", base)


def test_quarantined_examples_are_not_learned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = small_model().version
    learn = LearnPartition(new_learner(base))
    learn.learn([record for record in example_records()[:20] if record.offset != 4])
    expected = learn.publish()
    records = example_records()
    # The second one names the content of another record: it is not believed.
    named = [(records[4], records[4].value), (records[5], records[6].value)]
    items = [
        Quarantine(
            agent="learn",
            position=RecordPosition(topic=EXAMPLES.name, partition=0, offset=record.offset),
            digest=value_digest(value),
            error="E",
            message="",
            quarantined_at=NOW,
        )
        for record, value in named
    ]
    garbage = [Record(CONTROL.name, 0, 0, 0, None, b"["), Record(CONTROL.name, 0, 1, 0, b"quarantine", None)]
    written = [Record(CONTROL.name, 0, 2, 0, output.key, output.value) for output in map(control_record, items)]
    known = library(monkeypatch, tmp_path, [], [*garbage, *written])
    assert known.river(expected.version, base).to_payload() == expected.to_payload()


def test_what_was_published_last_is_in_force_and_what_is_damaged_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, other = policy(0.3), policy(0.4)
    damaged = model(3, "policy", policy(0.9).version, policy(0.9).to_payload())
    damaged = msgspec.structs.replace(damaged, value=(damaged.value or b"").replace(b"0.9", b"0.8"))
    records = [
        model(0, "lightgbm", small_model().version, small_model().to_payload()),
        model(1, "policy", one.version, one.to_payload()),
        model(2, "policy", other.version, other.to_payload()),
        damaged,
    ]
    known = library(monkeypatch, tmp_path, records)
    assert known.policy("active").version == other.version
    assert known.policy(one.version).threshold == 0.3
    assert known.lightgbm("active").version == small_model().version


def test_a_rate_table_that_is_gone_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rules = CardRules(
        rates_version="v", rates_digest="d", future_tolerance_us=0, dedup_horizon_us=0, label_horizon_us=0
    )
    with pytest.raises(RatesError, match="fraud-pipeline rates FILE"):
        library(monkeypatch, tmp_path, []).rates(rules)
