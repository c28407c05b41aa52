"""Caps on rules with a real broker: partitions stop a rule by themselves, the breaker stops it everywhere."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.decision.rules import RuleSet
from pipeline.models.breaker import Breaker
from pipeline.models.decision_feed import PartitionDecisions, RecentFeed
from pipeline.models.library import PublishedVersions
from pipeline.models.publish import ControlWriter, ModelChange, VersionToPublish, publish_active
from schemas.messages import Activation, Decision, LogPosition
from schemas.topics import DECISIONS
from tests.helpers.backtest_inputs import backtest_of
from tests.helpers.champion import rule
from tests.helpers.logs import after, decision
from tests.helpers.topics import Cluster, Starter, once
from tests.helpers.waiting import eventually

pytestmark = pytest.mark.broker

CAP = 15
FLOOD = (
    f"-- code: flood\n-- owner: dana\n-- reason: Everything.\n-- max-alerts-per-hour: {CAP}\n"
    "-- max-hit-rate: 1\namount > 0\n"
)
WHY = ("--reason", "A test.", "--by", "dana")
BREAKER = ("-m", "pipeline.cli", "breaker")


def bought(cluster: Cluster, numbers: range, hour: int) -> None:
    for number in numbers:
        at = after(hours=hour, seconds=number)
        cluster.buy(number, at, card_id=f"c{number % 40}", merchant_id=f"m{number % 25}")
    cluster.flush()


def by_rule(decisions: list[Decision], numbers: range) -> Counter[int]:
    """Return how many alerts the rule raised in each partition of ``profiled``."""
    own = [decision for decision in decisions if int(decision.transaction_id[1:]) in numbers]
    assert len(own) == len(numbers)
    assert all((decision.rule_hits, decision.shadow_hits) in ((["flood"], []), ([], ["flood"])) for decision in own)
    return Counter(decision.log.partition for decision in own if decision.selection == "rule")


def test_partitions_stop_a_rule_through_a_death_and_the_breaker_stops_it_until_it_is_activated_again(
    cluster: Cluster, start: Starter, tmp_path: Path
) -> None:
    cluster.publish()
    (tmp_path / "flood.sql").write_text(FLOOD)
    cluster.command("rules", "publish", str(tmp_path / "flood.sql"), *WHY, code=0)
    cluster.command("rules", "activate", "flood", "--untested", *WHY, code=0)
    first = start(cluster.settings)
    bought(cluster, range(60), hour=1)
    first.until(lambda: len(cluster.decisions()) == 60)
    first.end()
    second = start(cluster.settings)
    bought(cluster, range(60, 300), hour=1)
    second.until(lambda: len(cluster.decisions()) == 300)
    partitions = {decision.log.partition for decision in cluster.decisions()}
    assert len(partitions) > 1
    assert by_rule(cluster.decisions(), range(300)) == dict.fromkeys(partitions, CAP), "the cap outlives a worker"

    unreadable = Activation(versions=[], activated_at=after(0), by="breaker", figures={"rules": [{}], "trips": [{}]})
    ControlWriter(cluster.bootstrap, cluster.settings).note(unreadable)
    breaker = start(cluster.settings, *BREAKER)
    breaker.until_it_says("rule flood is stopped: it raised")
    listed = cluster.command("rules", "list", code=0).output
    assert "flood  stopped  alert" in listed
    shown = cluster.command("rules", "show", "flood", code=0).output
    assert "active -> stopped  by breaker: flood: it raised" in shown
    assert "max-alerts-per-hour: 15" in shown
    assert breaker.output.count("counts as one without: Object missing required field `code`") == 1
    published = PublishedVersions.on(cluster.bootstrap, cluster.settings)
    stopped = published.model_set.rules.version
    assert published.history.events[-1].figures["trips"][0]["alerts"] > CAP

    second.until_active("rules", stopped)
    bought(cluster, range(300, 340), hour=2)
    second.until(lambda: len(cluster.decisions()) == 340)
    assert by_rule(cluster.decisions(), range(300, 340)) == {}
    cluster.command("rules", "activate", "flood", "--reason", "It was meant so.", "--by", "mona", code=0)
    active = PublishedVersions.on(cluster.bootstrap, cluster.settings).model_set.rules.version
    second.until_active("rules", active, was=stopped)
    bought(cluster, range(340, 350), hour=3)
    second.until(lambda: len(cluster.decisions()) == 350)
    assert by_rule(cluster.decisions(), range(340, 350)).total() == 10
    bought(cluster, range(350, 360), hour=3)
    breaker.until(lambda: breaker.output.count("rule flood is stopped") == 2)
    assert breaker.stop() == 0, breaker.output
    assert second.stop() == 0, second.output
    assert once(cluster.decisions())

    again = backtest_of(order="recorded", compare_live=True, settings=cluster.settings)
    again.run()
    assert again.comparison is not None
    assert (again.comparison.compared, again.comparison.differences) == (360, [])


def state_behind(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, hours: Sequence[tuple[int, int]]) -> str:
    """Return the state of a rule that is activated, and hits, between two looks of a breaker.

    Args:
        cluster: The cluster.
        monkeypatch: For the breaker's feed.
        hours: Of each hit, the partition of ``profiled`` and the event hour.
    """
    cluster.publish()
    flood = RuleSet([rule("flood", "amount > 0", max_alerts_per_hour=CAP)])
    step = ModelChange(figures={"rules": [{"code": "flood", "before": "draft", "after": "active"}]})
    looked: list[int] = []
    new = RecentFeed.new

    def decided_meanwhile(feed: RecentFeed, timeout_s: float) -> Iterator[PartitionDecisions]:
        found: list[PartitionDecisions] = []
        if not looked:
            publish_active(cluster.bootstrap, cluster.settings, VersionToPublish.from_models(flood), step)
            now = datetime.now(UTC)
            for number, (partition, hour) in enumerate(hours):
                hit = {"rule_hits": ["flood"], "selection": "rule", "event_time": after(hours=hour)}
                value = decision(number, now, log=LogPosition(partition=partition, offset=number), **hit)
                cluster.write(DECISIONS, value, b"c1", now, partition=0)
            cluster.flush()
            eventually(
                lambda: sum(len(rows.decided) for rows in found) >= len(hours), lambda: found.extend(new(feed, 0.1))
            )
        looked.append(len(found))
        yield from found

    monkeypatch.setattr(RecentFeed, "new", decided_meanwhile)
    with closing(Breaker(cluster.bootstrap, cluster.settings, lambda: len(looked) == 2)) as breaker:
        breaker.run()
    (known,) = PublishedVersions.on(cluster.bootstrap, cluster.settings).model_set.rules.rules
    return known.state


def test_decisions_that_are_read_before_the_activation_they_were_made_by_count(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert state_behind(cluster, monkeypatch, [(0, 1)] * (CAP + 1)) == "stopped"


def test_partitions_that_are_worked_off_at_different_paces_stop_no_rule_that_kept_its_cap(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = [(0, hour) for hour in range(10) for _ in range(CAP // 2)]
    behind = [(1, hour) for hour in range(10) for _ in range(CAP // 2)]
    assert state_behind(cluster, monkeypatch, ahead + behind) == "active"
