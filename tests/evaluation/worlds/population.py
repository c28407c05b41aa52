"""The background of every world: cards with habits and merchants of many kinds, both of which come and go.

Nothing here is taken from the Handbook's simulator: cards shop by category and district, keep favourites, travel and
pay subscriptions; weekdays, pay days and the time of day matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tests.evaluation.worlds.events import Floats, Ints

_FIND_TRIES: Final = 6


class Category(NamedTuple):
    """A kind of merchant: shares of spending and of merchants, prices, and when people shop there."""

    name: str
    spending: float
    merchants: float
    price: float
    spread: float
    """Standard deviation of the logarithm of amounts at one merchant."""
    hour: float
    hours: float
    online: bool = False


CATEGORIES: Final = (
    Category("groceries", 0.27, 0.17, 24.0, 0.65, 16.5, 3.2),
    Category("café", 0.13, 0.14, 5.5, 0.40, 10.5, 3.0),
    Category("restaurant", 0.10, 0.15, 31.0, 0.50, 19.5, 2.2),
    Category("fuel", 0.07, 0.06, 48.0, 0.30, 14.0, 4.5),
    Category("transport", 0.09, 0.05, 4.2, 0.60, 13.0, 4.8),
    Category("health", 0.06, 0.07, 19.0, 0.70, 14.0, 3.0),
    Category("fashion", 0.06, 0.13, 57.0, 0.60, 15.5, 2.6),
    Category("electronics", 0.03, 0.06, 140.0, 0.90, 16.0, 2.8),
    Category("digital", 0.08, 0.06, 7.0, 0.70, 21.0, 3.6, online=True),
    Category("marketplace", 0.09, 0.08, 34.0, 0.95, 20.5, 3.6, online=True),
    Category("travel", 0.02, 0.03, 210.0, 0.80, 20.0, 3.5, online=True),
)
NAMES: Final = tuple(category.name for category in CATEGORIES)
ONLINE: Final = np.array([category.online for category in CATEGORIES])
"""Whether each category's merchants are in no district."""


def codes(names: Sequence[str]) -> Ints:
    """Return the numbers of some categories."""
    return np.array([NAMES.index(name) for name in names], np.int64)


class Size(NamedTuple):
    """How much there is of everything."""

    transactions_a_day: float = 6_000.0
    merchants: int = 3_600
    days: int = 84


@dataclass(frozen=True, eq=False)
class Calendar:
    """What differs from day to day; arrays of shape (days,)."""

    weekday: Ints
    """0 for Monday."""
    activity: Floats
    """Factor of the number of transactions."""
    price: Floats
    """Factor of all amounts."""
    sale: Floats
    """Share of the transactions that a sale draws to shops with sales."""

    @property
    def days(self) -> int:
        """Number of days."""
        return len(self.weekday)


def draw_calendar(generator: Generator, days: int) -> Calendar:
    """Draw the seasons of a world: weekdays, and a pay day each month that lasts for some days."""
    day = np.arange(days)
    weekday = (generator.integers(7) + day) % 7
    by_weekday = np.array([0.93, 0.92, 0.97, 1.0, 1.16, 1.22, 0.8]) * np.exp(generator.normal(0, 0.05, 7))
    pay_day, lasts = generator.integers(30), generator.integers(2, 5)
    paid = (day - pay_day) % 30 < lasts
    activity = by_weekday[weekday] * np.where(paid, generator.uniform(1.12, 1.4), 1.0)
    price = np.where(paid, generator.uniform(1.05, 1.2), 1.0)
    return Calendar(weekday, activity * np.exp(generator.normal(0, 0.03, days)), price, np.zeros(days))


class Lottery:
    """Draws of items of cells by weights; every cell needs an item.

    Args:
        cell: Cell of each item, shape (n,).
        weight: Weights above 0, shape (n,).
    """

    def __init__(self, cell: Ints, weight: Floats) -> None:
        self._order = np.argsort(cell, kind="stable")
        sorted_cell, total = cell[self._order], np.cumsum(weight[self._order])
        last = np.flatnonzero(np.r_[np.diff(sorted_cell) > 0, True])
        before = np.r_[0.0, total[last]]
        number = np.searchsorted(last, np.arange(len(cell)))
        self._cells = sorted_cell[last]
        # One ascending line, on which cell i lies between i and i + 1.
        self._line = number + (total - before[number]) / (before[number + 1] - before[number])

    def draw(self, generator: Generator, cell: Ints) -> Ints:
        """Return an item of each cell, shape (len(cell),)."""
        at = np.searchsorted(self._cells, cell) + generator.random(len(cell))
        drawn: Ints = self._order[np.minimum(np.searchsorted(self._line, at, side="right"), len(self._line) - 1)]
        return drawn


@dataclass(frozen=True, eq=False)
class Population:
    """Cards (n of them) and merchants (m), and the days on which each is there."""

    calendar: Calendar
    districts: int
    card_from: Ints
    """First day, shape (n,); many are older than the world."""
    card_to: Ints
    """First day without it, shape (n,)."""
    rate: Floats
    """Transactions a day, shape (n,)."""
    wealth: Floats
    home: Ints
    hour: Floats
    """Hour about which a card is used: by day, in the evening or at night; shape (n,)."""
    hours: Floats
    curiosity: Floats
    """Share of the purchases that are not at favourites, shape (n,)."""
    taste: Floats
    """Shares of categories, shape (n, len(CATEGORIES))."""
    category: Ints
    """Shape (m,)."""
    district: Ints
    """Shape (m,); `districts` stands for online."""
    level: Floats
    """Usual amount at the merchant, shape (m,)."""
    popularity: Floats
    open_from: Ints
    open_to: Ints

    @property
    def cards(self) -> int:
        """Number of cards."""
        return len(self.rate)

    def cell(self, category: Ints, district: Ints) -> Ints:
        """Return the cells of `lottery`: those of online categories lie in no district."""
        place = np.where(ONLINE[category], self.districts, district)
        return category * (self.districts + 1) + place

    @cached_property
    def lottery(self) -> Lottery:
        """Draws merchants by popularity."""
        return Lottery(self.cell(self.category, self.district), self.popularity)

    def is_open(self, merchant: Ints, day: Ints) -> NDArray[np.bool_]:
        """Return whether merchants do business on days."""
        return (self.open_from[merchant] <= day) & (day < self.open_to[merchant])

    def merchants(self, generator: Generator, cell: Ints, day: Ints) -> Ints:
        """Return a merchant of each cell by popularity, most of them open on the day."""
        found = self.lottery.draw(generator, cell)
        for _ in range(_FIND_TRIES):
            closed = np.flatnonzero(~self.is_open(found, day))
            found[closed] = self.lottery.draw(generator, cell[closed])
        return found

    def living(self, generator: Generator, day: Ints, age_days: int = 5) -> Ints:
        """Return a card for each day, any of those that have been there for some days."""
        found = generator.integers(self.cards, size=len(day))
        for _ in range(64):
            gone = np.flatnonzero((self.card_from[found] + age_days > day) | (self.card_to[found] <= day))
            if not len(gone):
                break
            found[gone] = generator.integers(self.cards, size=len(gone))
        return found


def draw_population(generator: Generator, size: Size, calendar: Calendar | None = None) -> Population:
    """Draw cards and merchants, with as many cards as make so many transactions a day."""
    calendar = calendar or draw_calendar(generator, size.days)
    days, mean_rate = size.days, generator.uniform(1.1, 1.8)
    at_once = round(size.transactions_a_day / (mean_rate * 1.08))
    leave = generator.uniform(0.0008, 0.0025)
    born = generator.poisson(at_once * leave, days)
    first = np.concatenate([np.full(at_once, -400), np.repeat(np.arange(days), born)])
    n, districts = len(first), max(1, size.merchants // 180)
    people = generator.choice(3, n, p=generator.dirichlet((55.0, 30.0, 15.0)))
    taste = generator.gamma(3.0 * np.array([category.spending for category in CATEGORIES]) * 4, size=(n, 11)) + 1e-6
    m = size.merchants
    category = np.repeat(np.arange(11), np.maximum(np.rint(m * _shares()).astype(int), districts))
    m = len(category)
    district = np.arange(m) % districts
    district[ONLINE[category]] = districts
    price = np.array([item.price for item in CATEGORIES])[category]
    opens, closes = generator.random(m) < 0.12, generator.random(m) < 0.12
    return Population(
        calendar=calendar,
        districts=districts,
        card_from=first,
        card_to=np.maximum(first, 0) + generator.geometric(leave, n),
        rate=np.minimum(generator.gamma(1.6, mean_rate / 1.6, n) + 0.03, 9.0),
        wealth=np.exp(generator.normal(0, generator.uniform(0.3, 0.5), n)),
        home=generator.choice(districts, n, p=generator.dirichlet(np.full(districts, 6.0))),
        hour=np.array([12.5, 18.5, 24.0])[people] + generator.normal(0, 1.2, n),
        hours=generator.uniform(1.5, 4.0, n),
        curiosity=generator.beta(2.0, 7.0, n),
        taste=taste / taste.sum(1, keepdims=True),
        category=category,
        district=district,
        level=price * np.exp(generator.normal(0, 0.4, m)),
        popularity=np.exp(generator.normal(0, generator.uniform(0.8, 1.3), m)),
        open_from=np.where(opens, generator.integers(0, days, m), -400),
        open_to=np.where(closes, generator.integers(days // 6, days, m), days + 1),
    )


def _shares() -> Floats:
    shares = np.array([category.merchants for category in CATEGORIES])
    return shares / shares.sum()
