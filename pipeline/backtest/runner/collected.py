"""Decisions of a backtest as far as its report reads them."""

from functools import cached_property
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.backtest.input.spill import NumberColumn, TextColumn, mapped_frame
from pipeline.backtest.runner.result import DECISION_COLUMNS, REASON_COLUMNS, Variant
from pipeline.engine.records.columns import Transactions
from pipeline.engine.scores.decisions import Decisions, outcome_columns

EXPLAINED_AT_MOST: Final = 500
"""Alerts of a variant whose reasons are put into words, the first of the range; each costs milliseconds."""


class _Kept:
    """The transactions that were decided about, of all variants."""

    def __init__(self) -> None:
        self._texts = {name: TextColumn() for name in ("transaction_id", "card_id", "merchant_id")}
        self._event_time_us, self._amount_base = NumberColumn(np.int64), NumberColumn(np.float64)

    def add(self, taken: Transactions) -> None:
        for name, column in self._texts.items():
            column.add(getattr(taken, name))
        self._event_time_us.add(taken.event_time_us)
        self._amount_base.add(taken.amount_base_minor / 100)

    @cached_property
    def columns(self) -> dict[str, pa.Array]:
        """All of them; nothing can be added any more."""
        columns = {name: column.finish() for name, column in self._texts.items()}
        columns["event_time"] = pa.array(self._event_time_us.finish()).view(pa.timestamp("us", "UTC"))
        return columns | {"amount_base": pa.array(self._amount_base.finish())}


class Collected:
    """Decisions of one variant within the range, as far as a report reads them: on disk, but for a few."""

    def __init__(self, first: "Collected | None" = None) -> None:
        """``first`` is that of another variant, which keeps what is the same for both."""
        self._kept: _Kept = _Kept() if first is None else first._kept
        self._is_first = first is None
        self._score, self._selection = NumberColumn(np.float64), NumberColumn(np.int8)
        self._decisions = 0
        self._reasons: list[tuple[str, float]] = []
        self._explained = 0
        self._models: dict[str, set[str]] = {}
        self._thresholds: set[float] = set()

    def __len__(self) -> int:
        return self._decisions

    def add(self, decisions: Decisions) -> None:
        """Keep some decisions."""
        if not len(decisions):
            return
        self._decisions += len(decisions)
        if self._is_first:
            self._kept.add(decisions.transactions)
        self._score.add(decisions.score)
        self._selection.add(decisions.selection)
        rows = np.flatnonzero(decisions.alert)[: EXPLAINED_AT_MOST - self._explained]
        if len(rows):
            for reasons in decisions.reasons(rows):
                self._reasons += [(reason.code, reason.contribution) for reason in reasons]
            self._explained += len(rows)
        versions = decisions.models.versions(decisions.rates_version)
        for name in versions.__struct_fields__:
            self._models.setdefault(name, set()).add(getattr(versions, name))
        self._thresholds.add(decisions.models.policy.threshold)

    def variant(self, name: str) -> Variant:
        """All of it; nothing can be added any more."""
        selection = self._selection.finish()
        columns = {
            **self._kept.columns,
            "score": pa.array(self._score.finish()),
            **outcome_columns(selection),
        }
        return Variant(
            name=name,
            decisions=mapped_frame({column: columns[column] for column in DECISION_COLUMNS}),
            models={name: _some(versions) for name, versions in self._models.items()},
            threshold=next(iter(self._thresholds)) if len(self._thresholds) == 1 else None,
            reasons=pd.DataFrame(self._reasons, columns=list(REASON_COLUMNS)) if self._reasons else None,
            explained=self._explained,
        )


def _some(names: set[str]) -> str:
    """Versions, a few of them by name."""
    shown = sorted(names)
    return ", ".join(shown) if len(shown) <= 3 else f"{len(shown)} versions, {shown[0]} to {shown[-1]}"
