"""Loads an engine on the pipeline's topics: a generator on one side, a reader of decisions on the other."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.settings import Settings
from tests.benchmarks.arrivals import Arrivals
from tests.benchmarks.delays import Sent
from tests.benchmarks.open_loop import SENT, KafkaSink, finish, running_generator
from tests.benchmarks.traffic import Item

STALLED_AFTER_S: Final = 120.0
LOOK_S: Final = 0.05
IN_FLIGHT: Final = 20_000
"""Transactions of the history that are sent ahead of their decisions."""


class Stalled(RuntimeError):
    """The engine does not move."""


class Load:
    """Transactions on their way to an engine, and its answers.

    Args:
        settings: Of the engine: its brokers and its topics.
        directory: For the generator's files.
        check: Raises where the engine, or the broker, has ended.
    """

    def __init__(self, settings: Settings, directory: Path, check: Callable[[], None]) -> None:
        self.settings, self._work, self._check_engine = settings, directory, check
        self.servers = settings.kafka_bootstrap_servers or ""
        self.arrivals = Arrivals(self.servers, settings)
        self.arrivals.start()

    def check(self) -> None:
        """Raise where anything has ended."""
        self._check_engine()
        self.arrivals.check()

    def fill(self, history: Sequence[Item]) -> None:
        """Let a history be decided, as fast as it goes."""
        sink, sent = KafkaSink(self.servers, self.settings), 0
        for number, item in enumerate(history):
            sink.produce(item)
            sent += item.topic == "transactions"
            if number % 1_000 == 0:
                sink.poll()
                self.await_decisions(sent - IN_FLIGHT)
        sink.flush()
        self.await_decisions(sent)
        self.arrivals.take()

    @contextmanager
    def sending(self, part: Sequence[Item], rate: float) -> Iterator[tuple[int, int]]:
        """Send a part at a rate: (process id of the generator, when the first is due); at the end all is sent."""
        with running_generator(self.settings, self._work, part, rate) as (generator, started_ns):
            yield generator.pid, started_ns
            finish(generator)

    def run(self, part: Sequence[Item], rate: float) -> None:
        """Let a part be decided at a rate, and measure nothing."""
        with self.sending(part, rate):
            pass
        self.await_decisions(sum(item.topic == "transactions" for item in part))
        self.arrivals.take()

    def sent(self) -> Sent:
        """Times at which the transactions of the last part were due and sent."""
        held = np.load(self._work / SENT)
        return Sent(held["number"], held["scheduled_ns"], held["sent_ns"])

    def drained(self, count: int) -> bool:
        """Wait until ``count`` are decided, for as long as the engine moves."""
        try:
            self.await_decisions(count)
        except Stalled:
            return False
        return True

    def await_decisions(self, count: int) -> None:
        """Wait until ``count`` decisions are read since they were taken last. Raises `Stalled`."""
        read, moved_s = -1, time.monotonic()
        while self.arrivals.decisions_read < count:
            self.check()
            if self.arrivals.decisions_read != read:
                read, moved_s = self.arrivals.decisions_read, time.monotonic()
            elif time.monotonic() - moved_s > STALLED_AFTER_S:
                raise Stalled(f"no decision of {self.settings.topic_prefix}* came for {STALLED_AFTER_S:.0f} s")
            time.sleep(LOOK_S)

    def sleep_until(self, monotonic_ns: int) -> None:
        """Sleep, and look at what runs meanwhile."""
        while (ahead_ns := monotonic_ns - time.monotonic_ns()) > 0:
            self.check()
            time.sleep(min(0.5, ahead_ns / 1e9))


@contextmanager
def loaded(settings: Settings, directory: Path, check: Callable[[], None]) -> Iterator[Load]:
    """A load whose reader is closed at the end."""
    load = Load(settings, directory, check)
    try:
        yield load
    finally:
        load.arrivals.end()
