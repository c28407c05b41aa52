"""The simulated world of a run: its population, the history that the first model learns from, the days that stream."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Final

import numpy as np
import pandas as pd
from msgspec import Meta

from pipeline.features.catalogue import HORIZON_US
from pipeline.simulation.simulator import DEFAULT_START, Profiles, Scenario, make_profiles, simulate_days, stream_days
from schemas.times import US_PER_DAY

WARM_UP_DAYS: Final = HORIZON_US // US_PER_DAY
"""Days of the longest window: after so many the workers' windows hold what they would always have held."""
SLICE_S: Final = 0.04
"""Real time between two sends; what falls into it is sent at once. Each send is a request for each partition."""
LONGEST_CATCH_UP_S: Final = 0.5
"""Further behind than this, the simulated clock is put back instead of running faster."""


@dataclass(frozen=True, slots=True)
class World:
    """A population and its days: day 0 to ``history_days`` - 1 are history, the days after that stream."""

    cards: Annotated[int, Meta(ge=50, description="Cards that pay.")] = 1_000
    merchants: Annotated[int, Meta(ge=50, description="Merchants that take cards.")] = 2_000
    seed: Annotated[int, Meta(ge=0, description="Of the simulation.")] = 0
    history_days: Annotated[
        int, Meta(ge=30, description="Simulated days before the first, from which the first model learns.")
    ] = 65
    start: date = DEFAULT_START

    @property
    def warm_up_days(self) -> int:
        """Days of the history that are streamed before the first day, at full speed, to fill the workers' windows."""
        return min(WARM_UP_DAYS, self.history_days)

    @property
    def scenario(self) -> Scenario:
        """About the published share of frauds, for a population that is smaller than the published one."""
        return Scenario(
            merchants_per_day=max(1, round(self.merchants / 5_000)),
            merchant_days=14 if self.merchants < 7_500 else 28,
            cards_per_day=max(1, round(self.cards / 1_700)),
            card_days=14,
        )

    def first_streamed(self) -> datetime:
        """Midnight, UTC, at which the first streamed day begins."""
        day = self.start + timedelta(days=self.history_days)
        return datetime(day.year, day.month, day.day, tzinfo=UTC)

    def history(self) -> pd.DataFrame:
        """All transactions of the history, with the truth about them."""
        return _valid(simulate_days(self._profiles(), self.seed, 0, self.history_days, self.start))

    def days(self, first: int, count: int | None) -> Iterator[pd.DataFrame]:
        """Yield a frame for each day from day ``first``; without end when ``count`` is None."""
        return map(_valid, stream_days(self._profiles(), self.seed, first, self.start, count))

    def warm_up(self) -> Iterator[pd.DataFrame]:
        """The last days of the history."""
        return self.days(self.history_days - self.warm_up_days, self.warm_up_days)

    def _profiles(self) -> Profiles:
        return make_profiles(np.random.default_rng(self.seed), self.cards, self.merchants, self.scenario)


def _valid(frame: pd.DataFrame) -> pd.DataFrame:
    """Without the few purchases whose amount rounds to zero: a dead letter each, and no matter for a first look."""
    return frame[frame["amount_minor"] > 0]


def paced(
    times_us: Sequence[int],
    day_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], object],
    began_s: float,
) -> Iterator[tuple[float, slice]]:
    """Cut a day into what falls into each slice of real time, and yield it when its time has come.

    A caller that is slow gets the next slices at once.

    Args:
        times_us: Event times of the day in microseconds since 1970, sorted by the caller.
        day_s: Real time in seconds that the day takes.
        clock: Returns the real time in seconds.
        sleep: Waits for so many seconds; may return sooner.
        began_s: When the day began, on the ``clock``.

    Yields:
        The share of the day that has passed, from 0 to 1, with where the transactions of the slice lie in ``times_us``.
        Slices without transactions are left out; a day without any only takes its time.
    """
    if not times_us:
        sleep(day_s)
        return
    slices = max(1, round(day_s / SLICE_S))
    midnight_us = times_us[0] // US_PER_DAY * US_PER_DAY
    ends = np.searchsorted(times_us, midnight_us + np.arange(1, slices + 1) * (US_PER_DAY / slices))
    begin = 0
    for number, end in enumerate(ends.tolist(), start=1):
        ahead_s = began_s + number * day_s / slices - clock()
        if ahead_s > 0:
            sleep(ahead_s)
        if end > begin:
            yield number / slices, slice(begin, end)
        begin = end
