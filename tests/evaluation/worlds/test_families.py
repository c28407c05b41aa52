"""Worlds are the same for a seed, differ between seeds, and show what their family is about."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.evaluation.detection import Data
from tests.evaluation.worlds.events import SECONDS_PER_DAY, Events, Ints
from tests.evaluation.worlds.families import CHOOSING, FAMILIES, JUDGED_DAYS, JUDGING, START
from tests.evaluation.worlds.population import NAMES, Population, Size
from tests.evaluation.worlds.schemes import KINDS, day_of

SMALL = Size(2_500, 1_500, 56)
SEEDS = (1, 2)


@lru_cache
def world(name: str, seed: int) -> tuple[Population, Events]:
    return FAMILIES[name].events(seed, SMALL)


def frauds(events: Events, *kinds: str) -> Events:
    """Return the frauds of some kinds, or all of them."""
    numbers = [KINDS.index(kind) for kind in kinds] or range(1, len(KINDS))
    return events[np.isin(events.kind, numbers)]


def hours(events: Events) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return events.second % SECONDS_PER_DAY / 3_600


def been_there(events: Events) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return of each transaction, in order of time, whether its card was at its merchant before."""
    pair = pd.Series(events.card * (events.merchant.max() + 1) + events.merchant)
    return pair.duplicated().to_numpy()


def test_half_of_the_families_choose_and_the_other_half_judge() -> None:
    assert len(CHOOSING) == len(JUDGING) == 4
    assert len(FAMILIES) == 8
    assert (FAMILIES["drift"].size.transactions_a_day, FAMILIES["drift"].size.days) == (60_000, 56)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_seed_makes_one_world(name: str) -> None:
    frame = FAMILIES[name].frame(1, SMALL)
    pd.testing.assert_frame_equal(frame, FAMILIES[name].frame(1, SMALL))
    other = FAMILIES[name].frame(2, SMALL)
    assert len(other) != len(frame)
    assert frame["fraud"].mean() != other["fraud"].mean()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_world_has_transactions_and_frauds_on_every_day(name: str, tmp_path: Path) -> None:
    for seed in SEEDS:
        _, events = world(name, seed)
        assert len(events) / SMALL.days == pytest.approx(SMALL.transactions_a_day, rel=0.25)
        judged = day_of(events.second[events.kind > 0]) >= SMALL.days - JUDGED_DAYS
        a_day = np.count_nonzero(judged) / JUDGED_DAYS
        assert 4 < a_day < 70
        assert len(np.unique(day_of(events.second))) == SMALL.days
        assert events.minor.min() > 0
    frame = FAMILIES[name].frame(1, SMALL)
    frame.to_parquet(path := tmp_path / "world.parquet")
    data = Data(path)
    assert np.array_equal(data.fraud, frame["fraud"])
    assert data.frame["event_time"].min() >= pd.Timestamp(START, tz="UTC")
    assert data.kind is not None
    assert set(data.kind[data.fraud]) <= set(KINDS)


def test_cards_and_merchants_come_and_go() -> None:
    _, events = world("collusion", 1)
    frame = pd.DataFrame({"day": day_of(events.second), "card": events.card, "merchant": events.merchant})
    for entity in ("card", "merchant"):
        days = frame.groupby(entity)["day"].agg(["min", "max", "size"]).query("size > 20")
        assert (days["min"] > 14).mean() > 0.01
        assert (days["max"] < SMALL.days - 14).mean() > 0.01


def test_people_have_hours_and_days_have_seasons() -> None:
    population, events = world("moving ring", 1)
    usual = events[(events.kind == 0) & (events.card < population.cards)]
    night = population.hour[usual.card] > 22
    at_night = hours(usual) < 5
    assert at_night[night].mean() > 3 * at_night[~night].mean()
    a_day = np.bincount(day_of(usual.second), minlength=SMALL.days)
    weekday = population.calendar.weekday
    assert a_day[weekday == 5].mean() > 1.15 * a_day[weekday == 6].mean()


@pytest.mark.parametrize("seed", SEEDS)
def test_small_amounts_come_before_large_ones(seed: int) -> None:
    found = frauds(world("card testing", seed)[1])
    small = found.minor < 600
    assert 0.4 < small.mean() < 0.95
    first = pd.DataFrame({"card": found.card, "small": small}).groupby("card")["small"].first()
    assert first.mean() > 0.97
    large = frauds(world("card testing", seed)[1]).minor[~small]
    assert np.median(large) > 5_000


@pytest.mark.parametrize("seed", SEEDS)
def test_takeovers_happen_at_night_where_the_card_was_not_before(seed: int) -> None:
    _, events = world("night takeover", seed)
    found = events.kind > 0
    hour = hours(events)[found]
    assert ((hour > 20) | (hour < 9)).mean() > 0.97
    assert been_there(events)[found].mean() < 0.3


@pytest.mark.parametrize("seed", SEEDS)
def test_colluding_merchants_charge_their_customers_ever_more(seed: int) -> None:
    population, events = world("collusion", seed)
    found = events.kind > 0
    assert been_there(events)[found].mean() > 0.95
    frame = pd.DataFrame(
        {
            "merchant": events.merchant[found],
            "day": day_of(events.second[found]),
            "multiple": events.minor[found] / 100 / population.level[events.merchant[found]],
        }
    )
    since = frame["day"] - frame.groupby("merchant")["day"].transform("min")
    assert frame["multiple"][since > 20].mean() > 1.15 * frame["multiple"][since < 7].mean()
    assert len(frame["merchant"].unique()) > 20


@pytest.mark.parametrize("seed", SEEDS)
def test_a_ring_changes_its_merchants_every_few_days(seed: int) -> None:
    found = frauds(world("moving ring", seed)[1])
    days = pd.DataFrame({"merchant": found.merchant, "day": day_of(found.second)}).groupby("merchant")["day"]
    assert (days.max() - days.min() <= 6).mean() > 0.7
    assert len(days) > 20
    assert len(np.unique(found.card * SMALL.days + day_of(found.second))) > 0.6 * len(found)


@pytest.mark.parametrize("seed", SEEDS)
def test_first_parties_dispute_at_shops_they_know_and_exhaust_new_cards(seed: int) -> None:
    population, events = world("first party", seed)
    known = been_there(events)
    assert known[events.kind == KINDS.index("refund abuse")].mean() > 0.7
    spent = frauds(events, "bust-out")
    assert len(spent) > 30
    assert (population.card_from[spent.card] >= 0).all()
    assert pd.Series(spent.minor).groupby(spent.card).size().mean() > 3


@pytest.mark.parametrize("seed", SEEDS)
def test_triangulation_orders_listed_goods_at_the_largest_merchant(seed: int) -> None:
    population, events = world("triangulation", seed)
    found = frauds(events)
    sold: Ints = np.bincount(events.merchant)
    assert set(found.merchant) == {sold.argmax()}
    assert NAMES[population.category[sold.argmax()]] == "marketplace"
    assert 0.02 < sold.max() / len(events) < 0.2
    assert len(np.unique(found.minor)) < 0.5 * len(found)


def test_sales_bring_transactions_and_no_fraud_beside_the_usual() -> None:
    ratios = []
    for seed in (1, 2, 3, 4):
        population, events = world("holidays", seed)
        sale = population.calendar.sale > 0
        assert sale[-JUDGED_DAYS:].any()
        day = day_of(events.second)
        a_day = np.bincount(day, minlength=SMALL.days)
        assert a_day[sale].mean() > 1.2 * a_day[~sale].mean()
        of_fraud = np.bincount(day[events.kind > 0], minlength=SMALL.days)
        ratios.append(of_fraud[sale].mean() / of_fraud[~sale].mean())
    assert 0.7 < np.mean(ratios) < 1.3


@pytest.mark.parametrize("seed", SEEDS)
def test_amounts_drift_slowly(seed: int) -> None:
    _, events = world("drift", seed)
    day = day_of(events.second)
    usual = events.kind == 0
    middle = [np.median(events.minor[usual & (day // 7 == week)]) for week in range(8)]
    assert middle[-1] > 1.08 * middle[0]
    assert 15 < np.count_nonzero(~usual) / SMALL.days < 45
