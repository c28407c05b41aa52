"""Turn the statistics of a pass into warnings and the result."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Final

from pipeline.backtest.input.acceptance import all_refused
from pipeline.backtest.input.file_source import FileSource
from pipeline.backtest.input.order import Order
from pipeline.backtest.input.span import EARLIEST_US, LATEST_US, Span
from pipeline.backtest.labels.schedule import LabelMode
from pipeline.backtest.runner.input_quality import refusal
from pipeline.backtest.runner.input_quality import warnings as warnings_of_input
from pipeline.backtest.runner.live_comparison import LiveComparison
from pipeline.backtest.runner.request import Request
from pipeline.backtest.runner.result import BacktestResult, Collected, Parameter, TrainedVersion, Variant
from pipeline.backtest.runner.statistics import RunStatistics, RunSummary
from pipeline.backtest.training.variants import VariantTraining
from pipeline.decision.reason_texts import count
from pipeline.features.catalogue import REACH_US
from pipeline.history.mapped_files import FileMapping, refusal_text
from pipeline.models.list_log import LEAKS, ListTime
from schemas.times import US_PER_DAY, moment, time_text
from schemas.topics import DECISION_FEATURES, DECISIONS, PROFILED, PROGRESS

_REFUSED: Final = refusal("transaction", "")


def nothing_decided(request: Request, statistics: RunStatistics) -> str:
    """Why there is no decision in the range, and what to do."""
    span, seen, source = request.span, statistics.seen, request.source
    limits = [f"from {moment(span.from_us)}"] if span.from_us > EARLIEST_US else []
    limits += [f"before {moment(span.to_us)}"] if span.to_us < LATEST_US else []
    text = f"{source.name} has no transaction to decide {' and '.join(limits)}".rstrip()
    if statistics.partial:
        return f"{text} that was reached before the backtest was stopped"
    if request.order is Order.RECORDED:
        return (
            f"{text} in the recorded order, which goes by what live workers wrote to {PROGRESS.name}, "
            f"{PROFILED.name} and {DECISIONS.name}: choose another range with --from and --to, or, where nothing "
            "was decided live, --order event-time"
        )
    if statistics.reasons and seen.last_us <= EARLIEST_US:
        return all_refused(source.name, statistics.reasons)
    if seen.last_us > EARLIEST_US:
        text += f"; what was read lies between {moment(seen.first_us)} and {moment(seen.last_us)}"
    refused = sum(count for name, count in statistics.counts.items() if name.startswith(_REFUSED))
    text += f" ({refused} were refused)" if refused else ""
    # Of topics, and of exports, only a part is read.
    if seen.last_us <= EARLIEST_US and isinstance(source, FileSource):
        return no_transaction_at_all(source.name)
    return f"{text}: choose another range with --from and --to"


def no_transaction_at_all(name: str) -> str:
    """What to say of a file without a row."""
    return f"{name} holds no transaction at all, within the range or out of it"


def warnings_of(request: Request, statistics: RunStatistics) -> list[str]:
    """Return the warnings about the warm-up, the input quality and budgets."""
    span, found = request.span, [LEAKS] if request.lists is ListTime.TODAY else []
    if span.from_us <= EARLIEST_US:
        found.append(
            "no begin was named, so that windows begin empty: name one with --from, and what lies before warms up"
        )
    else:
        found += warnings_of_short_history(statistics.first_us, span)
        if request.warm_up_us < REACH_US:
            found.append(
                f"the windows are warmed up for {request.warm_up_us / US_PER_DAY:g} days, and features look back "
                f"{REACH_US / US_PER_DAY:g}: decisions of the first days see less than live ones"
            )
    found += warnings_of_input(statistics.counts, statistics.worked_on)
    first, source = statistics.first_refused, request.source
    if first is not None and isinstance(source, FileSource) and isinstance(source.mapping, FileMapping):
        codes = {
            name.removeprefix(_REFUSED): rows for name, rows in statistics.counts.items() if name.startswith(_REFUSED)
        }
        found.append(refusal_text(source.path, Counter(codes), first))
    found += warnings_of_comparison(statistics.comparison)
    for name, grown in statistics.renewed.items():
        refused = [variant for variant in grown if variant.trained is None]
        if refused:
            found.append(
                f"{name}: {len(refused)} of {len(grown)} trainings within the range were refused, and the version "
                f"before went on deciding; the first, at {moment(refused[0].period.known_us)}: {refused[0].refused}"
            )
    for name, budget in statistics.budgets.items():
        if budget.days < request.time_range.validation_days:
            found.append(
                f"{name}: the threshold was chosen on {budget.days:.1f} days before the range, not on "
                f"{request.time_range.validation_days:g}"
            )
        if budget.tied:
            found.append(
                f"{name}: {count(budget.tied, 'case')} with the highest score before the range, more than the "
                "budget allows: all of them alert where they are less than twice as many, else few or none do; name a "
                "larger budget"
            )
    return found


def warnings_of_comparison(comparison: LiveComparison | None) -> list[str]:
    """Return a sentence if live decisions could not be compared in all that they depend on."""
    if comparison is None or not comparison.without_features:
        return []
    return [
        f"{comparison.without_features:,} of {comparison.compared:,} live decisions have no recorded features on "
        f"{DECISION_FEATURES.name}: they were deleted, or cannot be read. The features of these decisions were not "
        "compared; everything else was"
    ]


def warnings_of_short_history(first_us: int, span: Span, subject: str = "") -> list[str]:
    """A sentence, ``subject`` at its begin, where transactions begin later than the warm-up does."""
    if first_us <= span.warm_up_from_us + US_PER_DAY:
        return []
    days = (span.from_us - min(first_us, span.from_us)) / US_PER_DAY
    return [
        f"{subject}history begins at {moment(first_us)}: it warms the windows up for {days:.1f} of "
        f"{(span.from_us - span.warm_up_from_us) / US_PER_DAY:g} days, and decisions of the first days see "
        "less than live ones"
    ]


def summary_of(statistics: RunStatistics) -> RunSummary:
    """Return the statistics besides decisions."""
    return RunSummary(statistics.reported_counts(), statistics.warnings, statistics.partial)


def result_of(
    request: Request,
    collected: Mapping[str, Collected],
    statistics: RunStatistics,
    rules_since: Mapping[tuple[str, str], str],
) -> BacktestResult:
    """The result, of what was decided by each variant.

    Args:
        request: Gives range and parameters.
        collected: Decisions within the range by variant, at least one variant with a decision.
        statistics: Those of the pass, which has ended or was stopped.
        rules_since: As in the result.
    """
    span = request.span
    from_us = span.from_us if span.from_us > EARLIEST_US else statistics.first_decided_us
    variants = [_variant(name, variant, statistics) for name, variant in collected.items()]
    counts, warnings, partial = summary_of(statistics)
    return BacktestResult(
        variants=variants,
        labels=statistics.book.labels_of(variants[0].decisions["transaction_id"]),
        from_us=from_us,
        to_us=span.to_us if span.to_us < LATEST_US else statistics.last_decided_us + 1,
        warm_up_from_us=min(statistics.first_us, from_us),
        base_currency=request.settings.base_currency,
        label_mode=request.labels.value,
        parameters={
            "source": request.source.name,
            "order": request.order.value,
            "lists": "none" if request.cluster is None else request.lists.value,
            **({} if request.rules_directory is None else {"rules": request.rules_directory.name}),
            **_label_parameters(request),
            "warm_up_days": round(request.warm_up_us / US_PER_DAY, 3),
            "partitions": statistics.partitions,
            "online_model": "frozen" if request.publish_every_us is None else "learning",
        },
        counts=counts,
        warnings=warnings,
        drift=statistics.drift.found(),
        rules_since=rules_since,
        partial=partial,
    )


def _variant(name: str, collected: Collected, statistics: RunStatistics) -> Variant:
    variant, candidate = collected.variant(name), statistics.candidates.get(name)
    if candidate is None:
        return variant
    paced = statistics.paced.get(name)
    prequential = None if candidate.learning is None else candidate.learning.prequential
    return dataclasses.replace(
        variant,
        parameters=candidate.parameters,
        paced=None if paced is None else paced.first_alerts,
        reviewed=statistics.reviewed.get(name),
        prequential={} if prequential is None else prequential.figures(),
        versions=tuple(_version(training, statistics.decided_by[name]) for training in statistics.trainings(name)),
    )


def _version(grown: VariantTraining, decided: Mapping[str, tuple[int, int]]) -> TrainedVersion:
    trained, known_time = grown.trained, time_text(grown.period.known_us)
    if trained is None:
        return TrainedVersion(known_time=known_time, refused=grown.refused, seconds=grown.seconds)
    metadata = trained.model.metadata
    first_us, decisions = decided.get(trained.model.version, (None, 0))
    return TrainedVersion(
        known_time=known_time,
        lightgbm=trained.model.version,
        policy=trained.policy.version,
        first_decision=None if first_us is None else time_text(first_us),
        decisions=decisions,
        rows=metadata["input"]["rows"],
        frauds=sum(metadata["frauds"].values()) + metadata.get("early", {}).get("frauds", 0),
        metrics=trained.metrics,
        seconds=grown.seconds,
    )


def _label_parameters(request: Request) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {"labels": request.labels.value}
    if request.labels is not LabelMode.RECORDED:
        described = request.regime.describe()
        found |= {"label_delay_days": round(float(described.pop("delay_days")), 3), **described}
    if request.labels is LabelMode.REVIEW:
        found["review_delay_days"] = round(request.reviews.delay_us / US_PER_DAY, 3)
        found["reviews_a_day"] = request.reviews.a_day
    return found
