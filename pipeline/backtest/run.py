"""Replay history in process: tables in, decisions out."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import pyarrow as pa

from pipeline.backtest.accept import Acceptance, accept_labels, accept_transactions
from pipeline.backtest.columns import Labels, Reject, Transactions
from pipeline.backtest.decisions import Decisions
from pipeline.backtest.engine import Engine
from pipeline.backtest.learning import Learning, Teacher
from pipeline.backtest.order import NOTHING, Order, in_order
from pipeline.engine.card import CardOptions
from pipeline.engine.models import ActiveModels

Rows = TypeVar("Rows", Transactions, Labels)


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
    chunks = in_order(
        _accepted(transactions, accept_transactions, rules, rejects),
        _accepted(labels, accept_labels, rules, rejects),
        order,
    )
    engine = Engine(models, options)
    teacher = None if learning is None else Teacher(engine, learning)
    try:
        for chunk in chunks:
            for part in [chunk] if teacher is None else teacher.between_publications(chunk):
                found = tuple(rejects)
                rejects.clear()
                decisions = engine.decide(part, found)
                if teacher is not None:
                    teacher.learn(part, decisions)
                yield decisions
        if rejects:
            yield engine.decide(NOTHING, rejects)
    finally:
        engine.close()


def _accepted(
    tables: Iterable[pa.Table],
    accept: Callable[[pa.Table, Acceptance, int], tuple[Rows, list[Reject]]],
    rules: Acceptance,
    rejects: list[Reject],
) -> Iterator[Rows]:
    first_row = 0
    for table in tables:
        rows, refused = accept(table, rules, first_row)
        first_row += table.num_rows
        rejects += refused
        yield rows
