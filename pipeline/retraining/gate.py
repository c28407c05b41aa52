"""The gate: may a challenger replace the active version?

Both are assessed on matured transactions that neither was trained on. Of a challenger of the same recipe the gate asks
for no improvement: renewing is routine, and only harm stops it. A new recipe must be superior.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.decision.budget import case_numbers, case_threshold, first_alerts
from pipeline.learning.regimes import NEVER_US
from pipeline.retraining.paired import Scorings, mean_difference, paired_days, top_agreement
from pipeline.scoring.blend import sigmoid
from pipeline.training.score_metrics import calibration_error
from schemas.times import US_PER_DAY

LEAST_DAYS: Final = 2
"""Days that are compared, at least."""
_GROUP_ROWS: Final = 100
"""Alerts in a group of the calibration error, about; a share of so many is known to 0.05 or better."""
_MOST_GROUPS: Final = 10
_COUNT_DEVIATIONS: Final = 3.0
"""Standard deviations by which a count of cases may miss the budget, or one of frauds the expected, by chance."""
AMOUNT_BANDS: Final = 4
"""Bands of equally many transactions, from the smallest to the largest amounts."""


class GateLimits(NamedTuple):
    """Bounds that a challenger must keep."""

    alerts_per_day: float = 100.0
    """The budget: cards a day in the comparison, and cases a day that the threshold allows."""
    margin_per_100: float = 1.0
    """Frauds a day, for each 100 alerts, that the challenger may find less."""
    level: float = 0.95
    """Confidence that it does not find fewer than that."""
    calibration: float = 0.05
    """Calibration error among the alerts that it may have more than the active version."""
    volume: float = 0.1
    """Share of the budget by which its cases may miss the budget."""
    band_share: float = 0.5
    """Share of a band's frauds by which the expected number in it may miss the observed one."""
    superior: bool = False
    """The challenger must find more frauds; not finding fewer is not enough."""

    @property
    def top(self) -> int:
        """Cards a day that are compared."""
        return max(round(self.alerts_per_day), 1)

    @property
    def margin(self) -> float:
        """Frauds a day that the challenger may find less.

        Below 100 alerts a day it shrinks by the square root only, as chance does: no challenger could prove more.
        """
        share = self.alerts_per_day / 100.0
        return float(self.margin_per_100 * max(share, min(share, 1.0) ** 0.5))


class Band(NamedTuple):
    """Frauds in a band of amounts."""

    amount_from: float
    amount_to: float
    """Largest amount in it."""
    observed: int
    expected: float
    """Sum of the challenger's scores."""
    expected_active: float
    """Sum of the active version's scores."""

    def is_sound(self, share: float) -> bool:
        """Return whether the challenger expects about as many frauds as there were, or as the active version."""

        def near(count: float) -> bool:
            chance = _COUNT_DEVIATIONS * max(count, 1.0) ** 0.5
            return bool(abs(self.expected - count) <= max(share * count, chance))

        return near(float(self.observed)) or near(self.expected_active)

    @property
    def sentence(self) -> str:
        """Return a sentence for people that names the miscalibration."""
        return (
            f"of amounts from {self.amount_from:.2f} to {self.amount_to:.2f} it expects {self.expected:.0f} frauds, "
            f"where there were {self.observed} and the active version expects {self.expected_active:.0f}"
        )


class Judgement(NamedTuple):
    """The gate's judgement of a challenger."""

    accepted: bool
    reason: str
    """Sentence for people."""
    figures: dict[str, Any]
    """The measurements, as JSON has them."""


def judge(rows: Scorings, amount: NDArray[np.float64], limits: GateLimits) -> Judgement:
    """Compare a challenger with the active version.

    Args:
        rows: Matured rows of whole days that neither was trained on; the candidate is the challenger.
        amount: Amounts of the rows, shape (n,).
        limits: What it must keep.

    Raises:
        ValueError: The rows hold fewer than `LEAST_DAYS` days, or no fraud.
    """
    days = paired_days(rows, limits.top, by_report=False)
    frauds = rows.reported_us < NEVER_US
    if len(days.day) < LEAST_DAYS or not frauds.any():
        raise ValueError(
            f"the days to compare on hold {len(days.day)} days and {int(frauds.sum())} frauds: wait for more, or "
            "choose a longer comparison with --compare-days"
        )
    found = mean_difference(days.difference, limits.level)
    errors = [_alert_calibration(score, frauds, len(days.day), limits) for score in (rows.candidate, rows.reference)]
    case = case_numbers(rows.card, rows.event_time_us)
    volumes = [_cases_per_day(score, case, rows.event_time_us, limits) for score in (rows.candidate, rows.reference)]
    agreement = top_agreement(rows, limits.top)
    bands = _frauds_by_band(rows, amount, frauds)
    figures = {
        "compared_days": len(days.day),
        "compared_rows": len(rows.card),
        "compared_frauds": int(frauds.sum()),
        "alerts_per_day_budget": limits.alerts_per_day,
        "frauds_a_day_more": found.mean,
        "frauds_a_day_more_low": found.low,
        "frauds_a_day_more_high": found.high,
        "margin": limits.margin,
        "level": limits.level,
        "calibration_error": errors[0],
        "calibration_error_active": errors[1],
        "alerts_per_day": volumes[0],
        "alerts_per_day_active": volumes[1],
        "top_overlap": agreement[0],
        "top_rank_correlation": agreement[1],
        "bands_of_amounts": [band._asdict() for band in bands],
    }
    faults = []
    if limits.superior and found.low <= 0:
        faults.append(f"it is not proven to find more frauds ({found.mean:+.2f} a day, at least {found.low:+.2f})")
    elif found.low < -limits.margin:
        faults.append(
            f"it finds {found.mean:+.2f} frauds a day (at least {found.low:+.2f}; {-limits.margin:+.2f} is allowed)"
        )
    if errors[0] > errors[1] + limits.calibration:
        faults.append(
            f"the calibration error of its alerts is {errors[0]:.3f}, that of the active ones {errors[1]:.3f}"
        )
    faults += [band.sentence for band in bands if not band.is_sound(limits.band_share)]
    if not _keeps_budget(volumes[0], volumes[1], limits, len(days.day)):
        faults.append(f"it raises {volumes[0]:.1f} cases a day for a budget of {limits.alerts_per_day:g}")
    if faults:
        return Judgement(False, f"the challenger is rejected: {'; '.join(faults)}", figures)
    return Judgement(
        True,
        f"the challenger finds {found.mean:+.2f} frauds a day (at least {found.low:+.2f}) on {len(days.day)} days that "
        "it was not trained on",
        figures,
    )


def rescored(
    logit: NDArray[np.float64], served_logit: NDArray[np.float64], served_score: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the scores of other log-odds of LightGBM under what the online model added when the rows were served.

    All of shape (n,): ``logit`` of another LightGBM version, ``served_logit`` of the one that served.

    >>> rescored(np.array([2.0]), np.array([0.0]), np.array([0.5])) == sigmoid(np.array([2.0]))
    array([ True])
    """
    score = np.clip(served_score, 1e-17, 1.0 - 1e-16)
    return sigmoid(logit + (np.log(score) - np.log1p(-score) - served_logit))


def _frauds_by_band(rows: Scorings, amount: NDArray[np.float64], fraud: NDArray[np.bool_]) -> list[Band]:
    """Return observed and expected frauds by band of amounts.

    Labels that are wrong for a kind of transaction may leave the highest scores as they are. They show in the number of
    frauds that is expected of the kind.
    """
    edges = np.unique(np.quantile(amount, np.linspace(0, 1, AMOUNT_BANDS + 1)))
    number = np.searchsorted(edges[1:-1], amount, side="left")
    found = []
    for band in np.unique(number).tolist():
        in_band = number == band
        expected, expected_active = (float(score[in_band].sum()) for score in (rows.candidate, rows.reference))
        low, high = float(amount[in_band].min()), float(amount[in_band].max())
        found.append(Band(low, high, int(np.count_nonzero(fraud & in_band)), expected, expected_active))
    return found


def _alert_calibration(score: NDArray[np.float64], fraud: NDArray[np.bool_], days: int, limits: GateLimits) -> float:
    """Return the calibration error of the highest scores, as many as there may be alerts."""
    alerts = np.argsort(-score, kind="stable")[: round(limits.alerts_per_day * days)]
    groups = min(max(len(alerts) // _GROUP_ROWS, 1), _MOST_GROUPS)
    return calibration_error(score[alerts], fraud[alerts], groups)


def _cases_per_day(
    score: NDArray[np.float64], case: NDArray[np.int64], event_time_us: NDArray[np.int64], limits: GateLimits
) -> float:
    """Return the cases a day of the later half of the days, by the threshold that the earlier half gives."""
    day = event_time_us // US_PER_DAY
    days = np.unique(day)
    half = len(days) // 2
    early = day < days[half]
    threshold = case_threshold(score[early], case[early], half, limits.alerts_per_day)
    return float(np.count_nonzero(~early[first_alerts(case, score >= threshold)]) / (len(days) - half))


def _keeps_budget(candidate: float, reference: float, limits: GateLimits, days: int) -> bool:
    """Return whether the challenger's cases keep the budget, or change with the traffic as the active version's do.

    Fewer cases are no fault where the least threshold holds them down for both.
    """
    counted_days = days - days // 2
    chance = _COUNT_DEVIATIONS * np.sqrt(limits.alerts_per_day / counted_days)
    allowed = max(limits.volume * limits.alerts_per_day, chance)
    return bool(abs(candidate - limits.alerts_per_day) <= allowed or abs(candidate - reference) <= allowed)
