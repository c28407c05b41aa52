"""A pass over a history in the order of event time: all candidates decide about it side by side."""

from collections.abc import Generator, Iterator
from contextlib import closing

from pipeline.backtest.input.live_decisions import live_decisions
from pipeline.backtest.input.merge import Numbering
from pipeline.backtest.input.order import Order, in_order
from pipeline.backtest.input.span import Span
from pipeline.backtest.input.topic_source import TopicSource
from pipeline.backtest.labels.final_labels import bearing_truth
from pipeline.backtest.labels.schedule import LabelMode, ScheduledLabels
from pipeline.backtest.runner.candidates import policy_to_train
from pipeline.backtest.runner.live_comparison import LiveComparer, live_comparer
from pipeline.backtest.runner.model_library import ModelLibrary
from pipeline.backtest.runner.replay import decide_chunks, decide_reviewed
from pipeline.backtest.runner.request import Request
from pipeline.backtest.runner.statistics import RunStatistics
from pipeline.backtest.runner.thresholds import Budget, PacedVariant
from pipeline.backtest.training.renewal import ModelRenewal
from pipeline.backtest.training.rows import TrainingRows
from pipeline.engine.records.columns import Reject
from pipeline.engine.scores.decisions import Decisions
from pipeline.models.list_log import ListHistory
from pipeline.models.registry import Registry
from schemas.times import US_PER_DAY


def renewals_of(
    request: Request, rows: TrainingRows | None, library: ModelLibrary, statistics: RunStatistics
) -> list[ModelRenewal | None]:
    """Return what renews models: for all candidates, or for each that sees labels of its own.

    ``rows`` are those that were trained on before the range; None where nothing was trained.
    """
    schedules = {name: candidate.renewed for name, candidate in statistics.candidates.items()}
    reviewed = request.labels is LabelMode.REVIEW
    of_lanes = [{name: schedule} for name, schedule in schedules.items()] if reviewed else [schedules]
    training, period = request.training, request.period
    if rows is None or training is None or period is None or not training.renew_days:
        return [None] * len(of_lanes)
    policy, registry = policy_to_train(request, library), Registry(request.settings.registry_path)
    found: list[ModelRenewal | None] = []
    for of_lane in of_lanes:
        own = None
        if any(schedule is not None for schedule in of_lane.values()):
            own = rows if len(of_lanes) == 1 else rows.copy()
        found.append(
            ModelRenewal(
                training, period, request.span.from_us, own, policy, registry, of_lane, statistics.report_training
            )
        )
    return found


def decide_by_time(
    request: Request, renewals: list[ModelRenewal | None], statistics: RunStatistics, lists: ListHistory
) -> Iterator[tuple[str, Decisions]]:
    """Yield what each candidate, of which there is at least one, decides of the range, chunk by chunk.

    A variant whose policy changes within a chunk has a part for each policy. Raises as `pipeline.Backtest.run`.
    """
    span, candidates = request.span, statistics.candidates
    days = request.time_range.validation_days
    statistics.budgets = {
        name: Budget(item.alert_threshold.budget, span.from_us, days)
        for name, item in candidates.items()
        if item.alert_threshold.budget is not None
    }
    statistics.paced = {
        name: PacedVariant(item.alert_threshold.pace, span.from_us - round(days * US_PER_DAY))
        for name, item in candidates.items()
        if item.alert_threshold.pace is not None
    }
    statistics.renewed = {
        name: made for renewal in renewals if renewal is not None for name, made in renewal.trainings.items()
    }
    comparer, numbering = _comparer(request), Numbering(statistics.partitions)
    schedules = request.schedules(len(candidates))
    # Candidates that share a schedule have the same labels.
    of_lanes = list(candidates)[: max(len(schedules), 1)]
    with closing(_decided(request, renewals, schedules, statistics, lists)) as passed:
        for decided in passed:
            outcomes = {
                name: statistics.budgets[name].decide(item) if name in statistics.budgets else item
                for name, item in zip(candidates, decided, strict=True)
            }
            first, *_ = outcomes.values()
            statistics.count(first)
            statistics.count_labels({name: outcomes[name].label_outcomes for name in of_lanes})
            times_us = first.transactions.event_time_us
            parts = {
                name: [_within(span, part) for part in item.decide(outcomes[name])]
                for name, item in statistics.paced.items()
            }
            within = {name: _within(span, item) for name, item in outcomes.items()}
            statistics.decided(within)
            for name, item in within.items():
                for part in filter(len, parts[name]) if name in parts else [item]:
                    yield name, part
            first = next(iter(within.values()))
            if comparer is not None:
                comparer.take(first, [numbering.position(row) for row in first.transactions.row.tolist()])
            statistics.note(times_us, first.transactions.event_time_us, statistics.worked_on + len(times_us))
            if statistics.stopped():
                break
    if comparer is not None:
        statistics.comparison = comparer.finish(partial=statistics.partial)
    if request.labels is LabelMode.REVIEW:
        statistics.reviewed = {name: item.reviewed() for name, item in zip(candidates, schedules, strict=True)}


def _within(span: Span, decisions: Decisions) -> Decisions:
    times_us = decisions.transactions.event_time_us
    inside = (times_us >= span.from_us) & (times_us < span.to_us)
    return decisions if inside.all() else decisions.take(inside)


def _comparer(request: Request) -> LiveComparer | None:
    source = request.source
    if not request.compare_live or not isinstance(source, TopicSource):
        return None
    live = live_decisions(source, request.span, features=True)
    return live_comparer(live, source, request.span, request.order)


def _decided(
    request: Request,
    renewals: list[ModelRenewal | None],
    schedules: list[ScheduledLabels],
    statistics: RunStatistics,
    lists: ListHistory,
) -> Generator[list[Decisions], None, None]:
    """Decisions of all candidates about the history, with labels as they were emitted or as they are due."""
    options = request.card_options(statistics.partitions)
    candidates, rejects = list(statistics.candidates.values()), list[Reject]()
    opened = request.source.open(request.span, request.acceptance(options), rejects, statistics.book)
    statistics.seen = opened.seen
    statistics.warnings += opened.warnings
    with closing(opened):
        if not schedules:
            chunks = in_order(opened.transactions, opened.labels, Order.EVENT_TIME)
            yield from decide_chunks(candidates, chunks, rejects, options=options, renewal=renewals[0], lists=lists)
            return
        transactions, statistics.book = bearing_truth(request.source, opened, request.label_delay_us, statistics.book)
        if request.labels is LabelMode.REVIEW:
            yield from decide_reviewed(
                candidates, transactions, schedules, rejects, options=options, renewals=renewals, lists=lists
            )
        else:
            chunks = schedules[0].chunks(transactions)
            yield from decide_chunks(candidates, chunks, rejects, options=options, renewal=renewals[0], lists=lists)
