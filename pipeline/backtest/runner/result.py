"""The result of a backtest for its report: decisions of each variant, labels and parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Final, NamedTuple

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.backtest.input.spill import NumberColumn, TextColumn, mapped_frame
from pipeline.backtest.labels.schedule import ReviewOutcome
from pipeline.backtest.metrics.drift import ModelDrift
from pipeline.backtest.metrics.rule_worth import RuleHits
from pipeline.backtest.runner.thresholds import FirstAlerts
from pipeline.decision.rules import Rule
from pipeline.engine.records.columns import Transactions
from pipeline.engine.scores.decisions import Decisions, outcome_columns
from pipeline.scoring.prequential import ScoreMeasures

DECISION_COLUMNS: Final = (
    "transaction_id", "card_id", "merchant_id", "event_time", "amount_base", "score", "action", "selection",
)  # fmt: skip
"""Columns of `pipeline.backtest.Decisions.frame` that a report reads; a long backtest need not keep the others."""
REASON_COLUMNS: Final = ("code", "contribution")

Parameter = str | int | float | bool | None


class TrainedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A training of a variant, and the LightGBM version that came of it; times are RFC 3339."""

    known_time: str
    """Everything was used that was known then."""
    lightgbm: str | None = None
    """None, and so all but the seconds, if the training was refused and the version before went on deciding."""
    policy: str | None = None
    refused: str = ""
    """The reason for which there is none."""
    first_decision: str | None = None
    """Event time of the first transaction of the range that it decided; None if it decided none."""
    decisions: int = 0
    rows: int = 0
    """Transactions that were trained on, those of the validation period included."""
    frauds: int = 0
    metrics: Mapping[str, Parameter] = {}
    """Those of the validation period, the threshold, and the number of trees."""
    seconds: float
    """Duration of the training."""


class Overruled(NamedTuple):
    """What lists have overruled, as pairs of shape (p,)."""

    names: Sequence[str]
    """A suppression's list and id, or a list."""
    row: NDArray[np.int64]
    """Row of the transaction."""
    name: NDArray[np.int64]
    """Number of the name."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant: its models, its policy and its decisions."""

    name: str
    """Unique among the variants of a result."""
    decisions: pd.DataFrame
    """A row a decision within the range, in the order of decision; at least `DECISION_COLUMNS`. All variants decide
    about the same transactions, in the same order."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Versions by what they are of: ``lightgbm``, ``river``, ``policy``, ``kernel``, ``rates``."""
    threshold: float | None = None
    """The policy's, where one held for the whole range."""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    """Other parameters of this variant."""
    reasons: pd.DataFrame | None = None
    """A row a reason of the alerts that were explained, `REASON_COLUMNS`; None where none was."""
    explained: int = 0
    """Number of alerts that ``reasons`` covers."""
    paced: FirstAlerts | None = None
    """Budget figures if its threshold was set anew each hour, the days before the range included."""
    versions: Sequence[TrainedVersion] = ()
    """Trainings of a variant that was trained by the backtest, in turn."""
    prequential: Mapping[str, ScoreMeasures] = field(default_factory=dict)
    """Figures of each model over the labelled examples of the whole history, before it learned them; empty where the
    online model does not learn."""
    rules: RuleHits | None = None
    """Hits of rules; None where no rule was evaluated."""
    overruled: Overruled | None = None
    """Alerts that lists have overruled; None where there is none."""
    reviewed: ReviewOutcome | None = None
    """Simulated reviews of its alerts, if any: labels that became known sooner by them than by the result's."""


@dataclass(frozen=True, slots=True)
class BacktestResult:
    """Everything that a report is made of."""

    variants: Sequence[Variant]
    """At least one; the others are compared with the first."""
    labels: pd.DataFrame
    """Every label of the range's transactions that is known, `pipeline.backtest.LABEL_FIELDS`, and ``fraud_type`` where
    it is told; several of one transaction are resolved as live. ``labelled_at`` is a timestamp of UTC (when the label
    became known, where that was later)."""
    from_us: int
    """Event time from which on decisions are in the range, in microseconds since 1970-01-01T00:00:00Z."""
    to_us: int
    """Event time before which decisions are in the range."""
    warm_up_from_us: int
    """Event time of the first transaction that entered the windows; ``from_us`` where nothing came before the range."""
    base_currency: str
    label_mode: str = "recorded"
    """Origin of the labels, a `pipeline.backtest.labels.schedule.LabelMode`."""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    """Arguments by name: source, order, warm-up, partitions …; shown as they are."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Outcomes of the input besides decisions: repeats, refused rows by code, outcomes of labels."""
    warnings: Sequence[str] = ()
    """Sentences that the reader must see first, such as that history is shorter than the warm-up."""
    drift: Sequence[ModelDrift] = ()
    """Distribution of features in the training of each LightGBM version that scored, and in the range."""
    rules_since: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Since when rules are in their states, by code and state, RFC 3339; empty where that is not known."""
    partial: bool = False
    """True if the replay was interrupted before ``to_us``."""

    def __post_init__(self) -> None:
        if not self.variants:
            raise ValueError("a report needs at least one variant")
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError(f"variants need names of their own, but are called {', '.join(names)}")
        sizes = [len(variant.decisions) for variant in self.variants]
        if len(set(sizes)) > 1:
            raise ValueError(f"variants must decide about the same transactions; they decided {sizes}")
        if self.to_us <= self.from_us:
            raise ValueError("the range is empty: its end must be later than its begin")

    @property
    def event_time_us(self) -> NDArray[np.int64]:
        """Return the event time of each decision, shape (n,)."""
        times = self.variants[0].decisions["event_time"]
        # As it lies there, if it is of microseconds: a copy would be as long as the range.
        return np.asarray((times if times.dt.unit == "us" else times.dt.as_unit("us")).array.asi8)

    @property
    def until_us(self) -> int:
        """Event time before which everything was decided: ``to_us``, or where an interrupted replay came to."""
        if not self.partial:
            return self.to_us
        times = self.event_time_us
        return min(int(times.max()) + 1, self.to_us) if len(times) else self.from_us


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
        self._rows, self._numbers = NumberColumn(np.int64), NumberColumn(np.int64)
        """Pairs of a row and a rule that hits it."""
        self._rules: dict[tuple[str, str, str], tuple[int, Rule]] = {}
        """Numbers of rules by code, state and action."""
        self._overruled, self._overruled_by = NumberColumn(np.int64), NumberColumn(np.int64)
        """Pairs of a row and the name of what overrules it."""
        self._names: dict[str, int] = {}
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
        self._add_hits(decisions)
        self._add_overruled(decisions)
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

    def _add_hits(self, decisions: Decisions) -> None:
        """Keep which rules hit; those of another set are the same where code, state and action are."""
        numbers = []
        for rule in decisions.models.evaluated_rules.evaluated:
            key = (rule.code, rule.state, rule.action)
            numbers.append(self._rules.get(key, (len(self._rules), rule))[0])
            self._rules[key] = numbers[-1], rule
        if numbers:
            lengths = np.fromiter(map(len, decisions.hits), np.int64, len(decisions))
            hits = np.fromiter(chain.from_iterable(decisions.hits), np.int64, int(lengths.sum()))
            self._rows.add(np.repeat(self._decisions + np.arange(len(decisions)), lengths))
            # The number of a hit that a cap has stopped is higher by that of all rules.
            self._numbers.add(np.array(numbers, np.int64)[hits % len(numbers)])

    def _add_overruled(self, decisions: Decisions) -> None:
        pairs = [
            (self._decisions + row, self._names.setdefault(name, len(self._names)))
            for row, listed in enumerate(decisions.listed if len(decisions.models.lists) else ())
            for name, _ in listed.overruled
        ]
        rows, names = np.array(pairs, np.int64).reshape(-1, 2).T
        self._overruled.add(rows)
        self._overruled_by.add(names)

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
            rules=RuleHits([rule for _, rule in self._rules.values()], self._rows.finish(), self._numbers.finish())
            if self._rules
            else None,
            overruled=Overruled([*self._names], self._overruled.finish(), self._overruled_by.finish())
            if self._names
            else None,
        )


def _some(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown) if len(shown) <= 3 else f"{len(shown)} versions, {shown[0]} to {shown[-1]}"
