"""Simulated card transactions after the simulator of the Fraud Detection Handbook.

Source of the model and its constants: Le Borgne, Siblini, Lebichot, Bontempi, "Reproducible Machine Learning for
Credit Card Fraud Detection - Practical Handbook" (ULB and Worldline), chapter "Transaction data simulator". Cards and
merchants lie in a square; a card uses the merchants near it, at its own rate and with its own amounts; three kinds of
fraud are laid over.

Every day has its own generators, derived from (seed, purpose, day). A day is therefore the same whether it is made
alone, in a range, or as part of an endless stream, and no state is carried from one day to the next: which cards and
merchants are compromised on a day is read from the draws of the days before it.

One difference from the published code follows from that: there, exactly a third (rounded down) of the transactions that
the compromised cards of one day make in their fourteen days is fraudulent; here each of them is, with probability one
third.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.history.canonical_columns import FRAUD_TYPES, canonical_frame
from schemas.times import SECONDS_PER_DAY

DEFAULT_START: Final = date(2018, 4, 1)
MINOR_UNITS: Final = 100
CURRENCY: Final = "EUR"

ObjectArray = npt.NDArray[np.object_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
_TRANSACTIONS, _MERCHANTS, _CARDS, _SHARES = 1, 2, 3, 4
_CHUNK_CARDS: Final = 256
_NO_DAY: Final = (np.empty(0, np.int64),) * 5


@dataclass(frozen=True, slots=True)
class Scenario:
    """The constants of the model; the defaults are the published ones."""

    side: float = 100.0
    radius: float = 5.0
    mean_amount_range: tuple[float, float] = (5.0, 100.0)
    daily_rate_range: tuple[float, float] = (0.0, 4.0)
    time_of_day_mean_s: float = 43_200.0
    time_of_day_std_s: float = 20_000.0
    fraud_amount_minor: int = 220 * MINOR_UNITS
    """Every amount above this is fraud of type ``amount``."""
    merchants_per_day: int = 2
    """Merchants compromised each day; a share of what they take is fraud of type ``merchant``."""
    merchant_days: int = 28
    merchant_share: float = 1.0
    cards_per_day: int = 3
    """Cards compromised each day; a share of their transactions is inflated, fraud of type ``card``."""
    card_days: int = 14
    card_share: float = 1 / 3
    card_factor: int = 5

    def __post_init__(self) -> None:
        if not (0 < self.merchant_share <= 1 and 0 < self.card_share <= 1 and self.card_factor > 1):
            raise ValueError(
                "shares of fraud lie above 0 and at most at 1, and a factor of amounts is above 1, not "
                f"{self.merchant_share:g}, {self.card_share:g} and {self.card_factor}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Profiles:
    """A population of ``n`` cards and ``m`` merchants.

    ``reachable`` lists the merchants that each card uses, card after card; those of card ``i`` are
    ``reachable[reachable_from[i]:reachable_from[i + 1]]``. Every card reaches at least one.
    """

    mean_amount: FloatArray
    """Shape (n,), in the major unit; the standard deviation is half of it."""
    daily_rate: FloatArray
    """Shape (n,), expected transactions a day."""
    reachable: IntArray
    reachable_from: IntArray
    """Shape (n + 1,)."""
    card_ids: ObjectArray
    merchant_ids: ObjectArray
    scenario: Scenario

    @property
    def cards(self) -> int:
        """Number of cards."""
        return len(self.card_ids)

    @property
    def merchants(self) -> int:
        """Number of merchants."""
        return len(self.merchant_ids)


def make_profiles(
    generator: np.random.Generator, cards: int = 5_000, merchants: int = 10_000, scenario: Scenario | None = None
) -> Profiles:
    """Place cards and merchants at random and give each card its habits.

    A card with no merchant in its radius uses the nearest one (the published simulator lets it stay silent; at the
    published density there is none).

    Args:
        generator: Source of all randomness.
        cards: Number of cards.
        merchants: Number of merchants.
        scenario: Constants of the model; None for the published ones.

    Raises:
        ValueError: The population is too small for a day's compromises.

    >>> profiles = make_profiles(np.random.default_rng(7), cards=50, merchants=100)
    >>> profiles.cards, profiles.merchants, profiles.card_ids[0], profiles.merchant_ids[99]
    (50, 100, 'C00000', 'M00099')
    """
    scenario = scenario or Scenario()
    if cards < max(1, scenario.cards_per_day) or merchants < max(1, scenario.merchants_per_day):
        raise ValueError(
            f"{cards} cards and {merchants} merchants are too few: a day compromises {scenario.cards_per_day} cards "
            f"and {scenario.merchants_per_day} merchants; ask for at least as many"
        )
    card_locations = generator.uniform(0, scenario.side, (cards, 2))
    mean_amount = generator.uniform(*scenario.mean_amount_range, cards)
    daily_rate = generator.uniform(*scenario.daily_rate_range, cards)
    merchant_locations = generator.uniform(0, scenario.side, (merchants, 2))
    near: list[IntArray] = []
    counts = np.empty(cards, np.int64)
    for first in range(0, cards, _CHUNK_CARDS):
        positions = card_locations[first : first + _CHUNK_CARDS]
        square = np.zeros((len(positions), merchants))
        for axis in range(2):
            distance = positions[:, None, axis] - merchant_locations[None, :, axis]
            square += distance * distance
        reached = square < scenario.radius**2
        lonely = np.flatnonzero(~reached.any(axis=1))
        reached[lonely, square[lonely].argmin(axis=1)] = True
        counts[first : first + len(positions)] = reached.sum(axis=1)
        near.append(np.nonzero(reached)[1])
    return Profiles(
        mean_amount=mean_amount,
        daily_rate=daily_rate,
        reachable=np.concatenate(near),
        reachable_from=np.concatenate(([0], np.cumsum(counts))),
        card_ids=np.array([f"C{i:05d}" for i in range(cards)], dtype=object),
        merchant_ids=np.array([f"M{i:05d}" for i in range(merchants)], dtype=object),
        scenario=scenario,
    )


def simulate_days(
    profiles: Profiles, seed: int, first_day: int, n_days: int, start: date = DEFAULT_START
) -> pd.DataFrame:
    """Make the transactions of a range of days.

    Fraud builds up from day 0, as nothing is compromised before it. The same arguments give the same frame, and ranges
    that meet give together what one range over both gives.

    Args:
        profiles: The population.
        seed: Of all randomness, not negative.
        first_day: Number of the first day, from 0.
        n_days: Number of days.
        start: Day 0 (UTC).

    Returns:
        A frame with ``COLUMNS``, ordered by ``event_time`` (whole seconds; of the same second, by card), which is
        ``datetime64[us, UTC]``. ``amount`` is in the major unit with two decimals, ``amount_minor`` the same in cents,
        ``fraud_type`` ``None`` for a legitimate transaction.

    Raises:
        ValueError: A number is negative.
    """
    if seed < 0 or first_day < 0 or n_days < 0:
        raise ValueError(f"seed ({seed}), first day ({first_day}) and days ({n_days}) must not be negative")
    days = [_draw_day(profiles, seed, day) for day in range(first_day, first_day + n_days)]
    card, merchant, second_of_day, amount_minor, scenario = map(np.concatenate, zip(_NO_DAY, *days, strict=True))
    sizes = [len(day[0]) for day in days]
    dates = [start + timedelta(days=first_day + i) for i in range(n_days)]
    identifiers = [
        f"{prefix}{number:06d}"
        for prefix, size in zip((f"{day:%Y%m%d}-" for day in dates), sizes, strict=True)
        for number in range(size)
    ]
    origin_s = int(datetime(start.year, start.month, start.day, tzinfo=UTC).timestamp()) + first_day * SECONDS_PER_DAY
    second = np.repeat(np.arange(n_days, dtype=np.int64) * SECONDS_PER_DAY + origin_s, sizes)
    second += second_of_day
    return canonical_frame(
        second * 1_000_000,
        {
            "transaction_id": np.array(identifiers, dtype=object),
            "card_id": profiles.card_ids[card],
            "merchant_id": profiles.merchant_ids[merchant],
            "amount": amount_minor / MINOR_UNITS,
            "amount_minor": amount_minor,
            "currency": np.full(len(second), CURRENCY, dtype=object),
            "fraud": scenario > 0,
            "fraud_type": np.array(FRAUD_TYPES, dtype=object)[scenario],
        },
    )


def stream_days(
    profiles: Profiles, seed: int, first_day: int = 0, start: date = DEFAULT_START, n_days: int | None = None
) -> Iterator[pd.DataFrame]:
    """Yield a frame of `simulate_days` for each day.

    Args:
        profiles: The population.
        seed: Of all randomness, not negative.
        first_day: Number of the first day, from 0.
        start: Date of day 0 (UTC).
        n_days: Number of days; None: without end.
    """
    day = first_day
    while n_days is None or day < first_day + n_days:
        yield simulate_days(profiles, seed, day, 1, start)
        day += 1


def _draw_day(profiles: Profiles, seed: int, day: int) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray]:
    """Draw the day's traffic, then lay the three kinds of fraud over it; the last one that applies names it.

    Returns:
        Card, merchant, second of the day, amount in minor units and scenario of each transaction, ordered by second.
    """
    constants = profiles.scenario
    generator = np.random.default_rng((seed, _TRANSACTIONS, day))
    card = np.repeat(np.arange(profiles.cards), generator.poisson(profiles.daily_rate))
    time_of_day_s = np.trunc(generator.normal(constants.time_of_day_mean_s, constants.time_of_day_std_s, len(card)))
    inside = (time_of_day_s > 0) & (time_of_day_s < SECONDS_PER_DAY)
    card, second = card[inside], time_of_day_s[inside].astype(np.int64)
    mean = profiles.mean_amount[card]
    amount = generator.normal(mean, mean / 2)
    amount = np.where(amount < 0, generator.uniform(0, 2 * mean), amount)
    amount_minor = np.rint(amount * MINOR_UNITS).astype(np.int64)
    first, last = profiles.reachable_from[card], profiles.reachable_from[card + 1]
    merchant = profiles.reachable[generator.integers(first, last)]

    scenario = np.where(amount_minor > constants.fraud_amount_minor, 1, 0)
    bad_merchants = _compromised(
        seed, _MERCHANTS, day, profiles.merchants, constants.merchants_per_day, constants.merchant_days
    )
    bad = bad_merchants[merchant] > 0
    if constants.merchant_share < 1:
        # Draws of its own, so that all else is the same under every share.
        bad &= np.random.default_rng((seed, _SHARES, day)).random(len(bad)) < constants.merchant_share
    scenario[bad] = 2
    bad_cards = _compromised(seed, _CARDS, day, profiles.cards, constants.cards_per_day, constants.card_days)
    inflations = generator.binomial(bad_cards[card], constants.card_share)
    amount_minor *= constants.card_factor**inflations
    scenario[inflations > 0] = 3
    order = np.argsort(second, kind="stable")
    return card[order], merchant[order], second[order], amount_minor[order], scenario[order]


def _compromised(seed: int, purpose: int, day: int, population: int, per_day: int, duration_days: int) -> IntArray:
    """Count the compromises of each member that are active on ``day``: shape (population,)."""
    active = np.zeros(population, np.int64)
    for earlier in range(max(0, day - duration_days + 1), day + 1):
        active[np.random.default_rng((seed, purpose, earlier)).choice(population, per_day, replace=False)] += 1
    return active
