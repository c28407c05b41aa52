"""Streams of scores, and the controller that paces them hour by hour."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.decision.pacing import Pacing, PacingOptions, ScoredRows
from schemas.times import US_PER_DAY, US_PER_HOUR

FIRST_DAY = 19_800


class Stream(NamedTuple):
    """n transactions in the order of event time."""

    event_time_us: NDArray[np.int64]
    score: NDArray[np.float64]
    case: list[str]


def stream(days: int, a_day: int, seed: int, scale: Callable[[int], float] = lambda _: 1.0) -> Stream:
    """Transactions of days, more of them by day than by night, by cards that come again.

    ``scale`` multiplies the odds of all scores of a day.
    """
    random = np.random.default_rng(seed)
    times, scores = [], []
    for day in range(days):
        hour = np.clip(random.normal(12.0, 5.0, random.poisson(a_day)), 0.0, 23.99)
        times.append((FIRST_DAY + day) * US_PER_DAY + (hour * US_PER_HOUR).astype(np.int64))
        odds = np.exp(random.normal(-4.0, 1.5, len(hour))) * scale(day)
        scores.append(odds / (1.0 + odds))
    time_us, score = np.concatenate(times), np.concatenate(scores)
    order = np.argsort(time_us, kind="stable")
    cards = random.integers(0, a_day, len(order))
    cases = [f"c{card}-{at}" for card, at in zip(cards.tolist(), (time_us[order] // US_PER_DAY).tolist(), strict=True)]
    return Stream(time_us[order], score[order], cases)


class PacedAlerts(NamedTuple):
    """What came of pacing a stream."""

    alert: NDArray[np.bool_]
    first: NDArray[np.bool_]
    """Whether an alert is the first one of its case."""
    thresholds: list[float]
    """Of each hour that has transactions."""


def paced(stream: Stream, options: PacingOptions, threshold: float) -> PacedAlerts:
    """Pace a stream that begins with a threshold."""
    pacing = Pacing(options)
    hours = stream.event_time_us // US_PER_HOUR
    starts = [0, *(np.flatnonzero(np.diff(hours)) + 1).tolist(), len(hours)]
    alert = np.zeros(len(hours), np.bool_)
    thresholds = []
    for start, end in pairwise(starts):
        threshold = pacing.decide(threshold, int(hours[start])).threshold
        thresholds.append(threshold)
        alert[start:end] = stream.score[start:end] >= threshold
        pacing.add(
            ScoredRows(
                stream.event_time_us[start:end], stream.score[start:end], alert[start:end], stream.case[start:end]
            )
        )
    seen: set[str] = set()
    first = np.zeros(len(hours), np.bool_)
    for row in np.flatnonzero(alert).tolist():
        first[row] = stream.case[row] not in seen
        seen.add(stream.case[row])
    return PacedAlerts(alert, first, thresholds)


def per_day(stream: Stream, first: NDArray[np.bool_]) -> NDArray[np.int64]:
    """First alerts of each day."""
    days = stream.event_time_us // US_PER_DAY - FIRST_DAY
    return np.bincount(days[first], minlength=int(days[-1]) + 1)
