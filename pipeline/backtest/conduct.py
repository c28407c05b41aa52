"""Runs what is asked for: training first, then the pass over the range."""

from collections.abc import Callable
from typing import NamedTuple

from pipeline.backtest.candidates import candidates_of, warnings_of_labels, warnings_of_policies
from pipeline.backtest.event_time_pass import decide_by_time, renewals_of
from pipeline.backtest.findings import Findings, Listener
from pipeline.backtest.order import Order
from pipeline.backtest.recorded_pass import decide_as_recorded
from pipeline.backtest.request import Request
from pipeline.backtest.run import Candidate
from pipeline.backtest.sources import EARLIEST_US, RangeError
from pipeline.backtest.training_pass import train_before
from pipeline.backtest.verdicts import nothing_decided, warnings_of
from pipeline.backtest.versions import ModelLibrary
from pipeline.engine.decisions import Decisions


class Conducted(NamedTuple):
    """A backtest that was run, besides its decisions."""

    partitions: int
    candidates: dict[str, Candidate]
    findings: Findings


def conduct(
    request: Request, library: ModelLibrary, take: Callable[[str, Decisions], None], listener: Listener
) -> Conducted:
    """Run it; ``take`` is given the decisions of the range, chunk by chunk, with the name of what decided.

    Raises as `pipeline.Backtest.run`.
    """
    # First, since it tells whether a cluster answers at all.
    partitions = request.partitions
    findings = Findings(request.span, request.label_horizon_us, listener, take)
    rows = None
    if request.training is not None and request.period is not None:
        rows = train_before(request, request.training, request.period, partitions, library, listener, findings)
    candidates = candidates_of(request, library, findings.trained)
    findings.trains({name: one.trained_as for name, one in candidates.items() if one.trained_as is not None})
    findings.warnings += warnings_of_policies(candidates)
    findings.warnings += warnings_of_labels(request, candidates)
    if request.order is Order.RECORDED:
        decide_as_recorded(request, candidates, partitions, library, findings)
    else:
        renewals = renewals_of(request, candidates, rows, library, findings)
        # Its files are gone with the last of those that add to it.
        del rows
        decide_by_time(request, candidates, renewals, partitions, findings)
    if findings.last_decided_us <= EARLIEST_US:
        raise RangeError(nothing_decided(request, findings))
    findings.warnings += warnings_of(request, findings)
    return Conducted(partitions, candidates, findings)
