"""Daily histograms of features, scores, alerts and reports: all that drift detection keeps."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import FEATURES
from pipeline.learning.event_clock import AHEAD_HOURS, WITNESSES
from pipeline.scoring.distributions import BinCounter, FeatureDistribution, distributions_of
from schemas.times import US_PER_DAY, US_PER_HOUR

SCORE: Final = "score"
ALERTS: Final = "alerts"
REPORTS: Final = "reports"
REPORT_AGE: Final = "report_age"
REPORT_SCORE: Final = "report_score"
"""Scores, as served, of the frauds that were reported on a day: they fall where the models miss new fraud."""
OUTCOMES: Final = (SCORE, ALERTS, REPORT_SCORE)
"""Series that also change when another version becomes active."""

_SCORE_EDGES: Final = 1.0 / (1.0 + np.exp(-np.arange(-9.0, 5.0, 0.5)))
"""Half a unit of log-odds apart."""
_AGE_EDGES: Final = np.array([0.25, 1.0, 3.0, 5.0, 7.0, 9.0, 14.0, 30.0])
"""Days from a transaction to the report of its fraud."""
_MISSING: Final = "no value"
_EDGES_FROM: Final = 50_000
"""First rows whose tenths become bins where there are no distributions."""
_DAY_ZERO: Final = date(1970, 1, 1)


def day_text(day: int) -> str:
    """Return a day, counted from 1970-01-01, as ISO 8601 has it.

    >>> day_text(17699)
    '2018-06-17'
    """
    return (_DAY_ZERO + timedelta(days=day)).isoformat()


class History(NamedTuple):
    """A series: a histogram for each of d days, k bins each."""

    name: str
    bins: tuple[str, ...]
    """Texts of the k bins."""
    days: NDArray[np.int64]
    """Shape (d,), ascending: days since 1970-01-01 (UTC)."""
    counts: NDArray[np.float64]
    """Shape (d, k)."""


class DailyCounts:
    """Counts rows by day, in any order; memory is one histogram a day and series.

    >>> counts = DailyCounts([FeatureDistribution(name="amount", edges=(10.0,), counts=(0.0, 0.0, 0.0))])
    >>> features = np.full((3, 81), 5.0)
    >>> counts.add_decisions(np.zeros(3, np.int64), features, np.full(3, 0.5))
    >>> [(one.name, float(one.counts.sum())) for one in counts.histories(0)]
    [('amount', 3.0), ('score', 3.0)]

    Args:
        distributions: Give the features to watch and the edges of their bins.
        tenths_of: Features to watch, without distributions; the tenths of the first rows become their bins.
    """

    def __init__(self, distributions: Sequence[FeatureDistribution], tenths_of: Sequence[str] = ()) -> None:
        self._distributions = tuple(distributions)
        self._tenths_of = list(tenths_of)
        self._first: list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]] = []
        """Decisions that wait for bins."""
        self._features: dict[int, BinCounter] = {}
        self._scores: dict[int, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(_SCORE_EDGES) + 1))
        self._alerts: dict[int, int] = defaultdict(int)
        self._ages: dict[int, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(_AGE_EDGES) + 1))
        self._report_scores: dict[int, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(_SCORE_EDGES) + 1))
        self._stream_time_us: dict[int, int] = {}

    def add_decisions(
        self, event_time_us: NDArray[np.int64], features: NDArray[np.float64], score: NDArray[np.float64]
    ) -> None:
        """Count n decisions by their event times.

        Args:
            event_time_us: Shape (n,).
            features: Shape (n, len(FEATURES)), NaN for no value.
            score: Shape (n,).
        """
        if self._tenths_of:
            self._first.append((event_time_us, features, score))
            if sum(len(rows) for rows, _, _ in self._first) >= _EDGES_FROM:
                self._find_bins()
            return
        bins = np.searchsorted(_SCORE_EDGES, score, side="right")
        for day, rows in _by_day(event_time_us):
            if day not in self._features:
                self._features[day] = BinCounter.like(self._distributions)
            self._features[day].add(features[rows])
            self._stream_time_us[day] = max(self._stream_time_us.get(day, 0), int(event_time_us[rows].max()))
            self._scores[day] += np.bincount(bins[rows], minlength=len(_SCORE_EDGES) + 1)

    def add_alerts(self, event_time_us: NDArray[np.int64]) -> None:
        """Count alerts by the event times of their transactions; shape (n,)."""
        for day, rows in _by_day(event_time_us):
            self._alerts[day] += len(rows)

    def add_reports(
        self, event_time_us: NDArray[np.int64], known_at_us: NDArray[np.int64], score: NDArray[np.float64]
    ) -> None:
        """Count n frauds by the day on which they became known: by their age then, and by their scores as served.

        Args:
            event_time_us: Event times of the transactions, in microseconds since 1970; shape (n,).
            known_at_us: When each became known, likewise.
            score: Shape (n,); NaN where none was served, which counts by its age alone.
        """
        ages = np.searchsorted(_AGE_EDGES, (known_at_us - event_time_us) / US_PER_DAY, side="right")
        scores = np.searchsorted(_SCORE_EDGES, score, side="right")
        for day, rows in _by_day(known_at_us):
            self._ages[day] += np.bincount(ages[rows], minlength=len(_AGE_EDGES) + 1)
            served = rows[~np.isnan(score[rows])]
            self._report_scores[day] += np.bincount(scores[served], minlength=len(_SCORE_EDGES) + 1)

    @property
    def newest_whole_day(self) -> int:
        """The newest day that is over: a later one has begun, or its last hour has. -1 without one.

        As in `pipeline.learning.event_clock`, times that lie more than a day ahead are believed where there are three.
        """
        self._find_bins()
        days, believed_us = sorted(self._stream_time_us), -1
        for number, day in enumerate(days):
            is_near = number == 0 or day * US_PER_DAY - believed_us <= AHEAD_HOURS * US_PER_HOUR
            if not is_near and sum(self._scores[later].sum() for later in days[number:]) < WITNESSES:
                break
            believed_us = self._stream_time_us[day]
        return (believed_us + US_PER_HOUR) // US_PER_DAY - 1

    def histories(self, through_day: int | None = None) -> list[History]:
        """Return all series that have counts, features first.

        Args:
            through_day: Last day; the newest whole day by default.
        """
        self._find_bins()
        last = self.newest_whole_day if through_day is None else through_day
        days = np.array(sorted(day for day in self._features if day <= last), np.int64)
        if not len(days):
            return []
        found = [self._features[day].distributions() for day in days.tolist()]
        histories = [
            History(
                distribution.name,
                _bins(distribution.edges, missing=True),
                days,
                np.array([day[at].counts for day in found]),
            )
            for at, distribution in enumerate(self._distributions)
        ]
        scores = np.array([self._scores[day] for day in days.tolist()])
        histories.append(History(SCORE, _bins(_SCORE_EDGES.tolist()), days, scores))
        rows = scores.sum(axis=1)
        if self._alerts:
            histories.append(_share(ALERTS, days, rows, [self._alerts.get(day, 0) for day in days.tolist()]))
        if self._ages:
            ages = np.array([self._ages[day] for day in days.tolist()])
            histories.append(_share(REPORTS, days, rows, ages.sum(axis=1)))
            histories.append(History(REPORT_AGE, _bins(_AGE_EDGES.tolist(), unit=" d"), days, ages))
            reported = np.array([self._report_scores[day] for day in days.tolist()])
            histories.append(History(REPORT_SCORE, _bins(_SCORE_EDGES.tolist()), days, reported))
        return histories

    def _find_bins(self) -> None:
        if self._tenths_of:
            features = np.concatenate([np.empty((0, len(FEATURES))), *(rows for _, rows, _ in self._first)])
            self._distributions = distributions_of(features, np.ones(len(features)), self._tenths_of)
            first, self._first, self._tenths_of = self._first, [], []
            for rows in first:
                self.add_decisions(*rows)


def _by_day(time_us: NDArray[np.int64]) -> Iterable[tuple[int, NDArray[np.intp]]]:
    if not len(time_us):
        return
    days_us = time_us // US_PER_DAY
    order = np.argsort(days_us, kind="stable")
    days, firsts = np.unique(days_us[order], return_index=True)
    yield from zip(days.tolist(), np.split(order, firsts[1:]), strict=True)


def _share(
    name: str, days: NDArray[np.int64], rows: NDArray[np.float64], counted: Iterable[float] | NDArray[np.float64]
) -> History:
    counts = np.array(list(counted), np.float64)
    return History(name, ("all others", name), days, np.column_stack([np.maximum(rows - counts, 0.0), counts]))


def _bins(edges: Sequence[float], *, missing: bool = False, unit: str = "") -> tuple[str, ...]:
    texts = [f"{edge:.4g}{unit}" for edge in edges]
    inner = [f"{low} to {high}" for low, high in pairwise(texts)]
    bins = [f"below {texts[0]}", *inner, f"{texts[-1]} or more"] if texts else ["any value"]
    return (*bins, _MISSING) if missing else tuple(bins)
