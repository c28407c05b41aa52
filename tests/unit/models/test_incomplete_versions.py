"""Activations of versions of which something cannot be read yet: what waits, and what goes on meanwhile."""

from datetime import UTC, datetime

import msgspec
import pytest

from pipeline.decision.lists import manifest_payload
from pipeline.engine.scores.active_models import ModelSet
from pipeline.models import list_log
from pipeline.models.activation import Activations
from pipeline.scoring.payload import payload_digest
from pipeline.scoring.river_factory import first_river
from schemas.messages import Activation, ListChange, ModelVersion, VersionReference
from tests.helpers.champion import policy, small_model
from tests.helpers.lists import MemoryLog, definition, entry

CHANGES = 12


class Published:
    """Contents by their digests, and activations of them."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.activations = Activations(self.refused.append)
        self.looks = 0
        self._contents: dict[str, ModelVersion] = {}

    def activate(self, **payloads: bytes) -> None:
        now, references = datetime.now(UTC), []
        for name, payload in payloads.items():
            digest = payload_digest(payload)
            references.append(VersionReference(name=name, version=digest[:12], digest=digest, offset=0))
            self._contents[digest] = ModelVersion(
                name=name, version=digest[:12], digest=digest, payload=msgspec.Raw(payload), published_at=now
            )
        self.activations.add(Activation(versions=references, activated_at=now))

    def find(self, reference: VersionReference) -> ModelVersion:
        self.looks += 1
        return self._contents[reference.digest]


def test_many_incomplete_versions_keep_no_other_one_back(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(list_log, "_MISSING_S", 0.01)
    monkeypatch.setattr(list_log.time, "sleep", waits.append)
    published, log, change = Published(), MemoryLog(), ""
    published.activate(lightgbm=small_model().to_payload(), policy=policy(0.5).to_payload())
    for number in range(CHANGES):
        defined = [] if number else [definition("home")]
        added = ListChange(change="", before=change, definitions=defined, entries=[entry("home", f"v{number}")])
        change = log.write(added)
        published.activate(lists=manifest_payload(change, "", number + 1))
    first = log.records.pop(0)
    model_set = ModelSet(lambda: first_river(""), lambda _: first_river(""), load_lists=log.load)

    model_set = published.activations.apply(model_set, published.find)
    assert model_set.active is not None
    assert not model_set.active.lists.version
    assert published.refused == ["lists"] * CHANGES
    once, published.looks = len(waits), 0
    for _ in range(3):
        assert published.activations.has_incomplete
        assert published.activations.apply(model_set, published.find) is model_set
    assert published.looks == 3, "the newest waits, and those before it do not"
    assert len(waits) == once, "nobody waits again"
    assert published.refused == ["lists"] * CHANGES, "each is reported once"

    log.records.append(first)
    model_set = published.activations.apply(model_set, published.find)
    assert not published.activations.has_incomplete
    assert len(model_set.lists) == CHANGES


def test_an_incomplete_version_whose_rest_is_damaged_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(list_log, "_MISSING_S", 0.0)
    published, log = Published(), MemoryLog()
    added = ListChange(change="", definitions=[definition("home")], entries=[entry("home", "v0")])
    published.activate(lists=manifest_payload(log.write(added), "", 1))
    part = log.records.pop()
    model_set = ModelSet(lambda: first_river(""), lambda _: first_river(""), load_lists=log.load)
    assert published.activations.apply(model_set, published.find) is model_set
    log.records.append(part.replace(b'"v0"', b'"vX"'))
    assert published.activations.apply(model_set, published.find) is model_set
    assert not published.activations.has_incomplete
    first, last = (record.getMessage() for record in caplog.records)
    assert "is not active yet, and is tried again" in first
    assert "is refused: change" in last
