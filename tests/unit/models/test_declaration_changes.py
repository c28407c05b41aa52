"""Which declaration of features is active, and which is refused."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.decision.audit_sample import Audit, Stratum
from pipeline.decision.rules import PolicyRule
from pipeline.features.built_in import BUILT_IN_MERCHANT
from pipeline.features.checked_declaration import load_declaration
from pipeline.features.declaration import Declaration, packaged_declaration
from pipeline.features.feature_set import FeatureSet
from pipeline.kafka.session.quarantine import control_record
from pipeline.models.declaration_changes import (
    DeclarationChange,
    needed,
    refuse_dropped,
    refuse_missing,
    refuse_other_meaning,
)
from pipeline.models.known import KnownVersions
from pipeline.models.publish import ModelChange, VersionToPublish
from pipeline.models.published_files import PublishedFiles
from pipeline.models.version_history import FIRST_START
from pipeline.scoring.lightgbm_model import needed_features
from pipeline.settings.features_file import FeaturesError, read_features_file
from schemas.messages import Assessment
from schemas.records import Record
from tests.helpers.champion import policy
from tests.helpers.models import small_model
from tests.unit.engine.test_engine_models import other_model
from tests.unit.models.test_model_changes import Cluster

ABROAD = """
extends = "none"

[fields.way]
type = "text"
meaning = "how it was bought"

[[features]]
entity = "card"
aggregate = "distinct"
field = "country"
windows = ["1d", "7d"]
where = "way <> 'shop'"
"""
OWN = "card_distinct_country_7d"


def declared(text: str = ABROAD) -> Declaration:
    return read_features_file(text.encode(), "f")


def published(cluster: Cluster) -> PublishedFiles:
    """Return all that a process reads there as it starts."""
    files, read = PublishedFiles("", cluster._settings), 0

    class Control:
        def read(self, _waiting: object) -> list[Record]:
            nonlocal read
            first, read = read, len(cluster.items)
            outputs = [control_record(item) for item in cluster.items[first:]]
            return [Record("control", 0, at, 0, output.key, output.value) for at, output in enumerate(outputs, first)]

    files._control, files._contents = cast(Any, Control()), cluster
    return files


def publish(cluster: Cluster, declaration: Declaration, step: str = "publish") -> None:
    content = VersionToPublish("features", declaration.version, declaration.content)
    cluster.activate(cluster.contents([content]), ModelChange(step))


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_the_declaration_that_was_activated_last_is_active(cluster: Cluster) -> None:
    files = published(cluster)
    files.refresh()
    assert files.active_declaration() is None
    first, second = declared(), declared('extends = "all"\n')
    for declaration in (first, second, first):
        publish(cluster, declaration)
        files.refresh()
        assert files.active_declaration() == declaration
    assert [declaration for _, declaration in files.declarations()] == [first, second, first]


def test_what_a_worker_publishes_on_its_first_start_takes_nobody_s_place(cluster: Cluster) -> None:
    first, second = declared(), declared('extends = "all"\n')
    publish(cluster, first, FIRST_START)
    publish(cluster, second, FIRST_START)
    files = published(cluster)
    files.refresh()
    assert files.active_declaration() == first
    publish(cluster, second)
    publish(cluster, first, FIRST_START)
    files.refresh()
    assert files.active_declaration() == second
    assert [declaration for _, declaration in files.declarations()] == [first, second]


def test_where_a_content_is_lost_the_declaration_before_is_active_until_it_is_found(cluster: Cluster) -> None:
    first, second = declared(), declared('extends = "all"\n')
    publish(cluster, first)
    publish(cluster, second)
    content = cluster.models.pop()
    files = published(cluster)
    files.refresh()
    assert files.active_declaration() == first
    assert [declaration for _, declaration in files.declarations()] == [first, None]
    cluster.models.append(content)
    files.refresh()
    assert files.active_declaration() == second


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("'shop'", "'web'", "card_distinct_country_1d is something else in declaration"),
        ('"country"', '"channel"\nname = "distinct_country"', "card_distinct_country_1d is something else"),
        ('"text"', '"number"', "field way was a text in declaration"),
    ],
)
def test_a_name_keeps_its_meaning(old: str, new: str, said: str) -> None:
    before = load_declaration(declared().content)
    text = ABROAD.replace(old, new)
    if new == '"number"':
        text = text.partition("[[features]]")[0]
    with pytest.raises(FeaturesError, match=said) as refused:
        refuse_other_meaning(FeatureSet(declared(text)), [packaged_declaration(), before])
    assert "a name keeps its meaning" in str(refused.value)


def test_a_field_that_is_dropped_does_not_travel_as_a_hash() -> None:
    tables = '[[features]]\nentity = "merchant"\naggregate = "distinct"\nfield = "ip"\nwindows = ["1d"]\n'
    with pytest.raises(FeaturesError, match="windows of merchants read ip, which FRAUD_PIPELINE_DROPPED_FIELDS keeps"):
        refuse_dropped(FeatureSet(declared(tables)), {"ip", "note"})
    refuse_dropped(FeatureSet(declared(tables.replace("merchant", "card"))), {"ip"})


def test_names_that_mean_the_same_are_no_reason() -> None:
    more = ABROAD.replace("how it was", "the way it was").replace('["1d"', '["1h", "1d"')
    refuse_other_meaning(FeatureSet(declared(more)), [declared(), Declaration()])


def refused(cluster: Cluster, declaration: Declaration) -> str:
    history = cluster.published()
    with pytest.raises(FeaturesError) as refusal:
        refuse_missing(FeatureSet(declaration), needed(history.history, KnownVersions(cluster.registry, history)))
    return str(refusal.value)


def test_what_the_active_versions_need_is_declared(cluster: Cluster) -> None:
    everything = declared(ABROAD.replace('"none"', '"all"'))
    names = needed_features(small_model().to_payload())
    assert names
    assert names <= {*FeatureSet(everything).features}
    cluster.publish(small_model(), policy())
    history = cluster.published()
    refuse_missing(FeatureSet(everything), needed(history.history, KnownVersions(cluster.registry, history)))
    assert f"the active LightGBM version {small_model().version} needs " in refused(cluster, declared())


@pytest.mark.parametrize("by", ["rule", "stratum"])
def test_what_a_policy_compares_is_declared(cluster: Cluster, by: str) -> None:
    busy = BUILT_IN_MERCHANT[0].name
    stratum = Stratum(feature=busy, op=">", value=1.0, rate=0.5)
    rule = PolicyRule(code="busy", feature=busy, op=">", value=1.0, sentence="It is busy.")
    made = policy(old_rules=(rule,)) if by == "rule" else policy(audit=Audit(rate=0.1, strata=(stratum,)))
    cluster.publish(small_model(), made)
    history = cluster.published()
    needs = dict(needed(history.history, KnownVersions(cluster.registry, history)))
    assert needs[f"the active policy {made.version}"] == {busy}


def test_what_a_version_in_the_shadow_needs_is_declared(cluster: Cluster) -> None:
    cluster.publish(small_model(), policy())
    cluster.publish(other_model(), policy(lightgbm_version=other_model().version))

    def versions() -> list[str]:
        history = cluster.published()
        return [version for version, _ in needed(history.history, KnownVersions(cluster.registry, history))]

    assert not [version for version in versions() if "shadow" in version], "nobody compares"
    cluster.control(
        Assessment(
            versions=[], outcome="x", by="", reason="", figures={"retrain": "h-1"}, assessed_at=datetime.now(UTC)
        )
    )
    assert f"LightGBM version {small_model().version} in the shadow" in versions()


def test_a_change_says_what_is_added_and_whether_windows_are_made_anew() -> None:
    before, after = FeatureSet(declared('extends = "none"\n')), FeatureSet(declared())
    change = DeclarationChange(before, after)
    assert change.added == ["card_distinct_country_1d", OWN]
    assert change.removed == []
    assert change.rebuilds
    assert DeclarationChange(after, before).removed == change.added
    longer = FeatureSet(declared(ABROAD.replace('"7d"', '"7d", "3d"')))
    assert not DeclarationChange(after, longer).rebuilds, "the windows hold the same values"
