"""The gate of the online model: reported frauds take it out of the score, and let it back."""

from collections.abc import Sequence
from math import sqrt
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.learning.labels import KNOWN_FRAUD, UNSEEN, StateNumbers, resolve_numbers
from schemas.times import US_PER_DAY

TOP: Final = 100
"""Highest scores of a day that are compared."""
REPORT_DAYS: Final = 7
"""Days of reports that the gate goes by."""
REACH_DAYS: Final = 15
"""Days, the newest included, whose highest scores are kept: reports come days after their transactions."""
OPENS: Final = 1.64
"""Above it the online model is let in: one-sided, 5 %."""
CLOSES: Final = 0.0
"""Below it the online model is taken out."""

Identity = tuple[str, str]
"""Card and transaction."""


class BothScores(NamedTuple):
    """n decisions with the scores of both ways to decide."""

    event_time_us: NDArray[np.int64]
    """Shape (n,)."""
    blend: NDArray[np.float64]
    """Score with the online model; shape (n,)."""
    lightgbm: NDArray[np.float64]
    """Score of LightGBM alone; shape (n,)."""
    identity: Sequence[Identity]
    """Length n; only those of high scores are read."""


class LabelReport(NamedTuple):
    """A label, as far as the gate asks."""

    identity: Identity
    rank: int
    """`pipeline.learning.labels.source_rank` of its source."""
    known: int
    """Index of `pipeline.learning.labels.KNOWN`."""
    labelled_at_us: int
    known_at_us: int


class BlendDecision(NamedTuple):
    """The gate's blend, and the counts behind it."""

    blend: float
    won: int
    """Reported frauds among the highest scores of the online model's days alone."""
    lost: int
    """Those of LightGBM's alone."""
    z: float
    """(won - lost) / sqrt(won + lost); 0 without either."""


def decide_blend(won: int, lost: int, blend: float) -> BlendDecision:
    """Return the blend that follows from the counts; between the two bounds it stays.

    >>> decide_blend(9, 1, 0.0).blend, decide_blend(6, 4, 0.0).blend, decide_blend(4, 6, 1.0).blend
    (1.0, 0.0, 0.0)
    """
    z = (won - lost) / sqrt(won + lost) if won + lost else 0.0
    return BlendDecision(1.0 if z > OPENS else 0.0 if z < CLOSES else blend, won, lost, z)


class _Best:
    """The highest scores of a day; of equal scores the first identity in order."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, Identity]] = []
        self._least = -np.inf

    def add(self, score: NDArray[np.float64], rows: NDArray[np.intp], identity: Sequence[Identity]) -> None:
        found = rows[score[rows] >= self._least]
        if len(found) > TOP:
            # All that are as high as the last one that has a chance.
            found = found[score[found] >= -np.partition(-score[found], TOP - 1)[TOP - 1]]
        if len(found):
            self._rows = sorted({*self._rows, *((-float(score[row]), identity[row]) for row in found.tolist())})[:TOP]
            self._least = -self._rows[-1][0] if len(self._rows) == TOP else -np.inf

    @property
    def identities(self) -> set[Identity]:
        return {identity for _, identity in self._rows}


class Gate:
    """Counts reported frauds that only one of two ways to score puts among the 100 highest of its day (UTC).

    Reports of the last 7 days count, about transactions of the last 15. How decisions and reports are cut into batches
    changes nothing. It needs no label of a legitimate transaction.
    """

    def __init__(self) -> None:
        self._days: dict[int, tuple[_Best, _Best]] = {}
        self._held: dict[Identity, tuple[StateNumbers, int]] = {}
        self._stream_time_us = 0

    def add(self, rows: BothScores) -> None:
        """Take in decisions."""
        if not len(rows.event_time_us):
            return
        self._stream_time_us = max(self._stream_time_us, int(rows.event_time_us.max()))
        first = self._stream_time_us // US_PER_DAY - REACH_DAYS + 1
        days = rows.event_time_us // US_PER_DAY
        for day in np.unique(days[days >= first]).tolist():
            of_day = np.flatnonzero(days == day)
            with_online, without = self._days.setdefault(day, (_Best(), _Best()))
            with_online.add(rows.blend, of_day, rows.identity)
            without.add(rows.lightgbm, of_day, rows.identity)
        self._days = {day: best for day, best in self._days.items() if day >= first}

    def report(self, label: LabelReport) -> None:
        """Take in a label; what somebody says of a transaction is resolved as everywhere."""
        held = self._held.get(label.identity)
        if held is None and label.known != KNOWN_FRAUD:
            return
        state, known_at_us = held if held is not None else (UNSEEN, label.known_at_us)
        numbers, _ = resolve_numbers(state, label.rank, label.labelled_at_us, label.known)
        self._held[label.identity] = numbers, min(known_at_us, label.known_at_us)

    def decide(self, blend: float) -> BlendDecision:
        """Return what follows from the reports that were taken in.

        Args:
            blend: The one that holds.
        """
        since_us = self._stream_time_us - REPORT_DAYS * US_PER_DAY
        self._held = {identity: held for identity, held in self._held.items() if held[1] > since_us}
        frauds = {identity for identity, (state, _) in self._held.items() if state[2] == KNOWN_FRAUD}
        won = lost = 0
        for with_online, without in self._days.values():
            ours, theirs = with_online.identities & frauds, without.identities & frauds
            won, lost = won + len(ours - theirs), lost + len(theirs - ours)
        return decide_blend(won, lost, blend)
