"""Caps on rules: what a partition stops by its own log."""

from collections import Counter

import msgspec
import numpy as np
import pytest

from pipeline.decision.rule_caps import MOST_COUNTED, PartitionCaps
from pipeline.decision.rules import RuleSet
from pipeline.kafka.session.attempts import Mark, read_mark, write_mark
from schemas.times import US_PER_HOUR
from tests.helpers.champion import rule

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
        mark = read_mark(write_mark(Mark("a/b/1", state=caps.state)).decode())
        caps.commit()
        if random.random() < 0.3:
            assert mark is not None
            caps = PartitionCaps(mark.state)
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


@pytest.mark.parametrize("others", [(), ("many",)])
def test_a_rule_that_was_stopped_and_brought_back_is_counted_from_zero(others: tuple[str, ...]) -> None:
    few = rule("few", "amount > 0", max_alerts_per_hour=3)
    beside = [rule(code, "amount > 0", max_alerts_per_hour=9) for code in others]
    active, stopped = RuleSet([few, *beside]), RuleSet([msgspec.structs.replace(few, state="stopped"), *beside])
    caps, hits = PartitionCaps(), np.empty(5, np.object_)
    hits[:] = [(active.evaluated.index(few),)] * 5

    def alerts(rules: RuleSet) -> int:
        bounded = caps.bounded(rules, hits, np.zeros(5, np.bool_), np.full(5, US_PER_HOUR))
        return int(rules.alerts(bounded).sum())

    assert (alerts(active), alerts(active)) == (3, 0)
    caps.commit()
    none = np.empty(1, np.object_)
    none[:] = [()]
    for commits, expected in ((False, 0), (True, 3)):
        caps.bounded(stopped, none, np.zeros(1, np.bool_), np.full(1, US_PER_HOUR))
        (caps.commit if commits else caps.rollback)()
        assert alerts(active) == expected


def test_counts_of_any_number_of_rules_fit_beside_an_offset() -> None:
    rules = RuleSet(
        [rule(f"rule-{number:03}", f"amount > {number}", max_alerts_per_hour=10**9) for number in range(300)]
    )
    caps, hits = PartitionCaps(), np.empty(300, np.object_)
    hits[:] = [tuple(range(number, 300)) for number in range(300)]
    caps.bounded(rules, hits, np.zeros(300, np.bool_), np.full(300, 500_000 * US_PER_HOUR))
    clock, hour, alerts = caps.state
    assert len(alerts) == MOST_COUNTED
    assert max(alerts.values()) == 300, "those with most alerts"
    state = [{**clock, "ahead": [10**15] * 2}, hour, dict.fromkeys(alerts, 10**9)]
    assert len(write_mark(Mark("a-worker-with-a-rather-long-name/" + "f" * 32 + "/123456", state=state))) < 4_096
