"""Cases in the decisions of one partition: which decision is the first of its case to reach a threshold."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, NamedTuple

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
