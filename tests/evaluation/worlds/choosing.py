"""Schemes of the four families that choose features: card testing, takeover, collusion and a moving ring."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tests.evaluation.worlds.events import SECONDS_PER_DAY, Events, Floats, Ints, joined
from tests.evaluation.worlds.population import Population
from tests.evaluation.worlds.schemes import (
    ALL_BUT_SMALL,
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


def card_testing(generator: Generator, population: Population, legitimate: Events) -> Events:
    """Return small amounts that try stolen cards at a few merchants, and within hours large ones for goods."""
    del legitimate
    days, code = population.calendar.days, kind("card testing")
    day = cases(generator, days, drawn(generator, 7, 14))
    card, n = population.living(generator, day), len(day)
    wave_days, testers = int(generator.integers(4, 15)), int(generator.integers(4, 16))
    wave = np.arange(days // wave_days + 1)
    of_wave = merchants_of(
        generator, population, ("digital", "transport", "café"), np.repeat(wave * wave_days, testers)
    ).reshape(-1, testers)

    begin = day * SECONDS_PER_DAY + generator.uniform(0, SECONDS_PER_DAY, n)
    tests = 1 + generator.poisson(drawn(generator, 0.8, 3.0), n)
    case, second = bursts(generator, begin, tests, drawn(generator, 60, 420))
    merchant = of_wave[day[case] // wave_days, generator.integers(testers, size=len(case))]
    small = generator.uniform(drawn(generator, 0.4, 1.0), drawn(generator, 2.0, 5.0), len(case))
    trials = Events.of(second, card[case], merchant, small, code)

    good = np.flatnonzero(chosen(generator, drawn(generator, 0.7, 0.95), n))
    wait = np.exp(generator.normal(np.log(drawn(generator, 1.5, 10.0)), 0.7, len(good))) * 3_600
    last = np.zeros(n)
    np.maximum.at(last, case, second)
    counts = 1 + generator.poisson(drawn(generator, 0.5, 2.0), len(good))
    use, second = bursts(generator, last[good] + wait, counts, drawn(generator, 600, 2_400))
    merchant = merchants_of(generator, population, GOODS, day_of(second))
    large = np.clip(prices(generator, population, merchant, 0.9, 2.8), drawn(generator, 40, 80), 1_200)
    return in_time(joined([trials, Events.of(second, card[good][use], merchant, large, code)]), population)


def takeover(generator: Generator, population: Population, legitimate: Events) -> Events:
    """Return purchases of usual amounts in the night, at merchants where the card has not been."""
    del legitimate
    day = cases(generator, population.calendar.days, drawn(generator, 15, 32))
    card = population.living(generator, day)
    begin = at_hour(generator, day, drawn(generator, 1.0, 4.0), drawn(generator, 0.8, 1.8))
    counts = 1 + generator.poisson(drawn(generator, 0.3, 1.4), len(day))
    case, second = bursts(generator, begin, counts, drawn(generator, 300, 1_500))
    merchant = merchants_of(generator, population, ALL_BUT_SMALL, day_of(second))
    amount = prices(generator, population, merchant, drawn(generator, 0.4, 0.7), drawn(generator, 1.3, 2.2))
    return in_time(Events.of(second, card[case], merchant, amount, kind("takeover")), population)


def collusion(generator: Generator, population: Population, legitimate: Events) -> Events:
    """Return frauds of merchants who charge the cards of their own customers, more each day."""
    days = population.calendar.days
    sold = np.bincount(legitimate.merchant, minlength=len(population.level)) / days
    usable = np.flatnonzero((sold > 1.2) & (sold < 30) & (population.open_from < 0) & (population.open_to > days))
    merchant = generator.choice(usable, min(int(len(sold) * drawn(generator, 0.03, 0.055)), len(usable)), replace=False)
    begin = generator.integers(-15, days - 8, len(merchant))
    length = generator.integers(14, 46, len(merchant))
    share = generator.uniform(drawn(generator, 0.08, 0.16), drawn(generator, 0.25, 0.45), len(merchant))
    growth = drawn(generator, 0.01, 0.045)

    pair = np.repeat(np.arange(len(merchant)), length)
    since = np.arange(len(pair)) - np.repeat(np.cumsum(length) - length, length)
    times = generator.poisson(sold[merchant[pair]] * share[pair])
    pair, since = np.repeat(pair, times), np.repeat(since, times)
    day, merchant = begin[pair] + since, merchant[pair]
    second = at_hour(generator, day, drawn(generator, 13, 17), drawn(generator, 3, 5))
    amount = prices(generator, population, merchant, 0.5, 1.6) * np.exp(growth * since)
    seen, card = _customers(generator, legitimate, merchant, second)
    alive = seen & (population.card_to[card] > day)
    return in_time(Events.of(second, card, merchant, amount, kind("collusion"))[alive], population)


def _customers(
    generator: Generator, legitimate: Events, merchant: Ints, second: Floats
) -> tuple[NDArray[np.bool_], Ints]:
    """Return for each merchant one of those cards that were there before a time, and whether there were five."""
    far = int(legitimate.second.max()) + SECONDS_PER_DAY
    line = legitimate.merchant * far + legitimate.second
    order = np.argsort(line, kind="stable")
    line = line[order]
    first = np.searchsorted(line, merchant * far)
    before = np.searchsorted(line, merchant * far + np.maximum(second, 0).astype(np.int64)) - first
    drawn_before = np.minimum(first + (generator.random(len(merchant)) * before).astype(np.int64), len(line) - 1)
    return before >= 5, legitimate.card[order[drawn_before]]


def ring(generator: Generator, population: Population, legitimate: Events) -> Events:
    """Return frauds of a ring that works through a few merchants and leaves them after some days."""
    del legitimate
    days, parts = population.calendar.days, []
    rings = int(generator.integers(1, 4))
    for _ in range(rings):
        stay_days, shops = int(generator.integers(2, 6)), int(generator.integers(2, 5))
        stay = np.arange(days // stay_days + 1)
        of_stay = merchants_of(generator, population, ALL_BUT_SMALL, np.repeat(stay * stay_days, shops))
        day = cases(generator, days, drawn(generator, 15, 35) / rings)
        card = population.living(generator, day)
        begin = at_hour(generator, day, drawn(generator, 12, 18), drawn(generator, 3, 5))
        case, second = bursts(generator, begin, 1 + generator.poisson(0.4, len(day)), drawn(generator, 400, 1_500))
        merchant = of_stay.reshape(-1, shops)[day[case] // stay_days, generator.integers(shops, size=len(case))]
        amount = prices(generator, population, merchant, drawn(generator, 0.5, 0.8), drawn(generator, 1.3, 2.0))
        parts.append(Events.of(second, card[case], merchant, amount, kind("ring")))
    return in_time(joined(parts), population)
