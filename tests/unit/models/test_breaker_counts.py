"""What the breaker counts, and which rules it stops by it."""

from datetime import timedelta
from typing import Any

from msgspec.structs import replace

from pipeline.decision.rules import RuleSet
from pipeline.models.breaker import LEAST_TRANSACTIONS, RuleCounts
from pipeline.models.decision_feed import DecisionFields, decode_decided
from tests.helpers.champion import rule
from tests.helpers.logs import START, decision

RULES = RuleSet([rule("few", "amount > 0", max_alerts_per_hour=3)])
Decided = tuple[int, DecisionFields]


def decisions(
    count: int, code: str = "few", hour: int = 5, minute: int = 0, by_rule: bool = True, **changes: Any
) -> list[Decided]:
    value = decision(0, START, rule_hits=[code], selection="rule" if by_rule else None, **changes)
    return [(hour, replace(decode_decided(value), decided_at=START + timedelta(minutes=minute)))] * count


def add(counts: RuleCounts, decided: list[Decided]) -> None:
    counts.add([hour for hour, _ in decided], [found for _, found in decided])


def test_a_rule_trips_by_an_hour_of_all_partitions_and_anew_behind_an_activation() -> None:
    counts = RuleCounts()
    add(counts, decisions(9))
    assert counts.trips(RULES) == [], "whose activation is not known is not counted"
    counts.activated("few", START)
    add(counts, decisions(2, minute=-1))
    add(counts, decisions(3))
    add(counts, decisions(3, hour=6))
    add(counts, decisions(5, hour=6, by_rule=False))
    add(counts, decisions(5, hour=6, overruled={"quiet/1": ["few"]}))
    assert counts.trips(RULES) == []
    add(counts, decisions(1))
    (trip,) = counts.trips(RULES)
    assert (trip.rule.code, trip.figures.alerts, trip.figures.event_hour) == ("few", 4, 5)
    assert trip.reason == "it raised 4 alerts in an hour of event time, of 3 at most"

    counts.activated("few", START + timedelta(minutes=5))
    add(counts, decisions(9, minute=4))
    add(counts, decisions(3, minute=5))
    assert counts.trips(RULES) == []
    add(counts, decisions(1, minute=5))
    assert [trip.rule.code for trip in counts.trips(RULES)] == ["few"]
    stopped = RULES.with_rules(replace(RULES.rules[0], state="stopped"))
    assert counts.trips(stopped) == []


def test_a_share_of_the_hours_transactions_is_a_cap_for_tags_too() -> None:
    rules = RuleSet([rule("tag", "amount > 0", action="tag", max_hit_rate=0.1)])
    counts = RuleCounts()
    counts.activated("tag", START)
    add(counts, [*decisions(199, "tag", by_rule=False), *decisions(LEAST_TRANSACTIONS - 200, "other")])
    assert counts.trips(rules) == []
    add(counts, decisions(2, "tag", by_rule=False))
    (trip,) = counts.trips(rules)
    assert trip.reason == "it hit 201 of an hour's 1,001 transactions, of 10.00% at most"
    add(counts, decisions(1, "tag", hour=5 + 200))
    assert trip.figures.transactions == 1_001
