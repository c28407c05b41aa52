"""Streams a world through the topics: its recent history at full speed, then its days at the speed of the view."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Final

import msgspec
import pandas as pd

from pipeline.demo.bootstrap import LABEL_DELAY_DAYS
from pipeline.demo.figures import RunFigures, RunState
from pipeline.demo.ledger import Ledger
from pipeline.demo.world import LONGEST_CATCH_UP_S, World, paced
from pipeline.kafka.writers.producer import RecordProducer
from pipeline.learning.regimes import LabelRegime
from pipeline.replay.replayer import Replay, ReplayOptions, ReplayProgress, Row
from pipeline.replay.watch import Flow
from pipeline.settings import Settings
from schemas.topics import TRANSACTIONS

REPORT_INTERVAL_S: Final = 0.1
LONGEST_SILENCE_S: Final = 120.0
"""So long without a decision, and the run fails; before the first one of an installation, kernels are compiled."""


class _Identity(msgspec.Struct, frozen=True):
    transaction_id: str


class TimedProducer(RecordProducer):
    """Enters every transaction into the ledger at the moment at which it is handed to the client."""

    def __init__(self, bootstrap: str, settings: Settings, ledger: Ledger) -> None:
        super().__init__(bootstrap, settings)
        self._ledger = ledger
        self._transactions = settings.topic(TRANSACTIONS.name)
        self._decode = msgspec.json.Decoder(_Identity).decode
        self.warm_up = False

    def produce(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        timestamp_ms: int,
        headers: list[tuple[str, bytes | None]] | None = None,
    ) -> None:
        """Produce like the base class; waiting for room in the client's queue counts as latency."""
        if topic == self._transactions:
            self._ledger.sent(self._decode(value).transaction_id, time.monotonic(), warm_up=self.warm_up)
        super().produce(topic, key, value, timestamp_ms, headers)


class DecidedFlow(Flow):
    """Lets transactions be sent up to ``limit`` ahead of those that have a decision, or were refused."""

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
        ledger: Ledger,
        *,
        day_s: float,
        wait_decided: Callable[[], None],
        report: Callable[[ReplayProgress], None],
        stop: threading.Event,
    ) -> None:
        self._timed = TimedProducer(bootstrap, settings, ledger)
        super().__init__(
            settings,
            bootstrap,
            self._world_frames(),
            ReplayOptions(
                regime=LabelRegime(delay_days=LABEL_DELAY_DAYS),
                flush_labels=False,
                stall_warning_s=LONGEST_SILENCE_S,
            ),
            report=report,
            stop=stop,
            report_interval_s=REPORT_INTERVAL_S,
            producer=self._timed,
        )
        self._world, self._state, self._day_s = world, state, day_s
        self._wait_decided = wait_decided
        self._stop_event = stop

    def _new_flow(self, group: str) -> Flow:
        """Count what is decided, which this process reads anyway: offsets of a group would have to be asked for."""
        del group
        return DecidedFlow(self._state.figures, self._options.max_in_flight)

    def _world_frames(self) -> Iterator[pd.DataFrame | Sequence[Row]]:
        self._timed.warm_up = True
        for frame in self._world.warm_up():
            yield frame
            if len(frame):
                self._state.simulated = frame["event_time"].iloc[-1].to_pydatetime()
        self._timed.warm_up = False
        self._timed.flush()
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
            for share, part in paced(times_us, self._day_s, time.monotonic, self._stop_event.wait, began_s):
                yield rows[part]
                state.day_share, state.simulated = share, midnight + timedelta(days=share)
            state.day_share = 1.0
            # When the workers could not follow, the simulated clock waits for them.
            began_s = max(began_s + self._day_s, time.monotonic() - LONGEST_CATCH_UP_S)
