"""Rules on a cluster: from a file to hits and alerts, and no decision between two sets."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pipeline.decision.rules import FIELDS, PolicyRule, RuleSet
from pipeline.expressions.evaluate import evaluate
from pipeline.expressions.parse import parse_expression
from pipeline.models.library import PublishedVersions
from schemas.messages import Activation, Alert, Decision
from schemas.topics import ALERTS
from tests.helpers.backtest_inputs import backtest_of
from tests.helpers.champion import RULES, policy
from tests.helpers.expressions import Columns
from tests.helpers.logs import after
from tests.helpers.topics import Cluster, Starter, once

pytestmark = pytest.mark.broker

CHEAP = "-- code: cheap\n-- owner: dana\n-- reason: A cheap one in France.\namount < 50 and country = 'FR'\n"
WHY = ("--reason", "A test.", "--by", "dana")


def bought(cluster: Cluster, numbers: range) -> None:
    for number in numbers:
        country = ("DE", "FR", None)[number % 3]
        cluster.buy(number, after(seconds=number), card_id=f"c{number % 7}", amount=20.0 + number % 60, country=country)
    cluster.flush()


def meant(decision: Decision, rules: RuleSet) -> tuple[list[str], list[str]]:
    """Return the codes that the set of a decision gives it, rule by rule."""
    country = ("DE", "FR", None)[int(decision.transaction_id[1:]) % 3]
    columns: Columns = {"amount": np.array([decision.amount_base]), "country": [country]}
    codes = [
        (rule.code, rule.is_active)
        for rule in rules.evaluated
        if evaluate(parse_expression(rule.expression, FIELDS), columns, 1)[0]
    ]
    return [code for code, is_active in codes if is_active], [code for code, is_active in codes if not is_active]


def test_a_rule_goes_from_a_file_to_alerts_and_a_dead_worker_leaves_no_mixture(
    cluster: Cluster, start: Starter, tmp_path: Path
) -> None:
    cluster.publish()
    (tmp_path / "cheap.sql").write_text(CHEAP)
    assert "cheap: new, a draft" in cluster.command("rules", "apply", str(tmp_path), "--yes", *WHY, code=0).output
    assert "only one that is in shadow" in cluster.command("rules", "activate", "cheap", *WHY, code=1).output
    cluster.command("rules", "publish", "cheap", *WHY, code=0)
    first = start(cluster.settings)
    bought(cluster, range(60))
    first.until(lambda: len(cluster.decisions()) == 60)
    found = cluster.decisions()
    assert {tuple(decision.shadow_hits or ()) for decision in found} == {(), ("cheap",)}
    assert all(not decision.rule_hits and decision.selection != "rule" for decision in found)

    bought(cluster, range(60, 200))
    cluster.command("rules", "activate", "cheap", "--untested", *WHY, code=0)
    first.end()
    second = start(cluster.settings)
    bought(cluster, range(200, 300))
    second.until(lambda: len(cluster.decisions()) == 300)
    assert second.stop() == 0, second.output
    decisions, published = cluster.decisions(), PublishedVersions.on(cluster.bootstrap, cluster.settings)
    assert once(decisions)
    sets = {
        version: RuleSet.from_payload(published.payload("rules", version) or b"")
        for version in {decision.versions.rules for decision in decisions}
    }
    assert len(sets) == 2
    alerts = {
        msgspec.json.decode(record.value or b"", type=Alert).transaction_id: record for record in cluster.read(ALERTS)
    }
    for decision in decisions:
        active, shadow = meant(decision, sets[decision.versions.rules])
        assert (decision.rule_hits or [], decision.shadow_hits or []) == (active, shadow)
        assert (decision.selection is not None) == (decision.transaction_id in alerts)
        assert decision.selection in (("score", "rule") if active else ("score", None))
    by_rule = [decision for decision in decisions if decision.selection == "rule"]
    assert by_rule
    alert = msgspec.json.decode(alerts[by_rule[0].transaction_id].value or b"", type=Alert)
    sentence = f"A cheap one in France (amount {by_rule[0].amount_base:g}, country FR)."
    assert (alert.reasons[0].code, alert.reasons[0].sentence) == ("cheap", sentence)
    again = backtest_of(order="recorded", compare_live=True, settings=cluster.settings)
    again.run()
    assert again.comparison is not None
    assert (again.comparison.compared, again.comparison.differences) == (300, [])


def test_rules_of_a_policy_go_on_until_they_are_adopted_and_then_in_the_set(cluster: Cluster, start: Starter) -> None:
    old = PolicyRule(code="old", feature="amount", op=">", value=70.0, sentence="More than 70.")
    cluster.publish(policy(0.999, old_rules=(old,)))
    worker = start(cluster.settings)
    bought(cluster, range(100))
    worker.until(lambda: len(cluster.decisions()) == 100)
    cluster.command("rules", "adopt", *WHY, code=0)
    adopted = PublishedVersions.on(cluster.bootstrap, cluster.settings).model_set.rules.version
    worker.until_active("rules", adopted)
    bought(cluster, range(100, 200))
    worker.until(lambda: len(cluster.decisions()) == 200)
    assert worker.stop() == 0, worker.output
    model_set = PublishedVersions.on(cluster.bootstrap, cluster.settings).model_set
    assert model_set.policy is not None
    assert model_set.policy.old_rules == ()
    assert [rule.code for rule in model_set.rules.rules] == ["large-amount", "old"]
    assert len({decision.versions.rules for decision in cluster.decisions()}) == 2
    for decision in cluster.decisions():
        assert (decision.rule_hits or []) == (["old"] if decision.amount_base > 70 else [])
        assert (decision.selection == "rule") == (decision.amount_base > 70)


def test_a_test_on_history_is_recorded_and_lets_a_rule_be_activated(
    cluster: Cluster, start: Starter, tmp_path: Path
) -> None:
    cluster.publish()
    file = tmp_path / "cheap.sql"
    file.write_text(CHEAP)
    cluster.command("rules", "publish", str(file), *WHY, code=0)
    worker = start(cluster.settings)
    days = 24
    for number in range(10 * days):
        country = ("DE", "FR", None)[number % 3]
        at = after(number // 10, seconds=number % 10)
        cluster.buy(number, at, card_id=f"c{number % 7}", amount=20.0 + number % 60, country=country)
    cluster.flush()
    worker.until(lambda: len(cluster.decisions()) == 10 * days)
    assert worker.stop() == 0, worker.output
    hit = [decision for decision in cluster.decisions() if decision.shadow_hits]
    early = [decision for decision in hit if decision.event_time < after(days - 14)]
    assert 0 < len(early) < len(hit)

    assert "was not tested on 7 days" in cluster.command("rules", "activate", "cheap", *WHY, code=1).output
    shown = cluster.command("rules", "test", str(file), "--on", "topics", "--by", "dana", code=0).output
    assert f"{days - 14} days, {10 * (days - 14)} transactions" in shown
    assert f"  hits: {len(early)}, " in shown
    assert "Recorded as test 1 of cheap." in shown
    cluster.command("rules", "retire", "cheap", *WHY, code=0)
    shown = cluster.command("rules", "publish", str(file), "--on", "topics", *WHY, code=0).output
    assert f"14 days, {10 * 14} transactions" in shown
    assert f"  hits: {len(hit) - len(early)}, " in shown
    cluster.command("rules", "activate", "cheap", *WHY, code=0)
    shown = cluster.command("rules", "show", "cheap", code=0).output
    assert "shadow -> active (tests: 1, looks at the newest days: 1)  by dana" in shown
    shown = cluster.command("rules", "report", "--on", "topics", code=0).output
    assert "cheap  active for 0 days  alert  dana" in shown
    assert f"  hits: {len(hit)}, of 0 mature ones 0 are fraud, 0.00 in all" in shown
    assert "Earn nothing: cheap, large-amount." in shown
    listed = json.loads(cluster.command("rules", "report", "--on", "topics", "--json", code=0).stdout)
    assert [(each["code"], each["hits"]) for each in listed] == [("cheap", len(hit)), ("large-amount", 0)]
    backtest = backtest_of(order="recorded", settings=cluster.settings).run()
    assert {code for code, _ in backtest.rules_since} == {"cheap"}
    found = backtest.variants[0].rules
    assert found is not None
    assert [(rule.code, rule.state) for rule in found.rules][-1] == ("cheap", "shadow")
    assert np.count_nonzero(found.rule == len(found.rules) - 1) == len(hit), "it was in shadow when they were decided"


def test_a_second_person_activates(cluster: Cluster, tmp_path: Path) -> None:
    cluster.publish()
    cluster.settings = cluster.settings.model_copy(update={"second_approval": True})
    file = tmp_path / "cheap.sql"
    file.write_text(CHEAP)
    cluster.command("rules", "publish", str(file), *WHY, code=0)
    untested = cluster.command("rules", "activate", "cheap", "--untested", *WHY, code=1).output
    assert "dana has proposed rule 'cheap'" in untested
    other = ("--reason", "It is good.", "--by", "mona")
    cluster.command("rules", "activate", "cheap", "--untested", *other, code=0)
    shown = cluster.command("rules", "show", "cheap", code=0).output
    assert "shadow -> active (tests: 0, untested)  by mona: It is good." in shown
    cluster.command("rules", "retire", "cheap", *other, code=0)
    published = PublishedVersions.on(cluster.bootstrap, cluster.settings)
    assert published.model_set.rules.version == RULES.version, "the same rules are the same set"
    assert isinstance(published.history.events[-1], Activation)
