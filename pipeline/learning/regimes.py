"""Label regimes: which transactions get a label, and how long it takes."""

from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from pipeline.features.catalogue import US_PER_DAY
from pipeline.learning.sampling import sample_positions

Reported = Literal["all", "frauds-only"]

NEVER_US: Final = np.iinfo(np.int64).max
"""The time at which a transaction without a label gets one."""
DELAY_SAMPLE: Final = "report-delay"
NEVER_SAMPLE: Final = "never-reported"
_MATURE_SHARE: Final = 0.9


class LabelRegime(msgspec.Struct, frozen=True, kw_only=True):
    """The transactions that get a label, and their delays.

    A delay is the same for all transactions, or log-normal. Which frauds are never reported, and which delay a
    transaction has, follows from its identity: the same on every run.

    >>> regime = LabelRegime(reported="frauds-only", delay_days=5.0, delay_spread=0.5, never_reported=0.1)
    >>> round(float(regime.share_reported(np.array([5.0]))[0]), 2)
    0.45

    Raises:
        ValueError: A number is out of range.
    """

    reported: Reported = "all"
    """``all``: frauds and legitimate transactions get labels. ``frauds-only``: nobody reports a legitimate one."""
    delay_days: float = 7.0
    """Median time from a transaction to its label."""
    delay_spread: float = 0.0
    """Standard deviation of the logarithm of the delay; 0 for one delay."""
    never_reported: float = 0.0
    """Share of the frauds that nobody reports."""

    def __post_init__(self) -> None:
        if not (self.delay_days >= 0 and 0 <= self.delay_spread <= 5 and 0 <= self.never_reported < 1):
            raise ValueError(
                "a label regime has a delay of 0 days or more, a spread from 0 to 5, and a share never reported from 0 "
                f"to below 1, not {self.delay_days:g}, {self.delay_spread:g} and {self.never_reported:g}"
            )

    @property
    def maturity_days(self) -> float:
        """Age by which nine tenths of the reports have come."""
        return float(self.delay_days * np.exp(self.delay_spread * ndtri(_MATURE_SHARE)))

    def share_reported(self, age_days: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of the frauds that are reported by an age.

        Args:
            age_days: Any shape.
        """
        if self.delay_spread == 0:
            done = (age_days >= self.delay_days).astype(np.float64)
        else:
            with np.errstate(divide="ignore"):
                done = ndtr((np.log(age_days) - np.log(self.delay_days)) / self.delay_spread)
        return np.asarray((1.0 - self.never_reported) * done)

    def known_at_us(
        self, event_time_us: NDArray[np.int64], fraud: NDArray[np.bool_], identity: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        """Return when each of n transactions gets its label, shape (n,); `NEVER_US` for one without.

        Args:
            event_time_us: Shape (n,).
            fraud: What they turned out to be.
            identity: Their `transaction_hash`.
        """
        delay_days = np.full(len(fraud), self.delay_days)
        if self.delay_spread:
            delay_days *= np.exp(self.delay_spread * ndtri(sample_positions(identity, DELAY_SAMPLE)))
        labelled = fraud & (sample_positions(identity, NEVER_SAMPLE) >= self.never_reported)
        if self.reported == "all":
            labelled |= ~fraud
        # A position of 0 is no delay at all; one that is endless comes after everything.
        known = event_time_us + np.minimum(delay_days, 36_500.0) * US_PER_DAY
        return np.where(labelled, np.rint(known).astype(np.int64), NEVER_US)
