"""Caps on rules: what a partition stops by its own log, and what the breaker stops by all of them."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest

from pipeline.decision.rule_caps import LEAST_TRANSACTIONS, MOST_COUNTED, DecidedHits, PartitionCaps, RuleBreaker
from pipeline.decision.rules import RuleSet
from pipeline.kafka.session.attempts import Mark, read_mark, write_mark
from schemas.times import US_PER_HOUR
from tests.helpers.champion import rule

START = datetime(2026, 1, 1, tzinfo=UTC)
RULES = RuleSet(
    [
        rule("few", "amount > 0", max_alerts_per_hour=3),
        rule("many", "amount > 0", max_alerts_per_hour=7),
        rule("uncapped", "amount > 0"),
        rule("tag", "amount > 0", action="tag", max_alerts_per_hour=1),
        rule("watched", "amount > 0", state="shadow", max_alerts_per_hour=1),
        rule("halted", "amount > 0", state="stopped", max_alerts_per_hour=1),
    ]
)
CAPS = {0: 3, 1: 7}


def rows(seed: int, n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return hits, which the score alerts on, and times: ascending, some of them late, one far ahead."""
    random = np.random.default_rng(seed)
    hits = np.empty(n, np.object_)
    hits[:] = [tuple(np.flatnonzero(random.random(len(RULES.evaluated)) < 0.4).tolist()) for _ in range(n)]
    times = np.sort(random.integers(1, 10 * US_PER_HOUR, n)) + 500_000 * US_PER_HOUR
    late = random.random(n) < 0.1
    times[late] -= 2 * US_PER_HOUR
    times[n // 2] += 900 * US_PER_HOUR
    return hits, random.random(n) < 0.2, times


def slow(hits: np.ndarray, by_score: np.ndarray, times: np.ndarray) -> list[tuple[int, ...]]:
    """Stop hits one by one; the wrong date is passed over, and a late row counts in the newest hour."""
    raised, found, newest = Counter[tuple[int, int]](), [], 0
    for hit, scored, time_us in zip(hits, by_score, times, strict=True):
        if not newest or time_us < newest + 24 * US_PER_HOUR:
            newest = max(newest, int(time_us))
        hour = newest // US_PER_HOUR
        alerts = not scored and any(number < RULES.alerting for number in hit)
        stopped = {number for number in hit if alerts and number in CAPS and raised[number, hour] >= CAPS[number]}
        raised.update((number, hour) for number in hit if alerts and number not in stopped)
        found.append(tuple(sorted(number + len(RULES.evaluated) * (number in stopped) for number in hit)))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_a_partition_stops_rules_alike_however_its_log_is_cut_and_restored(seed: int) -> None:
    hits, by_score, times = rows(seed)
    expected = slow(hits, by_score, times)
    assert any(number >= len(RULES.evaluated) for hit in expected for number in hit)

    random, caps, at, found = np.random.default_rng(seed), PartitionCaps(), 0, []
    while at < len(hits):
        end = at + int(random.integers(1, 60))
        bounded = caps.bounded(RULES, hits[at:end], by_score[at:end], times[at:end])
        if random.random() < 0.3:
            caps.rollback()
            continue
        mark = read_mark(write_mark(Mark("a/b/1", counters=caps.counters)).decode())
        caps.commit()
        if random.random() < 0.3:
            assert mark is not None
            caps = PartitionCaps(mark.counters)
        found += bounded.tolist()
        at = end

    assert found == expected


def test_a_stopped_hit_is_named_as_one_in_shadow_and_raises_nothing() -> None:
    caps, hits = PartitionCaps(), np.empty(5, np.object_)
    hits[:] = [(0,)] * 5
    bounded = caps.bounded(RULES, hits, np.zeros(5, np.bool_), np.full(5, US_PER_HOUR))
    assert RULES.alerts(bounded).tolist() == [True, True, True, False, False]
    assert RULES.named(bounded[3]) == ([], ["few"])
    assert hits[4] == (0,), "the hits of rules themselves are as they were"


def test_counts_of_any_number_of_rules_fit_beside_an_offset() -> None:
    rules = RuleSet(
        [rule(f"rule-{number:03}", f"amount > {number}", max_alerts_per_hour=10**9) for number in range(300)]
    )
    caps, hits = PartitionCaps(), np.empty(300, np.object_)
    hits[:] = [tuple(range(number, 300)) for number in range(300)]
    caps.bounded(rules, hits, np.zeros(300, np.bool_), np.full(300, 500_000 * US_PER_HOUR))
    assert len([key for key in caps.counters if len(key) == 8]) == MOST_COUNTED
    counters = {key: 10**9 + value for key, value in caps.counters.items()}
    assert len(write_mark(Mark("a-worker-with-a-rather-long-name/" + "f" * 32 + "/123456", counters=counters))) < 4_096


def decisions(count: int, code: str = "few", hour: int = 5, minute: int = 0, by_rule: bool = True) -> list[DecidedHits]:
    return [DecidedHits(hour, [code], by_rule, START + timedelta(minutes=minute))] * count


def test_the_breaker_trips_a_rule_by_an_hour_of_all_partitions_and_anew_behind_an_activation() -> None:
    breaker = RuleBreaker()
    breaker.add(decisions(9))
    assert breaker.trips(RULES) == [], "whose activation is not known is not counted"
    breaker.activated("few", START)
    breaker.add(decisions(2, minute=-1))
    breaker.add(decisions(3))
    breaker.add(decisions(3, hour=6))
    breaker.add(decisions(5, hour=6, by_rule=False))
    assert breaker.trips(RULES) == []
    breaker.add(decisions(1))
    (trip,) = breaker.trips(RULES)
    assert (trip.rule.code, trip.figures["alerts"], trip.figures["event_hour"]) == ("few", 4, 5)
    assert trip.reason == "it raised 4 alerts in an hour of event time, of 3 at most"

    breaker.activated("few", START + timedelta(minutes=5))
    breaker.add(decisions(9, minute=4))
    breaker.add(decisions(3, minute=5))
    assert breaker.trips(RULES) == []
    breaker.add(decisions(1, minute=5))
    assert [trip.rule.code for trip in breaker.trips(RULES)] == ["few"]
    stopped = RULES.with_rules(msgspec.structs.replace(RULES.evaluated[0], state="stopped"))
    assert breaker.trips(stopped) == []


def test_a_share_of_the_hours_transactions_is_a_cap_for_tags_too() -> None:
    rules = RuleSet([rule("tag", "amount > 0", action="tag", max_hit_rate=0.1)])
    breaker = RuleBreaker()
    breaker.activated("tag", START)
    breaker.add([*decisions(99, "tag", by_rule=False), *decisions(LEAST_TRANSACTIONS - 100, "other")])
    assert breaker.trips(rules) == []
    breaker.add(decisions(2, "tag", by_rule=False))
    (trip,) = breaker.trips(rules)
    assert trip.reason == "it hit 101 of an hour's 1,001 transactions, of 10.00% at most"
    breaker.add(decisions(1, "tag", hour=5 + 200))
    assert trip.figures["transactions"] == 1_001
