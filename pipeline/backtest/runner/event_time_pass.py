"""A pass over a history in the order of event time: all candidates decide about it side by side."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing

from pipeline.backtest.input.live_decisions import live_decisions
from pipeline.backtest.input.records import Numbering
from pipeline.backtest.input.sources import OpenedHistory
from pipeline.backtest.input.span import Span
from pipeline.backtest.input.topic_source import TopicSource
from pipeline.backtest.labels.final_labels import bearing_truth
from pipeline.backtest.labels.schedule import LabelMode, ScheduledLabels
from pipeline.backtest.runner.candidates import policy_to_train
from pipeline.backtest.runner.live_comparison import LiveComparer, live_comparer
from pipeline.backtest.runner.model_library import ModelLibrary
from pipeline.backtest.runner.replay import Candidate, replay_accepted, replay_scheduled
from pipeline.backtest.runner.request import Request
from pipeline.backtest.runner.statistics import RunStatistics
from pipeline.backtest.runner.thresholds import Budget, PacedVariant
from pipeline.backtest.training.renewal import ModelRenewal
from pipeline.backtest.training.rows import TrainingRows
from pipeline.backtest.training.variants import VariantTraining
from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.records.columns import Reject
from pipeline.engine.scores.decisions import Decisions
from pipeline.models.registry import Registry
from schemas.times import US_PER_DAY


def renewals_of(
    request: Request,
    candidates: Mapping[str, Candidate],
    rows: TrainingRows | None,
    library: ModelLibrary,
    statistics: RunStatistics,
) -> list[ModelRenewal | None]:
    """Return what renews models: for all candidates, or for each that sees labels of its own.

    Args:
        request: What was asked.
        candidates: All of them.
        rows: What was trained on before the range; None where nothing was trained.
        library: Has the policy whose rules, blend and audit rate are taken over.
        statistics: Records the trainings.
    """
    names = list(candidates)
    of_lanes = [[name] for name in names] if request.labels is LabelMode.REVIEW else [names]
    training, period = request.training, request.period
    if rows is None or training is None or period is None or not training.renew_days:
        return [None] * len(of_lanes)

    def noted(of_lane: list[str]) -> Callable[[str, int | None, VariantTraining | None], None]:
        def note(variant: str, every_us: int | None, grown: VariantTraining | None) -> None:
            if grown is None:
                statistics.note_training(variant)
                return
            for name in of_lane:
                renewed = candidates[name].renewed
                if renewed is not None and (renewed.variant, renewed.every_us) == (variant, every_us):
                    statistics.renewed.setdefault(name, []).append(grown)

        return note

    policy, registry = policy_to_train(request, library), Registry(request.settings.registry_path)
    found: list[ModelRenewal | None] = []
    for of_lane in of_lanes:
        own = None
        if any(candidates[name].renewed is not None for name in of_lane):
            own = rows if len(of_lanes) == 1 else rows.copy()
        found.append(ModelRenewal(training, period, request.span.from_us, own, policy, registry, noted(of_lane)))
    return found


def decide_by_time(
    request: Request,
    candidates: Mapping[str, Candidate],
    renewals: list[ModelRenewal | None],
    partitions: int,
    statistics: RunStatistics,
) -> None:
    """Decide the range by all ``candidates``, at least one. Raises as `pipeline.Backtest.run`."""
    span, source = request.span, request.source
    options = request.card_options(partitions)
    rejects: list[Reject] = []
    comparer = _comparer(request)
    opened = source.open(span, request.acceptance(options), rejects, statistics.book)
    statistics.seen = opened.seen
    statistics.warnings += opened.warnings
    numbering = Numbering(partitions)
    statistics.budgets = {
        name: Budget(item.alerts_per_day, span.from_us, request.time_range.validation_days)
        for name, item in candidates.items()
        if item.alerts_per_day is not None
    }
    watched_from_us = span.from_us - round(request.time_range.validation_days * US_PER_DAY)
    statistics.paced = {
        name: PacedVariant(item.paced_at, watched_from_us)
        for name, item in candidates.items()
        if item.paced_at is not None
    }
    schedules = request.schedules(len(candidates))
    passed = _decided(request, candidates, renewals, opened, schedules, rejects, options, statistics)
    with closing(opened), closing(passed):
        for decided in passed:
            outcomes = {
                name: statistics.budgets[name].decide(item) if name in statistics.budgets else item
                for name, item in zip(candidates, decided, strict=True)
            }
            first, *_ = outcomes.values()
            statistics.count(first)
            # As many as there are schedules: candidates that share one have the same labels.
            of_lanes = list(outcomes.items())[: max(len(schedules), 1)]
            statistics.count_labels({name: item.label_outcomes for name, item in of_lanes})
            times_us = first.transactions.event_time_us
            inside = (times_us >= span.from_us) & (times_us < span.to_us)
            parts = {name: _inside(item.decide(outcomes[name]), span) for name, item in statistics.paced.items()}
            statistics.pass_on(
                {name: item if inside.all() else item.take(inside) for name, item in outcomes.items()}, parts
            )
            if comparer is not None:
                within = first.take(inside)
                comparer.take(within, [numbering.position(row) for row in within.transactions.row.tolist()])
            statistics.note(times_us, times_us[inside], statistics.worked_on + len(times_us))
            if statistics.stopped():
                break
    if comparer is not None:
        statistics.comparison = comparer.finish(partial=statistics.partial)
    if request.labels is LabelMode.REVIEW:
        statistics.reviewed = {name: item.reviewed() for name, item in zip(candidates, schedules, strict=True)}


def _inside(parts: Iterable[Decisions], span: Span) -> list[Decisions]:
    found = []
    for part in parts:
        times_us = part.transactions.event_time_us
        inside = (times_us >= span.from_us) & (times_us < span.to_us)
        if inside.any():
            found.append(part if inside.all() else part.take(inside))
    return found


def _comparer(request: Request) -> LiveComparer | None:
    source = request.source
    if not request.compare_live or not isinstance(source, TopicSource):
        return None
    live = live_decisions(source, request.span, features=True)
    return live_comparer(live, source, request.span, request.order)


def _decided(
    request: Request,
    candidates: Mapping[str, Candidate],
    renewals: list[ModelRenewal | None],
    opened: OpenedHistory,
    schedules: list[ScheduledLabels],
    rejects: list[Reject],
    options: CardOptions,
    statistics: RunStatistics,
) -> Generator[list[Decisions], None, None]:
    """Decisions of all candidates, with labels as they were emitted or as they are due."""
    every = list(candidates.values())
    if not schedules:
        return replay_accepted(every, opened.transactions, opened.labels, rejects, options=options, renewal=renewals[0])
    transactions, statistics.book = bearing_truth(request.source, opened, request.label_delay_us, statistics.book)
    return replay_scheduled(every, transactions, schedules, rejects, options=options, renewals=renewals)
