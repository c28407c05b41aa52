"""Reporting delays: the share of the reported frauds that is known at an age, declared or estimated."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.learning.labels import SOURCE_RANK, UNKNOWN_SOURCE_RANK
from pipeline.learning.regimes import MATURE_SHARE, LabelRegime
from pipeline.learning.reporting import LEAST_SHARE
from schemas.times import US_PER_DAY

COHORT_AGE_US: Final = 60 * US_PER_DAY
LEAST_REPORTS: Final = 50
FALLBACK: Final = LabelRegime(delay_days=30.0)

_TINY: Final = float(np.finfo(float).tiny)


def unreported_weight(probability: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weight of transactions without a report as legitimate ones.

    It is 1 - q, where q = p (1 - F) / (1 - p F) is the probability that one is a fraud that nobody has reported yet.

    Args:
        probability: p, their probability of fraud when they were scored; any shape.
        share: F, the share of the reported frauds that are reported by their age; the same shape.

    >>> unreported_weight(np.array([0.5, 0.5]), np.array([1.0, 0.0])).tolist()
    [1.0, 0.5]
    """
    return np.asarray(1.0 - probability * (1.0 - share) / np.maximum(1.0 - probability * share, _TINY))


@dataclass(frozen=True, slots=True)
class ReportDelays:
    """The distribution F of the time from a fraud to its first report, among frauds that are reported at all.

    >>> delays = ReportDelays(LabelRegime(delay_days=7.0))
    >>> delays.maturity_us // US_PER_DAY, delays.share_reported(np.array([6, 7]) * US_PER_DAY).tolist()
    (7, [0.0, 1.0])
    """

    regime: LabelRegime
    """The declared regime; that of the fallback, where too few reports are known."""
    observed_us: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Observed delays in ascending order; empty where the regime decides."""

    @classmethod
    def estimated(
        cls,
        event_time_us: NDArray[np.int64],
        reported_us: NDArray[np.int64],
        as_of_us: int,
        fallback: LabelRegime = FALLBACK,
    ) -> "ReportDelays":
        """Estimate the delays from old cohorts of n transactions, whose reports have come.

        A cohort counts the reports that came within `COHORT_AGE_US`, which all of its transactions have reached.
        With fewer than `LEAST_REPORTS` of them the delays are those of ``fallback``.

        Args:
            event_time_us: Event times, shape (n,).
            reported_us: When each was first reported as fraud, shape (n,); `NEVER_US` for never.
            as_of_us: What came later is not looked at.
            fallback: The regime in place of too few reports. By default one delay of 30 days, under which no younger
                report is used.
        """
        age_us = as_of_us - event_time_us
        # The difference is not taken where it could overflow.
        reported = (age_us >= COHORT_AGE_US) & (reported_us <= as_of_us)
        delay_us = np.maximum(reported_us[reported] - event_time_us[reported], 0)
        delay_us = np.sort(delay_us[delay_us <= COHORT_AGE_US])
        return cls(fallback) if len(delay_us) < LEAST_REPORTS else cls(fallback, delay_us)

    @property
    def is_estimated(self) -> bool:
        """True if observed delays decide."""
        return len(self.observed_us) > 0

    @property
    def maturity_us(self) -> int:
        """Age by which nine tenths of the reports have come, in microseconds."""
        if self.is_estimated:
            return int(np.quantile(self.observed_us, MATURE_SHARE, method="inverted_cdf"))
        return round(self.regime.maturity_days * US_PER_DAY)

    def share_reported(self, age_us: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return F, the share of the reports that have come by an age.

        Args:
            age_us: Ages in microseconds, any shape.
        """
        if self.is_estimated:
            found = np.searchsorted(self.observed_us, age_us, side="right")
            return np.asarray(found / len(self.observed_us), np.float64)
        return self.regime.share_reported(age_us / US_PER_DAY) / (1.0 - self.regime.never_reported)

    def describe(self) -> dict[str, float]:
        """Return how many reports were observed, and the ages by which half and nine tenths of them had come."""
        half, most = np.quantile(self.observed_us, (0.5, MATURE_SHARE), method="inverted_cdf") / US_PER_DAY
        return {"reports": len(self.observed_us), "half_days": float(half), "nine_tenths_days": float(most)}


def share_in_time(regime: LabelRegime, maturity_us: int) -> float:
    """Return F, the share of the reported frauds whose reports come within the maturity, as updates allow for it.

    Args:
        regime: The declared regime.
        maturity_us: Age at which a transaction without a report is presumed legitimate.

    >>> share_in_time(LabelRegime(delay_days=7.0, early_share=0.3), US_PER_DAY // 4)
    0.3
    """
    return max(float(ReportDelays(regime).share_reported(np.array([maturity_us]))[0]), LEAST_SHARE)


def described_by_source(
    event_time_us: NDArray[np.int64], reported_us: NDArray[np.int64], reported_by: NDArray[np.int8], as_of_us: int
) -> dict[str, dict[str, float]]:
    """Return the estimated delays of each source that reported first, and of all; without those of too few reports.

    Args:
        event_time_us: Event times, shape (n,).
        reported_us: When each was first reported as fraud, shape (n,); `NEVER_US` for never.
        reported_by: `source_rank` of who did, shape (n,).
        as_of_us: What came later is not looked at.
    """
    names = {rank: source for source, rank in SOURCE_RANK.items()} | {UNKNOWN_SOURCE_RANK: "other"}
    found = {"all": ReportDelays.estimated(event_time_us, reported_us, as_of_us)}
    for rank in sorted(set(reported_by[reported_us <= as_of_us].tolist()), reverse=True):
        rows = reported_by == rank
        found[names[rank]] = ReportDelays.estimated(event_time_us[rows], reported_us[rows], as_of_us)
    return {name: delays.describe() for name, delays in found.items() if delays.is_estimated}
