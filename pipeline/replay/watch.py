"""The observations of a replay: how far the card agents are behind, and the alerts that come out."""

import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Final, Protocol, Self

import msgspec

from pipeline.kafka.cluster.admin import GroupLag
from pipeline.kafka.readers.follower import TopicFollower
from pipeline.settings import Settings
from schemas.topics import ALERTS

_RELAXED_INTERVAL_S: Final = 0.02
_URGENT_INTERVAL_S: Final = 0.002
"""While there is little room, a late measurement costs throughput."""
_TAIL_POLL_S: Final = 0.1


class Alerted(msgspec.Struct, frozen=True):
    """The fields of an alert that a review needs."""

    alert_id: str
    card_id: str
    transaction_id: str
    event_time: datetime


class Watch:
    """A thread that repeats ``step`` until the context is left; `check` raises what ended it early."""

    def __init__(self, name: str) -> None:
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise the error that ended the thread, if one did."""
        if self._error is not None:
            raise self._error

    def step(self) -> float:
        """Do one round; returns the seconds until the next."""
        raise NotImplementedError

    def end(self) -> None:
        """Let go of what the thread used; called once, by the thread."""

    def _run(self) -> None:
        try:
            try:
                while not self._ended.wait(self.step()):
                    pass
            finally:
                self.end()
        except BaseException as error:
            # The thread that drives the replay must end it: it sees the error in `check`.
            self._error = error


class Flow(Protocol):
    """Number of transactions that may be sent."""

    @property
    def allowed(self) -> int:
        """Number of transactions up to which sending may go on."""

    @property
    def progress_s(self) -> float:
        """Time at which the readers were last seen to progress (monotonic clock)."""

    def in_flight(self, sent: int) -> int:
        """Return the transactions ahead of the readers when ``sent`` were sent."""


class FlowWatch(Watch):
    """A `Flow` that keeps at most ``limit`` transactions ahead of a group's commits.

    ``state`` returns, at the moment it is called, the transactions sent so far and the records that still wait in the
    client. ``allowed`` errs on the low side by what a measurement in motion counts twice.
    """

    def __init__(
        self,
        bootstrap: str,
        settings: Settings,
        topic: str,
        group: str,
        limit: int,
        state: Callable[[], tuple[int, int]],
    ) -> None:
        super().__init__("replay-flow")
        self._lag, self._limit, self._state = GroupLag(bootstrap, settings, topic, group), limit, state
        self._committed = -1
        self._consumed = 0
        self.allowed = 0
        self.progress_s = time.monotonic()

    def in_flight(self, sent: int) -> int:
        """Transactions ahead of the commits when ``sent`` were sent, as of the last measurement."""
        return max(0, sent - self._consumed)

    def step(self) -> float:
        """Measure once."""
        sent, queued = self._state()
        lag, committed = self._lag.measure()
        if committed != self._committed:
            self._committed, self.progress_s = committed, time.monotonic()
        self._consumed = sent - queued - lag
        self.allowed = self._consumed + self._limit
        sent, _ = self._state()
        return _URGENT_INTERVAL_S if self.in_flight(sent) > self._limit // 2 else _RELAXED_INTERVAL_S


class AlertWatch(Watch):
    """Collects the alerts that are raised from the moment it was made."""

    def __init__(self, bootstrap: str, settings: Settings) -> None:
        super().__init__("replay-alerts")
        self._tail = TopicFollower(bootstrap, settings, ALERTS).start_at_end()
        self._decoder = msgspec.json.Decoder(Alerted)
        self.waiting: deque[Alerted] = deque()
        self.latest_s = time.monotonic()
        """When an alert was last seen (monotonic clock)."""

    def end(self) -> None:
        """Close the consumer that the thread used."""
        self._tail.close()

    def step(self) -> float:
        """Read once."""
        values = self._tail.poll_values(_TAIL_POLL_S)
        if values:
            self.latest_s = time.monotonic()
            self.waiting.extend(map(self._decoder.decode, values))
        return 0.0
