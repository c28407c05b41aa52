"""Drift as a reason to train again, in a sentence."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.monitoring.daily import OUTCOMES, REPORT_AGE, REPORTS, DailyCounts, day_text
from pipeline.monitoring.drift import DEFAULT_OPTIONS, DriftOptions, Finding, drifted, judge
from pipeline.scoring.distributions import FeatureDistribution

LEAST_IMPORTANCE: Final = 0.01
"""Gain share below which a feature's drift is no reason to train."""
_NO_REASON: Final = (*OUTCOMES, REPORTS, REPORT_AGE)
"""Series that training again would not mend."""


def drift_reason(
    event_time_us: NDArray[np.int64],
    features: NDArray[np.float64],
    score: NDArray[np.float64],
    distributions: Sequence[FeatureDistribution],
    importance: Mapping[str, float],
    options: DriftOptions = DEFAULT_OPTIONS,
) -> str | None:
    """Return why served decisions are a reason to train again; None without one.

    Only features count. Scores and alerts change with every version, and reports that do not come are no reason to
    learn from them.

    Args:
        event_time_us: Shape (n,), in microseconds since 1970-01-01T00:00:00Z. The day of the newest is not assessed
            unless its last hour has begun.
        features: Shape (n, len(FEATURES)), as served; NaN for no value.
        score: Shape (n,).
        distributions: Those of the active LightGBM version (``model.distributions``).
        importance: Gain share by feature (``model.gain_shares``); other features are not watched.
        options: Options of drift detection.
    """
    counts = DailyCounts([distribution for distribution in distributions if distribution.name in importance])
    counts.add_decisions(event_time_us, features, score)
    found = drifted(
        judge(counts.histories(), importance, options), least_importance=LEAST_IMPORTANCE, ignored=_NO_REASON
    )
    return f"drift of {'; '.join(map(drift_text, found))}" if found else None


def drift_text(found: Finding) -> str:
    """Return a finding in words.

    >>> drift_text(Finding(17699, "amount", 1e-9, 0.1, 0.3, 17698, "no value", 0.0, 0.02))
    'amount since 2018-06-16 (share of no value: 0.0% -> 2.0%)'
    """
    return f"{found.name} since {day_text(found.since)} (share of {found.bin}: {found.before:.1%} -> {found.now:.1%})"
