"""Run a request: train first, then pass over the range."""

from collections.abc import Callable
from typing import NamedTuple

from pipeline.backtest.input.order import Order
from pipeline.backtest.input.span import EARLIEST_US, RangeError
from pipeline.backtest.runner.candidates import candidates_of, warnings_of_labels, warnings_of_policies
from pipeline.backtest.runner.event_time_pass import decide_by_time, renewals_of
from pipeline.backtest.runner.model_library import ModelLibrary
from pipeline.backtest.runner.outcome import nothing_decided, warnings_of
from pipeline.backtest.runner.recorded_pass import decide_as_recorded
from pipeline.backtest.runner.replay import Candidate
from pipeline.backtest.runner.request import Request
from pipeline.backtest.runner.statistics import ProgressListener, RunStatistics
from pipeline.backtest.runner.training_pass import train_before
from pipeline.engine.scores.decisions import Decisions


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
    statistics = RunStatistics(request.span, request.label_horizon_us, listener, take)
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
