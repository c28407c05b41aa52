"""One pass over what precedes a range, to train on it."""

from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.candidates import policy_to_train
from pipeline.backtest.findings import Findings, Listener
from pipeline.backtest.labelling import Labelling, Schedule
from pipeline.backtest.order import Order, in_order
from pipeline.backtest.request import Request
from pipeline.backtest.settled import bearing_truth
from pipeline.backtest.sources import EARLIEST_US, LATEST_US, LabelBook, RangeError, Seen, Span, moment
from pipeline.backtest.training import Period, Training, TrainingRows, known_by, read_rows, scheduled
from pipeline.backtest.verdicts import warnings_of_short_history
from pipeline.backtest.versions import ModelLibrary
from pipeline.registry import Registry


def train_before(
    request: Request, training: Training, period: Period, partitions: int, library: ModelLibrary,
    listener: Listener, findings: Findings,
) -> None:  # fmt: skip
    """Read features and labels of ``period``, and train on them. Raises as `pipeline.Backtest.run`."""
    span = Span(period.from_us - request.warm_up_us, period.from_us, period.known_us)
    followed = _Followed(listener, span)
    rows, seen = _read(request, period, span, partitions, followed)
    targets = len(rows)
    if not targets:
        read = f"; what was read lies between {moment(seen.first_us)} and {moment(seen.last_us)}"
        raise RangeError(
            f"{request.source.name} has no transaction to train on from {moment(period.from_us)} to "
            f"{moment(period.last_us)}{read if seen.last_us > EARLIEST_US else ''}: choose another period with "
            "--train-from and --train-to"
        )
    findings.warnings += warnings_of_short_history(followed.first_us, span, "training: ")
    policy, registry = policy_to_train(request, library), Registry(request.settings.registry_path)
    for name, grow in training.growing(rows, period, policy, registry):
        listener.tell(targets, period.last_us, None, f"growing the trees of {name}")
        findings.trained[name] = grow()
        listener.refuse_stopped()


class _Followed:
    """How far the reading has come."""

    def __init__(self, listener: Listener, span: Span) -> None:
        self._listener, self._span = listener, span
        self._worked_on = 0
        self.first_us = LATEST_US

    def note(self, times_us: NDArray[np.int64]) -> None:
        """Note event times of transactions, which come in order."""
        if len(times_us):
            self._worked_on += len(times_us)
            self.first_us = min(self.first_us, int(times_us[0]))
            share = (int(times_us[-1]) - self.first_us) / max(self._span.to_us - self.first_us, 1)
            self._listener.tell(self._worked_on, int(times_us[-1]), share, "reading what to train on")
        self._listener.refuse_stopped()


def _read(
    request: Request, period: Period, span: Span, partitions: int, followed: _Followed
) -> tuple[TrainingRows, Seen]:
    options = request.card_options(partitions)
    book = LabelBook()
    opened = request.source.open(span, request.acceptance(options), [], book)
    with closing(opened):
        if request.labels is Labelling.RECORDED:
            chunks = in_order(opened.transactions, known_by(opened.labels, period.known_us), Order.EVENT_TIME)
        else:
            # Nothing was alerted by what is still to be trained: its labels come after the delay.
            transactions, _ = bearing_truth(request.source, opened, request.label_delay_us, book)
            chunks = scheduled(transactions, Schedule(request.regime), period.known_us)
        return read_rows(chunks, period, options, followed.note), opened.seen
