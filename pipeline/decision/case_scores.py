"""Scores of cases: which decision is the first of its case to reach a threshold, and the threshold of so many cases."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.decision.budget import budget_threshold

KEPT_HOURS: Final = 48
"""Hours that a case is known for after its first decision: it takes in 24 of event time, and records may be late."""
_SWEEP_HOURS: Final = 6


class ThresholdRange(NamedTuple):
    """Thresholds at which a case alerts first within an hour: above ``before``, up to ``score``."""

    score: float
    """Highest score of the case so far."""
    before: float
    """Highest score that it had before the hour; 0 where it had none."""


@dataclass(slots=True)
class _Case:
    first_hour: int
    hour: int
    score: float = 0.0
    before: float = 0.0
    alerted: bool = False


class CaseScores:
    """The highest score of each case, and whether it has alerted.

    The clock is the newest event hour of the partition. Records that are late count in that hour. What is returned
    depends on the partition's order of hours alone, neither on batches nor on the order within an hour.
    """

    def __init__(self) -> None:
        self._cases: dict[Hashable, _Case] = {}
        self._swept_hour = 0

    def score(self, case: Hashable, hour: int, score: float) -> ThresholdRange:
        """Take a score in, and return what the case reaches in this hour.

        Args:
            case: Names the case.
            hour: The partition's clock, in hours since 1970; never earlier than in the call before.
            score: Score of the decision.
        """
        found = self._case(case, hour)
        found.score = max(found.score, score)
        return ThresholdRange(found.score, found.before)

    def alert(self, case: Hashable, hour: int) -> bool:
        """Note an alert, and return whether it is the first one of its case; arguments as for `score`."""
        found = self._case(case, hour)
        first, found.alerted = not found.alerted, True
        return first

    def _case(self, case: Hashable, hour: int) -> _Case:
        found = self._cases.get(case)
        if found is None or found.first_hour <= hour - KEPT_HOURS:
            found = self._cases[case] = _Case(hour, hour)
            self._sweep(hour)
        elif found.hour < hour:
            found.hour, found.before = hour, found.score
        return found

    def _sweep(self, hour: int) -> None:
        if hour < self._swept_hour + _SWEEP_HOURS:
            return
        self._swept_hour = hour
        self._cases = {key: case for key, case in self._cases.items() if case.first_hour > hour - KEPT_HOURS}


class HourScores:
    """The largest scores of an hour's cases, as many as matter.

    Args:
        most: Cases that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._reaches: dict[Hashable, ThresholdRange] = {}
        self._columns: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def note(self, case: Hashable, reach: ThresholdRange) -> None:
        """Note what a case reaches in the hour, in place of what it reached before."""
        self._reaches[case] = reach
        self._columns = None
        # A case whose score rises later comes again, whole: what is trimmed now may be forgotten.
        if len(self._reaches) > 2 * self._most:
            self._trim()

    def columns(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scores, and scores before, of the cases with the largest scores, these first; shape (n,) each."""
        if self._columns is None:
            self._trim()
            found = np.array(sorted(self._reaches.values(), key=_best_first), float).reshape(-1, 2)
            self._columns = found[:, 0], found[:, 1]
        return self._columns

    def _trim(self) -> None:
        if len(self._reaches) > self._most:
            best = sorted(self._reaches.items(), key=lambda item: _best_first(item[1]))
            self._reaches = dict(best[: self._most])


def _best_first(reach: ThresholdRange) -> tuple[float, float]:
    return -reach.score, reach.before


Signed = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Scores, and for each 1 where a case reaches it, -1 where it had been reached before; shape (n,) each."""


def signed(hours: Sequence[HourScores]) -> Signed:
    """Return what cases reach in some hours. A case counts at a threshold in the hour in which it alerts first."""
    columns = [hour.columns() for hour in hours]
    reached = np.concatenate([np.empty(0), *(score for score, _ in columns)])
    before = np.concatenate([np.empty(0), *(earlier[earlier > 0] for _, earlier in columns)])
    return np.concatenate([reached, before]), np.concatenate([np.ones(len(reached)), -np.ones(len(before))])


def quantile(parts: Sequence[Signed], weights: Sequence[float], rate: float) -> float:
    """Return the lowest threshold at which the parts, each weighted, have at most ``rate`` first alerts.

    Args:
        parts: What cases reach in some hours each, as `signed` returns it.
        weights: For each part, how many first alerts one of its own stands for.
        rate: Most first alerts of all parts together.

    Returns:
        `LOWEST_THRESHOLD` or more; above all scores where even the highest would be too many.
    """
    scores = np.concatenate([score for score, _ in parts])
    signs = np.concatenate([weight * sign for weight, (_, sign) in zip(weights, parts, strict=True)])
    return budget_threshold(scores, signs, 1.0, rate)


def reaching(part: Signed, threshold: float) -> float:
    """Return how many cases alert first at a threshold."""
    score, sign = part
    return float(sign[score >= threshold].sum())
