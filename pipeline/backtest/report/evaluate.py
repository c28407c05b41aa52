"""From a backtest's result to the content of its report. Pure: no clock, no files."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.blocks import blocks
from pipeline.backtest.drift import Drift
from pipeline.backtest.metrics import top_of_days
from pipeline.backtest.report import tables
from pipeline.backtest.report.content import (
    Comparison,
    Content,
    FeatureDrift,
    LabelContent,
    ReportOptions,
    Side,
    SourceCount,
    VariantContent,
)
from pipeline.backtest.report.figures import Resamples, differences, metrics, resample
from pipeline.backtest.report.observed import Observed, Shared, observe, share
from pipeline.backtest.result import BacktestResult, Variant
from pipeline.backtest.spill import NumberColumn
from pipeline.backtest.truth import NEVER, precision_bounds, recall_bounds
from pipeline.features.catalogue import US_PER_DAY


def evaluate(result: BacktestResult, options: ReportOptions) -> Content:
    """Everything that the report says. Raises ValueError where variants did not decide about the same transactions."""
    shared = share(result)
    protection_us = round(options.protection_days * US_PER_DAY)
    observed = [observe(variant, shared, protection_us) for variant in result.variants]
    samples = resample(shared, observed, options)
    return Content(
        partial=result.partial,
        from_time=tables.time_text(result.from_us),
        to_time=tables.time_text(result.to_us),
        until_time=tables.time_text(result.until_us),
        days=shared.span_days,
        warm_up_days=(result.from_us - result.warm_up_from_us) / US_PER_DAY,
        base_currency=result.base_currency,
        transactions=len(shared.frame),
        cards=shared.cards,
        warnings=list(result.warnings),
        parameters=dict(result.parameters),
        counts=dict(result.counts),
        options=options,
        labels=_labels(result, shared),
        variants=[
            _variant(variant, shared, one, observed, sample, options, protection_us)
            for variant, one, sample in zip(result.variants, observed, samples, strict=True)
        ],
        comparisons=[
            _comparison(result, shared, observed, samples, number, options) for number in range(1, len(observed))
        ],
        drift_reference="" if result.drift is None else result.drift.reference_name,
        drift=[] if result.drift is None else _drift(result.drift),
    )


def _variant(
    variant: Variant,
    shared: Shared,
    one: Observed,
    observed: list[Observed],
    sample: Resamples,
    options: ReportOptions,
    protection_us: int,
) -> VariantContent:
    truth = shared.truth
    labelled = ~truth.unlabelled
    missed = truth.fraud & ~one.caught
    selections = variant.decisions["selection"][one.alert].astype(object).value_counts().sort_index()
    return VariantContent(
        name=variant.name,
        models=dict(variant.models),
        threshold=variant.threshold,
        parameters=dict(variant.parameters),
        metrics=metrics(sample, options),
        precision_bounds=precision_bounds(truth, one.alert),
        recall_bounds=recall_bounds(truth, one.alert),
        alerts_labelled=float(labelled[one.alert].mean()) if one.alert.any() else None,
        others_labelled=float(labelled[~one.alert].mean()) if not one.alert.all() else None,
        selections={str(name): int(rows) for name, rows in selections.items()},
        fraud_types=tables.fraud_types(shared, one, top_of_days(one.score, shared.event_time_us, options.top)),
        days=tables.by_day(shared, one),
        amounts=tables.by_amount(shared, one),
        curve=tables.curve(shared, one),
        sweep=tables.sweep_rows(shared, one, options.review_cost, protection_us),
        scores=tables.score_bins(shared, one, tables.LOG_ODDS_EDGES),
        calibration=tables.score_bins(shared, one, tables.CALIBRATION_EDGES),
        expected_frauds=float(one.score.sum()),
        explained=variant.explained,
        reasons=tables.reasons(variant),
        misses=tables.costliest(shared, observed, missed, options.rows),
    )


def _comparison(
    result: BacktestResult,
    shared: Shared,
    observed: list[Observed],
    samples: list[Resamples],
    number: int,
    options: ReportOptions,
) -> Comparison:
    base, other = observed[0], observed[number]

    def side(mine: Observed, theirs: Observed) -> Side:
        alone = mine.alert & ~theirs.alert
        caught = mine.caught & ~theirs.caught
        return Side(
            alerts=int(alone.sum()),
            frauds=int((alone & shared.truth.fraud).sum()),
            unlabelled=int((alone & shared.truth.unlabelled).sum()),
            caught_amount=float(shared.amount[caught].sum()),
            examples=tables.costliest(shared, observed, alone, options.rows // 2),
        )

    return Comparison(
        base=result.variants[0].name,
        other=result.variants[number].name,
        alerts_of_both=int((base.alert & other.alert).sum()),
        only_base=side(base, other),
        only_other=side(other, base),
        differences=differences(samples[0], samples[number], options),
    )


_MODES: Final = {
    "recorded": "Labels are those that were recorded.",
    "delay": "Labels are the truth that the history holds, each known after a delay; nobody has to find a fraud for it "
    "to be known.",
    "simulated-review": "Labels are simulated: alerts are reviewed, other frauds are reported in part.",
}


def _labels(result: BacktestResult, shared: Shared) -> LabelContent:
    truth = shared.truth
    known = truth.known_us != NEVER
    frauds, legitimate, unlabelled = (int(rows.sum()) for rows in (truth.fraud, truth.legitimate, truth.unlabelled))
    statements = [_MODES.get(result.label_mode, f"Labels come from: {result.label_mode}.")]
    rows = len(shared.frame)
    if rows:
        statements.append(
            f"{frauds + legitimate:,} of {rows:,} transactions ({(frauds + legitimate) / rows:.1%}) have a label that "
            f"says something. The other {unlabelled:,} count as legitimate in every figure but the bounds, since most "
            "legitimate transactions never get a label."
        )
    if not frauds:
        statements.append("No fraud is known in the range: nothing can be said of recall, ranking or money.")
    if result.label_mode == "recorded" and unlabelled:
        statements.append(
            "A fraud that nobody reported and no alert found is not among the frauds: recall is that of known frauds. "
            "Who was reviewed was chosen by the alerts of then, so that other alerts, which nobody looked at, seem to "
            "be wrong; only an audit sample, drawn whatever the score, is free of this."
        )
    median = _median_delay_us(shared, known) / US_PER_DAY if known.any() else None
    if median is not None:
        statements.append(
            f"Half of the labels were known within {median:.1f} days; of the range's last days more frauds may still "
            "become known."
        )
    sources = [
        SourceCount(
            source=source,
            frauds=int((truth.fraud & (truth.source == source)).sum()),
            legitimate=int((truth.legitimate & (truth.source == source)).sum()),
        )
        for source in sorted(truth.source[known].unique().tolist())
    ]
    return LabelContent(
        mode=result.label_mode,
        frauds=frauds,
        legitimate=legitimate,
        unlabelled=unlabelled,
        sources=sources,
        median_delay_days=median,
        statements=statements,
    )


def _median_delay_us(shared: Shared, known: NDArray[np.bool_]) -> float:
    """From transactions to the labels that hold of them; ``known``, of which there are some, have one."""
    delays_us = NumberColumn(np.int64)
    for rows in blocks(len(known)):
        delays_us.add((shared.truth.known_us[rows] - shared.event_time_us[rows])[known[rows]])
    return float(np.median(delays_us.finish(scratch=True), overwrite_input=True))


def _drift(drift: Drift) -> list[FeatureDrift]:
    found = zip(drift.features, drift.stability_index().tolist(), *(of.tolist() for of in drift.missing()), strict=True)
    rows = [
        FeatureDrift(
            feature=name,
            stability_index=_finite(index),
            missing_before=_finite(before),
            missing_in_range=_finite(now),
        )
        for name, index, before, now in found
    ]
    return sorted(rows, key=lambda row: (-(row.stability_index or 0.0), row.feature))


def _finite(value: float) -> float | None:
    return None if np.isnan(value) else value
