"""Estimates from an audit sample: the frauds that nobody reports, and the recall of alerts."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from schemas.times import US_PER_DAY

NOT_SELECTED, BY_SCORE_OR_RULE, BY_AUDIT = -1, 0, 1
_LARGEST: Final = 1 << 40
"""No number of frauds is searched for above this."""
_SHARE_EDGES: Final = (0.5, 0.75, 0.9)
"""Shares reported by an age, between which ages are grouped."""


class AuditRows(NamedTuple):
    """Decided transactions that were selected or reported; every array has shape (n,)."""

    event_time_us: NDArray[np.int64]
    selection: NDArray[np.int8]
    """`NOT_SELECTED`, `BY_SCORE_OR_RULE` or `BY_AUDIT`."""
    probability: NDArray[np.float64]
    """``selection_probability`` of the decision."""
    answered: NDArray[np.bool_]
    """True if an analyst or auditor said what it was."""
    fraud: NDArray[np.bool_]
    """True where it is known to be fraud now."""
    reported_us: NDArray[np.int64]
    """Time of the first report as fraud by somebody else; `pipeline.learning.regimes.NEVER_US` without one."""

    def take(self, rows: NDArray[np.bool_]) -> "AuditRows":
        """Return the rows of a mask of shape (n,)."""
        columns: Iterable[NDArray[Any]] = self
        return AuditRows(*(column[rows] for column in columns))


class AuditOptions(NamedTuple):
    """Options of `assess`."""

    confidence: float = 0.95
    """Confidence of each interval by itself."""
    mature_days: float = 30.0
    """Age by which a fraud that nobody has reported counts as never reported."""
    least_age_days: float = 7.0
    """Younger transactions are left out."""


DEFAULT_OPTIONS: Final = AuditOptions()


class Interval(NamedTuple):
    """Bounds of a number or a share; ``high`` is infinite where nothing bounds it."""

    low: float
    high: float


class Unreported(NamedTuple):
    """Frauds without an alert that nobody has reported, as an audit bounds them."""

    audited: int
    """Audited transactions of which somebody said what they were."""
    unanswered: int
    """Audited transactions of which nobody did."""
    found: int
    """Unreported frauds among them."""
    frauds: Interval
    """Unreported frauds among all transactions."""


class AuditReport(NamedTuple):
    """Frauds of a period by how they were found."""

    alerted: int
    """Frauds among alerts by score or rule."""
    unanswered: int
    """Such alerts of which nobody said what they were."""
    missed: int
    """Frauds without such an alert that were reported so far."""
    missed_in_time: Interval
    """Frauds without such an alert that are reported within `AuditOptions.mature_days`."""
    unreported: Unreported
    """Frauds that are unreported so far."""
    missed_mature: int
    """``missed`` among transactions of `AuditOptions.mature_days` and more."""
    never_reported: Unreported
    """Frauds among them that are unreported: nobody will report them."""

    @property
    def never_reported_share(self) -> Interval:
        """Share of the frauds without an alert that nobody reports."""
        low, high = self.never_reported.frauds
        return Interval(_share(low, self.missed_mature), _share(high, self.missed_mature))

    @property
    def recall(self) -> Interval:
        """Share of all frauds that score and rules alert on."""
        low, high = self.unreported.frauds
        return Interval(_share(self.alerted, self.missed + high), _share(self.alerted, self.missed + low))

    @property
    def recall_of_reported(self) -> Interval:
        """The same among the frauds that are alerted on or reported in time; it needs no audit."""
        low, high = self.missed_in_time
        return Interval(_share(self.alerted, high), _share(self.alerted, low))


def assess(rows: AuditRows, now_us: int, options: AuditOptions = DEFAULT_OPTIONS) -> AuditReport:
    """Bound the frauds that are missed and those that nobody reports.

    Bounds are exact and conservative. Where each fraud is found with probability p and k were found, inverting the
    binomial distribution bounds their number (Clopper and Pearson, 1934). Rows of similar probabilities form a group,
    of which the smallest gives the upper bound and the largest the lower. Groups share the error rate (Bonferroni).

    An auditor who does not answer is taken to be as likely not to answer for a fraud as for another transaction.

    Args:
        rows: All transactions of a period that were selected or reported, and others if you like. The period must lie
            within the time in which the policy audits.
        now_us: Time up to which reports count, in microseconds since 1970-01-01T00:00:00Z.
        options: Options.
    """
    age_days = (now_us - rows.event_time_us) / US_PER_DAY
    rows = rows.take(age_days >= options.least_age_days)
    age_days = (now_us - rows.event_time_us) / US_PER_DAY
    alert, reported = rows.selection == BY_SCORE_OR_RULE, rows.reported_us <= now_us
    missed, mature = ~alert & reported, age_days >= options.mature_days
    error = 1.0 - options.confidence
    return AuditReport(
        alerted=int((alert & rows.fraud).sum()),
        unanswered=int((alert & ~rows.answered & ~reported).sum()),
        missed=int(missed.sum()),
        missed_in_time=_in_time(rows, age_days, missed, error, options.mature_days),
        unreported=_unreported(rows, now_us, error),
        missed_mature=int((missed & mature).sum()),
        never_reported=_unreported(rows.take(mature), now_us, error),
    )


def _unreported(rows: AuditRows, now_us: int, error: float) -> Unreported:
    audit = rows.selection == BY_AUDIT
    found = audit & rows.answered & rows.fraud & (rows.reported_us > now_us)
    groups = []
    # Probabilities within a factor of two of each other form a group.
    with np.errstate(divide="ignore"):
        scale = np.floor(np.log2(rows.probability))
    for value in np.unique(scale[audit]):
        inside = audit & (scale == value)
        answers = float(rows.answered[inside].mean())
        low, high = float(rows.probability[inside].min()), float(rows.probability[inside].max())
        groups.append((int((found & inside).sum()), low * answers, high * answers))
    return Unreported(
        audited=int((audit & rows.answered).sum()),
        unanswered=int((audit & ~rows.answered).sum()),
        found=int(found.sum()),
        frauds=_bounded(groups, error) if groups else Interval(0.0, math.inf),
    )


def _in_time(
    rows: AuditRows, age_days: NDArray[np.float64], missed: NDArray[np.bool_], error: float, mature_days: float
) -> Interval:
    """Bound the missed frauds that are reported within ``mature_days`` from those reported so far.

    The share F that is reported by an age comes from mature transactions, within the band of Dvoretzky, Kiefer,
    Wolfowitz and Massart (1990), which takes half of the error rate.
    """
    delay_days = (rows.reported_us - rows.event_time_us) / US_PER_DAY
    in_time = missed & (delay_days <= mature_days)
    mature = age_days >= mature_days
    counted = int((in_time & mature).sum())
    young = in_time & ~mature
    if not young.any():
        return Interval(counted, counted)
    if not counted:
        return Interval(int(young.sum()), math.inf)
    delays = np.sort(delay_days[in_time & mature])
    band = math.sqrt(math.log(4.0 / error) / (2.0 * counted))
    share = np.searchsorted(delays, age_days[young], side="right") / counted
    group = np.searchsorted(_SHARE_EDGES, share, side="right")
    groups = []
    for number in np.unique(group):
        inside = share[group == number]
        low, high = max(float(inside.min()) - band, 0.0), min(float(inside.max()) + band, 1.0)
        groups.append((len(inside), low, high))
    bounds = _bounded(groups, error / 2.0)
    return Interval(counted + bounds.low, counted + bounds.high)


def _bounded(groups: Sequence[tuple[int, float, float]], error: float) -> Interval:
    """Bound a total of groups (number found, smallest and largest probability with which each is found)."""
    each = error / (2 * len(groups))
    return Interval(
        sum(_fewest(found, high, each) for found, _, high in groups),
        sum(_most(found, low, each) for found, low, _ in groups),
    )


def _most(found: int, probability: float, error: float) -> float:
    """Return the largest number of which at most ``found`` are found with a probability above ``error``.

    >>> _most(0, 0.5, 0.05), _most(3, 1.0, 0.05)
    (4, 3)
    """
    if probability <= 0.0:
        return math.inf
    if probability >= 1.0:
        return found
    return _last(found, lambda n: n == found or betainc(n - found, found + 1, 1.0 - probability) > error)


def _fewest(found: int, probability: float, error: float) -> float:
    """Return the smallest number of which at least ``found`` are found with a probability above ``error``.

    >>> _fewest(0, 0.5, 0.05), _fewest(3, 0.5, 0.05)
    (0, 3)
    """
    if found == 0 or probability >= 1.0:
        return found
    return _last(found, lambda n: n == found or betainc(found, n - found, probability) <= error)


def _last(first: int, holds: Callable[[int], bool]) -> int:
    """Return the last whole number from ``first`` on for which ``holds``; it holds up to there."""
    low, high = first, first + 1
    while high < _LARGEST and holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _share(part: float, rest: float) -> float:
    if math.isinf(part):
        return 1.0
    return part / (part + rest) if part + rest else 0.0
