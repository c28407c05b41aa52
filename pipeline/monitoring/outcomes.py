"""Decisions and labels joined: which transactions were selected, what they turned out to be, who reported them."""

from collections import defaultdict
from typing import Final, NamedTuple

import numpy as np

from pipeline.decision.policy import BY_AUDIT as AUDIT
from pipeline.learning.labels import (
    FRAUD,
    KNOWN,
    KNOWN_FRAUD,
    NOTHING,
    UNSEEN,
    StateNumbers,
    known_value,
    resolve_numbers,
    source_rank,
)
from pipeline.learning.regimes import NEVER_US
from pipeline.monitoring.audit_estimate import BY_AUDIT, BY_SCORE_OR_RULE, NOT_SELECTED, AuditRows
from schemas.times import US_PER_DAY

_ANSWERS: Final = frozenset({"audit", "analyst"})
"""Sources that answer an alert; all others but rules report by themselves."""
_NO_REPORT: Final = _ANSWERS | {"rule"}
_ROW_TYPES: Final = (np.int64, np.int8, np.float64, np.bool_, np.bool_, np.int64)
"""Types of the columns of `AuditRows`."""


class _Outcome(NamedTuple):
    state: StateNumbers = UNSEEN
    answered: bool = False
    reported_us: int = NEVER_US


class Outcomes:
    """Collects labels first, then decisions; keeps decisions that were selected or labelled.

    >>> outcomes = Outcomes()
    >>> outcomes.add_label(("c", "t"), "fraud", "customer", 5, 7)
    >>> outcomes.add_decision(("c", "t"), 3, None, 0.01)
    >>> rows = outcomes.rows(0)
    >>> rows.fraud.tolist(), rows.reported_us.tolist(), rows.probability.tolist()
    ([True], [7], [0.01])
    """

    def __init__(self) -> None:
        self._labels: dict[tuple[str, str], _Outcome] = {}
        self._rows: list[tuple[int, int, float, bool, bool, int]] = []
        self._decisions: dict[int, int] = defaultdict(int)
        self._unaudited: dict[int, int] = defaultdict(int)
        self.first_audit_us: int | None = None
        """Event time of the first audited transaction."""
        self.oldest_us: int | None = None
        """Oldest event time of a decision."""
        self.stream_time_us = 0
        """Newest event time of a decision."""

    def add_label(self, key: tuple[str, str], label: str, source: str, labelled_at_us: int, known_at_us: int) -> None:
        """Add a label of a transaction.

        Args:
            key: Card and transaction.
            label: Label as it was sent.
            source: Who reported it, such as ``customer`` or ``analyst``.
            labelled_at_us: When it was made, in microseconds since 1970; of labels of equal rank the newest holds.
            known_at_us: When it became known, likewise; the first report of a fraud counts.
        """
        before = self._labels.get(key, _Outcome())
        known = known_value(label)
        state, _ = resolve_numbers(before.state, source_rank(source), labelled_at_us, KNOWN.index(known))
        answered = before.answered or (source in _ANSWERS and known != NOTHING)
        reported_us = before.reported_us
        if known == FRAUD and source not in _NO_REPORT:
            reported_us = min(reported_us, known_at_us)
        self._labels[key] = _Outcome(state, answered, reported_us)

    def add_decision(
        self, key: tuple[str, str], event_time_us: int, selection: str | None, selection_probability: float
    ) -> None:
        """Add a decision, after all labels.

        Args:
            key: Card and transaction.
            event_time_us: Event time of the transaction, in microseconds since 1970.
            selection: ``score``, ``rule`` or ``audit``; None for a transaction without an alert.
            selection_probability: Probability with which an analyst would be given the transaction, 0 to 1.
        """
        day = event_time_us // US_PER_DAY
        self._decisions[day] += 1
        self._unaudited[day] += selection_probability == 0.0
        self.stream_time_us = max(self.stream_time_us, event_time_us)
        self.oldest_us = event_time_us if self.oldest_us is None else min(self.oldest_us, event_time_us)
        if selection == AUDIT and (self.first_audit_us is None or event_time_us < self.first_audit_us):
            self.first_audit_us = event_time_us
        found = self._labels.get(key)
        if found is None and selection is None:
            return
        found = found or _Outcome()
        code = NOT_SELECTED if selection is None else BY_AUDIT if selection == AUDIT else BY_SCORE_OR_RULE
        fraud = found.state[2] == KNOWN_FRAUD
        self._rows.append((event_time_us, code, selection_probability, found.answered, fraud, found.reported_us))

    def decisions(self, from_us: int) -> tuple[int, int]:
        """Return the number of decisions from a day on, and of those among them that no audit could select."""
        first = from_us // US_PER_DAY
        return (
            sum(count for day, count in self._decisions.items() if day >= first),
            sum(count for day, count in self._unaudited.items() if day >= first),
        )

    def rows(self, from_us: int) -> AuditRows:
        """Return the selected and labelled decisions whose event times are ``from_us`` or later."""
        kept = [row for row in self._rows if row[0] >= from_us]
        columns = zip(*kept, strict=True) if kept else [()] * len(_ROW_TYPES)
        return AuditRows(*(np.array(column, kind) for column, kind in zip(columns, _ROW_TYPES, strict=True)))
