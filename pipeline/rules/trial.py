"""A rule tried on history: its hits and near misses by day, and what they turned out to be."""

from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.metrics.bootstrap import Estimate, day_estimates
from pipeline.decision.rule_program import Read, RuleProgram
from pipeline.decision.rules import FIELDS, Rule, condition_of
from pipeline.expressions.trees import Condition, Node, text_of
from pipeline.rules.hits import Counted, HitHistory, Hits, day_span
from pipeline.scoring.errors import ModelError
from schemas.times import US_PER_DAY

HELD_OUT_DAYS: Final = 14
"""Newest days of a history, which only `rules publish` shows: who edits a rule until they look good has none left."""
_EXAMPLES: Final = 5
_ROWS, _HITS, _NULL, _NEAR = range(4)
"""Counts of a day; from the last one on, near misses by the part that does not hold."""


class HistoryExample(msgspec.Struct, frozen=True):
    """A hit or a near miss."""

    event_time_us: int
    transaction_id: str
    values: dict[str, Any]
    """What the rule reads, by name."""
    fails: str = ""
    """The part that does not hold; empty of a hit."""
    kernel: int = 0


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of what a rule would have done in some days; money is in the base currency."""

    first_day: int
    """Days since 1970."""
    days: int
    filled_days: int
    """Days with a transaction."""
    transactions: int
    not_computed: int
    """Transactions from before a feature was declared; the other figures are without them."""
    null: int
    """Transactions where the condition is unknown."""
    hits: int
    hits_a_day: Estimate | None
    near_misses: dict[str, int]
    """By the part that alone does not hold."""
    mature: int
    """Hits that are old enough for a label to have come."""
    frauds: int
    """Frauds among them."""
    legitimate: int
    precision: Estimate | None
    """Share of frauds; a mature hit without a label counts as legitimate."""
    fraud_money: float
    fraud_money_a_day: Estimate | None
    new: int
    """Hits that raised no alert then."""
    new_a_day: Estimate | None
    new_cards: int
    new_mature: int
    new_frauds: int
    new_fraud_money: float
    selected: dict[str, int]
    """Hits that raised an alert then, by why."""
    other_rules: dict[str, int]
    """Hits that other rules hit too, by their codes, the most frequent first."""
    examples: tuple[HistoryExample, ...]
    leaks: bool
    """True if rules have read the lists of today; see `HitHistory`."""


class Trial(Counted):
    """The counts of a rule over a history, part by part, in any order.

    Args:
        rule: The rule.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule, condition = rule, condition_of(rule)
        super().__init__([condition])
        parts = [*_parts(condition.root)]
        self._parts = [text_of(Condition(part)) for part in parts] if len(parts) > 1 else []
        without = [_joined([*parts[:at], *parts[at + 1 :]]) for at in range(len(self._parts))]
        roots: list[Node] = [condition.root, ("not", condition.root), *without]
        self._program = RuleProgram([Condition(root) for root in roots], FIELDS)
        self._examples: list[HistoryExample] = []

    def take(
        self, read: Read, event_time_us: NDArray[np.int64], kernel: NDArray[np.int64], transaction_id: Any
    ) -> NDArray[np.intp]:
        """Count n transactions, and return the rows of the hits; see `Counted`."""
        if not (n := len(event_time_us)):
            return np.empty(0, np.intp)
        read = cache(read)
        columns = {name: read(name) for name in (*self.texts, *self.scores, *self.features)}
        found = self._program.hits(read, n)
        hit, near = found[0], found[2:] & ~found[0]
        counted = np.vstack([np.ones(n, np.bool_), hit, ~(hit | found[1]), near])
        self._count(counted, read, event_time_us, kernel)
        for fails, rows in zip(["", *self._parts], [hit, *near], strict=True):
            for row in _last_of_days(event_time_us // US_PER_DAY, rows).tolist():
                values_read = {name: _plain(column[row]) for name, column in columns.items()}
                at_us, name, number = int(event_time_us[row]), transaction_id(row), int(kernel[row])
                self._examples.append(HistoryExample(at_us, name, values_read, fails, number))
        return np.flatnonzero(hit)

    def figures(
        self, history: HitHistory, *, held_out: bool = False, first: int | None = None, end: int | None = None
    ) -> Figures:
        """Return what the rule would have done.

        Args:
            history: The hits of all parts.
            held_out: Of the newest `HELD_OUT_DAYS`, else of the days before them.
            first: First day, in days since 1970; None: that of the history.
            end: Day to end before, likewise.

        Raises:
            ModelError: In these days nothing was computed.
        """
        hits, maturity_us, kernels, leaks, _ = history
        usable = self._usable(kernels, self.features)
        cut = self._last_event_us // US_PER_DAY + 1 - HELD_OUT_DAYS
        shown = range(cut, cut + HELD_OUT_DAYS) if held_out else range(cut)
        days = range(max(shown.start, first or 0), shown.stop if end is None else min(shown.stop, end))
        inside = {key: counts for key, counts in self._days.items() if key[1] in days}
        computed = {key: counts for key, counts in inside.items() if key[0] in usable}
        if (span := day_span(computed)) is None:
            oldest = min((day for _, day in self._days), default=None)
            if oldest is None:
                raise ModelError("the history has no decided transaction: there is nothing to try a rule on")
            if not held_out and max(days.start, oldest) >= cut:
                raise ModelError(
                    f"these days are among the newest {HELD_OUT_DAYS} of the history, which only `rules publish --on` "
                    "shows: take older ones"
                )
            rows = sum(int(counts[_ROWS]) for counts in inside.values())
            raise ModelError(f"of the {rows:,} transactions of these days, none has the features that the rule reads")
        begins, width = span
        totals = sum(computed.values(), np.zeros(_NEAR + len(self._parts), np.int64)).tolist()
        day = hits.event_time_us // US_PER_DAY
        hits = hits.take(np.isin(hits.kernel, usable) & (day >= days.start) & (day < days.stop))
        mature = hits.event_time_us <= self._last_event_us - maturity_us
        fraud, new = mature & hits.fraud, hits.selection == None  # noqa: E711 (element by element)
        examples = [
            example
            for example in self._examples
            if example.kernel in usable and example.event_time_us // US_PER_DAY in days
        ]
        estimates = _estimates(hits, mature, fraud, new, begins, width)
        others = Counter(code for codes in hits.others for code in codes if code != self.rule.code)
        return Figures(
            first_day=begins,
            days=width,
            filled_days=len({day for _, day in computed}),
            transactions=totals[_ROWS],
            not_computed=int(sum(counts[_ROWS] for key, counts in inside.items() if key not in computed)),
            null=totals[_NULL],
            hits=totals[_HITS],
            near_misses=dict(zip(self._parts, totals[_NEAR:], strict=True)),
            mature=int(mature.sum()),
            frauds=int(fraud.sum()),
            legitimate=int((mature & hits.legitimate).sum()),
            fraud_money=round(float(hits.amount[fraud].sum()), 2),
            new=int(new.sum()),
            new_cards=len(np.unique(hits.card[new])),
            new_mature=int((new & mature).sum()),
            new_frauds=int((new & fraud).sum()),
            new_fraud_money=round(float(hits.amount[new & fraud].sum()), 2),
            selected=dict(sorted(Counter(hits.selection[~new].tolist()).items())),
            other_rules=dict(others.most_common()),
            examples=tuple(_newest(examples)),
            leaks=leaks,
            **estimates,
        )


def _parts(node: Node) -> Iterator[Node]:
    """Yield the conditions that `and` joins."""
    if node[0] == "and":
        for part in node[1:]:
            yield from _parts(part)
    else:
        yield node


def _last_of_days(day: NDArray[np.int64], chosen: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the last chosen row of each of the newest days, so many that some are left before those held out."""
    rows = np.flatnonzero(chosen)[::-1]
    _, first = np.unique(day[rows], return_index=True)
    return rows[first[-HELD_OUT_DAYS - _EXAMPLES :]]


def _joined(parts: list[Node]) -> Node:
    return ("and", *parts) if len(parts) > 1 else parts[0]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else None if np.isnan(value) else float(value)


def _newest(examples: list[HistoryExample]) -> Iterator[HistoryExample]:
    """Yield the newest examples: hits, then near misses of each part."""
    ordered = sorted(examples, key=lambda example: -example.event_time_us)
    for fails in dict.fromkeys(["", *(example.fails for example in ordered)]):
        yield from [example for example in ordered if example.fails == fails][:_EXAMPLES]


def _estimates(
    hits: Hits,
    mature: NDArray[np.bool_],
    fraud: NDArray[np.bool_],
    new: NDArray[np.bool_],
    first: int,
    width: int,
) -> dict[str, Estimate | None]:
    """Return the figures that have intervals, each day drawn with all that it holds."""
    names = ("hits_a_day", "precision", "fraud_money_a_day", "new_a_day")
    day = hits.event_time_us // US_PER_DAY - first
    weights = [None, mature, fraud, hits.amount * fraud, new]
    by_day = np.array([np.bincount(day, weight, minlength=width) for weight in weights])

    def statistics(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        hit, old, frauds, money, fresh = by_day @ drawn
        return np.array([hit / width, frauds / old if old else np.nan, money / width, fresh / width])

    return dict(zip(names, day_estimates(statistics, width), strict=True))
