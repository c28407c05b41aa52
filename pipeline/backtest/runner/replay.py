"""Replay history in process: tables in, decisions out."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import chain, pairwise, tee
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.backtest.engine.column_kernels import Engine
from pipeline.backtest.engine.online import Learning, OnlineTrainer, Periods
from pipeline.backtest.input.acceptance import Acceptance, accept_each, accept_labels, accept_transactions
from pipeline.backtest.input.order import NOTHING, Chunk, Order, checked, in_order
from pipeline.backtest.labels.schedule import ScheduledLabels
from pipeline.backtest.runner.result import Parameter
from pipeline.backtest.runner.thresholds import AlertThreshold
from pipeline.backtest.training.renewal import ModelRenewal, RenewalSchedule
from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.records.columns import Reject, Transactions, no_transactions
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.engine.scores.decisions import Decisions
from pipeline.models.list_log import ListHistory


class Candidate(NamedTuple):
    """A set of models that decides a history."""

    models: ActiveModels
    learning: Learning | None = None
    """Training options of its online model; None: it stays as it is."""
    alert_threshold: AlertThreshold = AlertThreshold()
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
    chunks = in_order(*accepted, order)
    for (decisions,) in decide_chunks([Candidate(models, learning)], chunks, rejects, options=options):
        yield decisions


def decide_chunks(
    candidates: Sequence[Candidate],
    chunks: Iterable[Chunk],
    rejects: list[Reject],
    *,
    options: CardOptions,
    renewal: ModelRenewal | None = None,
    lists: ListHistory | None = None,
) -> Generator[list[Decisions], None, None]:
    """Let several candidates, which see the same labels and so share the windows, decide about chunks in one pass.

    ``rejects`` is where whoever accepts notes what it refuses; it is emptied. Candidates that learn must publish at the
    same moments. ``renewal`` renews the models of those that ask for it. ``lists`` are of the time of each
    transaction; None: those of the models. Raises as `replay`.

    Yields:
        `Decisions` of each about a chunk, or about as many parts of it as its transactions lie in periods.
    """
    models = [candidate.models for candidate in candidates]
    learning = [candidate.learning for candidate in candidates]
    trainers = [
        None if training is None else OnlineTrainer(active, training, options.partitions)
        for active, training in zip(models, learning, strict=True)
    ]
    every_us = {training.publish_every_us for training in learning if training is not None}
    if len(every_us) > 1:
        raise ValueError("candidates that learn must publish at the same moments: give them one publish_every_us")
    publishing = Periods(every_us.pop()) if every_us else None
    with closing(Engine(options)) as engine:
        for chunk in _to_the_end(chunks, rejects):
            for part, due in _scheduled(chunk, () if renewal is None else renewal.periods):
                if renewal is not None and due:
                    models = renewal.renew(part, due, models)
                for piece, publishes in _parts(part, publishing):
                    if publishes:
                        for trainer in filter(None, trainers):
                            trainer.publish()
                    for run, dated in _dated(piece, models, lists):
                        outcomes = _decided(engine, dated, trainers, run, _taken(rejects))
                        if renewal is not None:
                            renewal.take(run.labels, outcomes[0])
                        yield outcomes


def decide_reviewed(
    candidates: Sequence[Candidate],
    transactions: Iterator[Transactions],
    schedules: Sequence[ScheduledLabels],
    rejects: list[Reject],
    *,
    options: CardOptions,
    renewals: Sequence[ModelRenewal | None],
    lists: ListHistory,
) -> Generator[list[Decisions], None, None]:
    """`decide_chunks` where each candidate sees labels of its own, which answer its alerts, and so has its own windows.

    Features of merchants tell of known fraud. All decide about the same transactions nevertheless. There is a schedule
    and a renewal for each.
    """
    refused = [list[Reject]() for _ in candidates]

    def noted() -> Iterator[Transactions]:
        for part in chain(transactions, [no_transactions()]):
            found = _taken(rejects)
            for own in refused:
                own.extend(found)
            yield part

    def decided(
        candidate: Candidate, parts: Iterator[Transactions], schedule: ScheduledLabels, own: list[Reject],
        renewal: ModelRenewal | None,
    ) -> Generator[Decisions, None, None]:  # fmt: skip
        chunks = schedule.chunks(parts)
        with closing(decide_chunks([candidate], chunks, own, options=options, renewal=renewal, lists=lists)) as passed:
            for (decisions,) in passed:
                schedule.decided(decisions)
                yield decisions

    parts = tee(noted(), len(candidates))
    with ExitStack() as stack:
        lanes = [
            stack.enter_context(closing(decided(*lane)))
            for lane in zip(candidates, parts, schedules, refused, renewals, strict=True)
        ]
        yield from map(list, zip(*lanes, strict=True))


def _decided(
    engine: Engine,
    models: Sequence[ActiveModels],
    trainers: Sequence[OnlineTrainer | None],
    part: Chunk,
    rejects: Sequence[Reject],
) -> list[Decisions]:
    outcomes: list[Decisions] = []
    for given, trainer in zip(models, trainers, strict=True):
        active = given if trainer is None else trainer.active(given)
        decisions = outcomes[0].under(active) if outcomes else engine.decide(active, part, rejects)
        if trainer is not None:
            trainer.learn(part, decisions)
        outcomes.append(decisions)
    return outcomes


def _to_the_end(chunks: Iterable[Chunk], rejects: list[Reject]) -> Iterator[Chunk]:
    yield from chunks
    if rejects:
        yield NOTHING


def _parts(chunk: Chunk, periods: Periods | None) -> Iterable[tuple[Chunk, bool]]:
    """The chunk in parts, and whether a period begins with each; as it is without a transaction."""
    return [(chunk, False)] if periods is None or not len(chunk.transactions) else periods.parts(chunk)


def _dated(
    chunk: Chunk, models: Sequence[ActiveModels], lists: ListHistory | None
) -> Iterator[tuple[Chunk, Sequence[ActiveModels]]]:
    """Yield the chunk in runs of transactions of one version of the lists, and the models with that version."""
    if lists is None or not len(chunk.transactions):
        yield chunk, models
        return
    numbers = lists.numbers(chunk.transactions.event_time_us)
    starts = np.flatnonzero(np.diff(numbers)) + 1
    ends = pairwise([chunk.first, *chunk.position[starts].tolist(), chunk.end])
    for number, (first, end) in zip(numbers[[0, *starts]].tolist(), ends, strict=True):
        yield chunk.between(first, end), [each.dated(lists.numbered(number)) for each in models]


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
