"""Targets of a training that takes reported frauds at once, with unreported transactions of their age as a balance."""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.learning.report_delays import ReportDelays, unreported_weight

LARGEST_WEIGHT: Final = 5.0
"""Bound of a young fraud's weight."""


class Targets(NamedTuple):
    """Targets of k rows."""

    rows: NDArray[np.intp]
    """Rows in ascending order, shape (k,)."""
    fraud: NDArray[np.bool_]
    """True for rows that are taken as fraud, shape (k,)."""
    weight: NDArray[np.float64]
    """Weight of each, above 0, shape (k,)."""


class EarlyReports(NamedTuple):
    """Reports of transactions that are not mature yet, as a training takes them."""

    as_of_us: int
    """Only what was known by then is used."""
    delays: ReportDelays

    def targets(
        self,
        event_time_us: NDArray[np.int64],
        reported_us: NDArray[np.int64],
        behind_us: int,
        score: Callable[[NDArray[np.intp]], NDArray[np.float64]],
    ) -> Targets:
        """Return the training targets of the rows behind a training's last target.

        Args:
            event_time_us: Event times of the training set, shape (n,).
            reported_us: When each row was first reported as fraud, shape (n,); `NEVER_US` if it was not.
            behind_us: Event time of the last target.
            score: Gives the probability of fraud of some rows.
        """
        rows = np.flatnonzero(
            (event_time_us > behind_us)
            & (event_time_us <= self.as_of_us)
            & (self.delays.share_reported(np.maximum(self.as_of_us - event_time_us, 0)) > 0)
        )
        if not len(rows):
            return Targets(rows, np.empty(0, np.bool_), np.empty(0))
        found = targets_at(self.as_of_us, event_time_us[rows], reported_us[rows], score(rows), self.delays)
        return found._replace(rows=rows[found.rows])


def targets_at(
    as_of_us: int,
    event_time_us: NDArray[np.int64],
    reported_us: NDArray[np.int64],
    probability: NDArray[np.float64] | None,
    delays: ReportDelays,
) -> Targets:
    """Return the training targets of n rows by what was known at a time.

    A row is mature from the age ``delays.maturity_us`` on: fraud if it was reported, else legitimate, at weight 1. Of
    a younger one, F is the share of the reports that come by its age. A reported one is fraud at weight min(1 / F,
    `LARGEST_WEIGHT`), and stands for those that are still to be reported. An unreported one is legitimate at weight
    1 - q, where q = p (1 - F) / (1 - p F) is the probability that it is a fraud all the same. Rows of an age at which
    no report has come yet (F = 0) are left out, so that one fixed delay leaves mature rows alone.

    Args:
        as_of_us: Only rows and reports up to this time count.
        event_time_us: Event times, shape (n,).
        reported_us: When each row was first reported as fraud, shape (n,); `NEVER_US` if it was not.
        probability: p, the score of each row by the version before, shape (n,). None: the mature rows' fraud rate.
        delays: The distribution of reporting delays.
    """
    age_us = as_of_us - event_time_us
    reported = reported_us <= as_of_us
    mature = age_us >= delays.maturity_us
    share = np.where(mature, 1.0, delays.share_reported(np.maximum(age_us, 0)))
    rows = np.flatnonzero((age_us >= 0) & (share > 0))
    mature, reported, share = mature[rows], reported[rows], share[rows]
    if probability is None:
        p = np.full(len(rows), float(reported[mature].mean()) if mature.any() else 0.0)
    else:
        p = probability[rows]
    weight = np.where(reported, np.minimum(1.0 / share, LARGEST_WEIGHT), unreported_weight(p, share))
    weight[mature] = 1.0
    used = weight > 0
    return Targets(rows[used], reported[used], weight[used])
