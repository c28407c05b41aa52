"""Drift: days on which a series is further from its usual distribution than it has been before."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from pipeline.monitoring.daily import OUTCOMES, REPORT_AGE, REPORTS, DailyCounts, History, day_text
from pipeline.scoring.distributions import FeatureDistribution

_WEEK: Final = 7
_ROBUST: Final = 1.4826
"""Standard deviation of a normal distribution whose median absolute deviation is 1."""
LEAST_IMPORTANCE: Final = 0.01
"""Gain share below which a feature's drift is no reason to train."""
_NO_REASON: Final = (*OUTCOMES, REPORTS, REPORT_AGE)
"""Series that training again would not mend."""


class DriftOptions(NamedTuple):
    """Options of drift detection; decision 0048 has the measurements behind the defaults."""

    level: float = 0.005
    """Benjamini-Hochberg level over the series of a day."""
    reference_weeks: int = 4
    """A day is compared with the same weekday of so many weeks before it."""
    least_weeks: int = 2
    """Weeks of them that must have rows."""
    history_days: int = 60
    """Past distances that say what is usual, at most."""
    least_history: int = 14
    """Past distances without which a day is not assessed."""
    least_rows: int = 20
    """Rows without which a day of a series is not assessed."""
    gap_days: int = 3
    """Days without an alarm after which drift is over."""


DEFAULT_OPTIONS: Final = DriftOptions()


class Finding(NamedTuple):
    """A series that drifted on a day."""

    day: int
    """Days since 1970-01-01 (UTC)."""
    name: str
    p_value: float
    distance: float
    """Jensen-Shannon divergence to the reference in bits, 0 to 1."""
    importance: float
    """Gain share of a feature in the active trees; 1 for scores, alerts and reports."""
    since: int
    """First day of this drift."""
    bin: str
    """The values whose share changed most, by their part of the distance."""
    before: float
    """Their share in the reference."""
    now: float
    """Their share on the day."""


class DayDrift(NamedTuple):
    """Drift of one day."""

    day: int
    p_values: dict[str, float]
    """P-value by series; only those that could be assessed."""
    findings: tuple[Finding, ...]
    """Series that drifted, by importance times distance, the largest first."""


class _Compared(NamedTuple):
    """A series compared with its references; arrays of shape (d,), NaN where a day has none."""

    history: History
    reference: NDArray[np.float64]
    """Shape (d, k)."""
    difference: NDArray[np.float64]
    """Nearly normal from day to day."""
    noise: NDArray[np.float64]
    """Scale of the differences that independent draws from one distribution would show."""
    centre: NDArray[np.float64]
    """Their mean, in units of the noise."""
    spread: NDArray[np.float64]
    """Their standard deviation, in units of the noise."""
    signed: bool
    """True if differences fall on both sides of 0."""


def judge(
    histories: Sequence[History], importance: Mapping[str, float] | None = None, options: DriftOptions = DEFAULT_OPTIONS
) -> list[DayDrift]:
    """Assess every day of some series against the days before it.

    Each day's histogram is compared with those of the same weekday in the weeks before. The divergence gets a p-value
    from the series' own past divergences. Benjamini and Hochberg's procedure over all series of the day says which
    drifted.

    Args:
        histories: The series. A day that is not over must not be among them.
        importance: Gain share by feature; 1 for series that are not in it.
        options: Options.

    Returns:
        Days that could be assessed, in order.
    """
    compared = [_compared(history, options) for history in histories]
    p_values: dict[int, dict[str, float]] = {}
    for compared_feature in compared:
        for row, day in enumerate(compared_feature.history.days.tolist()):
            if (p := _p_value(compared_feature, row, options)) is not None:
                p_values.setdefault(day, {})[compared_feature.history.name] = p
    by_name = {series.history.name: series for series in compared}
    last: dict[str, tuple[int, int]] = {}
    days = []
    for day, of_day in sorted(p_values.items()):
        findings = []
        for name in _rejected(of_day, options.level):
            first, latest = last.get(name, (day, day))
            since = first if day - latest <= options.gap_days else day
            last[name] = (since, day)
            weight = 1.0 if importance is None else importance.get(name, 1.0)
            findings.append(_finding(by_name[name], day, of_day[name], weight, since))
        findings.sort(key=lambda found: (-found.importance * found.distance, found.name))
        days.append(DayDrift(day, of_day, tuple(findings)))
    return days


def drifted(
    days: Sequence[DayDrift], *, within_days: int = 2, least_importance: float = 0.0, ignored: Sequence[str] = OUTCOMES
) -> list[Finding]:
    """Return the drift of the newest days, the most important first: reasons to train again.

    Scores and alerts are left out by default. They also change when another version becomes active, so that a program
    which trains on drift would answer its own training.

    Args:
        days: What `judge` found.
        within_days: Days to look at, counted from the newest one.
        least_importance: Gain share below which a feature's drift is no reason.
        ignored: Series to leave out.

    Returns:
        The newest finding of each series; none without drift.
    """
    newest: dict[str, Finding] = {}
    for day in days:
        if day.day > days[-1].day - within_days:
            newest |= {found.name: found for found in day.findings}
    found = [
        finding for finding in newest.values() if finding.name not in ignored and finding.importance >= least_importance
    ]
    return sorted(found, key=lambda finding: (-finding.importance * finding.distance, finding.name))


def _compared(history: History, options: DriftOptions) -> _Compared:
    days, counts = history.days, history.counts
    rows_of = {day: row for row, day in enumerate(days.tolist())}
    reference, weeks = np.zeros_like(counts), np.zeros(len(days))
    rows = counts.sum(axis=1)
    for week in range(1, options.reference_weeks + 1):
        for row, day in enumerate(days.tolist()):
            before = rows_of.get(day - _WEEK * week)
            if before is not None and rows[before]:
                reference[row] += counts[before]
                weeks[row] += 1
    usable = (weeks >= options.least_weeks) & (rows >= options.least_rows)
    n, m = rows[usable], reference[usable].sum(axis=1)
    p, q = counts[usable] / n[:, None], reference[usable] / m[:, None]
    difference, noise, centre, spread = np.full((4, len(days)), np.nan)
    if signed := counts.shape[1] == 2:
        # The difference of two shares, with their variances made equal: it says more than the divergence's root.
        difference[usable] = np.arcsin(np.sqrt(p[:, 1])) - np.arcsin(np.sqrt(q[:, 1]))
        noise[usable] = np.sqrt((1 / n + 1 / m) / 4)
        centre[usable], spread[usable] = 0.0, 1.0
    else:
        # A cube root makes a chi-squared variable nearly normal (Wilson and Hilferty, 1931).
        freedom = np.maximum(((p + q) > 0).sum(axis=1) - 1.0, 1.0)
        difference[usable] = np.cbrt(_divergence(p, q).sum(axis=1))
        noise[usable] = np.cbrt(freedom * (1 / n + 1 / m) / 8)
        centre[usable], spread[usable] = 1 - 2 / (9 * freedom), np.sqrt(2 / (9 * freedom))
    return _Compared(history, reference, difference, noise, centre, spread, signed)


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Jensen-Shannon divergence in nats, bin by bin, each at least 0; shapes (n, k)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(share > 0, share * np.log(2 * share / (p + q)), 0.0) for share in (p, q)]
    divergence: NDArray[np.float64] = np.maximum((terms[0] + terms[1]) / 2, 0.0)
    return divergence


def _p_value(compared: _Compared, row: int, options: DriftOptions) -> float | None:
    """Return the p-value of a day's difference among those of the days before it; None where too few are known.

    A difference is noise of sampling, which depends on the number of rows, plus real variation from day to day, which
    does not. A day counts as unusual only if it is so under both readings of the past, so that neither a quiet nor a
    busy day raises an alarm. Nothing is called unusual that independent draws would often show.
    """
    if np.isnan(compared.difference[row]):
        return None
    first = int(np.searchsorted(compared.history.days, compared.history.days[row] - options.history_days))
    past = np.flatnonzero(~np.isnan(compared.difference[first:row])) + first
    n = len(past)
    if n < options.least_history:
        return None
    noise, z = compared.noise[row], np.inf
    for usual in (compared.difference[past], compared.difference[past] / compared.noise[past] * noise):
        middle = float(np.median(usual))
        scale = max(_ROBUST * float(np.median(np.abs(usual - middle))), noise * compared.spread[row])
        if compared.signed:
            z = min(z, abs(compared.difference[row] - middle) / scale)
        else:
            z = min(z, (compared.difference[row] - max(middle, noise * compared.centre[row])) / scale)
    return float(stdtr(n - 1, -z / np.sqrt(1 + 1 / n))) * (2.0 if compared.signed else 1.0)


def _rejected(p_values: Mapping[str, float], level: float) -> list[str]:
    """Names whose hypotheses Benjamini and Hochberg's procedure (1995) rejects.

    >>> _rejected({"a": 0.001, "b": 0.04, "c": 0.9}, 0.05)
    ['a']
    """
    ordered = sorted(p_values, key=lambda name: (p_values[name], name))
    passed = [at for at, name in enumerate(ordered, 1) if p_values[name] <= level * at / len(ordered)]
    return ordered[: max(passed, default=0)]


def _finding(compared: _Compared, day: int, p_value: float, importance: float, since: int) -> Finding:
    row = int(np.searchsorted(compared.history.days, day))
    now = compared.history.counts[row] / compared.history.counts[row].sum()
    before = compared.reference[row] / compared.reference[row].sum()
    parts = _divergence(now[None], before[None])[0]
    at = len(parts) - 1 if compared.signed else int(np.argmax(parts))
    bits, words = float(parts.sum() / np.log(2)), compared.history.bins[at]
    return Finding(
        day, compared.history.name, p_value, bits, importance, since, words, float(before[at]), float(now[at])
    )


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
