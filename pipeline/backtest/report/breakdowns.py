"""The parts of a report: decisions by score and threshold; reasons, and transactions worth a look."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.backtest.input.spill import in_blocks
from pipeline.backtest.metrics.bootstrap import ConfidenceInterval
from pipeline.backtest.metrics.ranking import Ranking
from pipeline.backtest.metrics.rule_worth import RuleWorth, rule_worth
from pipeline.backtest.report.content import (
    CurvePoint,
    OverruledContent,
    PacingContent,
    ReasonCount,
    ReportedTransaction,
    ScoreBin,
)
from pipeline.backtest.report.observed import Observed, Shared
from pipeline.backtest.runner.result import Variant
from pipeline.backtest.runner.thresholds import FirstAlerts
from pipeline.decision.policy import BY_SCORE
from pipeline.decision.reason_texts import CODES
from pipeline.learning.labels import FRAUD, LEGITIMATE, NOTHING
from pipeline.models.suppressions import sums
from pipeline.scoring.blend import sigmoid
from schemas.times import US_PER_DAY, time_text

LOG_ODDS_EDGES: Final = np.r_[0.0, sigmoid(np.arange(-12.0, 12.5, 1.0)), 1.0]
"""Between bins of scores, by whole log-odds."""
CALIBRATION_EDGES: Final = np.array([0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
"""Between bins of scores: finer where most transactions lie."""
CURVE_POINTS: Final = 120
_Z: Final = 1.959964


def curve(shared: Shared, observed: Observed) -> list[CurvePoint]:
    """Precision and recall, at most `CURVE_POINTS` points, evenly over recall."""
    ranking = Ranking(shared.truth.fraud, observed.score, shared.day, shared.days).curve()
    if not len(ranking.threshold):
        return []
    last = len(ranking.threshold) - 1
    positions = np.unique(np.searchsorted(ranking.recall, np.linspace(0.0, 1.0, CURVE_POINTS)).clip(max=last))
    return [
        CurvePoint(
            threshold=float(ranking.threshold[at]),
            precision=float(ranking.precision[at]),
            recall=float(ranking.recall[at]),
        )
        for at in positions.tolist()
    ]


def score_bins(shared: Shared, observed: Observed, edges: NDArray[np.float64]) -> list[ScoreBin]:
    """Transactions by their score; bins of ``edges`` that hold none are left out. The highest includes its end."""
    bins = len(edges) - 1
    score, fraud = observed.score, shared.truth.fraud
    bin_numbers = in_blocks(
        len(score), np.int64, lambda rows: np.clip(np.searchsorted(edges, score[rows], side="right") - 1, 0, bins - 1)
    )
    rows, frauds = np.bincount(bin_numbers, minlength=bins), np.bincount(bin_numbers[fraud], minlength=bins)
    total = np.bincount(bin_numbers, weights=score, minlength=bins)
    return [
        ScoreBin(
            from_score=float(edges[at]),
            to_score=float(edges[at + 1]),
            frauds=int(frauds[at]),
            legitimate=int(rows[at] - frauds[at]),
            mean_score=float(total[at] / rows[at]),
            fraud_share=float(frauds[at] / rows[at]),
            share_interval=wilson(int(frauds[at]), int(rows[at])),
        )
        for at in np.flatnonzero(rows).tolist()
    ]


def wilson(found: int, n: int) -> ConfidenceInterval:
    """The 95 % interval of a share (Wilson, "Probable Inference", 1927); ``n`` is at least one.

    >>> low, high = wilson(0, 10)
    >>> round(low, 2), round(high, 2)
    (0.0, 0.28)
    """
    share, z2 = found / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * float(np.sqrt(share * (1 - share) / n + z2 / (4 * n * n)))
    return ConfidenceInterval(max(middle - half, 0.0), min(middle + half, 1.0))


def reasons(variant: Variant) -> list[ReasonCount]:
    """Codes by how many of the explained alerts they were given for."""
    if variant.reasons is None or not variant.explained:
        return []
    found = variant.reasons.groupby(variant.reasons["code"].astype(object))["contribution"].agg(["size", "mean"])
    rows = [
        ReasonCount(
            code=str(code),
            meaning=CODES.get(str(code), "A rule."),
            alerts=int(size),
            share=float(size / variant.explained),
            mean_contribution=float(mean),
        )
        for code, size, mean in zip(found.index, found["size"], found["mean"], strict=True)
    ]
    return sorted(rows, key=lambda row: (-row.alerts, row.code))


def rules(variant: Variant, shared: Shared, since: Mapping[tuple[str, str], str]) -> list[RuleWorth]:
    """Return the worth of each rule; as in all figures, what has no label is legitimate."""
    if variant.rules is None:
        return []
    by_score = (variant.decisions["selection"] == BY_SCORE).to_numpy(np.bool_, na_value=False)
    fraud = shared.truth.fraud
    return rule_worth(variant.rules, by_score, fraud, np.ones(len(fraud), np.bool_), shared.amount, since)


def overruled(variant: Variant, shared: Shared, observed: Observed) -> list[OverruledContent]:
    """Return what each suppression and each list has overruled, by the money that was missed."""
    if variant.overruled is None:
        return []
    names, rows, numbers = variant.overruled
    columns = shared.amount[rows], shared.truth.fraud[rows], observed.alert[rows]
    pairs = zip(([names[number]] for number in numbers.tolist()), *(column.tolist() for column in columns), strict=True)
    found = [
        OverruledContent(
            name=name, hits=each.hits, amount=each.amount_minor / 100, frauds=each.frauds,
            fraud_amount=each.fraud_minor / 100,
        )
        for name, each in sums(pairs).items()
    ]  # fmt: skip
    return sorted(found, key=lambda row: (-row.fraud_amount, row.name))


def costliest(
    shared: Shared, observed: list[Observed], chosen: NDArray[np.bool_], most: int
) -> list[ReportedTransaction]:
    """Return the ``chosen`` transactions with the largest amounts, at most ``most``."""
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(-shared.amount[rows], kind="stable")[:most]]
    truth = shared.truth
    names: pd.DataFrame = shared.frame.iloc[rows]
    return [
        ReportedTransaction(
            transaction_id=str(transaction),
            card_id=str(card),
            merchant_id=str(merchant),
            event_time=time_text(int(shared.event_time_us[row])),
            amount=float(shared.amount[row]),
            scores=tuple(float(variant.score[row]) for variant in observed),
            label=FRAUD if truth.fraud[row] else LEGITIMATE if truth.legitimate[row] else NOTHING,
            fraud_type=str(truth.fraud_type[row]),
        )
        for row, transaction, card, merchant in zip(
            rows.tolist(), names["transaction_id"], names["card_id"], names["merchant_id"], strict=True
        )
    ]


_WEEK: Final = 7
_OF_DAYS: Final = 0.3
_OF_WEEKS: Final = 0.05


def pacing(first: FirstAlerts, shared: Shared, observed: Observed) -> PacingContent:
    """Return the figures of a variant's whole days.

    Args:
        first: Budget, and first alerts by day; days outside the range are left out.
        shared: Gives the range, and which transactions are fraud.
        observed: Decisions of the variant.
    """
    whole_days = range(-(-shared.from_us // US_PER_DAY), shared.until_us // US_PER_DAY)
    counts = np.array([first.by_day.get(day, 0) for day in whole_days], np.float64)
    weeks = np.convolve(counts, np.ones(_WEEK) / _WEEK, "valid") if len(counts) >= _WEEK else np.empty(0)
    return PacingContent(
        budget=first.alerts_per_day,
        days=len(counts),
        alerts_per_day=float(counts.mean()) if len(counts) else None,
        days_within_30=_share_within(counts, first.alerts_per_day, _OF_DAYS),
        weeks_within_5=_share_within(weeks, first.alerts_per_day, _OF_WEEKS),
        hindsight_share=_hindsight_share(shared.truth.fraud, observed),
    )


def _hindsight_share(fraud: NDArray[np.bool_], observed: Observed) -> float | None:
    alerts = int(np.count_nonzero(observed.alert))
    if not alerts:
        return None
    highest = np.argsort(-observed.score, kind="stable")[:alerts]
    found = int(np.count_nonzero(fraud[highest]))
    return float(np.count_nonzero(fraud & observed.alert) / found) if found else None


def _share_within(values: NDArray[np.float64], budget: float, share: float) -> float | None:
    return float(np.mean(np.abs(values / budget - 1.0) <= share + 1e-9)) if len(values) else None
