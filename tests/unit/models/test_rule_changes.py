"""Changes of the set of rules: the steps of a rule, who may take them, and what is written."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.decision.rules import NO_RULES, PolicyRule, Rule
from pipeline.features.feature_set import FeatureSet
from pipeline.models.changes import ChangeAuthor
from pipeline.models.declaration_changes import needed
from pipeline.models.known import KnownVersions
from pipeline.models.rule_changes import RuleChanges, applied, differences
from pipeline.scoring.errors import ModelError
from pipeline.settings.features_file import read_features_file
from schemas.messages import Activation, Assessment
from tests.helpers.champion import policy, rule
from tests.helpers.models import small_model
from tests.unit.engine.test_engine_models import other_model
from tests.unit.models.test_model_changes import DANA, NOW, Cluster

MONA = ChangeAuthor("mona", "It is good.")
A = rule("a", "amount > 5", state="draft")
B = rule("b", "country = 'FR'", state="draft")


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    made = Cluster(tmp_path)
    made.publish(small_model(), policy())
    return made


def changes(cluster: Cluster, **options: Any) -> RuleChanges:
    return RuleChanges(cluster.published(), cluster, cluster._settings, **options)


def states(cluster: Cluster) -> list[tuple[str, str]]:
    return [(each.code, each.state) for each in cluster.published().model_set.rules.rules]


def test_a_rule_takes_one_step_after_the_other(cluster: Cluster) -> None:
    assert changes(cluster).rules is NO_RULES
    changes(cluster).apply([A, B], DANA)
    with pytest.raises(ModelError, match="rule 'a' is a draft: only one that is in shadow"):
        changes(cluster).activate("a", DANA, untested=True)
    changes(cluster).publish("a", DANA)
    with pytest.raises(ModelError, match="rule 'a' is in shadow: only one that is a draft"):
        changes(cluster).publish("a", DANA)
    changes(cluster).activate("a", MONA, untested=True)
    assert states(cluster) == [("a", "active"), ("b", "draft")]
    active = cluster.published().model_set.active
    assert active is not None
    assert active.versions("r").rules == changes(cluster).rules.version
    for take in (changes(cluster).activate, changes(cluster).publish):
        with pytest.raises(ModelError, match=r"rule 'a' is active, and no other version of it is (in shadow|a draft)"):
            take("a", MONA)
    with pytest.raises(ModelError, match=r"no rule 'c'; there are a, b"):
        changes(cluster).retire("c", DANA)
    changes(cluster).retire("a", DANA)
    assert states(cluster) == [("b", "draft")]
    steps = [(event.by, change.before, change.after) for event, change in changes(cluster).history("a")]
    assert steps == [
        ("dana", None, "draft"),
        ("dana", "draft", "shadow"),
        ("mona", "shadow", "active"),
        ("dana", "active", "retired"),
    ]


def test_an_edited_rule_stands_beside_the_active_one_until_it_replaces_it(cluster: Cluster) -> None:
    edited = rule("a", "amount > 50", state="draft")
    changes(cluster).publish(A, DANA)
    changes(cluster).activate("a", DANA, untested=True)
    with pytest.raises(ModelError, match="says this already"):
        changes(cluster).apply([A], DANA)
    changes(cluster).apply([edited], DANA)
    changes(cluster).publish("a", DANA)
    assert states(cluster) == [("a", "active"), ("a", "shadow")]
    assert applied(changes(cluster).rules, [edited]).rules == changes(cluster).rules.rules, "it goes on in shadow"
    withdrawn = applied(changes(cluster).rules, [A])
    assert [each.state for each in withdrawn.rules] == ["active"]
    assert [change.after for change in differences(changes(cluster).rules, withdrawn)] == [None]
    changes(cluster).activate("a", DANA, untested=True)
    assert [each.expression for each in changes(cluster).rules.rules] == ["amount > 50"]


def test_a_second_person_activates_where_one_is_asked_for(cluster: Cluster, tmp_path: Path) -> None:
    changes(cluster).publish(A, DANA)
    cluster._settings = cluster._settings.model_copy(update={"second_approval": True})
    with pytest.raises(ModelError, match="dana has proposed rule 'a'"):
        changes(cluster).activate("a", ChangeAuthor(" Dana", "Again."), untested=True)
    written = cluster.items[-1]
    cluster.items[-1] = replace(written, figures={"rules": [{}]})
    with pytest.raises(ModelError, match="nothing says who put rule 'a' in shadow"):
        changes(cluster).activate("a", MONA, untested=True)
    cluster.items[-1] = written
    changes(cluster).activate("a", MONA, untested=True)
    assert states(cluster) == [("a", "active")]


def test_a_rule_is_activated_once_its_condition_was_tested(cluster: Cluster) -> None:
    changes(cluster).publish(A, DANA)
    events = len(cluster.items)
    for days, tested in ((6, A), (30, rule("a", "amount > 6", state="draft")), (30, replace(A, code="b"))):
        changes(cluster).record_test(tested, days, "history", "dana")
        with pytest.raises(ModelError, match="'a' was not tested on 7 days of history"):
            changes(cluster).activate("a", MONA)
    changes(cluster).record_test(replace(A, owner="mona"), 7, "history", "dana")
    assert len(cluster.items) == events + 4
    assert [test.days for test in changes(cluster).tests(A)] == [6, 30, 7]
    changes(cluster).activate("a", MONA)
    assert states(cluster) == [("a", "active")]
    (*_, (_, change)) = changes(cluster).history("a")
    assert (change.tests, change.tested) == (3, True)


def test_figures_that_cannot_be_read_are_reported_once_and_count_as_none(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    made: dict[str, Any] = {"versions": [], "by": "breaker", "reason": ""}
    read = {"code": "a", "before": "draft", "after": "shadow"}
    for second, steps in enumerate(([read, {}], [{"code": "a", "after": "active"}], 5, [read])):
        at = NOW + timedelta(seconds=second)
        cluster.control(Activation(**made, activated_at=at, figures={"rules": steps}))
    for second, figures in enumerate(({"rule": "a"}, {"rule": "a", "expression": "amount > 5", "days": "7"})):
        at = NOW + timedelta(seconds=second)
        cluster.control(Assessment(**made, outcome="tested", assessed_at=at, figures=figures))
    for _ in range(2):
        found = changes(cluster)
        assert [(event.activated_at.second - NOW.second, step.after) for event, step in found.history("a")] == [
            (3, "shadow")
        ]
        assert list(found.since()) == [("a", "shadow")]
        assert found.tests(A) == []
    assert len([record for record in caplog.records if "counts as one without" in record.getMessage()]) == 5
    changes(cluster).publish(A, DANA)
    assert states(cluster) == [("a", "shadow")]


def test_the_history_of_a_rule_names_it_untested(cluster: Cluster) -> None:
    changes(cluster).publish(A, DANA)
    changes(cluster).activate("a", MONA, untested=True)
    (*_, (_, change)) = changes(cluster).history("a")
    assert (change.tests, change.tested) == (0, False)


def test_rules_of_a_policy_move_with_it_at_once(cluster: Cluster) -> None:
    old = PolicyRule(code="a", feature="amount", op=">", value=5.0, sentence="More than 5.")
    with pytest.raises(ModelError, match="there is nothing to adopt"):
        changes(cluster).adopt(DANA)
    cluster.publish(policy(0.7, old_rules=(old,)))
    with pytest.raises(ModelError, match="the active policy has a rule 'a' of its own"):
        changes(cluster).publish(A, DANA)
    changes(cluster).publish(B, DANA)
    changes(cluster).adopt(DANA)
    made = cluster.published().model_set
    assert made.policy is not None
    assert (made.policy.threshold, made.policy.old_rules) == (0.7, ())
    assert states(cluster) == [("a", "active"), ("b", "shadow")]
    moved = made.rules.rules[0]
    assert (moved.reason, moved.expression, moved.owner, moved.action) == (
        "More than 5.",
        "amount > 5",
        "dana",
        "alert",
    )
    assert {reference.name for reference in cluster.items[-1].versions} == {"rules", "policy"}


def test_rules_that_have_moved_do_not_come_back_with_a_policy(cluster: Cluster) -> None:
    old = PolicyRule(code="a", feature="amount", op=">", value=5.0, sentence="More than 5.")
    other = other_model()
    before = policy(0.5, lightgbm_version=other.version, old_rules=(replace(old, code="b"),))
    cluster.publish(other, before)
    cluster.publish(small_model(), policy(0.65))
    assert cluster.changes().promote(other.version, DANA).policy == before.version, "no set has rules yet"
    last = policy(0.7, old_rules=(old,))
    cluster.publish(small_model(), last)
    changes(cluster).adopt(DANA)
    changes(cluster).retire("a", MONA)
    back = cluster.changes().rollback(DANA)
    assert back.lightgbm == other.version, "a policy that only had other rules is no step back"
    found = cluster.published().model_set.policy
    assert found is not None
    assert (found.threshold, found.old_rules) == (0.5, ())
    assert cluster.changes().promote(small_model().version, DANA, last.version).policy == policy(0.7).version
    assert states(cluster) == []


def test_rules_that_came_back_with_a_policy_are_adopted_beside_those_of_the_set(cluster: Cluster) -> None:
    olds = tuple(
        PolicyRule(code=code, feature="amount", op=">", value=value, sentence="Much.")
        for code, value in (("a", 5.0), (" a ", 6.0), ("c", 7.0))
    )
    cluster.publish(policy(0.7, old_rules=olds[:1]))
    changes(cluster).adopt(DANA)
    cluster.publish(policy(0.8, old_rules=olds))
    with pytest.raises(ModelError, match="has a rule 'a' of its own"):
        changes(cluster).publish(B, DANA)
    changes(cluster).adopt(MONA)
    assert [(each.code, each.expression, each.owner) for each in changes(cluster).rules.rules] == [
        ("a", "amount > 5", "dana"),
        ("a-2", "amount > 6", "mona"),
        ("c", "amount > 7", "mona"),
    ]
    cluster.publish(policy(0.9, old_rules=olds[:1]))
    changes(cluster).adopt(MONA)
    assert cluster.published().model_set.policy.old_rules == (), "the set has all of them already"


def test_what_workers_cannot_read_is_refused(cluster: Cluster) -> None:
    few = FeatureSet(read_features_file(b'extends = "none"\n', "features.toml"))
    with pytest.raises(ModelError, match="rules read card_count_1h, which the cluster's active declaration"):
        changes(cluster, declared=lambda: few).publish(rule("a", "card_count_1h > 5"), DANA)
    changes(cluster, declared=lambda: few).publish(A, DANA)
    cluster._settings = cluster._settings.model_copy(update={"dropped_fields": "country"})
    with pytest.raises(ModelError, match="rules read country, which FRAUD_PIPELINE_DROPPED_FIELDS"):
        changes(cluster).publish(B, DANA)


def test_a_declaration_keeps_what_the_active_rules_read(cluster: Cluster) -> None:
    changes(cluster).publish(rule("a", "card_count_1h > 5 and hour < 5 and country = 'DE' and score > 0.5"), DANA)
    history = cluster.published()
    needs = dict(needed(history.history, KnownVersions(cluster.registry, history)))
    version = changes(cluster).rules.version
    assert needs[f"the active set of rules {version}"] == {"card_count_1h", "hour"}


def test_differences_name_the_version_that_goes_and_the_one_that_comes() -> None:
    before, after = applied(NO_RULES, [A, B]), applied(NO_RULES, [A])
    active: Rule = replace(A, state="active")
    assert differences(before, after) == [("b", B, None)]
    assert differences(after, before) == [("b", None, B)]
    assert differences(after, after.without("a").with_rules(active)) == [("a", A, active)]
    assert differences(after, after) == []
