"""Purchases of a population: what the holders of cards buy, where and when, and their subscriptions."""

from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tests.evaluation.worlds.events import SECONDS_PER_DAY, Events, Floats, Ints, joined
from tests.evaluation.worlds.population import CATEGORIES, NAMES, ONLINE, Population, codes

FAVOURITES: Final = 3
"""Merchants of each category that a card returns to."""
_LEISURE: Final = np.array([0.5, 0.9, 2.2, 1.0, 0.6, 0.4, 2.0, 1.4, 1.1, 1.3, 1.2])
"""Factor of each category's share on Saturdays and Sundays."""


def legitimate(generator: Generator, population: Population) -> Events:
    """Return all purchases of the cards' holders, and their subscriptions."""
    return joined([_purchases(generator, population), _subscriptions(generator, population)])


def _purchases(generator: Generator, population: Population) -> Events:
    p, calendar = population, population.calendar
    day = np.arange(calendar.days)
    there = (p.card_from[:, None] <= day) & (day < p.card_to[:, None])
    card, on = np.nonzero(counts := generator.poisson(p.rate[:, None] * calendar.activity * there))
    times = counts[card, on]
    place, away = _places(generator, p)
    district, away = np.repeat(place[card, on], times), np.repeat(away[card, on], times)
    card, on = np.repeat(card, times), np.repeat(on, times)
    category = _categories(generator, p, card, calendar.weekday[on] >= 5, calendar.sale[on])
    cell, home = p.cell(category, district), p.cell(np.tile(np.arange(11), p.cards), np.repeat(p.home, 11))
    favourites = np.stack([p.lottery.draw(generator, home) for _ in range(FAVOURITES)], 1)
    rank = np.minimum(generator.geometric(0.55, len(card)) - 1, FAVOURITES - 1)
    merchant = favourites[card * 11 + category, rank]
    elsewhere = (generator.random(len(card)) < p.curiosity[card]) | (away & ~ONLINE[category])
    elsewhere |= ~p.is_open(merchant, on)
    merchant[elsewhere] = p.merchants(generator, cell[elsewhere], on[elsewhere])
    kept = p.is_open(merchant, on)
    card, on, merchant = card[kept], on[kept], merchant[kept]
    amount = usual_amounts(generator, p, card, merchant, on)
    return Events.of(on * SECONDS_PER_DAY + usual_seconds(generator, p, card, merchant), card, merchant, amount, 0)


def _places(generator: Generator, population: Population) -> tuple[Ints, NDArray[np.bool_]]:
    """Return where each card is on each day, and whether it is not at home; both of shape (n, days)."""
    n, days = population.cards, population.calendar.days
    where = np.repeat(population.home[:, None], days, 1)
    away = np.zeros((n, days), np.bool_)
    trips = generator.poisson(days / generator.uniform(50, 120), n)
    card = np.repeat(np.arange(n), trips)
    begin, length = generator.integers(days, size=len(card)), generator.integers(2, 10, len(card))
    to = generator.integers(population.districts, size=len(card))
    for k in range(9):
        still = (k < length) & (begin + k < days)
        where[card[still], begin[still] + k] = to[still]
        away[card[still], begin[still] + k] = True
    return where, away


def _categories(
    generator: Generator, population: Population, card: Ints, weekend: NDArray[np.bool_], sale: Floats
) -> Ints:
    """Return what each purchase is of: the card's taste; more leisure at weekends, and what is on sale."""
    line = (np.cumsum(population.taste, 1) / population.taste.sum(1, keepdims=True)).ravel()
    line += np.repeat(np.arange(population.cards), 11)
    found = np.minimum(np.searchsorted(line, card + generator.random(len(card)), side="right") - card * 11, 10)
    leisure = _LEISURE * np.array([category.spending for category in CATEGORIES])
    other = weekend & (generator.random(len(card)) < 0.3)
    found[other] = generator.choice(11, np.count_nonzero(other), p=leisure / leisure.sum())
    drawn = generator.random(len(card)) < sale
    found[drawn] = generator.choice(codes(("fashion", "electronics", "marketplace")), np.count_nonzero(drawn))
    return found


def usual_amounts(generator: Generator, population: Population, card: Ints, merchant: Ints, day: Ints) -> Floats:
    """Return amounts as the cards' holders spend them at merchants, in the major unit."""
    p = population
    spread = np.array([category.spread for category in CATEGORIES])[p.category[merchant]]
    amount = p.level[merchant] * p.wealth[card] ** 0.6 * np.exp(generator.normal(0, 1, len(card)) * spread)
    amount *= p.calendar.price[day]
    # Shelf prices, round ones, and any others.
    ending = generator.random(len(card))
    whole = np.floor(amount)
    amount = np.where((ending < 0.25) & (amount > 3), whole - 0.01, np.where(ending < 0.4, whole, amount))
    return np.maximum(amount, 0.4)


def usual_seconds(generator: Generator, population: Population, card: Ints, merchant: Ints) -> Floats:
    """Return times of day at which the cards' holders shop, in seconds since midnight."""
    p, n = population, len(card)
    middle = np.array([category.hour for category in CATEGORIES])[p.category[merchant]]
    width = np.array([category.hours for category in CATEGORIES])[p.category[merchant]]
    by_card = generator.random(n) < 0.6
    hour = np.where(by_card, generator.normal(p.hour[card], p.hours[card]), generator.normal(middle, width)) % 24
    # Few shops of districts are open at night.
    shut = ~ONLINE[p.category[merchant]] & ((hour < 5) | (hour > 23.5)) & (generator.random(n) < 0.7)
    hour[shut] = generator.uniform(7, 22, np.count_nonzero(shut))
    seconds: Floats = hour * 3_600
    return seconds


def _subscriptions(generator: Generator, population: Population) -> Events:
    """Return what is charged each month, always the same, at night."""
    p, days = population, population.calendar.days
    card = np.repeat(np.arange(p.cards), generator.poisson(generator.uniform(0.5, 1.2), p.cards))
    digital = np.full(len(card), NAMES.index("digital"))
    merchant = p.lottery.draw(generator, p.cell(digital, p.home[card]))
    amount = np.floor(p.level[merchant] * np.exp(generator.normal(0, 0.3, len(card)))) + 0.99
    first = generator.integers(30, size=len(card))
    parts = []
    for month in range(days // 30 + 1):
        on = first + 30 * month
        due = (on < days) & (p.card_from[card] <= on) & (on < p.card_to[card]) & p.is_open(merchant, on)
        second = on[due] * SECONDS_PER_DAY + generator.uniform(2, 6, np.count_nonzero(due)) * 3_600
        parts.append(Events.of(second, card[due], merchant[due], amount[due], 0))
    return joined(parts)
