"""Training sets from a recorded history, whose features are those of a backtest of the same rows."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.backtest.input.acceptance import Acceptance, accept_transactions, first_reasons, reasons_text
from pipeline.backtest.input.span import EARLIEST_US, LATEST_US
from pipeline.backtest.input.wire_tables import truth_of
from pipeline.backtest.labels.schedule import ScheduledLabels
from pipeline.backtest.training.rows import TrainingRows
from pipeline.backtest.training.variants import read_rows
from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.records.columns import Reject, Transactions
from pipeline.features.catalogue import FEATURES
from pipeline.history import table_columns
from pipeline.history.files import CHUNK_ROWS
from pipeline.learning.labels import KNOWN_FRAUD
from pipeline.learning.regimes import NEVER_US, LabelRegime
from pipeline.observability.terminal import printable
from pipeline.scoring.errors import ModelError
from pipeline.training.cohorts import TrainingSet
from pipeline.training.validation import SEGMENT_FIELDS

EVER_US: Final = NEVER_US - 1
"""The time by which everything is known that ever becomes known."""
_SEGMENTS: Final = tuple(name for name in SEGMENT_FIELDS if name != "currency")
"""Amounts are in the base currency, so that a version does not depend on those of the history."""


class TrainingHistory(NamedTuple):
    """Transactions of a history that workers would decide, with their features and labels."""

    rows: TrainingRows
    number: NDArray[np.int64]
    """Shape (n,): number of each in the history, from 0."""
    last_us: int
    """Event time of the last one."""
    frauds: int
    currencies: frozenset[str]
    segment_fields: dict[str, NDArray[np.object_]]
    """Columns that distinguish them, of shape (n,), with None for no value."""
    refused: Counter[str]
    """Counts of transactions that workers refuse, by code."""
    first_refused: Reject | None
    """The first of them in the history."""
    repeated: int
    """Transactions that repeat others."""

    def training_set(self, known_us: int = EVER_US) -> TrainingSet:
        """Return all of them, each a fraud if the label says so that held at ``known_us``."""
        return replace(self.rows.known_at(known_us), segment_fields=self.segment_fields)


def read_history(
    tables: Iterable[pa.Table],
    regime: LabelRegime,
    options: CardOptions,
    names: tuple[str, ...] = FEATURES,
    report: Callable[[str], None] = lambda _: None,
    *,
    time_zone: str = "UTC",
    end_us: int = LATEST_US,
) -> TrainingHistory:
    """Pass a history with its labels through the kernels, as a backtest does.

    Args:
        tables: The history, as of `pipeline.backtest.replay`, with a column ``fraud``; in any order, since all of it is
            held in memory, but for its features.
        regime: Which labels there are. They enter the features as they become known.
        options: What workers accept, and for how long they remember it; of one partition.
        names: The features to hold, in the order of the catalogue. A million rows of all of them take 0.6 GB.
        report: Called now and then with how far it is, in words.
        time_zone: Zone of times without an offset.
        end_us: Event time from which nothing takes part.

    Raises:
        ModelError: The history has no labels, or workers would refuse all of it.
        UnusableSource: A truth or an attribute cannot be read.
    """
    rows, numbers, segments = TrainingRows(EARLIEST_US, names), [np.empty(0, np.int64)], list[pa.Table]()
    rejects, repeated, last_us, frauds, currencies = list[Reject](), 0, EARLIEST_US, 0, set[str]()

    acceptance = Acceptance(options.rates, options.future_tolerance_us, time_zone)
    transactions = _in_order([*_accepted(tables, acceptance, rejects, segments, end_us)])
    with closing(read_rows(ScheduledLabels(regime).chunks(transactions, EVER_US), rows, options)) as passed:
        for profiled in passed:
            repeated += profiled.duplicates
            rejects.extend(profiled.refused)
            taken = profiled.transactions
            numbers.append(taken.row)
            if len(taken) and taken.truth is not None:
                last_us = int(taken.event_time_us[-1])
                frauds += int(np.count_nonzero(taken.truth == KNOWN_FRAUD))
                currencies.update(pc.unique(taken.currency).to_pylist())
            report(f"features of {int(numbers[-1][-1]) + 1 if len(numbers[-1]) else 0:,} transactions")
    number = np.concatenate(numbers)
    if not len(number):
        why = printable(reasons_text(first_reasons(rejects)))
        refused_all = f": workers would refuse all of them: {why}" if why else ": there is none of that time"
        raise ModelError(f"no transaction is left to train on{refused_all}")
    refused = [reject for reject in rejects if reject.kind == "transaction"]
    return TrainingHistory(
        rows,
        number,
        last_us,
        frauds,
        frozenset(currencies),
        _segment_fields(segments, number),
        Counter(reject.code for reject in refused),
        min(refused, key=lambda reject: reject.row, default=None),
        repeated,
    )


def _in_order(parts: list[Transactions]) -> Iterator[Transactions]:
    """Yield transactions in the order of their keys; of equal ones, of their rows."""
    keys = np.concatenate([part.key for part in parts] or [np.empty(0, np.int64)])
    if (np.diff(keys) >= 0).all():
        yield from parts
        return
    whole = Transactions.concat(parts).take(np.argsort(keys, kind="stable"))
    for first in range(0, len(whole), CHUNK_ROWS):
        yield whole.take(slice(first, first + CHUNK_ROWS))


def _accepted(
    tables: Iterable[pa.Table], acceptance: Acceptance, rejects: list[Reject], segments: list[pa.Table], end_us: int
) -> Iterator[Transactions]:
    """Yield what workers accept of each table, bearing its truth; fields of all rows go to ``segments``."""
    first_row = 0
    for given in tables:
        if "fraud" not in given.column_names:
            raise ModelError("the history has no labels; say where fraud is in a mapping (--mapping)")
        table, number = given, first_row + np.arange(given.num_rows)
        if end_us < LATEST_US:
            times_us, _ = table_columns.times_us(table_columns.column(given, "event_time"), acceptance.time_zone)
            table, number = given.filter(pa.array(times_us < end_us)), number[times_us < end_us]
        accepted, refused = accept_transactions(table, acceptance)
        rejects += [reject._replace(row=int(number[reject.row])) for reject in refused]
        fields = [name for name in _SEGMENTS if name in given.column_names]
        segments.append(pa.table({name: table_columns.column(given, name).cast(pa.string()) for name in fields}))
        yield replace(accepted, row=number[accepted.row], truth=truth_of(table, accepted.row))
        first_row += given.num_rows


def _segment_fields(segments: list[pa.Table], number: NDArray[np.int64]) -> dict[str, NDArray[np.object_]]:
    frame = pa.concat_tables(segments).take(pa.array(number)).to_pandas()
    return {
        str(name): values.astype(object).where(values.notna(), None).to_numpy()
        for name, values in frame.items()
        if values.nunique(dropna=False) > 1
    }
