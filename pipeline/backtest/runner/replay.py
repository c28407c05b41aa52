"""Replay history in process: tables in, decisions out."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.backtest.engine.kernels import Engine
from pipeline.backtest.engine.online import Learning, OnlineTrainer, Periods
from pipeline.backtest.input.acceptance import Acceptance, accept_each, accept_labels, accept_transactions
from pipeline.backtest.input.order import NOTHING, Chunk, Order, alone, checked, in_order, merged
from pipeline.backtest.labels.schedule import ScheduledLabels
from pipeline.backtest.runner.result import Parameter
from pipeline.backtest.training.renewal import ModelRenewal, RenewalSchedule
from pipeline.decision.pacing import PacingOptions
from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.records.columns import Labels, Reject, Transactions
from pipeline.engine.scores.decisions import Decisions
from pipeline.engine.scores.models import ActiveModels
from schemas.times import US_PER_DAY

Rows = TypeVar("Rows", Transactions, Labels)


class Candidate(NamedTuple):
    """A set of models that decides a history."""

    models: ActiveModels
    learning: Learning | None = None
    """Training options of its online model; None: it stays as it is."""
    alerts_per_day: float | None = None
    """For which its threshold is to be chosen on what comes before a range; None: the policy's holds."""
    paced_at: PacingOptions | None = None
    """Budget for which its threshold is set anew each hour; None: it is not."""
    parameters: Mapping[str, Parameter] = MappingProxyType({})
    """Other parameters that a reader is shown."""
    trained_as: str | None = None
    """Name of what the backtest trains for it; None: its models were there before."""
    renewed: RenewalSchedule | None = None
    """Schedule by which its LightGBM version and policy are renewed; None: they stay as they are."""


def replay(
    models: ActiveModels,
    transactions: Iterable[pa.Table],
    labels: Iterable[pa.Table] = (),
    *,
    options: CardOptions,
    order: Order = Order.EVENT_TIME,
    learning: Learning | None = None,
    time_zone: str = "UTC",
) -> Iterator[Decisions]:
    """Decide history in process, as the live kernels would.

    Rows that the decoder would refuse come back as ``rejects``, with its codes and texts; repeats are counted. Memory
    is that of the state and of a table of each kind. How rows are cut into tables changes nothing but how decisions
    are.

    Args:
        models: What decides; they stay as they are, unless ``learning`` is given.
        transactions: Tables with the columns of the wire contract (`TRANSACTION_FIELDS`), such as `file_tables` and
            `frame_tables` give. A column ``timestamp`` says when records arrived; else they arrive at their event
            times.
        labels: Likewise (`LABEL_FIELDS`); without ``timestamp`` they arrive when they are made.
        options: The card agent's options.
        order: By event time, in which both must stand already, or as the column ``sequence`` says.
        learning: How the online model learns.
        time_zone: Zone of times without an offset.

    Yields:
        `Decisions` about each table of transactions; labels behind the last one come with `Decisions` of no rows.

    Raises:
        OutOfOrder: A row stands behind a later one.
        ValueError: A column is missing that the order needs.
    """
    acceptance = Acceptance(options.rates, options.future_tolerance_us, time_zone, order is Order.RECORDED)
    rejects: list[Reject] = []
    accepted = (
        checked(accept_each(transactions, accept_transactions, acceptance, rejects), "transaction", order),
        checked(accept_each(labels, accept_labels, acceptance, rejects), "label", order),
    )
    for (decisions,) in replay_accepted(
        [Candidate(models, learning)], *accepted, rejects, options=options, order=order
    ):
        yield decisions


def replay_accepted(
    candidates: Sequence[Candidate],
    transactions: Iterator[Transactions],
    labels: Iterator[Labels],
    rejects: list[Reject],
    *,
    options: CardOptions,
    order: Order = Order.EVENT_TIME,
    renewal: ModelRenewal | None = None,
) -> Generator[list[Decisions], None, None]:
    """`replay` of what was accepted and is in order, decided by several candidates in one pass: `Decisions` of each.

    Windows and labels are the same for all. ``rejects`` is where whoever accepts notes what it refuses; it is emptied.
    Candidates that learn must publish at the same moments. ``renewal`` renews the models of those that ask for it.
    Raises as `replay`.
    """
    with closing(_Lane(candidates, options, renewal)) as lane:
        for chunk in in_order(transactions, labels, order):
            yield from lane.work(chunk, _taken(rejects))
        if rejects:
            yield from lane.work(NOTHING, _taken(rejects))


def replay_scheduled(
    candidates: Sequence[Candidate],
    transactions: Iterator[Transactions],
    schedules: Sequence[ScheduledLabels],
    rejects: list[Reject],
    *,
    options: CardOptions,
    renewals: Sequence[ModelRenewal | None] = (),
) -> Generator[list[Decisions], None, None]:
    """`replay_accepted` by event time, of transactions that bear their truth: labels come when ``schedules`` say.

    There is one for all candidates, or one for each. In the latter case each sees labels of its own, and so has windows
    of its own, since features of merchants tell of known fraud; all decide about the same transactions nevertheless.
    Of ``renewals`` there are as many as of schedules, or none.
    Raises ValueError where candidates share a schedule that goes by what one of them alerts, and as `replay_accepted`.
    """
    if len(schedules) == 1 < len(candidates) and schedules[0].reviews:
        raise ValueError("reviews are of one candidate's alerts: give each a schedule of its own")
    of_lanes = [candidates] if len(schedules) == 1 else [[candidate] for candidate in candidates]
    with ExitStack() as stack:
        lanes = [
            stack.enter_context(closing(_Lane(lane, options, renewal)))
            for lane, renewal in zip(of_lanes, renewals or [None] * len(of_lanes), strict=True)
        ]
        pairs = list(zip(lanes, schedules, strict=True))
        by_day = any(schedule.reviews for schedule in schedules)
        for part in filter(len, transactions):
            for piece in _days(part) if by_day else [part]:
                found = _taken(rejects)
                chunks = [merged(piece, schedule.until(piece), Order.EVENT_TIME) for schedule in schedules]
                works = [lane.work(chunk, found) for lane, chunk in zip(lanes, chunks, strict=True)]
                for outcomes in zip(*works, strict=True):
                    for schedule, (first, *_) in zip(schedules, outcomes, strict=True):
                        schedule.decided(first)
                    yield [decisions for lane in outcomes for decisions in lane]
        found = _taken(rejects)
        rests = [list(lane.work(alone(schedule.rest()), found)) for lane, schedule in pairs]
        for outcomes in zip(*rests, strict=True):
            yield [decisions for lane in outcomes for decisions in lane]


class _Lane:
    """Candidates that see the same labels: they share the windows."""

    def __init__(
        self, candidates: Sequence[Candidate], options: CardOptions, renewal: ModelRenewal | None = None
    ) -> None:
        self._engine, self._renewal = Engine(options), renewal
        self._renewed = [candidate.renewed for candidate in candidates]
        self._models = [candidate.models for candidate in candidates]
        self._trainers = [
            None
            if candidate.learning is None
            else OnlineTrainer(candidate.models, candidate.learning, options.partitions)
            for candidate in candidates
        ]
        every_us = {candidate.learning.publish_every_us for candidate in candidates if candidate.learning is not None}
        if len(every_us) > 1:
            raise ValueError("candidates that learn must publish at the same moments: give them one publish_every_us")
        self._periods = Periods(every_us.pop()) if every_us else None

    def close(self) -> None:
        """Let go of the state."""
        self._engine.close()

    def work(self, chunk: Chunk, rejects: Sequence[Reject]) -> Iterator[list[Decisions]]:
        """Decide about a chunk, in as many parts as its transactions lie in periods: the `Decisions` of each.

        What ``rejects`` holds is reported with the first part.
        """
        for part, due in _scheduled(chunk, () if self._renewal is None else self._renewal.periods):
            if self._renewal is not None and due:
                self._models = self._renewal.renew(part, due, self._renewed, self._models)
            for piece, publishes in _parts(part, self._periods):
                outcomes = self._decided(piece, rejects, publishes=publishes)
                if self._renewal is not None:
                    self._renewal.take(piece.labels, outcomes[0])
                yield outcomes
                rejects = ()

    def _decided(self, part: Chunk, rejects: Sequence[Reject], *, publishes: bool) -> list[Decisions]:
        outcomes: list[Decisions] = []
        for models, trainer in zip(self._models, self._trainers, strict=True):
            if trainer is not None and publishes:
                trainer.publish()
            active = models if trainer is None else trainer.active(models)
            decisions = outcomes[0].under(active) if outcomes else self._engine.decide(active, part, rejects)
            if trainer is not None:
                trainer.learn(part, decisions)
            outcomes.append(decisions)
        return outcomes


def _parts(chunk: Chunk, periods: Periods | None) -> Iterable[tuple[Chunk, bool]]:
    """The chunk in parts, and whether a period begins with each; as it is without a transaction."""
    return [(chunk, False)] if periods is None or not len(chunk.transactions) else periods.parts(chunk)


def _scheduled(chunk: Chunk, schedules: Sequence[Periods]) -> Iterator[tuple[Chunk, list[Periods]]]:
    """The chunk in parts, and the schedules of which a period begins with the first transaction of each."""
    if not schedules:
        yield chunk, []
        return
    for part, begins in _parts(chunk, schedules[0]):
        due = [schedules[0]] if begins else []
        for piece, others in _scheduled(part, schedules[1:]):
            begun = due + others if len(piece.transactions) else []
            yield piece, begun
            due = [] if begun else due


def _taken(rejects: list[Reject]) -> tuple[Reject, ...]:
    found = tuple(rejects)
    rejects.clear()
    return found


def _days(part: Transactions) -> Iterator[Transactions]:
    starts = np.flatnonzero(np.diff(part.event_time_us // US_PER_DAY)) + 1
    for first, end in pairwise([0, *starts.tolist(), len(part)]):
        yield part.take(slice(first, end))
