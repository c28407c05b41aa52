"""The gate of the online model, as the product decides it hour by hour, over scores that are known already."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.decision.online_gate import BothScores, Gate, Identity, LabelReport
from pipeline.decision.policy import FIRST_BLEND
from pipeline.learning.labels import FRAUD, KNOWN, source_rank
from pipeline.learning.regimes import LabelRegime
from pipeline.scoring.blend import sigmoid
from schemas.times import US_PER_HOUR
from tests.evaluation.detection import Data
from tests.evaluation.histories import hours_of


class _Rows(Sequence[Identity]):
    """Identities of rows, made only for those that are asked for."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return ("", f"{self._rows[index]:012d}")


def gated(
    data: Data,
    regime: LabelRegime,
    rows: NDArray[np.int64],
    without: NDArray[np.float64],
    river: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the log-odds that the product's gate lets through: it decides each hour, by what was reported until then.

    It begins as a new policy does, with `FIRST_BLEND`.

    Args:
        data: Truth of the rows.
        regime: When their frauds are reported.
        rows: Rows in the order of time, shape (n,).
        without: Log-odds of LightGBM alone, shape (n,).
        river: Log-odds with the online model, shape (n,).
    """
    frauds = rows[data.fraud[rows]]
    known_us = data.reported_us(regime, frauds)
    order = np.argsort(known_us, kind="stable")
    frauds, known_us = frauds[order], known_us[order]
    gate, blend, reported = Gate(), FIRST_BLEND, 0
    found = np.empty(len(rows))
    for begin, end in hours_of(data.times[rows]):
        now_us = int(data.times[rows[begin]]) // US_PER_HOUR * US_PER_HOUR
        until = int(np.searchsorted(known_us, now_us, side="right"))
        for row, at_us in zip(frauds[reported:until].tolist(), known_us[reported:until].tolist(), strict=True):
            identity = ("", f"{row:012d}")
            gate.report(LabelReport(identity, source_rank("chargeback"), KNOWN.index(FRAUD), at_us, at_us))
        reported = until
        blend = gate.decide(blend).blend
        source = slice(begin, end)
        found[source] = river[source] if blend else without[source]
        gate.add(
            BothScores(data.times[rows[source]], sigmoid(river[source]), sigmoid(without[source]), _Rows(rows[source]))
        )
    return found
