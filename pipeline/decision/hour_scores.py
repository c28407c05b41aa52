"""The largest scores of an hour's cases, and the threshold at which so many cases alert first."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.decision.budget import budget_threshold
from pipeline.decision.case_scores import ThresholdRange


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
    """Return the lowest threshold at which the parts, each weighted, have at most ``rate`` first alerts."""
    scores = np.concatenate([score for score, _ in parts])
    signs = np.concatenate([weight * sign for weight, (_, sign) in zip(weights, parts, strict=True)])
    return budget_threshold(scores, signs, 1.0, rate)


def reaching(part: Signed, threshold: float) -> float:
    """Return how many cases alert first at a threshold."""
    score, sign = part
    return float(sign[score >= threshold].sum())
