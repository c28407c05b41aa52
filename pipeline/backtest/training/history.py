"""Training sets from a recorded history, whose features are those of a backtest of the same rows."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.backtest.engine.kernels import Profiled
from pipeline.backtest.input.acceptance import Acceptance, accept_transactions, first_reasons, reasons_text
from pipeline.backtest.input.span import EARLIEST_US
from pipeline.backtest.input.tables import truth_of
from pipeline.backtest.labels.schedule import ScheduledLabels
from pipeline.backtest.training.rows import TrainingRows
from pipeline.backtest.training.variants import read_rows, scheduled
from pipeline.engine.cards.card import CardOptions
from pipeline.engine.records.columns import Reject, Transactions
from pipeline.features.catalogue import FEATURES
from pipeline.learning.regimes import NEVER_US, LabelRegime
from pipeline.observability.terminal import printable
from pipeline.scoring.errors import ModelError
from pipeline.training.cohorts import TrainingSet
from pipeline.training.segments import SEGMENT_FIELDS

EVER_US: Final = NEVER_US - 1
"""The time by which everything is known that ever becomes known."""
_SEGMENTS: Final = tuple(name for name in SEGMENT_FIELDS if name != "currency")
"""Amounts are in the base currency, so that a version does not depend on those of the history."""


class TrainingHistory(NamedTuple):
    """Transactions of a history that workers would decide, with their features and labels."""

    rows: TrainingRows
    number: NDArray[np.int64]
    """Shape (n,): number of each in the history, from 0."""
    segment_fields: dict[str, NDArray[np.object_]]
    """Columns that distinguish them, of shape (n,), with None for no value."""
    refused: Counter[str]
    """Counts of transactions that workers refuse, by code."""
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
) -> TrainingHistory:
    """Pass a history with its labels through the kernels, as a backtest does.

    Args:
        tables: The history in the order of event time, as of `pipeline.backtest.replay`, with a column ``fraud``.
        regime: Which labels there are. They enter the features as they become known.
        options: What workers accept, and for how long they remember it; of one partition.
        names: The features to hold, in the order of the catalogue. A million rows of all of them take 0.6 GB.
        report: Called now and then with how far it is, in words.

    Raises:
        ModelError: The history has no labels, or workers would refuse all of it.
        UnusableSource: A truth or an attribute cannot be read.
        OutOfOrder: A row stands behind a later one.
    """
    rows, numbers, segments = TrainingRows(EARLIEST_US, names), [np.empty(0, np.int64)], list[pa.Table]()
    rejects, repeated = list[Reject](), 0

    def note(profiled: Profiled) -> None:
        nonlocal repeated
        repeated += profiled.duplicates
        rejects.extend(profiled.refused)
        numbers.append(profiled.transactions.row)
        report(f"features of {int(numbers[-1][-1]) + 1 if len(numbers[-1]) else 0:,} transactions")

    transactions = _accepted(tables, Acceptance(options.rates, options.future_tolerance_us), rejects, segments)
    read_rows(scheduled(transactions, ScheduledLabels(regime), EVER_US), rows, options, note)
    number = np.concatenate(numbers)
    if not len(number):
        why = printable(reasons_text(first_reasons(rejects)))
        raise ModelError(f"no transaction is left to train on: workers would refuse all of them: {why}")
    refused = Counter(reject.code for reject in rejects if reject.kind == "transaction")
    return TrainingHistory(rows, number, _segment_fields(segments, number), refused, repeated)


def _accepted(
    tables: Iterable[pa.Table], acceptance: Acceptance, rejects: list[Reject], segments: list[pa.Table]
) -> Iterator[Transactions]:
    """Yield what workers accept of each table, bearing its truth; fields of all rows go to ``segments``."""
    first_row = 0
    for table in tables:
        if "fraud" not in table.column_names:
            raise ModelError("the history has no labels; map the column that tells frauds with --map fraud=COLUMN")
        accepted, refused = accept_transactions(table, acceptance, first_row)
        rejects += refused
        segments.append(table.select([name for name in _SEGMENTS if name in table.column_names]))
        yield replace(accepted, truth=truth_of(table, accepted.row - first_row))
        first_row += table.num_rows


def _segment_fields(segments: list[pa.Table], number: NDArray[np.int64]) -> dict[str, NDArray[np.object_]]:
    frame = pa.concat_tables(segments).take(pa.array(number)).to_pandas()
    return {
        str(name): values.astype(object).where(values.notna(), None).to_numpy()
        for name, values in frame.items()
        if values.nunique(dropna=False) > 1
    }
