"""Budget figures of a variant whose threshold is set anew each hour."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.report.content import PacingContent
from pipeline.backtest.report.observed import Observed, Shared
from pipeline.backtest.runner.pacing import FirstAlerts
from schemas.times import US_PER_DAY

_WEEK: Final = 7
_OF_DAYS: Final = 0.3
_OF_WEEKS: Final = 0.05


def pacing(first: FirstAlerts, shared: Shared, observed: Observed) -> PacingContent:
    """Return the figures of a variant's whole days."""
    counts = _whole_days(first, shared)
    weeks = np.convolve(counts, np.ones(_WEEK) / _WEEK, "valid") if len(counts) >= _WEEK else np.empty(0)
    return PacingContent(
        budget=first.alerts_per_day,
        days=len(counts),
        alerts_per_day=_mean(counts),
        days_within_30=_share_within(counts, first.alerts_per_day, _OF_DAYS),
        weeks_within_5=_share_within(weeks, first.alerts_per_day, _OF_WEEKS),
        hindsight_share=_hindsight_share(shared.truth.fraud, observed),
    )


def _whole_days(first: FirstAlerts, shared: Shared) -> NDArray[np.float64]:
    begin = -(-shared.from_us // US_PER_DAY)
    end = shared.until_us // US_PER_DAY
    return np.array([first.by_day.get(day, 0) for day in range(begin, end)], np.float64)


def _hindsight_share(fraud: NDArray[np.bool_], observed: Observed) -> float | None:
    alerts = int(np.count_nonzero(observed.alert))
    if not alerts:
        return None
    highest = np.argsort(-observed.score, kind="stable")[:alerts]
    found = int(np.count_nonzero(fraud[highest]))
    return float(np.count_nonzero(fraud & observed.alert) / found) if found else None


def _share_within(values: NDArray[np.float64], budget: float, share: float) -> float | None:
    return float(np.mean(np.abs(values / budget - 1.0) <= share + 1e-9)) if len(values) else None


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None
