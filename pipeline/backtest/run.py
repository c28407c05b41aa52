"""Replay history in process: tables in, decisions out."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import pyarrow as pa

from pipeline.backtest.accept import Acceptance, accept_labels, accept_transactions
from pipeline.backtest.columns import Labels, Reject, Transactions
from pipeline.backtest.decisions import Decisions
from pipeline.backtest.engine import Engine, Profiled
from pipeline.backtest.learning import Learning, Periods, Teacher
from pipeline.backtest.order import NOTHING, Chunk, Order, in_order
from pipeline.backtest.result import Parameter
from pipeline.engine.card import CardOptions
from pipeline.engine.models import ActiveModels

Rows = TypeVar("Rows", Transactions, Labels)


class Candidate(NamedTuple):
    """One way to decide about a history."""

    models: ActiveModels
    learning: Learning | None = None
    """How its online model learns; None: it stays as it is."""
    alerts_per_day: float | None = None
    """For which its threshold is to be chosen on what comes before a range; None: the policy's holds."""
    parameters: Mapping[str, Parameter] = MappingProxyType({})
    """What a reader is told about it besides."""


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
    """Decide history in process, as the live kernels would: `Decisions` for about each table of transactions.

    ``transactions`` are tables with the columns of the wire contract (`pipeline.backtest.accept.TRANSACTION_FIELDS`),
    such as `file_tables` and `frame_tables` give; ``labels`` likewise (`LABEL_FIELDS`). Both may have a column
    ``timestamp``, when the record arrived; without it a transaction arrives at its event time, a label when it is made.
    By default all is worked on in the order of event time, in which each of the two must stand already; with
    ``Order.RECORDED`` by the column ``sequence``. How rows are cut into tables changes nothing but how decisions are.

    ``models`` stay as they are, unless ``learning`` says how the online model learns. Rows that the decoder would
    refuse come back as ``rejects``, with its codes and texts; repeats are counted. Memory is that of the state and of a
    table of each kind. Labels behind the last transaction come with `Decisions` of no rows.

    Raises `OutOfOrder`, and ValueError for a column that the order needs.
    """
    rules = Acceptance(options.rates, options.future_tolerance_us, time_zone, order is Order.RECORDED)
    rejects: list[Reject] = []
    accepted = (
        accept_each(transactions, accept_transactions, rules, rejects),
        accept_each(labels, accept_labels, rules, rejects),
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
) -> Generator[list[Decisions], None, None]:
    """`replay` of what was accepted already, decided by several candidates in one pass: the `Decisions` of each.

    Windows and labels are the same for all. ``rejects`` is where whoever accepts notes what it refuses; it is emptied.
    Candidates that learn must publish at the same moments. Raises as `replay`.
    """
    engine = Engine(options)
    teachers = [
        None if one.learning is None else Teacher(one.models, one.learning, engine.partitions) for one in candidates
    ]
    every_us = {one.learning.publish_every_us for one in candidates if one.learning is not None}
    if len(every_us) > 1:
        raise ValueError("candidates that learn must publish at the same moments: give them one publish_every_us")
    periods = Periods(every_us.pop()) if every_us else None
    try:
        for chunk in in_order(transactions, labels, order):
            for part, begins in [(chunk, False)] if periods is None else periods.parts(chunk):
                found = tuple(rejects)
                rejects.clear()
                outcomes: list[Decisions] = []
                for candidate, teacher in zip(candidates, teachers, strict=True):
                    if teacher is not None and begins:
                        teacher.publish()
                    models = candidate.models if teacher is None else teacher.models
                    decisions = outcomes[0].under(models) if outcomes else engine.decide(models, part, found)
                    if teacher is not None:
                        teacher.learn(part, decisions)
                    outcomes.append(decisions)
                yield outcomes
        if rejects:
            first = engine.decide(candidates[0].models, NOTHING, rejects)
            yield [first, *(first.under(one.models) for one in candidates[1:])]
    finally:
        engine.close()


def profile_chunks(chunks: Iterator[Chunk], options: CardOptions) -> Generator[tuple[Chunk, Profiled], None, None]:
    """Features of the transactions of each chunk, in the order of the records; nothing is decided."""
    engine = Engine(options)
    try:
        for chunk in chunks:
            yield chunk, engine.profile(chunk)
    finally:
        engine.close()


def accept_each(
    tables: Iterable[pa.Table],
    accept: Callable[[pa.Table, Acceptance, int], tuple[Rows, list[Reject]]],
    rules: Acceptance,
    rejects: list[Reject],
) -> Iterator[Rows]:
    """The accepted rows of each table; what is refused goes to ``rejects``."""
    first_row = 0
    for table in tables:
        rows, refused = accept(table, rules, first_row)
        first_row += table.num_rows
        rejects += refused
        yield rows
