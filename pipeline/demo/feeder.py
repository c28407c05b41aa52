"""Streams a world through the topics: its recent history at full speed, then its days at the speed of the view."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Final

import pandas as pd

from pipeline.demo.figures import RunFigures, RunState
from pipeline.demo.first_models import LABEL_DELAY_DAYS
from pipeline.demo.world import LONGEST_CATCH_UP_S, World, paced
from pipeline.learning.regimes import LabelRegime
from pipeline.replay.label_schedule import Truth
from pipeline.replay.replayer import Replay, ReplayOptions, ReplayProgress, Row
from pipeline.settings import Settings

REPORT_INTERVAL_S: Final = 0.1
LONGEST_SILENCE_S: Final = 120.0
"""So long without a decision, and the run fails; before the first one of an installation, kernels are compiled."""


class DecidedFlow:
    """A `pipeline.replay.watch.Flow` that keeps at most ``limit`` transactions ahead of those decided or refused.

    This process reads what is decided anyway: offsets of a group would have to be asked for.
    """

    def __init__(self, figures: RunFigures, limit: int) -> None:
        self._figures, self._limit = figures, limit
        self._decided = -1
        self._progress_s = time.monotonic()

    @property
    def allowed(self) -> int:
        """Number of transactions up to which sending keeps within the limit."""
        return self._figures.decided + self._limit

    @property
    def progress_s(self) -> float:
        """Time at which a new decision was last seen (monotonic clock)."""
        decided = self._figures.decided
        if decided != self._decided:
            self._decided, self._progress_s = decided, time.monotonic()
        return self._progress_s

    def in_flight(self, sent: int) -> int:
        """Return the transactions without a decision when ``sent`` were sent."""
        return max(0, sent - self._figures.decided)


class Feeder(Replay):
    """A replay of a world: the warm-up, a pause until it is decided, then ``days`` days (0: without end).

    ``wait_decided`` returns once every transaction sent has its decision; ``report`` is called several times a
    second, and what it raises ends the replay; ``stop`` ends it in order.
    """

    def __init__(
        self,
        settings: Settings,
        bootstrap: str,
        world: World,
        state: RunState,
        *,
        day_s: float,
        wait_decided: Callable[[], None],
        report: Callable[[ReplayProgress], None],
        stop: threading.Event,
    ) -> None:
        options = ReplayOptions(
            regime=LabelRegime(delay_days=LABEL_DELAY_DAYS), flush_labels=False, stall_warning_s=LONGEST_SILENCE_S
        )
        super().__init__(
            settings,
            bootstrap,
            self._world_frames(),
            options,
            report=report,
            stop=stop,
            report_interval_s=REPORT_INTERVAL_S,
            flow=DecidedFlow(state.figures, options.max_in_flight),
            sending=self._enter,
        )
        self._world, self._state, self._day_s = world, state, day_s
        self._wait_decided, self._warming_up = wait_decided, True

    def _enter(self, truth: Truth) -> None:
        """Time a transaction: waiting for room in the client's queue counts as latency."""
        self._state.figures.sent(truth.transaction_id, time.monotonic(), warm_up=self._warming_up)

    def _world_frames(self) -> Iterator[pd.DataFrame | Sequence[Row]]:
        for frame in self._world.warm_up():
            yield frame
            if len(frame):
                self._state.simulated = frame["event_time"].iloc[-1].to_pydatetime()
        self._warming_up = False
        self._producer.flush()
        self._wait_decided()
        yield from self._days()

    def _days(self) -> Iterator[Sequence[Row]]:
        world, state = self._world, self._state
        began_s = time.monotonic()
        for number, day in enumerate(world.days(world.history_days, state.days or None), start=1):
            state.day, state.day_share = number, 0.0
            midnight = world.first_streamed() + timedelta(days=number - 1)
            rows = self.rows(day)
            times_us = [row.time_us for row in rows]
            for share, part in paced(times_us, self._day_s, time.monotonic, self._stop.wait, began_s):
                yield rows[part]
                state.day_share, state.simulated = share, midnight + timedelta(days=share)
            state.day_share = 1.0
            # When the workers could not follow, the simulated clock waits for them.
            began_s = max(began_s + self._day_s, time.monotonic() - LONGEST_CATCH_UP_S)
