"""Schemes and seasons of the four families that judge: first party, triangulation, holidays, and a drift of amounts."""

from dataclasses import replace

import numpy as np
from numpy.random import Generator

from tests.evaluation.worlds.events import SECONDS_PER_DAY, Events, Ints, joined
from tests.evaluation.worlds.population import Calendar, Population, codes, draw_calendar
from tests.evaluation.worlds.schemes import (
    GOODS,
    at_hour,
    bursts,
    cases,
    chosen,
    day_of,
    drawn,
    in_time,
    kind,
    merchants_of,
    prices,
)
from tests.evaluation.worlds.shopping import usual_amounts, usual_seconds

JUDGED_DAYS = 28


def first_party(generator: Generator, population: Population, legitimate: Events) -> Events:
    """Return purchases that holders dispute at shops they know, and limits that they exhaust with a new card."""
    del legitimate
    return in_time(joined([_disputes(generator, population), _bust_outs(generator, population)]), population)


def _disputes(generator: Generator, population: Population) -> Events:
    """Return what abusers of refunds buy at their few shops; they pay for some of it."""
    days = population.calendar.days
    abusers = max(1, round(population.cards * drawn(generator, 0.02, 0.035)))
    first = generator.integers(-20, days - 5, abusers)
    card = population.living(generator, np.maximum(first, 0))
    shops = int(generator.integers(2, 5))
    names = ("fashion", "electronics", "marketplace", "health")
    shop = merchants_of(generator, population, names, np.repeat(np.maximum(first, 0), shops)).reshape(-1, shops)
    length = generator.integers(15, 60, abusers)
    counts = generator.poisson(length * drawn(generator, 0.3, 0.8))
    case = np.repeat(np.arange(abusers), counts)
    passed = generator.random(len(case))
    day = first[case] + (passed * length[case]).astype(np.int64)
    merchant = shop[case, generator.integers(shops, size=len(case))]
    inside = (day >= 0) & (day < np.minimum(population.card_to[card[case]], days))
    case, day, merchant, passed = case[inside], day[inside], merchant[inside], passed[inside]
    amount = usual_amounts(generator, population, card[case], merchant, day)
    amount *= 1 + passed * drawn(generator, 0.3, 1.5)
    second = day * SECONDS_PER_DAY + usual_seconds(generator, population, card[case], merchant)
    disputed = chosen(generator, drawn(generator, 0.5, 0.9), len(case))
    fraud = Events.of(second, card[case], merchant, amount, kind("refund abuse"))
    return joined([fraud[disputed], Events.of(second, card[case], merchant, amount, 0)[~disputed]])


def _bust_outs(generator: Generator, population: Population) -> Events:
    """Return what cards of some weeks buy within a day, until nothing is left of the limit."""
    days = population.calendar.days
    day = cases(generator, days, drawn(generator, 0.5, 1.8))
    age = day - generator.integers(15, 60, len(day))
    new = np.flatnonzero(population.card_from >= 0)
    order = new[np.argsort(population.card_from[new], kind="stable")]
    number = np.searchsorted(population.card_from[order], age)
    usable = (age >= 0) & (number < len(order))
    day, card = day[usable], order[number[usable]]
    counts = 3 + generator.poisson(drawn(generator, 2, 6), len(day))
    begin = at_hour(generator, day, drawn(generator, 9, 14), 2.5)
    case, second = bursts(generator, begin, counts, drawn(generator, 1_200, 5_400))
    merchant = merchants_of(generator, population, GOODS, day_of(second))
    amount = prices(generator, population, merchant, drawn(generator, 1.0, 1.8), drawn(generator, 2.5, 5.0))
    alive = population.card_to[card[case]] > day[case]
    return Events.of(second, card[case], merchant, amount, kind("bust-out"))[alive]


def with_large_merchant(generator: Generator, population: Population) -> Population:
    """Return a population in which most of what marketplaces sell is sold by one of them."""
    (code,) = codes(("marketplace",))
    of_kind = population.category == code
    largest = int(np.argmax(np.where(of_kind, population.popularity, 0.0)))
    share, popularity = drawn(generator, 0.5, 0.85), population.popularity.copy()
    popularity[largest] = 0.0
    popularity[largest] = share / (1 - share) * popularity[of_kind].sum()
    open_from, open_to = population.open_from.copy(), population.open_to.copy()
    open_from[largest], open_to[largest] = -400, population.calendar.days + 1
    return replace(population, popularity=popularity, open_from=open_from, open_to=open_to)


def triangulation(generator: Generator, population: Population, legitimate: Events) -> Events:
    """Return orders by stolen cards at the largest merchant, of the few goods that a false shop has sold."""
    merchant = int(np.argmax(np.bincount(legitimate.merchant)))
    days, goods = population.calendar.days, int(generator.integers(5, 26))
    turn_days = int(generator.integers(5, 22))
    listed = np.exp(generator.uniform(np.log(35), np.log(drawn(generator, 250, 600)), (days // turn_days + 1, goods)))
    listed = np.floor(listed) + generator.choice([0.95, 0.99, 0.49], listed.shape)
    day = cases(generator, days, drawn(generator, 18, 40))
    card = population.living(generator, day)
    begin = at_hour(generator, day, drawn(generator, 17, 22), drawn(generator, 2.5, 4.5))
    case, second = bursts(generator, begin, 1 + generator.poisson(0.25, len(day)), drawn(generator, 900, 5_000))
    amount = listed[day[case] // turn_days, generator.integers(goods, size=len(case))]
    where = np.full(len(case), merchant)
    return in_time(Events.of(second, card[case], where, amount, kind("triangulation")), population)


def holiday_calendar(generator: Generator, days: int) -> Calendar:
    """Return a calendar with sales and holidays, of which one lies among the judged days."""
    plain = draw_calendar(generator, days)
    activity, price, sale = plain.activity.copy(), plain.price.copy(), plain.sale.copy()
    begins = [int(generator.integers(days - JUDGED_DAYS + 1, days - 7))]
    begins += generator.integers(0, days - JUDGED_DAYS, int(generator.integers(0, 3))).tolist()
    for begin in begins:
        span = slice(begin, begin + int(generator.integers(3, 8)))
        activity[span] *= drawn(generator, 1.3, 2.2)
        price[span] *= drawn(generator, 1.0, 1.25)
        sale[span] = drawn(generator, 0.2, 0.5)
    return replace(plain, activity=activity, price=price, sale=sale)


def drift_calendar(generator: Generator, days: int) -> Calendar:
    """Return a calendar in which all amounts grow, day by day."""
    plain = draw_calendar(generator, days)
    growth = drawn(generator, 0.15, 0.6)
    return replace(plain, price=plain.price * np.exp(np.log1p(growth) * np.arange(days) / days))


def usual_fraud(generator: Generator, population: Population, legitimate: Events) -> Events:
    """Return stolen cards in shops, and orders by stolen numbers: the same every day, whatever the season."""
    del legitimate
    a_day = drawn(generator, 22, 36)
    in_shops = drawn(generator, 0.4, 0.7)
    parts = [_sprees(generator, population, a_day * in_shops), _orders(generator, population, a_day * (1 - in_shops))]
    return in_time(joined(parts), population)


def _sprees(generator: Generator, population: Population, a_day: float) -> Events:
    """Return purchases without a PIN, below its limit, in shops near the holder's home."""
    more = drawn(generator, 2, 5)
    day = cases(generator, population.calendar.days, a_day / (1 + more))
    card = population.living(generator, day)
    begin = at_hour(generator, day, drawn(generator, 12, 19), 3.0)
    case, second = bursts(generator, begin, 1 + generator.poisson(more, len(day)), drawn(generator, 900, 4_000))
    category = generator.choice(codes(("groceries", "fuel", "fashion", "health", "restaurant")), len(case))
    cell = population.cell(category, population.home[card[case]])
    merchant = population.merchants(generator, cell, _within(day_of(second), population))
    limit = drawn(generator, 30, 60)
    amount = limit * generator.uniform(0.55, 1.0, len(case)) * population.calendar.price[day[case]]
    return Events.of(second, card[case], merchant, amount, kind("stolen"))


def _orders(generator: Generator, population: Population, a_day: float) -> Events:
    """Return orders at shops of goods, by somebody who lives by another clock."""
    more = drawn(generator, 0.2, 1.0)
    day = cases(generator, population.calendar.days, a_day / (1 + more))
    card = population.living(generator, day)
    begin = at_hour(generator, day, drawn(generator, 0, 24), drawn(generator, 3, 6))
    case, second = bursts(generator, begin, 1 + generator.poisson(more, len(day)), drawn(generator, 600, 5_000))
    merchant = merchants_of(generator, population, GOODS, _within(day_of(second), population))
    amount = prices(generator, population, merchant, drawn(generator, 0.8, 1.3), drawn(generator, 2.0, 3.5))
    amount *= population.calendar.price[day[case]]
    return Events.of(second, card[case], merchant, amount, kind("order"))


def _within(day: Ints, population: Population) -> Ints:
    return np.minimum(day, population.calendar.days - 1)
