"""The families by name, and the world that a seed makes of one, as a frame of the canonical columns."""

import zlib
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.random import Generator

from pipeline.history.canonical_columns import canonical_frame
from tests.evaluation.worlds import choosing, judging
from tests.evaluation.worlds.events import LEGITIMATE, SECONDS_PER_DAY, Events, Ints, joined
from tests.evaluation.worlds.population import Calendar, Population, Size, draw_calendar, draw_population
from tests.evaluation.worlds.schemes import FIRST_PARTY, KINDS, chosen, drawn
from tests.evaluation.worlds.shopping import legitimate

START: Final = datetime(2024, 1, 1)  # noqa: DTZ001
"""Midnight of day 0 (UTC)."""
JUDGED_DAYS: Final = judging.JUDGED_DAYS
"""Last days of a world, which are scored."""


class Family(NamedTuple):
    """A distribution of worlds."""

    name: str
    scheme: Callable[[Generator, Population, Events], Events]
    """Frauds among a population and what it buys."""
    size: Size = Size()
    calendar: Callable[[Generator, int], Calendar] = draw_calendar
    changed: Callable[[Generator, Population], Population] = lambda generator, population: population
    """The population in which the scheme takes place."""

    def events(self, seed: int, size: Size | None = None) -> tuple[Population, Events]:
        """Return the population of a seed's world, and its transactions in order of time."""
        size = size or self.size
        generator = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        population = draw_population(generator, size, self.calendar(generator, size.days))
        population = self.changed(generator, population)
        usual = legitimate(generator, population)
        everything = _reissued(generator, population, joined([usual, self.scheme(generator, population, usual)]))
        order = np.lexsort((everything.minor, everything.card, everything.second))
        everything = everything[order]
        return population, everything[everything.second < size.days * SECONDS_PER_DAY]

    def frame(self, seed: int, size: Size | None = None) -> pd.DataFrame:
        """Return the transactions of a seed's world, in the canonical columns."""
        return frame_of(self.events(seed, size)[1])


def _reissued(generator: Generator, population: Population, events: Events) -> Events:
    """Return events of which those of a stolen card stop, or go on by a new card, some days after the first fraud."""
    share, low = drawn(generator, 0.4, 0.9), drawn(generator, 2, 5)
    by_others = (events.kind != LEGITIMATE) & ~np.isin(events.kind, [KINDS.index(name) for name in FIRST_PARTY])
    stolen_s = np.full(population.cards, np.iinfo(np.int64).max // 2)
    np.minimum.at(stolen_s, events.card[by_others], events.second[by_others])
    wait_s = generator.uniform(low, low + drawn(generator, 2, 10), population.cards) * SECONDS_PER_DAY
    replaced = chosen(generator, share, population.cards)
    card: Ints = events.card.copy()
    new = replaced[card] & (events.second > stolen_s[card] + wait_s[card])
    card[new] += population.cards
    # Whoever stole the number of the first card has not that of the second.
    return replace(events, card=card)[~(new & by_others)]


def frame_of(events: Events) -> pd.DataFrame:
    """Return events, in order of time, as a frame of the canonical columns."""
    n = len(events)
    cards, merchants = (
        np.array([f"{letter}{number:06d}" for number in range(int(of.max()) + 1)], object)
        for letter, of in (("C", events.card), ("M", events.merchant))
    )
    epoch_s = (START - datetime(1970, 1, 1)) // timedelta(seconds=1)  # noqa: DTZ001
    return canonical_frame(
        (events.second + epoch_s) * 1_000_000,
        {
            "transaction_id": np.array([f"T{number:08d}" for number in range(n)], object),
            "card_id": cards[events.card],
            "merchant_id": merchants[events.merchant],
            "amount": events.minor / 100,
            "amount_minor": events.minor,
            "currency": np.full(n, "EUR", object),
            "fraud": events.kind != LEGITIMATE,
            "fraud_type": np.array((None, *KINDS[1:]), object)[events.kind],
        },
    )


CHOOSING: Final = (
    Family("card testing", choosing.card_testing),
    Family("night takeover", choosing.takeover),
    Family("collusion", choosing.collusion),
    Family("moving ring", choosing.ring),
)
"""Features and settings are chosen on these."""
JUDGING: Final = (
    Family("first party", judging.first_party),
    Family("triangulation", judging.triangulation, changed=judging.with_large_merchant),
    Family("holidays", judging.usual_fraud, calendar=judging.holiday_calendar),
    Family("drift", judging.usual_fraud, Size(60_000.0, 9_000, 56), judging.drift_calendar),
)
"""Nothing is chosen on these, and only ``--final`` measures detection on them."""
FAMILIES: Final = {family.name: family for family in (*CHOOSING, *JUDGING)}
