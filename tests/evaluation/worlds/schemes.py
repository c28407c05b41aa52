"""Parts of which schemes of fraud are made: cases by day, bursts of transactions, merchants at hand."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from tests.evaluation.worlds.events import SECONDS_PER_DAY, Events, Floats, Ints
from tests.evaluation.worlds.population import CATEGORIES, Population, codes

KINDS: Final = (
    "", "card testing", "takeover", "collusion", "ring", "refund abuse", "bust-out", "triangulation", "stolen", "order",
)  # fmt: skip
"""Kinds of fraud by their number; 0 is no fraud."""
FIRST_PARTY: Final = ("refund abuse", "bust-out")
"""Kinds that the card's holder commits: nobody sends them another card."""
GOODS: Final = ("fashion", "electronics", "marketplace", "travel")
"""Categories whose goods can be sold on."""
ALL_BUT_SMALL: Final = tuple(category.name for category in CATEGORIES if category.price > 10)


def cases(generator: Generator, days: int, a_day: ArrayLike) -> Ints:
    """Return the day of each case, in order, for a number of cases a day, or one for each day."""
    return np.repeat(np.arange(days), generator.poisson(a_day, days))


def bursts(generator: Generator, begin_s: Floats, counts: Ints, gap_s: float) -> tuple[Ints, Floats]:
    """Return for each transaction of a burst the number of its case and its second.

    Args:
        generator: Source of all randomness.
        begin_s: Seconds of the first transaction of each case, shape (n,).
        counts: Transactions of each case, shape (n,).
        gap_s: Mean time between two of them, in seconds.
    """
    case = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    gaps = generator.exponential(gap_s, len(case))
    gaps[first[counts > 0]] = 0.0
    total = np.cumsum(gaps)
    return case, begin_s[case] + total - total[first[case]]


def at_hour(generator: Generator, day: Ints, middle: float, width: float) -> Floats:
    """Return the second of each case, about an hour of its day."""
    return day * SECONDS_PER_DAY + generator.normal(middle, width, len(day)) % 24 * 3_600


def day_of(second: ArrayLike) -> Ints:
    """Return the days of seconds."""
    days: Ints = np.asarray(second).astype(np.int64) // SECONDS_PER_DAY
    return days


def merchants_of(generator: Generator, population: Population, names: Sequence[str], day: Ints) -> Ints:
    """Return for each day an open merchant of some categories, anywhere, by popularity within its district."""
    category = generator.choice(codes(names), len(day))
    cell = population.cell(category, generator.integers(population.districts, size=len(day)))
    return population.merchants(generator, cell, np.minimum(day, population.calendar.days - 1))


def in_time(events: Events, population: Population) -> Events:
    """Return the events that lie within the world, at merchants that are open."""
    day = day_of(events.second)
    within = (day >= 0) & (day < population.calendar.days)
    return events[within & population.is_open(events.merchant, day)]


def prices(generator: Generator, population: Population, merchant: Ints, low: float, high: float) -> Floats:
    """Return amounts between two multiples of the merchants' usual ones, on any cent."""
    found: Floats = population.level[merchant] * generator.uniform(low, high, len(merchant))
    return found


def kind(name: str) -> int:
    """Return the number of a kind of fraud."""
    return KINDS.index(name)


def drawn(generator: Generator, low: float, high: float) -> float:
    """Return a parameter of a family, evenly between two numbers."""
    return float(generator.uniform(low, high))


def chosen(generator: Generator, share: float, n: int) -> NDArray[np.bool_]:
    """Return which of n take part, each with the same chance."""
    return generator.random(n) < share
