"""Feeds transactions and their labels through the topics on a simulated clock."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from msgspec import Meta

from pipeline.history.mapped_files import RECORD
from pipeline.kafka.cluster.cluster import require_producer_timestamps
from pipeline.kafka.writers.producer import RecordProducer
from pipeline.learning.label_sources import SIMULATOR
from pipeline.learning.regimes import NEVER_US, LabelRegime
from pipeline.replay.label_schedule import DueLabel, LabelSchedule, Truth
from pipeline.replay.messages import ENCODER, event_times_us, identities_of, transaction_messages
from pipeline.replay.watch import AlertWatch, Flow, FlowWatch, Watch
from pipeline.settings import Settings
from schemas.codec import timestamp_us
from schemas.limits import check_limits
from schemas.messages import Label
from schemas.times import US_PER_DAY, US_PER_SECOND, time_of
from schemas.topics import TRANSACTIONS

CARD_GROUP: Final = "card"
REVIEWER: Final = "analyst"
"""Source of the labels of alerts."""

_CHUNK_ROWS: Final = 2_048
"""Rows encoded at a time: large enough for the loop's cost, small enough to stop at once."""
_SLICE_S: Final = 0.02
"""Longest sleep; alerts and the stop event are looked at in between."""
_ROOM_POLL_S: Final = 0.002
_EARLY_S: Final = 0.001
"""An event so little ahead of the clock is sent at once: shorter sleeps are not exact."""
_QUIET_S: Final = 1.0
"""After the last transaction was read by the card agent, alerts may follow; so long a silence says that none will."""


_UNORDERED: Final = "the frames are not in event-time order; sort them first"


class Row(NamedTuple):
    """A transaction as it is sent."""

    time_us: int
    key: bytes
    value: bytes
    truth: Truth | None


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """The options of a replay; durations are simulated time unless said otherwise."""

    speed: float = math.inf
    """Simulated seconds per second of real time."""
    regime: LabelRegime = field(default_factory=LabelRegime)
    """Transactions that get a label without a review, and when; the same ones as in backtests and trainings."""
    review_delay_s: Annotated[
        float | None,
        Meta(
            ge=0,
            description="Follow alerts; from an alerted transaction to its label.",
            extra={"option": "--review-delay"},
        ),
    ] = None
    flush_labels: Annotated[bool, Meta(description="Send what is left at the end.")] = True
    max_in_flight: Annotated[int, Meta(ge=1, description="Most transactions ahead of the workers.")] = 8_000
    wait: Annotated[bool, Meta(description="Wait for the workers at all.")] = True
    stall_warning_s: float = 30.0
    """Real time without progress after which a warning says that nobody reads."""

    def __post_init__(self) -> None:
        check_limits(self)
        if not self.speed > 0:
            raise ValueError(f"speed must be positive, not {self.speed}")


@dataclass(slots=True)
class ReplayProgress:
    """The progress of a replay.

    Counts are of records handed to the client; all are written when ``run`` returns."""

    transactions: int = 0
    labels: int = 0
    fraud_labels: int = 0
    reviews: int = 0
    """Labels that came from a reviewed alert; part of ``labels``."""
    pending_labels: int = 0
    unmatched_alerts: int = 0
    in_flight: int = 0
    first_time: datetime | None = None
    simulated_time: datetime | None = None
    elapsed_s: float = 0.0
    stopped: bool = False
    """True if the stop event ended it."""
    warning: str | None = None


class Replay:
    """Sends frames of transactions, and each one's label after its delay, in the order of simulated time.

    Record timestamps are the simulated clock: a transaction's event time, a label's ``labelled_at``.

    Args:
        frames: Frames with `pipeline.history.canonical_columns.COLUMNS`, or with those of
            `pipeline.history.frames.MAPPED`, whose records are sent as they are, or the rows that `rows` made of one;
            sorted by event time, and perhaps endless. Without ``fraud`` and ``fraud_type`` there are no labels.
        options: Speed and labels; None: the defaults of `ReplayOptions`.
        report: Called from the thread of `run` with the progress, always the same object, and once at the end.
        stop: Ends the replay once it is set, without the labels that are left; None: nothing ends it early.
        report_interval_s: Seconds of real time between two calls of ``report``.
        flow: How many transactions may be sent; None: what the card agents have committed decides, if ``options.wait``.
        sending: Called as each transaction whose truth is known is handed to the client.
    """

    def __init__(
        self,
        settings: Settings,
        bootstrap: str,
        frames: Iterable[pd.DataFrame | Sequence[Row]],
        options: ReplayOptions | None = None,
        *,
        report: Callable[[ReplayProgress], None] | None = None,
        stop: threading.Event | None = None,
        report_interval_s: float = 1.0,
        flow: Flow | None = None,
        sending: Callable[[Truth], object] | None = None,
    ) -> None:
        """Prepare; `schemas.errors.InvalidMessage` where no topic of labels speaks for a source that is sent."""
        self._settings, self._bootstrap, self._frames = settings, bootstrap, frames
        self._options = options or ReplayOptions()
        self._report, self._report_interval_s = report, report_interval_s
        self._stop, self._flow, self._sending = stop or threading.Event(), flow, sending
        self._progress = ReplayProgress()
        self._transactions = settings.topic(TRANSACTIONS.name)
        # Topics with another clock are refused before anything is sent.
        sources = settings.label_sources._replace(simulated=True)
        self._label_topics = {source: settings.topic(sources.topic_for(source)) for source in (SIMULATOR, REVIEWER)}
        self._schedule = LabelSchedule(
            round(self._options.regime.maturity_days * US_PER_DAY), reviews=self._options.review_delay_s is not None
        )
        self._clock_us: int | None = None
        self._sleeping_until_us = 0
        self._anchor_s, self._anchor_us = 0.0, 0
        self._started_s = self._reported_s = 0.0
        self._producer = RecordProducer(bootstrap, settings)
        self._alerts: AlertWatch | None = None
        self._watches = list[Watch]()

    def run(self) -> ReplayProgress:
        """Send everything; returns the final progress. Call it once.

        Raises ``DeliveryFailed`` for a record that was not written, ``TopicError`` for a topic that is missing or
        does not keep the simulated clock, ``ValueError`` for frames that are not in event-time order.
        """
        options, settings = self._options, self._settings
        require_producer_timestamps(
            self._bootstrap, settings, [self._transactions, *dict.fromkeys(self._label_topics.values())]
        )
        self._started_s = self._reported_s = time.monotonic()
        with contextlib.ExitStack() as stack:
            if options.wait and self._flow is None:
                self._flow = flow = FlowWatch(
                    self._bootstrap,
                    settings,
                    self._transactions,
                    settings.topic(CARD_GROUP),
                    options.max_in_flight,
                    lambda: (self._progress.transactions, len(self._producer)),
                )
                self._watches.append(stack.enter_context(flow))
            if options.review_delay_s is not None:
                self._alerts = AlertWatch(self._bootstrap, settings)
                self._watches.append(stack.enter_context(self._alerts))
            stack.enter_context(self._producer)
            ended = all(self._send_frame(frame) for frame in self._frames) and not self._stop.is_set()
            if ended and options.flush_labels:
                ended = self._await_reviews() and self._send_labels_until(NEVER_US - 1)
            self._progress.stopped = not ended
        self._report_progress(final=True)
        return self._progress

    def rows(self, frame: pd.DataFrame) -> list[Row]:
        """Return the rows of a frame, encoded; a frame costs as much as a hundred rows, so cut the rows, not frames.

        Raises ``ValueError`` when the frame is not in event-time order.
        """
        times_us = event_times_us(frame)
        if (np.diff(times_us) < 0).any():
            raise ValueError(_UNORDERED)
        if RECORD in frame.columns:
            values: Iterable[bytes] = frame[RECORD].tolist()
        else:
            values = map(ENCODER.encode, transaction_messages(frame, times_us))
        keys, truths = map(str.encode, frame["card_id"].tolist()), self._truths(frame, times_us)
        return [Row(*row) for row in zip(times_us.tolist(), keys, values, truths, strict=True)]

    def _send_frame(self, frame: pd.DataFrame | Sequence[Row]) -> bool:
        """Send one frame with what falls due before each of its rows; false when the replay must stop."""
        for first in range(0, len(frame), _CHUNK_ROWS):
            if isinstance(frame, pd.DataFrame):
                rows: Sequence[Row] = self.rows(frame.iloc[first : first + _CHUNK_ROWS])
            else:
                rows = frame[first : first + _CHUNK_ROWS]
            if not self._send_rows(rows):
                return False
        return not self._stop.is_set()

    def _send_rows(self, rows: Sequence[Row]) -> bool:
        if self._clock_us is not None and rows[0].time_us < self._clock_us:
            raise ValueError(_UNORDERED)
        produce, schedule, sending = self._producer.produce, self._schedule, self._sending
        paced, topic, progress, flow = self._options.speed < math.inf, self._transactions, self._progress, self._flow
        alerts = self._alerts.waiting if self._alerts is not None else ()
        if self._clock_us is None:
            self._start_clock(rows[0].time_us)
        for time_us, key, value, truth in rows:
            due = paced or alerts or schedule.next_due_us <= time_us
            if due and not (self._send_labels_until(time_us) and self._sleep_until(time_us)):
                return False
            if flow is not None and progress.transactions >= flow.allowed and not self._await_room(flow):
                return False
            if sending is not None and truth is not None:
                sending(truth)
            produce(topic, key, value, time_us // 1_000)
            self._clock_us = time_us
            progress.transactions += 1
            if truth is not None:
                schedule.add(truth)
        self._producer.poll()
        self._report_progress()
        return not self._stop.is_set()

    def _truths(self, frame: pd.DataFrame, times_us: npt.NDArray[np.int64]) -> list[Truth | None]:
        if "fraud" not in frame.columns:
            return [None] * len(frame)
        fraud = frame["fraud"].to_numpy(np.bool_)
        identity, regime = identities_of(frame), self._options.regime
        report_us = regime.known_at_us(times_us, fraud, identity)
        corrected_us = regime.corrected_at_us(report_us, identity)
        types = frame["fraud_type"].tolist() if "fraud_type" in frame.columns else [None] * len(frame)
        columns = zip(
            frame["transaction_id"].tolist(),
            frame["card_id"].tolist(),
            times_us.tolist(),
            fraud.tolist(),
            types,
            report_us.tolist(),
            corrected_us.tolist(),
            strict=True,
        )
        return [Truth(*values) for values in columns]

    def _send_labels_until(self, until_us: int) -> bool:
        """Send the labels that are due up to ``until_us``, each at its time; false when the replay must stop."""
        final = until_us >= NEVER_US - 1
        while True:
            self._take_alerts()
            due_us = self._schedule.next_due_us
            if due_us > until_us:
                return not self._stop.is_set()
            # What is left at the end has no transaction to keep step with.
            if not final and not self._sleep_until(due_us):
                return False
            label = self._schedule.pop(due_us)
            if label is not None:
                self._send_label(label)
            if self._stop.is_set():
                return False
            self._report_progress()

    def _send_label(self, due: DueLabel) -> None:
        truth = due.truth
        message = Label(
            transaction_id=truth.transaction_id,
            card_id=truth.card_id,
            label="fraud" if due.fraud else "legitimate",
            source=SIMULATOR if due.alert_id is None else REVIEWER,
            labelled_at=time_of(due.due_us),
            fraud_type=truth.fraud_type if truth.fraud and due.fraud else None,
            alert_id=due.alert_id,
        )
        self._producer.produce(
            self._label_topics[message.source], truth.card_id.encode(), ENCODER.encode(message), due.due_us // 1_000
        )
        self._clock_us = max(self._clock_us or 0, due.due_us)
        self._progress.labels += 1
        self._progress.fraud_labels += due.fraud
        self._progress.reviews += due.alert_id is not None

    def _take_alerts(self) -> None:
        delay_us = round((self._options.review_delay_s or 0) * US_PER_SECOND)
        while self._alerts is not None and self._alerts.waiting:
            alert = self._alerts.waiting.popleft()
            due_us = max(timestamp_us(alert.event_time) + delay_us, self._now_us())
            self._schedule.review(alert.card_id, alert.transaction_id, alert.alert_id, due_us)

    def _start_clock(self, first_us: int) -> None:
        self._clock_us = first_us
        self._anchor_s, self._anchor_us = time.monotonic(), first_us
        self._progress.first_time = time_of(first_us)

    def _now_us(self) -> int:
        """The simulated clock: of the last record, or further on while it sleeps."""
        clock_us = self._clock_us or 0
        if self._options.speed == math.inf:
            return clock_us
        slept_us = (time.monotonic() - self._anchor_s) * self._options.speed * US_PER_SECOND
        return max(clock_us, min(int(self._anchor_us + slept_us), self._sleeping_until_us))

    def _sleep_until(self, time_us: int) -> bool:
        """Wait until the simulated clock shows ``time_us``, sending labels that fall due before by a fresh review."""
        speed = self._options.speed
        if speed == math.inf:
            return True
        self._sleeping_until_us = time_us
        target_s = self._anchor_s + (time_us - self._anchor_us) / US_PER_SECOND / speed
        while (ahead_s := target_s - time.monotonic()) > _EARLY_S:
            if self._stop.wait(min(ahead_s, _SLICE_S)):
                return False
            self._producer.poll()
            self._take_alerts()
            while self._schedule.next_due_us <= self._now_us() < time_us:
                label = self._schedule.pop(self._now_us())
                if label is not None:
                    self._send_label(label)
            self._report_progress()
        return True

    def _await_room(self, flow: Flow) -> bool:
        """Wait until the card agents have caught up; the simulated clock stands still."""
        began_s = time.monotonic()
        caught_up = self._await(flow, lambda: self._progress.transactions >= flow.allowed, _ROOM_POLL_S)
        self._anchor_s += time.monotonic() - began_s
        return caught_up

    def _await_reviews(self) -> bool:
        """Before the last labels: let the card agents read everything, and alerts come in."""
        flow, alerts = self._flow, self._alerts
        if flow is None or alerts is None:
            return True

        def comes_more() -> bool:
            if flow.in_flight(self._progress.transactions) > 0:
                return True
            return time.monotonic() - max(alerts.latest_s, flow.progress_s) < _QUIET_S

        return self._await(flow, comes_more, _SLICE_S)

    def _await(self, flow: Flow, lasts: Callable[[], bool], poll_s: float) -> bool:
        """Wait for the card agents while something lasts, and warn if they stand still; false when stopped."""
        began_s = time.monotonic()
        while lasts():
            if self._stop.wait(poll_s):
                return False
            self._producer.poll()
            self._take_alerts()
            stalled_s = time.monotonic() - max(began_s, flow.progress_s)
            self._progress.warning = None
            if stalled_s >= self._options.stall_warning_s:
                self._progress.warning = (
                    f"group {self._settings.topic(CARD_GROUP)} has committed nothing for {stalled_s:.0f} s: "
                    f"nobody consumes {self._transactions}; start `fraud-pipeline worker`, or replay with --no-wait"
                )
            self._report_progress()
        self._progress.warning = None
        return True

    def _report_progress(self, *, final: bool = False) -> None:
        for watch in self._watches:
            watch.check()
        now_s = time.monotonic()
        if not final and now_s - self._reported_s < self._report_interval_s:
            return
        self._reported_s = now_s
        progress = self._progress
        progress.elapsed_s = now_s - self._started_s
        progress.in_flight = self._flow.in_flight(progress.transactions) if self._flow is not None else 0
        progress.pending_labels = self._schedule.pending
        progress.unmatched_alerts = self._schedule.unmatched_alerts
        if self._clock_us is not None:
            progress.simulated_time = time_of(self._now_us())
        if self._report is not None:
            self._report(progress)
