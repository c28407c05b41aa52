"""Figures with confidence intervals, over all rows and over resamples of them."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.input.spill import in_blocks
from pipeline.backtest.metrics.bootstrap import interval, resampled
from pipeline.backtest.metrics.ranking import Ranking, daily_precision, known_cards
from pipeline.backtest.report.content import Metric, ReportOptions
from pipeline.backtest.report.observed import Observed, Shared
from pipeline.decision.budget import first_alerts
from pipeline.learning.regimes import NEVER_US
from pipeline.training.score_metrics import daily_card_precision

RANKED: Final = {"auc_roc": "AUC ROC", "average_precision": "Average precision"}
TALLIED: Final = {
    "alerts_per_day": "Alerts a day",
    "cases_per_day": "Cases a day",
    "alert_precision": "Precision of alerts",
    "alert_recall": "Recall of alerts",
    "fraud_amount": "Fraud amount",
    "caught_amount": "Fraud amount from the alert on",
    "missed_amount": "Fraud amount missed",
    "caught_share": "Share of the fraud amount caught",
    "review_cost": "Review cost",
    "net_saving": "Net saving",
}
DAILY: Final = {
    "card_precision_at_k": "Card precision at {k}, known cards removed",
    "card_precision_at_k_kept": "Card precision at {k}, known cards kept",
    "precision_at_k": "Precision at {k}",
    "recall_at_k": "Recall at {k} alerts a day",
}
_UNITS: Final = {
    "alerts_per_day": "a day", "cases_per_day": "a day", "fraud_amount": "amount", "caught_amount": "amount",
    "missed_amount": "amount", "review_cost": "amount", "net_saving": "amount",
}  # fmt: skip
NAMES: Final = (*RANKED, *TALLIED, *DAILY)

Statistics = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class Resamples(NamedTuple):
    """Figures of one variant: over all rows, and over resamples of days and of cards.

    Shapes (figures,) and (replicates, figures); columns as `NAMES`, unless said otherwise.
    """

    value: NDArray[np.float64]
    by_days: NDArray[np.float64]
    by_cards: NDArray[np.float64]


def resample(shared: Shared, variants: Sequence[Observed], options: ReportOptions) -> list[Resamples]:
    """Resample each variant. All see the same resamples, so that their differences can be told from chance.

    Card precision and what else goes by the best of a day is resampled by days alone: a card drawn twice would push
    others out of the best.

    Args:
        shared: Transactions of all variants.
        variants: Decisions of each, of which there is at least one.
        options: Give the replicates and their seed, the cost of a review and the k.

    Returns:
        The figures of each variant, columns as `NAMES`; NaN where there is none.
    """
    by_day = [_statistics(shared, observed, shared.day, shared.days, options, daily=True) for observed in variants]
    by_card = [_statistics(shared, observed, shared.card, shared.cards, options, daily=False) for observed in variants]
    width = len(NAMES)
    values = _together(by_day)(np.ones(shared.days)).reshape(-1, width)
    days, cards = drawn(by_day, shared.days, options, width), drawn(by_card, shared.cards, options, width)
    return [Resamples(values[at], days[:, at], cards[:, at]) for at in range(len(variants))]


def drawn(statistics: Sequence[Statistics], units: int, options: ReportOptions, *shape: int) -> NDArray[np.float64]:
    """Return statistics of each variant over the same resamples of days or cards.

    Args:
        statistics: A function of the units' weights, shape (units,), for each variant; it returns ``shape`` values.
        units: Number of days, or of cards.
        options: Give the number of replicates and their seed.
        *shape: Shape of a variant's statistics; a function may return them flat.

    Returns:
        Shape (replicates, len(statistics), *shape); no replicates without units.
    """
    if units == 0 or options.replicates == 0:
        return np.empty((0, len(statistics), *shape))
    found = resampled(_together(statistics), units, options.replicates, options.seed)
    return found.reshape(-1, len(statistics), *shape)


def metrics(resamples: Resamples, options: ReportOptions, names: Sequence[str] = NAMES) -> list[Metric]:
    """The figures by name, with their confidence intervals.

    Args:
        resamples: Figures of one variant.
        options: Give the level of the intervals, and the k for titles.
        names: Names of the columns of ``resamples``.

    Returns:
        A metric for each column; its value is None where there is none.
    """
    titles = RANKED | TALLIED | DAILY
    found = []
    for column, name in enumerate(names):
        value = float(resamples.value[column])
        found.append(
            Metric(
                name=name,
                title=titles[name].format(k=options.top),
                value=None if np.isnan(value) else value,
                unit=_UNITS.get(name, ""),
                by_days=interval(resamples.by_days[:, column], options.level),
                by_cards=interval(resamples.by_cards[:, column], options.level),
            )
        )
    return found


def differences(
    base: Resamples, other: Resamples, options: ReportOptions, names: Sequence[str] = NAMES
) -> list[Metric]:
    """The figures of one variant less those of another, with their confidence intervals.

    Args:
        base: Figures that are subtracted.
        other: Figures over the same resamples.
        options: Give the level of the intervals, and the k for titles.
        names: Names of the columns of both.

    Returns:
        A metric for each column but ``fraud_amount``, which is the same by definition.
    """
    apart = Resamples(*(first - second for first, second in zip(other, base, strict=True)))
    return [metric for metric in metrics(apart, options, names) if metric.name != "fraud_amount"]


def _together(parts: Sequence[Statistics]) -> Statistics:
    return lambda weight: np.concatenate([part(weight) for part in parts])


def _statistics(
    shared: Shared, observed: Observed, unit: NDArray[np.int64], units: int, options: ReportOptions, *, daily: bool
) -> Statistics:
    """Figures in the order of `NAMES` of rows that are weighted by their unit; NaN where there is no such figure."""
    fraud = shared.truth.fraud
    ranking = Ranking(fraud, observed.score, unit, units)
    tally = _tally(shared, observed, unit, units)
    days = _daily(shared, observed, options) if daily else None

    def statistics(weight: NDArray[np.float64]) -> NDArray[np.float64]:
        alerts, found, frauds, cases, caught, amount = weight @ tally
        areas, cost = ranking.areas(weight), alerts * options.review_cost
        by_name = {
            "auc_roc": areas.auc_roc,
            "average_precision": areas.average_precision,
            "alerts_per_day": _ratio(alerts, shared.span_days),
            "cases_per_day": _ratio(cases, shared.span_days),
            "alert_precision": _ratio(found, alerts),
            "alert_recall": _ratio(found, frauds),
            "fraud_amount": amount,
            "caught_amount": caught,
            "missed_amount": amount - caught,
            "caught_share": _ratio(caught, amount),
            "review_cost": cost,
            "net_saving": caught - cost,
        }
        if days is not None:
            by_name |= {
                name: _ratio(float(weight @ top), float(weight @ bottom)) for name, (top, bottom) in days.items()
            }
        return np.array([by_name.get(name, np.nan) for name in NAMES])

    return statistics


def _tally(shared: Shared, observed: Observed, unit: NDArray[np.int64], units: int) -> NDArray[np.float64]:
    """Alerts, alerted frauds, frauds, cases, amounts caught and of all frauds, of each unit; shape (units, 6)."""
    fraud, amount = shared.truth.fraud, shared.amount
    counted = (observed.alert, observed.alert & fraud, fraud, first_alerts(shared.case, observed.alert))
    counts = [np.bincount(unit[rows], minlength=units) for rows in counted]
    sums = [np.bincount(unit[rows], weights=amount[rows], minlength=units) for rows in (observed.caught, fraud)]
    return np.column_stack([*counts, *sums])


def _daily(
    shared: Shared, observed: Observed, options: ReportOptions
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return numerators and denominators that are added up over days, by name; shapes (days,)."""
    fraud, times = shared.truth.fraud, shared.event_time_us
    best, known_us = observed.best, observed.known_us
    found, frauds = (np.bincount(shared.day[rows], minlength=shared.days) for rows in (best & fraud, fraud))
    fraud_known_us = in_blocks(len(times), np.int64, lambda rows: np.where(fraud[rows], known_us[rows], NEVER_US))
    unknown = ~known_cards(shared.card, times, fraud_known_us)
    return {
        "card_precision_at_k": _card_precision(shared, observed, unknown, options.top, remove_detected=True),
        "card_precision_at_k_kept": _card_precision(shared, observed, None, options.top, remove_detected=False),
        "precision_at_k": _dense(shared, *daily_precision(fraud, best, times, options.top)),
        "recall_at_k": (found.astype(np.float64), frauds.astype(np.float64)),
    }


def _card_precision(
    shared: Shared, observed: Observed, among: NDArray[np.bool_] | None, top: int, *, remove_detected: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    days, precision = daily_card_precision(
        shared.truth.fraud, observed.score, shared.event_time_us, shared.card, top, remove_detected=remove_detected,
        among=among,
    )  # fmt: skip
    return _dense(shared, days, precision)


def _dense(
    shared: Shared, days: NDArray[np.int64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(values, whether there is one) of all days of the range; ``days`` are those with a value, since 1970-01-01."""
    dense, present = np.zeros(shared.days), np.zeros(shared.days)
    dense[days - shared.first_day], present[days - shared.first_day] = values, 1.0
    return dense, present


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
