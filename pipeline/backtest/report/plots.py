"""The plots of a report, each with a text for those who do not see it. Pure functions of the content."""

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from math import exp, inf, isfinite, log

from pipeline.backtest.report.content import DriftContent, ReportContent, Slice, VariantContent
from pipeline.backtest.report.svg import QUIET, Bar, Series, bars, lines, nothing
from pipeline.backtest.report.wording import MOVED, number, percent, ratio, score

_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_NO_FRAUD = "No fraud is known in the range."
_EPOCH = date(1970, 1, 1)


def precision_recall(content: ReportContent) -> str:
    """Precision over recall of all variants, and where their alerts stand."""
    title = "Precision and recall"
    series, sentences = [], []
    for position, variant in enumerate(content.variants):
        if variant.curve:
            points = tuple((point.recall, point.precision) for point in variant.curve)
            series.append(Series(variant.name, points, markers=False, number=position))
    if not series:
        return nothing(title, _NO_FRAUD)
    for position, variant in enumerate(content.variants):
        figures = {metric.name: metric.value for metric in variant.metrics}
        precision, recall = figures["alert_precision"], figures["alert_recall"]
        sentences.append(f"{variant.name} has an average precision of {ratio(figures['average_precision'])}")
        if precision is not None and recall is not None:
            series.append(Series(f"{variant.name}, its alerts", ((recall, precision),), number=position))
            sentences[-1] += f", its alerts a precision of {ratio(precision)} at a recall of {ratio(recall)}"
    alt = "Precision falls as recall grows. " + "; ".join(sentences) + "."
    return lines(title, "recall", "precision", series, x_ticks=_SHARES, y_most=1.0, alt=alt)


def alerts_by_day(content: ReportContent) -> str:
    """Plot the number of alerts a day."""
    return _by_day(content, "Alerts by day", "alerts", lambda day: float(day.alerts), None)


def precision_by_day(content: ReportContent) -> str:
    """Plot the share of known fraud among a day's alerts; days without alerts are left out."""
    return _by_day(content, "Precision of alerts by day", "precision", lambda day: day.value("alert_precision"), 1.0)


def score_distribution(variant: VariantContent, position: int) -> str:
    """Frauds and other transactions by score; ``position`` of the variant among all gives its colour."""
    title = f"Scores of frauds and of other transactions: {variant.name}"
    if not variant.scores:
        return nothing(title, "Nothing was decided in the range.")
    series = []
    for name, number_, counts in (
        ("frauds", position, [score_bin.frauds for score_bin in variant.scores]),
        ("other transactions", QUIET, [score_bin.legitimate for score_bin in variant.scores]),
    ):
        total = sum(counts)
        if total:
            positions = [_log_odds(score_bin.from_score, score_bin.to_score) for score_bin in variant.scores]
            points = tuple((at, 100 * count / total) for at, count in zip(positions, counts, strict=True))
            series.append(Series(name, points, number=number_))
    frauds = sum(score_bin.frauds for score_bin in variant.scores)
    high = sum(score_bin.frauds for score_bin in variant.scores if score_bin.from_score >= 0.5)
    others = sum(score_bin.legitimate for score_bin in variant.scores)
    others_high = sum(score_bin.legitimate for score_bin in variant.scores if score_bin.from_score >= 0.5)
    alt = (
        f"Of {number(frauds)} frauds {number(high)} have a score of one half or more, "
        f"of {number(others)} other transactions {number(others_high)}."
    )
    ticks = list(range(-9, 10, 3))
    return lines(title, "score (on the scale of log-odds)", "percent", series, x_ticks=ticks, x_text=_as_score, alt=alt)


def calibration(content: ReportContent) -> str:
    """The share of frauds over the mean score, beside what calibrated scores would give."""
    title = "Calibration"
    series = [Series("calibrated", ((0.0, 0.0), (1.0, 1.0)), markers=False, number=QUIET)]
    sentences = []
    for position, variant in enumerate(content.variants):
        points = tuple(
            (score_bin.mean_score, score_bin.fraud_share)
            for score_bin in variant.calibration
            if score_bin.mean_score is not None and score_bin.fraud_share is not None
        )
        if points:
            series.append(Series(variant.name, points, number=position))
            sentences.append(f"{variant.name} expects {number(variant.expected_frauds)} frauds")
    if len(series) == 1:
        return nothing(title, "Nothing was decided in the range.")
    alt = f"{'; '.join(sentences)}; {number(content.labels.frauds)} are known. Calibrated scores lie on the diagonal."
    return lines(title, "mean score", "share of frauds", series, x_ticks=_SHARES, y_most=1.0, alt=alt)


def threshold_sweep(content: ReportContent) -> str:
    """Net saving over the number of alerts that a threshold gives."""
    title = "Net saving by threshold"
    series, sentences = [], []
    for position, variant in enumerate(content.variants):
        points = tuple((row.alerts_per_day, row.net_saving) for row in variant.sweep if row.net_saving >= 0)
        if len(points) > 1:
            best = max(variant.sweep, key=lambda row: row.net_saving)
            series.append(Series(variant.name, points, number=position))
            sentences.append(
                f"{variant.name} saves most, {number(best.net_saving)}, at {number(best.alerts_per_day, 1)} alerts a "
                f"day (threshold {score(best.threshold)})"
            )
    if not series:
        return nothing(title, "No threshold saves more than its reviews cost.")
    least, most = (bound(x for line in series for x, _ in line.points) for bound in (min, max))
    ticks = [10.0**power for power in range(-6, 10) if least <= 10.0**power <= most] or [least, most]
    name = f"net saving, {content.base_currency}"
    return lines(title, "alerts a day", name, series, log_x=True, x_ticks=ticks, alt="; ".join(sentences) + ".")


def feature_drift(drift: DriftContent, most: int) -> str:
    """The features that moved farthest."""
    title = f"Feature drift from the training of LightGBM {drift.lightgbm} to the range"
    indices = [(row, row.stability_index) for row in drift.features if row.stability_index is not None]
    rows = [row for row, _ in indices[:most]]
    if not rows:
        return nothing(title, "Nothing was decided in the range.")
    moved = sum(index > MOVED for _, index in indices)
    alt = f"{moved} of {len(drift.features)} features have an index above {MOVED}; farthest is {rows[0].feature}."
    drawn = [Bar(row.feature, row.stability_index or 0.0, ratio(row.stability_index)) for row in rows]
    return bars(title, drawn, alt=alt)


def top_reasons(variant: VariantContent, most: int, position: int) -> str:
    """The reasons that most alerts give; ``position`` of the variant among all gives its colour."""
    title = f"Top reasons of alerts: {variant.name}"
    rows = variant.reasons[:most]
    if not rows:
        return nothing(title, "No alert was explained.")
    alt = f"Of {number(variant.explained)} explained alerts {percent(rows[0].share)} give {rows[0].code}."
    drawn = [Bar(row.code, row.alerts, f"{row.alerts:,} ({percent(row.share)})", number=position) for row in rows]
    return bars(title, drawn, alt=alt)


def _by_day(
    content: ReportContent, title: str, name: str, value: Callable[[Slice], float | None], most: float | None
) -> str:
    series, sentences = [], []
    for position, variant in enumerate(content.variants):
        found = [(_day(day), value(day)) for day in variant.days]
        points = tuple((at, figure) for at, figure in found if figure is not None)
        if points:
            series.append(Series(variant.name, points, markers=len(points) <= 31, number=position))
            values = [figure for _, figure in points]
            sentences.append(
                f"{variant.name} has {ratio(min(values)) if most else number(min(values))} to "
                f"{ratio(max(values)) if most else number(max(values))}, on average "
                f"{ratio(sum(values) / len(values)) if most else number(sum(values) / len(values), 1)}"
            )
    if not series or (most is None and not any(y for line in series for _, y in line.points)):
        return nothing(title, "There is no alert in the range.")
    first, last = _day(content.variants[0].days[0]), _day(content.variants[0].days[-1])
    step = max(1, round((last - first) / 7))
    ticks: Sequence[float] = [first + step * count for count in range(int((last - first) // step) + 1)]
    return lines(
        title, "day (UTC)", name, series, x_ticks=ticks, x_text=_day_text, y_most=most, alt="; ".join(sentences) + "."
    )


def _day(day: Slice) -> float:
    return float((date.fromisoformat(day.name) - _EPOCH).days)


def _day_text(at: float) -> str:
    return f"{_EPOCH + timedelta(days=int(at)):%m-%d}"


def _log_odds(low: float, high: float) -> float:
    """The middle of a bin; of one without an end on this scale, half a unit beyond the other."""
    begin, end = (log(p / (1 - p)) if 0 < p < 1 else inf for p in (low, high))
    if isfinite(begin) and isfinite(end):
        return (begin + end) / 2
    return end - 0.5 if isfinite(end) else begin + 0.5


def _as_score(log_odds: float) -> str:
    rest = float(f"{1 / (1 + exp(abs(log_odds))):.2g}")
    return f"{rest if log_odds < 0 else 1 - rest:.8g}"
