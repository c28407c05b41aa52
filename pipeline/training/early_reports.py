"""Targets of a training that takes reported frauds at once, with unreported transactions of their age as a balance."""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.learning.report_delays import ReportDelays, unreported_weight

LARGEST_WEIGHT: Final = 5.0
"""Bound of a young fraud's weight."""


class Targets(NamedTuple):
    """Targets of k rows; every array has shape (k,)."""

    rows: NDArray[np.intp]
    """Rows in ascending order."""
    fraud: NDArray[np.bool_]
    """True for rows that are taken as fraud."""
    weight: NDArray[np.float64]
    """Weight of each, above 0."""


class EarlyReports(NamedTuple):
    """Reports of transactions that are not mature yet, as a training takes them."""

    as_of_us: int
    """Only what was known by then is used."""
    delays: ReportDelays

    def targets(
        self,
        event_time_us: NDArray[np.int64],
        reported_us: NDArray[np.int64],
        probability: Callable[[NDArray[np.intp]], NDArray[np.float64]],
        behind_us: int = -1,
    ) -> Targets:
        """Return the training targets of the rows behind an event time, such as a training's last target.

        A row is mature from the age ``delays.maturity_us`` on: fraud if it was reported, else legitimate, at weight 1.
        Of a younger one, F is the share of the reports that come by its age. A reported one is fraud at weight
        min(1 / F, `LARGEST_WEIGHT`), and stands for those that are still to be reported. An unreported one is
        legitimate at weight 1 - q, where q = p (1 - F) / (1 - p F) is the probability that it is a fraud all the same.
        Rows of an age at which no report has come yet (F = 0) are left out, so that one fixed delay leaves mature rows
        alone.

        Args:
            event_time_us: Event times, shape (n,).
            reported_us: When each row was first reported as fraud, shape (n,); `NEVER_US` if it was not.
            probability: Gives p of some rows: their scores by the version before.
            behind_us: Event time behind which rows are targets.
        """
        age_us = self.as_of_us - event_time_us
        mature = age_us >= self.delays.maturity_us
        share = np.where(mature, 1.0, self.delays.share_reported(np.maximum(age_us, 0)))
        rows = np.flatnonzero((event_time_us > behind_us) & (age_us >= 0) & (share > 0))
        if not len(rows):
            return Targets(rows, np.empty(0, np.bool_), np.empty(0))
        reported, share = reported_us[rows] <= self.as_of_us, share[rows]
        unreported = unreported_weight(probability(rows), share)
        weight = np.where(reported, np.minimum(1.0 / share, LARGEST_WEIGHT), unreported)
        weight[mature[rows]] = 1.0
        used = weight > 0
        return Targets(rows[used], reported[used], weight[used])
