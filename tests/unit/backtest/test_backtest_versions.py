"""Versions that decisions name are found again, and what is on the topics besides is not believed."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.backtest.runner import model_library
from pipeline.backtest.runner.model_library import ModelLibrary
from pipeline.engine.feedback.learn import LearnPartition, model_record
from pipeline.kafka.session.quarantine import control_record, value_digest
from pipeline.models.contents import VersionContents, sound_versions
from pipeline.models.library import PublishedVersions
from pipeline.scoring.errors import ModelError
from pipeline.scoring.kinds import Scorer
from pipeline.scoring.payload import payload_digest
from pipeline.scoring.river_factory import new_learner
from pipeline.settings import Settings
from schemas.messages import Activation, ModelVersion, Quarantine, RecordPosition, VersionReference
from schemas.records import Record
from schemas.topics import CONTROL, EXAMPLES, MODELS
from tests.helpers.champion import empty_model_set, policy
from tests.helpers.models import example, small_model

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENCODE = msgspec.json.Encoder(decimal_format="number").encode


class Contents(VersionContents):
    """``models`` in memory."""

    def __init__(self, records: Sequence[Record]) -> None:
        super().__init__("nowhere:1", Settings())
        self._records = records

    def readable(self, waiting: Callable[[], None] = lambda: None) -> range:
        return range(len(self._records))

    def between(
        self, start: int, end: int, waiting: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[int, ModelVersion]]:
        for record, version in sound_versions(self._records[start:end], self._trusted):
            yield record.offset, version


def published(*outputs: Any) -> list[Record]:
    return [Record(MODELS.name, 0, offset, 0, output.key, output.value) for offset, output in enumerate(outputs)]


def model(name: str, version: str, payload: bytes) -> Any:
    return model_record(name, version, payload, NOW)


def activation(*named: tuple[str, str, bytes], offset: int = 0) -> Record:
    references = [
        VersionReference(name=name, version=version, digest=payload_digest(payload), offset=offset)
        for name, version, payload in named
    ]
    output = control_record(Activation(versions=references, activated_at=NOW))
    return Record(CONTROL.name, 0, 0, 0, output.key, output.value)


def library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: Sequence[Record], control: Sequence[Record] = ()
) -> ModelLibrary:
    settings = Settings(data_dir=tmp_path, kafka_bootstrap_servers=None)
    found = PublishedVersions(settings, control, Contents(models), empty_model_set())
    monkeypatch.setattr(model_library.PublishedVersions, "on", lambda *_: found)
    monkeypatch.setattr(model_library, "reached", lambda *_: None)
    return ModelLibrary(settings, "a cluster")


def rivers() -> list[Scorer]:
    learn = LearnPartition(new_learner())
    records = [Record(EXAMPLES.name, 0, n, 0, b"", ENCODE(example(n))) for n in range(31)]
    found = []
    for first, end in ((0, 15), (15, 31)):
        learn.learn(records[first:end])
        found.append(learn.publish())
    return found


def test_every_river_version_is_found_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = small_model().version
    first, second = rivers()
    forged = model("river", second.version, first.to_payload())
    garbage = [model("river", "x", b'{"kind":"nothing"}'), model("river", "y", b"{}")]
    records = published(
        *(model("river", version.version, version.to_payload()) for version in (first, second)), forged, *garbage
    )
    records.append(Record(MODELS.name, 0, len(records), 0, b"river", b"[" * 5_000))
    known = library(monkeypatch, tmp_path, records)
    for version in (second, first):
        found = known.river(version.version, base)
        assert (found.version, found.to_payload()) == (version.version, version.to_payload())
    # The newest record that can be used is active, and that is the copy of the first version.
    assert known.latest_river().version == first.version
    assert library(monkeypatch, tmp_path, []).latest_river().version.endswith("@0")
    with pytest.raises(ModelError, match="is not on topic models"):
        known.river("0123456789ab@9", base)


def test_quarantined_records_are_skipped_by_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    records = [Record(EXAMPLES.name, 0, n, 0, b"", b"%d" % n) for n in range(8)]
    # The second one names the content of another record: it is not believed.
    named = [(records[4], records[4].value), (records[5], records[6].value)]
    items = [
        Quarantine(
            agent="learn",
            position=RecordPosition(topic=EXAMPLES.name, partition=0, offset=record.offset),
            digest=value_digest(value),
            error_type="E",
            message="",
            quarantined_at=NOW,
        )
        for record, value in named
    ]
    garbage = [Record(CONTROL.name, 0, 0, 0, None, b"["), Record(CONTROL.name, 0, 1, 0, b"quarantine", None)]
    written = [Record(CONTROL.name, 0, 2, 0, output.key, output.value) for output in map(control_record, items)]
    known = library(monkeypatch, tmp_path, [], [*garbage, *written])
    assert [record.offset for record in records if record not in known.without("learn", records)] == [4]
    assert list(known.without("score", records)) == records


def test_what_was_activated_last_and_is_there_is_active(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    champion = ("lightgbm", small_model().version, small_model().to_payload())
    row, other, never = (
        ("policy", policy(threshold).version, policy(threshold).to_payload()) for threshold in (0.3, 0.4, 0.9)
    )
    damaged = published(model(*never))[0]
    damaged = msgspec.structs.replace(damaged, value=(damaged.value or b"").replace(b"0.9", b"0.8"))
    records = [*published(model(*champion), model(*row), model(*other)), msgspec.structs.replace(damaged, offset=3)]
    control = [activation(champion, row), activation(other, offset=2), activation(never), activation(row, offset=9)]
    known = library(monkeypatch, tmp_path, records, control)
    assert known.policy("active").version == other[1]
    assert known.policy(row[1]).threshold == 0.3
    assert known.lightgbm("active").version == small_model().version
    assert known.active_policy() is not None
