"""Run a request: train first, then pass over the range."""

from collections.abc import Generator
from contextlib import closing

from pipeline.backtest.input.acceptance import all_refused, first_reasons
from pipeline.backtest.input.file_source import FileSource
from pipeline.backtest.input.label_book import LabelBook
from pipeline.backtest.input.order import Order, in_order
from pipeline.backtest.input.span import EARLIEST_US, RangeError, SeenTimes, Span
from pipeline.backtest.labels.final_labels import bearing_truth
from pipeline.backtest.labels.schedule import LabelMode, ScheduledLabels
from pipeline.backtest.runner.candidates import candidates_of, policy_to_train, warnings_of_labels, warnings_of_policies
from pipeline.backtest.runner.event_time_pass import decide_by_time, renewals_of
from pipeline.backtest.runner.model_library import ModelLibrary
from pipeline.backtest.runner.outcome import (
    no_transaction_at_all,
    nothing_decided,
    warnings_of,
    warnings_of_short_history,
)
from pipeline.backtest.runner.recorded_pass import decide_as_recorded
from pipeline.backtest.runner.request import Request
from pipeline.backtest.runner.statistics import PassProgress, RunStatistics, training_stage
from pipeline.backtest.training.rows import TrainingPeriod, TrainingRows
from pipeline.backtest.training.variants import Training, known_by, read_rows
from pipeline.engine.records.columns import Reject
from pipeline.engine.scores.decisions import Decisions
from pipeline.models.registry import Registry
from schemas.times import moment


def decide_range(
    request: Request, library: ModelLibrary, statistics: RunStatistics
) -> Generator[tuple[str, Decisions], None, None]:
    """Yield the decisions of the range, chunk by chunk, with the name of what decided.

    Raises as `pipeline.Backtest.run`.

    Args:
        request: What to train, read and decide.
        library: Loads the models.
        statistics: Empty ones, which are filled while decisions are yielded.
    """
    # First, since it tells whether a cluster answers at all.
    statistics.partitions = request.partitions
    rows = None
    if request.training is not None and request.period is not None:
        rows = train_before(request, request.training, request.period, library, statistics)
    candidates = candidates_of(request, library, statistics.trained)
    statistics.decides(candidates)
    statistics.warnings += warnings_of_policies(candidates)
    statistics.warnings += warnings_of_labels(request, candidates)
    if request.order is Order.RECORDED:
        yield from decide_as_recorded(request, library, statistics)
    else:
        renewals = renewals_of(request, rows, library, statistics)
        # Its files are gone with the last of those that add to it.
        del rows
        yield from decide_by_time(request, renewals, statistics, library.list_history)
    if statistics.last_decided_us <= EARLIEST_US:
        raise RangeError(nothing_decided(request, statistics))
    statistics.warnings += warnings_of(request, statistics)


def train_before(
    request: Request, training: Training, period: TrainingPeriod, library: ModelLibrary, statistics: RunStatistics
) -> TrainingRows:
    """Read features and labels of ``period``, and train on them. Raises as `pipeline.Backtest.run`.

    What was read is returned; if models are renewed, it reaches to the begin of the range.
    """
    until_us = request.span.from_us if training.renew_days else period.known_us
    span = Span(period.from_us - request.warm_up_us, period.from_us, until_us)
    rejects: list[Reject] = []
    progress = PassProgress(span, statistics.listener)
    rows, seen = _read(request, span, statistics.partitions, progress, rejects)
    data = rows.training_set(period)
    targets = len(data.fraud)
    if not targets:
        reasons = first_reasons(rejects)
        if reasons and seen.last_us <= EARLIEST_US:
            raise RangeError(all_refused(request.source.name, reasons))
        read = ""
        if seen.last_us > EARLIEST_US:
            read = f"; what was read lies between {moment(seen.first_us)} and {moment(seen.last_us)}"
        elif isinstance(request.source, FileSource):
            raise RangeError(no_transaction_at_all(request.source.name))
        raise RangeError(
            f"{request.source.name} has no transaction to train on from {moment(period.from_us)} to "
            f"{moment(period.last_us)}{read}: choose another period with --train-from and --train-to"
        )
    statistics.warnings += warnings_of_short_history(progress.first_us, span, "training: ")
    policy, registry = policy_to_train(request, library), Registry(request.settings.registry_path)
    for name in training.variants:
        statistics.listener.report(targets, period.last_us, None, training_stage(name))
        statistics.trained[name] = training.grow(name, data, period, policy, registry)
        statistics.listener.refuse_stopped()
    return rows


def _read(
    request: Request, span: Span, partitions: int, progress: PassProgress, rejects: list[Reject]
) -> tuple[TrainingRows, SeenTimes]:
    options = request.card_options(partitions)
    book, rows = LabelBook(), TrainingRows(span.from_us)
    opened = request.source.open(span, request.acceptance(options), rejects, book)
    with closing(opened):
        if request.labels is LabelMode.RECORDED:
            chunks = in_order(opened.transactions, known_by(opened.labels, span.to_us), Order.EVENT_TIME)
        else:
            # Nothing was alerted by what is still to be trained: its labels come after the delay.
            transactions, _ = bearing_truth(request.source, opened, request.label_delay_us, book)
            chunks = ScheduledLabels(request.regime).chunks(transactions, span.to_us)
        with closing(read_rows(chunks, rows, options)) as passed:
            for profiled in passed:
                times_us = profiled.transactions.event_time_us
                if len(times_us):
                    progress.report(times_us, progress.worked_on + len(times_us), "reading what to train on")
                progress.listener.refuse_stopped()
        return rows, opened.seen
