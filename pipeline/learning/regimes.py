"""Label regimes: which transactions get a label, and how long it takes."""

from typing import Annotated, Final

import msgspec
import numpy as np
import scipy
from msgspec import Meta
from numpy.typing import NDArray

from pipeline.learning.reporting import Reported
from pipeline.learning.sampling import sample_positions
from schemas.limits import check_limits
from schemas.times import US_PER_DAY

NEVER_US: Final = np.iinfo(np.int64).max
"""The time at which a transaction without a label gets one."""
DELAY_SAMPLE: Final = "report-delay"
NEVER_SAMPLE: Final = "never-reported"
EARLY_SAMPLE: Final = "reported-early"
EARLY_DELAY_SAMPLE: Final = "early-delay"
LEGITIMATE_SAMPLE: Final = "labelled-legitimate"
CORRECTED_SAMPLE: Final = "corrected"
MATURE_SHARE: Final = 0.9
_LONGEST_DAYS: Final = 36_500.0


class LabelRegime(msgspec.Struct, frozen=True, kw_only=True):
    """The transactions that get a label, and their delays.

    A delay is the same for all transactions, or log-normal. A share of the frauds may be reported early, evenly over
    the first hours. A share of the labels may say the opposite first, and be corrected later. Which frauds are early or
    never reported, which legitimate transactions are labelled, which labels are corrected, and which delay a
    transaction has, follows from its identity: the same on every run.

    >>> regime = LabelRegime(reported="frauds-only", delay_days=5.0, delay_spread=0.5, never_reported=0.1)
    >>> round(float(regime.share_reported(np.array([5.0]))[0]), 2)
    0.45
    >>> early = LabelRegime(early_share=0.3, early_hours=6.0)
    >>> early.share_reported(np.array([0.125, 0.25, 6.9, 7.0])).tolist()
    [0.15, 0.3, 0.3, 1.0]

    Raises:
        ValueError: A number is out of range.
    """

    delay_days: Annotated[
        float,
        Meta(ge=0, description="From a transaction to its label.", extra={"option": "--label-delay", "unit": "days"}),
    ] = 7.0
    """The median, of those that are not early."""
    reported: Annotated[Reported, Meta(description="Which transactions get labels from a file's truth.")] = "all"
    """``all``: frauds and legitimate transactions get labels. ``frauds-only``: nobody reports a legitimate one.
    ``mixed``: a share of the legitimate ones get labels, as from reviews."""
    legitimate_share: Annotated[
        float,
        Meta(ge=0, le=1, description="Share of the legitimate transactions that get labels with --reported mixed."),
    ] = 0.1
    delay_spread: Annotated[
        float,
        Meta(ge=0, le=5, description="Standard deviation of the logarithm of the labels' delay; 0 for one delay."),
    ] = 0.0
    early_share: Annotated[
        float,
        Meta(ge=0, le=1, description="Share of the reported frauds that are reported within --early-hours."),
    ] = 0.0
    early_hours: Annotated[float, Meta(gt=0, le=720, description="Time within which early reports come, evenly.")] = 6.0
    never_reported: Annotated[float, Meta(ge=0, lt=1, description="Share of the frauds that nobody reports.")] = 0.0
    corrected_share: Annotated[
        float, Meta(ge=0, le=1, description="Share of the labels that say the opposite first.")
    ] = 0.0
    correction_days: Annotated[float, Meta(gt=0, le=365, description="From such a label to its correction.")] = 7.0

    def __post_init__(self) -> None:
        check_limits(self)

    @property
    def one_delay(self) -> bool:
        """True if labels come in the order of their transactions."""
        return self.delay_spread == 0 and self.early_share == 0 and self.corrected_share == 0

    @property
    def maturity_days(self) -> float:
        """Age by which nine tenths of the reports have come."""
        if self.early_share == 0:
            return self._late_days(MATURE_SHARE)
        if self.early_share < MATURE_SHARE:
            late = self._late_days((MATURE_SHARE - self.early_share) / (1.0 - self.early_share))
            if late * 24 >= self.early_hours:
                return late
        # The age lies within the early hours, where both kinds of reports come: halve until it is found.
        low, high = 0.0, self.early_hours / 24
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if self._come(np.array([middle]))[0] >= MATURE_SHARE else (middle, high)
        return high

    def share_reported(self, age_days: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of the frauds that are reported by an age.

        Args:
            age_days: Any shape.
        """
        return np.asarray((1.0 - self.never_reported) * self._come(age_days))

    def _late_days(self, share: float) -> float:
        """Return the age by which a share of the reports that are not early have come."""
        return float(
            self.delay_days * (np.exp(self.delay_spread * scipy.special.ndtri(share)) if self.delay_spread else 1.0)
        )

    def _come(self, age_days: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of the reports that have come by an age."""
        if self.delay_spread == 0 or self.delay_days == 0:
            late = (age_days >= self.delay_days).astype(np.float64)
        else:
            with np.errstate(divide="ignore"):
                late = scipy.special.ndtr((np.log(age_days) - np.log(self.delay_days)) / self.delay_spread)
        if self.early_share == 0:
            return np.asarray(late)
        early = np.clip(age_days * 24 / self.early_hours, 0.0, 1.0)
        return np.asarray(self.early_share * early + (1.0 - self.early_share) * late)

    def describe(self) -> dict[str, str | float]:
        """Return the identity of the regime, by the names of its fields; what has no effect is left out."""
        found: dict[str, str | float] = {"delay_days": float(self.delay_days), "reported": self.reported}
        if self.reported == "mixed":
            found["legitimate_share"] = float(self.legitimate_share)
        if self.early_share:
            found |= {"early_share": float(self.early_share), "early_hours": float(self.early_hours)}
        if self.corrected_share:
            found |= {
                "corrected_share": float(self.corrected_share),
                "correction_days": float(self.correction_days),
            }
        return found | {
            name: value for name in ("delay_spread", "never_reported") if (value := float(getattr(self, name)))
        }

    def known_at_us(
        self, event_time_us: NDArray[np.int64], fraud: NDArray[np.bool_], identity: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        """Return when each of n transactions gets its label, shape (n,); `NEVER_US` for one without.

        Args:
            event_time_us: Shape (n,).
            fraud: What they turned out to be.
            identity: Their `transaction_hash`.
        """
        delay_days = np.full(len(fraud), self.delay_days, np.float64)
        if self.delay_spread:
            delay_days *= np.exp(self.delay_spread * scipy.special.ndtri(sample_positions(identity, DELAY_SAMPLE)))
        if self.early_share:
            early = fraud & (sample_positions(identity, EARLY_SAMPLE) < self.early_share)
            delay_days[early] = sample_positions(identity[early], EARLY_DELAY_SAMPLE) * (self.early_hours / 24)
        labelled = fraud & (sample_positions(identity, NEVER_SAMPLE) >= self.never_reported)
        if self.reported == "all":
            labelled |= ~fraud
        elif self.reported == "mixed":
            labelled |= ~fraud & (sample_positions(identity, LEGITIMATE_SAMPLE) < self.legitimate_share)
        # A position of 0 is no delay at all; one that is endless comes after everything.
        known = event_time_us + np.minimum(delay_days, _LONGEST_DAYS) * US_PER_DAY
        return np.where(labelled, np.rint(known).astype(np.int64), NEVER_US)

    def corrected_at_us(self, known_at_us: NDArray[np.int64], identity: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return when each of n labels is corrected, shape (n,); `NEVER_US` for one that is right from the beginning.

        Args:
            known_at_us: What `known_at_us` gave, shape (n,).
            identity: The `transaction_hash` of their transactions, shape (n,).
        """
        if not self.corrected_share:
            return np.full(len(known_at_us), NEVER_US)
        wrong = (known_at_us < NEVER_US) & (sample_positions(identity, CORRECTED_SAMPLE) < self.corrected_share)
        corrected = np.full(len(known_at_us), NEVER_US)
        corrected[wrong] = known_at_us[wrong] + round(self.correction_days * US_PER_DAY)
        return corrected
