"""Turn a backtest's result into the content of its report. Pure: no clock, no files."""

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from pipeline.backtest.labels.ground_truth import precision_bounds, recall_bounds
from pipeline.backtest.metrics.cost_model import sweep, sweep_thresholds
from pipeline.backtest.metrics.drift import ModelDrift
from pipeline.backtest.report import breakdowns, slices
from pipeline.backtest.report.breakdowns import pacing
from pipeline.backtest.report.content import (
    DriftContent,
    FeatureDrift,
    ModelFigures,
    ReportContent,
    ReportOptions,
    ReviewContent,
    Side,
    VariantComparison,
    VariantContent,
)
from pipeline.backtest.report.figures import Resamples, differences, metrics, resample
from pipeline.backtest.report.labels import label_content
from pipeline.backtest.report.observed import Observed, Shared, observe, share
from pipeline.backtest.report.slices import Slicing, resample_slices
from pipeline.backtest.runner.result import BacktestResult, Variant
from schemas.times import US_PER_DAY, time_text

CYCLE_DAYS: Final = {"hour": 1.0, "weekday": 7.0}
"""A feature of the calendar in a range that is shorter than its cycle tells the range's length, and no drift."""


def evaluate(result: BacktestResult, options: ReportOptions) -> ReportContent:
    """Everything that the report says. Raises ValueError where variants did not decide about the same transactions."""
    shared = share(result)
    protection_us = round(options.protection_days * US_PER_DAY)
    observed = [observe(variant, shared, protection_us, options.top) for variant in result.variants]
    samples = _samples(shared, observed, options)
    return ReportContent(
        partial=result.partial,
        from_time=time_text(result.from_us),
        to_time=time_text(result.to_us),
        until_time=time_text(result.until_us),
        days=shared.span_days,
        warm_up_days=(result.from_us - result.warm_up_from_us) / US_PER_DAY,
        base_currency=result.base_currency,
        transactions=len(shared.frame),
        cards=shared.cards,
        warnings=list(result.warnings),
        parameters=dict(result.parameters),
        counts=dict(result.counts),
        options=options,
        labels=label_content(result, shared),
        variants=[
            _variant(variant, shared, number, observed, samples, options, protection_us, result.rules_since)
            for number, variant in enumerate(result.variants)
        ],
        comparisons=[
            _comparison(result, shared, observed, samples, number, options) for number in range(1, len(observed))
        ],
        drift=[_drift(drift, shared.span_days) for drift in result.drift],
    )


class _Samples(NamedTuple):
    """Figures of all variants over resamples: of the whole range, and of its slices."""

    whole: list[Resamples]
    days: tuple[Slicing, list[list[Resamples]]]
    amounts: tuple[Slicing, list[list[Resamples]]]
    kinds: tuple[Slicing, list[list[Resamples]]]


def _samples(shared: Shared, observed: list[Observed], options: ReportOptions) -> _Samples:
    days, bands, kinds = slices.days(shared), slices.bands(shared), slices.kinds(shared)
    return _Samples(
        resample(shared, observed, options),
        (days, resample_slices(shared, observed, days, options, by_days=False)),
        (bands, resample_slices(shared, observed, bands, options)),
        (kinds, resample_slices(shared, observed, kinds, options)),
    )


def _variant(
    variant: Variant,
    shared: Shared,
    number: int,
    observed: list[Observed],
    samples: _Samples,
    options: ReportOptions,
    protection_us: int,
    rules_since: Mapping[tuple[str, str], str],
) -> VariantContent:
    truth, shown, reviewed = shared.truth, observed[number], variant.reviewed
    (days, by_day), (bands, by_amount), (kinds, by_kind) = samples.days, samples.amounts, samples.kinds
    labelled = ~truth.unlabelled
    missed = truth.fraud & ~shown.caught
    selections = variant.decisions["selection"][shown.alert].astype(object).value_counts().sort_index()
    return VariantContent(
        name=variant.name,
        models=dict(variant.models),
        versions=list(variant.versions),
        threshold=variant.threshold,
        parameters=dict(variant.parameters),
        metrics=metrics(samples.whole[number], options),
        precision_bounds=precision_bounds(truth, shown.alert),
        recall_bounds=recall_bounds(truth, shown.alert),
        precision_at_k_bounds=precision_bounds(truth, shown.best),
        recall_at_k_bounds=recall_bounds(truth, shown.best),
        paced=None if variant.paced is None else pacing(variant.paced, shared, shown),
        reviewed=None
        if reviewed is None
        else ReviewContent(alerts=reviewed.alerts, unanswered=reviewed.unanswered, sooner=len(reviewed.answers)),
        prequential=[
            ModelFigures(model=name, auc=figures.auc, log_loss=figures.log_loss)
            for name, figures in variant.prequential.items()
        ],
        alerts_labelled=float(labelled[shown.alert].mean()) if shown.alert.any() else None,
        others_labelled=float(labelled[~shown.alert].mean()) if not shown.alert.all() else None,
        selections={str(name): int(rows) for name, rows in selections.items()},
        fraud_types=slices.fraud_types(shared, kinds, by_kind[number], options),
        days=slices.slices(shared, shown, days, by_day[number], options),
        amounts=slices.slices(shared, shown, bands, by_amount[number], options),
        curve=breakdowns.curve(shared, shown),
        sweep=sweep(
            truth.fraud,
            shown.score,
            shared.card,
            shared.event_time_us,
            shared.amount,
            sweep_thresholds(shown.score),
            span_days=shared.span_days,
            review_cost=options.review_cost,
            protection_us=protection_us,
        ),
        scores=breakdowns.score_bins(shared, shown, breakdowns.LOG_ODDS_EDGES),
        calibration=breakdowns.score_bins(shared, shown, breakdowns.CALIBRATION_EDGES),
        expected_frauds=float(shown.score.sum()),
        explained=variant.explained,
        reasons=breakdowns.reasons(variant),
        rules=breakdowns.rules(variant, shared, rules_since),
        overruled=breakdowns.overruled(variant, shared, shown),
        misses=breakdowns.costliest(shared, observed, missed, options.rows),
    )


def _comparison(
    result: BacktestResult,
    shared: Shared,
    observed: list[Observed],
    samples: _Samples,
    number: int,
    options: ReportOptions,
) -> VariantComparison:
    base, other = observed[0], observed[number]
    (days, by_day), (bands, by_amount) = samples.days, samples.amounts

    def side(mine: Observed, theirs: Observed) -> Side:
        alone = mine.alert & ~theirs.alert
        caught = mine.caught & ~theirs.caught
        return Side(
            alerts=int(alone.sum()),
            frauds=int((alone & shared.truth.fraud).sum()),
            unlabelled=int((alone & shared.truth.unlabelled).sum()),
            caught_amount=float(shared.amount[caught].sum()),
            examples=breakdowns.costliest(shared, observed, alone, options.rows // 2),
        )

    return VariantComparison(
        base=result.variants[0].name,
        other=result.variants[number].name,
        alerts_of_both=int((base.alert & other.alert).sum()),
        only_base=side(base, other),
        only_other=side(other, base),
        differences=differences(samples.whole[0], samples.whole[number], options),
        days=slices.slice_differences(days, by_day[0], by_day[number], options),
        amounts=slices.slice_differences(bands, by_amount[0], by_amount[number], options),
    )


def _drift(drift: ModelDrift, days: float) -> DriftContent:
    figures = (drift.stability_index(), drift.ks_statistic(), *drift.missing())
    rows = [
        FeatureDrift(
            feature=feature.name,
            stability_index=_finite(index) if days >= CYCLE_DAYS.get(feature.name, 0.0) else None,
            ks_statistic=_finite(distance) if days >= CYCLE_DAYS.get(feature.name, 0.0) else None,
            missing_before=_finite(before),
            missing_in_range=_finite(now),
        )
        for feature, index, distance, before, now in zip(
            drift.before, *(figure.tolist() for figure in figures), strict=True
        )
    ]
    return DriftContent(
        lightgbm=drift.lightgbm,
        variants=list(drift.variants),
        known=bool(drift.before),
        features=sorted(rows, key=lambda row: (-(row.stability_index or 0.0), row.feature)),
    )


def _finite(value: float) -> float | None:
    return None if np.isnan(value) else value
