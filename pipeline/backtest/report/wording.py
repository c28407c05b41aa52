"""Format figures for the page and the terminal."""

from typing import Final

import msgspec

from pipeline.backtest.metrics.bootstrap import ConfidenceInterval
from pipeline.backtest.report.content import (
    DriftContent,
    Metric,
    PacingContent,
    ReportContent,
    VariantComparison,
    VariantContent,
)
from pipeline.backtest.runner.thresholds import BUDGET

NONE: Final = "n/a"
STABLE: Final = 0.1
"""Below this a population stability index is commonly read as stable."""
MOVED: Final = 0.25
"""Above this as moved."""
_KEPT: Final = 0.1
"""Share of a budget by which what is raised may differ from it."""
_MOST_OVERRULED: Final = 5
"""Suppressions and lists that the summary names."""


def number(value: float | None, decimals: int = 0) -> str:
    """With thousands apart; `NONE` where there is none.

    >>> number(1234.5, 1), number(None)
    ('1,234.5', 'n/a')
    """
    return NONE if value is None else f"{value:,.{decimals}f}"


def ratio(value: float | None) -> str:
    """A share or an area, to three decimals."""
    return number(value, 3)


def percent(value: float | None) -> str:
    """A share of a hundred, to one decimal."""
    return NONE if value is None else f"{value:.1%}"


def moment(time: str) -> str:
    """A time of UTC as people write it.

    >>> moment("2018-07-15T07:31:38Z")
    '2018-07-15 07:31:38'
    """
    return time.replace("T", " ").removesuffix("Z")


def score(value: float) -> str:
    """A score, small ones to two digits.

    >>> score(0.5), score(0.00012)
    ('0.500', '0.00012')
    """
    return f"{value:.3f}" if value >= 0.01 or value == 0 else f"{value:.2g}"


def figure(metric: Metric) -> str:
    """A metric's value in its unit."""
    return _written(metric.value, metric.unit)


def between(interval: ConfidenceInterval | None, metric: Metric) -> str:
    """An interval of a metric."""
    if interval is None:
        return NONE
    return f"{_written(interval.low, metric.unit)} to {_written(interval.high, metric.unit)}"


def wider(metric: Metric) -> ConfidenceInterval | None:
    """Return the interval of a metric that promises less."""
    known = [interval for interval in (metric.by_days, metric.by_cards) if interval is not None]
    return max(known, key=lambda interval: interval.high - interval.low, default=None)


def _written(value: float | None, unit: str) -> str:
    return {"amount": number(value), "a day": number(value, 1)}.get(unit, ratio(value))


def with_raised(content: ReportContent) -> ReportContent:
    """Return the content with the cases that variants raise in their names, where a budget in it says otherwise."""
    names = {variant.name: _reported_name(variant) for variant in content.variants}
    replace = msgspec.structs.replace
    return replace(
        content,
        variants=[replace(variant, name=names[variant.name]) for variant in content.variants],
        comparisons=[replace(each, base=names[each.base], other=names[each.other]) for each in content.comparisons],
        drift=[replace(each, variants=[names.get(name, name) for name in each.variants]) for each in content.drift],
    )


def _reported_name(variant: VariantContent) -> str:
    budget = variant.parameters.get(BUDGET)
    raised = next(metric.value for metric in variant.metrics if metric.name == "cases_per_day")
    if not isinstance(budget, int | float) or raised is None or abs(raised - budget) <= _KEPT * budget:
        return variant.name
    return f"{variant.name} (raises {raised:.3g})"


def headline(content: ReportContent) -> str:
    """Sum up the result: of several variants, what each of the others saves, finds and ranks beside the first."""
    if not content.comparisons:
        (variant, *_) = content.variants
        metrics = {metric.name: metric for metric in variant.metrics}
        return (
            f"{variant.name} raises {figure(metrics['alerts_per_day'])} alerts a day; "
            f"{percent(metrics['alert_precision'].value)} of the labelled ones are fraud, and they find "
            f"{percent(metrics['alert_recall'].value)} of the known frauds."
        )
    return " ".join(f"{_saved(each, content.base_currency)} {_ranked(each)}" for each in content.comparisons)


def _saved(comparison: VariantComparison, currency: str) -> str:
    """Compare what the alerts of a variant save and find with the first one's."""
    differences = {metric.name: metric for metric in comparison.differences}
    saving, recall = differences["net_saving"], differences["alert_recall"]
    interval, other, base = wider(saving), comparison.other, comparison.base
    found = _found(recall)
    if saving.value is None or interval is None:
        return f"Nobody can tell whether {other} saves more than {base}: too few frauds are known."
    within = f"(interval {interval.low:+,.0f} to {interval.high:+,.0f})"
    if interval.low <= 0 <= interval.high:
        return (
            f"Whether {other} saves more than {base} is not certain: {saving.value:+,.0f} {currency} {within}; {found}."
        )
    more = "more" if saving.value > 0 else "less"
    return f"{other} saves {abs(saving.value):,.0f} {currency} {more} than {base} {within}; {found}."


def _found(difference: Metric) -> str:
    """Compare the share of the known frauds that alerts find, in percentage points with an interval."""
    if difference.value is None:
        return "nobody can tell which share of the known frauds its alerts find"
    interval = wider(difference)
    within = ""
    if interval is not None:
        within = f" (interval {100 * interval.low:+.1f} to {100 * interval.high:+.1f})"
    more = "more" if difference.value >= 0 else "less"
    return f"its alerts find {abs(100 * difference.value):.1f} points {more} of the known frauds{within}"


def _ranked(comparison: VariantComparison) -> str:
    """Compare the average precision of a variant with the first one's."""
    difference = next(metric for metric in comparison.differences if metric.name == "average_precision")
    interval = wider(difference)
    if difference.value is None or interval is None:
        return (
            f"Nobody can tell whether {comparison.other} ranks frauds better than {comparison.base}: too few are known."
        )
    sides = f"{comparison.other} and {comparison.base}"
    if difference.value == interval.low == interval.high == 0:
        return f"{sides} rank alike: their average precision is the same."
    by = f"its average precision is {abs(difference.value):.3f} {'higher' if difference.value >= 0 else 'lower'}"
    within = f"(interval {interval.low:+.3f} to {interval.high:+.3f})"
    if interval.low <= 0 <= interval.high:
        return f"Which of {sides} ranks frauds better is not certain: {by} {within}, which chance may explain."
    ranks = "better" if difference.value > 0 else "worse"
    return f"{comparison.other} ranks frauds {ranks} than {comparison.base}: {by} {within}."


def drift_sentence(drift: DriftContent) -> str:
    """Describe the drift of features in a sentence or two."""
    subject = f"LightGBM {drift.lightgbm} ({', '.join(drift.variants)})"
    if not drift.known:
        return (
            f"{subject} does not tell how features were distributed in its training: it was trained before versions "
            "kept that. Train it again to see drift."
        )
    indices = [(row.feature, row.stability_index) for row in drift.features if row.stability_index is not None]
    if all(index < STABLE for _, index in indices):
        return f"Since the training of {subject}, no feature has moved: every stability index is below {STABLE}."
    moved = [f"{name} {ratio(index)}" for name, index in indices if index > MOVED]
    between_ = sum(STABLE <= index <= MOVED for _, index in indices)
    named = f": {', '.join(moved[:_NAMED])}{' …' if len(moved) > _NAMED else ''}" if moved else ""
    return (
        f"Since the training of {subject}, {len(moved)} of {len(drift.features)} features have moved (stability index "
        f"above {MOVED}){named}; {between_} more have an index from {STABLE} on."
    )


_NAMED: Final = 5


def pacing_sentence(pacing: PacingContent) -> str:
    """Budget figures of a variant."""
    return (
        f"Paced at {number(pacing.budget, 1)} alerts a day, the first alert of each case: "
        f"{number(pacing.alerts_per_day, 1)} a day; {percent(pacing.days_within_30)} of {pacing.days} whole days "
        f"within 30 %, {percent(pacing.weeks_within_5)} of the 7-day means within 5 %. Its alerts hold "
        f"{percent(pacing.hindsight_share)} of the frauds that as many of the range's highest scores hold."
    )


def partial_sentence(content: ReportContent) -> str:
    """Explain how to read an interrupted replay."""
    return (
        f"Partial: the replay was interrupted. It covers {content.from_time} to {content.until_time}, of a range that "
        f"goes to {content.to_time}."
    )


def trainings_sentence(variant: VariantContent) -> str:
    """Return how often a variant was trained, and how long that took; nothing for one that was trained once."""
    made = [version for version in variant.versions if version.lightgbm is not None]
    if len(variant.versions) < 2:
        return ""
    return (
        f"{variant.name}: {len(made)} versions, by what was known from {moment(made[0].known_time)} to "
        f"{moment(made[-1].known_time)}; the trainings took {number(sum(version.seconds for version in made), 1)} s."
    )


def idle_rules_sentence(variant: VariantContent) -> str:
    """Name the active rules that find no fraud which nothing else finds; empty where there is none."""
    codes = [rule.code for rule in variant.rules if rule.earns_nothing]
    return f"Rules that find no fraud that nothing else finds: {', '.join(codes)}." if codes else ""


def overruled_sentence(variant: VariantContent) -> str:
    """Say what suppressions and lists have overruled, by the money that was missed; empty where nothing was."""
    most = [
        f"{each.name} {number(each.hits)} hits, {number(each.frauds)} frauds missed of {number(each.fraud_amount, 2)}"
        for each in variant.overruled[:_MOST_OVERRULED]
    ]
    others = len(variant.overruled) - len(most)
    return f"Overruled by {'; '.join(most)}{f'; by {others} more' if others else ''}." if most else ""
