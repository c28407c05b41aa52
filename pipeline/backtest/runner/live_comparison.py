"""Comparison of a backtest with the live decisions: each difference, with its cause."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from pipeline.backtest.input.live_decisions import LiveDecision, LiveDecisions, SourcePosition
from pipeline.backtest.input.order import Order
from pipeline.backtest.input.span import Span
from pipeline.backtest.input.topic_source import TopicSource
from pipeline.engine.scores.decisions import SELECTIONS, Decisions
from pipeline.features.built_in import LATENESS_US
from pipeline.features.catalogue import CARD_FEATURES, FEATURES, REACH_US
from pipeline.scoring.kinds import KINDS, WITH_LOG_ODDS
from schemas.codec import timestamp_us
from schemas.times import US_PER_SECOND
from schemas.topics import TRANSACTIONS

WINDOWS: Final = "shorter history"
"""The windows of the backtest began later than the live ones, and were not full yet."""
FULL_AFTER_US: Final = REACH_US + LATENESS_US
"""Distance from the begin of reading to the first event whose features no shorter history explains."""
ARRIVAL: Final = "order of arrival"
"""Live, transactions of the card were read in another order than that of their event times."""
BETWEEN: Final = "order between partitions"
"""Live, the merchant's transactions of several cards, or its labels, were read in another order."""
RULES: Final = "other rules"
"""Another kernel or rate table decided."""
OTHER_VERSION: Final = {
    **{kind.name: f"other {kind.title} version" for kind in KINDS},
    "policy": "other policy",
    "rules": "other set of rules",
}
"""A model, policy or set of rules decided that is not the live one, by name."""
ONLY_LIVE: Final = "decided live only"
ONLY_HERE: Final = "decided here only"
NO_FEATURES: Final = "features not recorded"
"""Same versions and another outcome, and ``features`` does not hold what the live models saw."""
UNEXPLAINED: Final = "unexplained"
"""Same order, features and versions, and another outcome: an error of the program or of a machine."""


class Difference(NamedTuple):
    """A decision that is not as it was live."""

    transaction_id: str
    card_id: str
    event_time_us: int
    cause: str
    differs: str
    """Names of what differs, separated by commas; features by their names."""
    live_score: float | None
    score: float | None
    live_action: str | None
    action: str | None


@dataclass(slots=True)
class LiveComparison:
    """The result of comparing decisions with those that were made live."""

    compared: int = 0
    """Transactions that both decided."""
    without_features: int = 0
    """Those of ``compared`` whose live features are not on ``features``."""
    differences: list[Difference] = field(default_factory=list)

    @property
    def causes(self) -> Counter[str]:
        """Count the differences by cause."""
        return Counter(difference.cause for difference in self.differences)

    def frame(self) -> pd.DataFrame:
        """A row a difference."""
        frame = pd.DataFrame(self.differences, columns=Difference._fields)
        times = pd.to_datetime(frame.pop("event_time_us"), unit="us", utc=True)
        frame.insert(2, "event_time", times)
        return frame


class LiveComparer:
    """Joins decisions of a backtest to those made live, in whatever order both come."""

    def __init__(self, live: LiveDecisions, order: Order, began_us: int | None = None) -> None:
        """``began_us`` is the event time at which the windows of the backtest began, if later than the live ones."""
        self._live, self._order, self._began_us = live, order, began_us
        self._rows: dict[SourcePosition, tuple[Decisions, int]] = {}
        """Rows of the backtest's decisions that wait for their live ones."""
        self._given = 0
        self._read = 0
        self.comparison = LiveComparison()

    def take(self, decisions: Decisions, positions: Sequence[SourcePosition]) -> None:
        """Compare some decisions of the range, each with the place of its transaction."""
        for row, position in enumerate(positions):
            self._rows[position] = decisions, row
        self._given += len(positions)
        # As far as the backtest is, and a little further: neither side waits for long in memory.
        while self._read < self._given + _AHEAD and (more := self._live.pull()):
            self._read += more
        self._match()

    def compare(self, decisions: Decisions, row: int, live: LiveDecision | None) -> None:
        """Compare one decision with its live one.

        Args:
            decisions: Decisions of the backtest.
            row: Index of the decision among them.
            live: Live decision about the same transaction; None where there is none, which is a difference too.
        """
        if live is None:
            self._note(decisions, row, None, ONLY_HERE, [])
            return
        self.comparison.compared += 1
        self.comparison.without_features += live.features is None
        differs, features = _differences(decisions, row, live)
        if differs:
            self._note(decisions, row, live, self._cause(decisions, live, differs, features), differs)

    def finish(self, *, partial: bool = False) -> LiveComparison:
        """Compare what is left; of a backtest that was stopped, what only live decided is no difference."""
        while not partial and self._live.pull():
            self._match()
        self._match()
        for decisions, row in self._rows.values():
            self.compare(decisions, row, None)
        if not partial:
            for decision, _ in self._live.waiting.values():
                at_us = timestamp_us(decision.event_time)
                self.comparison.differences.append(
                    Difference(
                        decision.transaction_id,
                        decision.card_id,
                        at_us,
                        ONLY_LIVE,
                        "",
                        decision.score,
                        None,
                        decision.action,
                        None,
                    )
                )
        return self.comparison

    def _match(self) -> None:
        waiting = self._live.waiting
        fewer = self._rows if len(self._rows) < len(waiting) else waiting
        for position in [position for position in fewer if position in self._rows and position in waiting]:
            self.compare(*self._rows.pop(position), waiting.pop(position))

    def _note(
        self, decisions: Decisions, row: int, live: LiveDecision | None, cause: str, differs: Sequence[str]
    ) -> None:
        taken = decisions.transactions
        self.comparison.differences.append(
            Difference(
                taken.transaction_id[row].as_py(),
                taken.card_id[row].as_py(),
                int(taken.event_time_us[row]),
                cause,
                ",".join(differs),
                None if live is None else live.decision.score,
                float(decisions.score[row]),
                None if live is None else live.decision.action,
                "alert" if decisions.selection[row] >= 0 else "allow",
            )
        )

    def _cause(self, decisions: Decisions, live: LiveDecision, differs: Sequence[str], features: Sequence[str]) -> str:
        """The first thing in the chain from record to decision that was not the same."""
        versions = decisions.models.versions(decisions.rates_version)
        if (versions.kernel, versions.rates) != (live.decision.versions.kernel, live.decision.versions.rates):
            return RULES
        if features or "case" in differs:
            if self._began_us is not None and timestamp_us(live.decision.event_time) < self._began_us + FULL_AFTER_US:
                return WINDOWS
            if self._order is Order.RECORDED:
                return UNEXPLAINED
            return ARRIVAL if "case" in differs or any(name in CARD_FEATURES for name in features) else BETWEEN
        for name, cause in OTHER_VERSION.items():
            if getattr(versions, name) != getattr(live.decision.versions, name):
                return cause
        return NO_FEATURES if live.features is None else UNEXPLAINED


def live_comparer(live: LiveDecisions, source: TopicSource, span: Span, order: Order) -> LiveComparer:
    """Build a comparer for decisions that are made in ``order``. Raises `TopicError`."""
    ranges = source.ranges(TRANSACTIONS, span, 0, to_end=True)
    # The log holds records before those that warm the windows up, or did once.
    begins_later = any(offsets.start > 0 for offsets in ranges.values())
    return LiveComparer(live, order, span.warm_up_from_us if begins_later else None)


_AHEAD: Final = 20_000
"""Decisions that are read ahead of the backtest, which may go through partitions in another order."""


def _differences(decisions: Decisions, row: int, live: LiveDecision) -> tuple[list[str], list[str]]:
    """(names of all that differs, to the last bit; the features among them)."""
    here = decisions.features[row]
    recorded, there = live
    unequal = [] if there is None else ~((here == there) | (np.isnan(here) & np.isnan(there)))
    features = [FEATURES[column] for column in np.flatnonzero(unequal)]
    code, listed = int(decisions.selection[row]), decisions.listed[row]
    started_s = int(decisions.case_start_us[row]) // US_PER_SECOND
    case = (f"{recorded.card_id}-{started_s}", int(decisions.case_sequence[row]))
    log_odds = [
        (kind.log_odds.removesuffix("_logit"), float(decisions.logits[row, column]), getattr(recorded, kind.log_odds))
        for column, kind in WITH_LOG_ODDS
    ]
    pairs: Iterator[tuple[str, object, object]] = iter(
        (
            ("case", case, (recorded.case_id, recorded.case_sequence)),
            *log_odds,
            ("score", float(decisions.score[row]), recorded.score),
            ("action", "alert" if code >= 0 else "allow", recorded.action),
            ("selection", SELECTIONS[code] if code >= 0 else None, recorded.selection),
            ("selection_probability", float(decisions.selection_probability[row]), recorded.selection_probability),
            ("threshold", decisions.models.policy.threshold, recorded.threshold),
            (
                "rules",
                decisions.models.evaluated_rules.named(decisions.hits[row]),
                (recorded.rule_hits, recorded.shadow_hits),
            ),
            (
                "lists",
                ([*listed.names], {by: [*what] for by, what in listed.overruled}),
                (recorded.list_hits, recorded.overruled),
            ),
        )
    )  # fmt: skip
    return [*features, *(name for name, ours, theirs in pairs if ours != theirs)], features
