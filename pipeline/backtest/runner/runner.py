"""Run a request: train first, then pass over the range."""

from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

from pipeline.backtest.engine.kernels import Profiled
from pipeline.backtest.input.acceptance import all_refused, first_reasons
from pipeline.backtest.input.label_book import LabelBook
from pipeline.backtest.input.order import Order, in_order
from pipeline.backtest.input.span import EARLIEST_US, LATEST_US, RangeError, SeenTimes, Span, moment
from pipeline.backtest.labels.final_labels import bearing_truth
from pipeline.backtest.labels.schedule import LabelMode, ScheduledLabels
from pipeline.backtest.runner.candidates import candidates_of, policy_to_train, warnings_of_labels, warnings_of_policies
from pipeline.backtest.runner.event_time_pass import decide_by_time, renewals_of
from pipeline.backtest.runner.model_library import ModelLibrary
from pipeline.backtest.runner.outcome import nothing_decided, warnings_of, warnings_of_short_history
from pipeline.backtest.runner.recorded_pass import decide_as_recorded
from pipeline.backtest.runner.replay import Candidate
from pipeline.backtest.runner.request import Request
from pipeline.backtest.runner.statistics import ProgressListener, RunStatistics, training_stage
from pipeline.backtest.training.period import TrainingPeriod
from pipeline.backtest.training.rows import TrainingRows
from pipeline.backtest.training.variants import Training, known_by, read_rows, scheduled
from pipeline.engine.records.columns import Reject
from pipeline.engine.scores.decisions import Decisions
from pipeline.models.registry import Registry


class FinishedRun(NamedTuple):
    """A backtest that was run, besides its decisions."""

    partitions: int
    candidates: dict[str, Candidate]
    statistics: RunStatistics


def run_request(
    request: Request, library: ModelLibrary, take: Callable[[str, Decisions], None], listener: ProgressListener
) -> FinishedRun:
    """Run it; ``take`` is given the decisions of the range, chunk by chunk, with the name of what decided.

    Raises as `pipeline.Backtest.run`.
    """
    # First, since it tells whether a cluster answers at all.
    partitions = request.partitions
    statistics = RunStatistics(request.span, request.label_grace_us, listener, take)
    rows = None
    if request.training is not None and request.period is not None:
        rows = train_before(request, request.training, request.period, partitions, library, listener, statistics)
    candidates = candidates_of(request, library, statistics.trained)
    statistics.trains(
        {name: candidate.trained_as for name, candidate in candidates.items() if candidate.trained_as is not None}
    )
    statistics.warnings += warnings_of_policies(candidates)
    statistics.warnings += warnings_of_labels(request, candidates)
    if request.order is Order.RECORDED:
        decide_as_recorded(request, candidates, partitions, library, statistics)
    else:
        renewals = renewals_of(request, candidates, rows, library, statistics)
        # Its files are gone with the last of those that add to it.
        del rows
        decide_by_time(request, candidates, renewals, partitions, statistics)
    if statistics.last_decided_us <= EARLIEST_US:
        raise RangeError(nothing_decided(request, statistics))
    statistics.warnings += warnings_of(request, statistics)
    return FinishedRun(partitions, candidates, statistics)


def train_before(
    request: Request, training: Training, period: TrainingPeriod, partitions: int, library: ModelLibrary,
    listener: ProgressListener, statistics: RunStatistics,
) -> TrainingRows:  # fmt: skip
    """Read features and labels of ``period``, and train on them.

    Returns:
        What was read: if models are renewed, up to the begin of the range.

    Raises:
        Exception: As `pipeline.Backtest.run`.
    """
    until_us = request.span.from_us if training.renew_days else period.known_us
    span = Span(period.from_us - request.warm_up_us, period.from_us, until_us)
    followed = _Followed(listener, span)
    rejects: list[Reject] = []
    rows, seen = _read(request, span, partitions, followed, rejects)
    data = rows.training_set(period)
    targets = len(data.fraud)
    if not targets:
        reasons = first_reasons(rejects)
        if reasons and seen.last_us <= EARLIEST_US:
            raise RangeError(all_refused(request.source.name, reasons))
        read = f"; what was read lies between {moment(seen.first_us)} and {moment(seen.last_us)}"
        raise RangeError(
            f"{request.source.name} has no transaction to train on from {moment(period.from_us)} to "
            f"{moment(period.last_us)}{read if seen.last_us > EARLIEST_US else ''}: choose another period with "
            "--train-from and --train-to"
        )
    statistics.warnings += warnings_of_short_history(followed.first_us, span, "training: ")
    policy, registry = policy_to_train(request, library), Registry(request.settings.registry_path)
    for name, grow in training.growing(data, period, policy, registry):
        listener.report(targets, period.last_us, None, training_stage(name))
        statistics.trained[name] = grow()
        listener.refuse_stopped()
    return rows


class _Followed:
    """The progress of reading."""

    def __init__(self, listener: ProgressListener, span: Span) -> None:
        self._listener, self._span = listener, span
        self._worked_on = 0
        self.first_us = LATEST_US

    def note(self, profiled: Profiled) -> None:
        """Note event times of transactions, which come in order."""
        times_us = profiled.transactions.event_time_us
        if len(times_us):
            self._worked_on += len(times_us)
            self.first_us = min(self.first_us, int(times_us[0]))
            share = (int(times_us[-1]) - self.first_us) / max(self._span.to_us - self.first_us, 1)
            self._listener.report(self._worked_on, int(times_us[-1]), share, "reading what to train on")
        self._listener.refuse_stopped()


def _read(
    request: Request, span: Span, partitions: int, followed: _Followed, rejects: list[Reject]
) -> tuple[TrainingRows, SeenTimes]:
    options = request.card_options(partitions)
    book = LabelBook()
    opened = request.source.open(span, request.acceptance(options), rejects, book)
    with closing(opened):
        if request.labels is LabelMode.RECORDED:
            chunks = in_order(opened.transactions, known_by(opened.labels, span.to_us), Order.EVENT_TIME)
        else:
            # Nothing was alerted by what is still to be trained: its labels come after the delay.
            transactions, _ = bearing_truth(request.source, opened, request.label_delay_us, book)
            chunks = scheduled(transactions, ScheduledLabels(request.regime), span.to_us)
        rows = TrainingRows(span.from_us)
        read_rows(chunks, rows, options, followed.note)
        return rows, opened.seen
