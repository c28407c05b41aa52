"""Schedules of labels that follow from the truth: reported under a regime, or by reviews of alerts."""

from collections import deque
from collections.abc import Iterator
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.backtest.input.order import Chunk, Order, alone, merged
from pipeline.backtest.metrics.ranking import top_of_days
from pipeline.engine.records.columns import Labels, Transactions, identities, no_labels
from pipeline.engine.scores.decisions import Decisions
from pipeline.learning.label_sources import SIMULATOR
from pipeline.learning.labels import KNOWN_FRAUD, KNOWN_LEGITIMATE, KNOWN_NOTHING, source_rank
from pipeline.learning.regimes import NEVER_US, LabelRegime
from schemas.times import US_PER_DAY

REVIEW_SOURCE: Final = "analyst"
"""Source of labels that answer alerts, as in ``fraud-pipeline replay``; reports come from `SIMULATOR`."""


class LabelMode(StrEnum):
    """The origin of a backtest's labels."""

    RECORDED = "recorded"
    """Labels as they were reported, each shown from when it was known."""
    DELAY = "delay"
    """The truth about each transaction becomes known so long after it, as by a chargeback; nobody looks at alerts."""
    REVIEW = "simulated-review"
    """Likewise, but for the best alerts of a variant's day, which are answered sooner."""


class ReviewPolicy(NamedTuple):
    """The capacity and the delay of simulated reviews."""

    delay_us: int
    """Time from a transaction to the label of its alert's review; it is known when the day is over at the soonest."""
    a_day: int
    """Number of alerts of a day (UTC) that are reviewed: the highest scores, of equal ones the earliest."""


class ReviewOutcome(NamedTuple):
    """The result of simulated reviews, the warm-up's included."""

    alerts: int
    """Number of reviewed alerts."""
    unanswered: int
    """Number of these whose truth the history does not know."""
    answers: pd.DataFrame
    """A row for each answer that came before the report would have: ``transaction_id``, ``card_id``, ``known_at``."""


class ScheduledLabels:
    """Gives each transaction that bears a truth its label when it is due, and a correction where the first was wrong.

    That is `pipeline.replay.label_schedule.LabelSchedule` on columns: a label is due when its transaction is reported
    under the regime, or at the review of its alert if that is sooner. Memory is that of the labels that are still due.
    """

    def __init__(self, regime: LabelRegime, reviews: ReviewPolicy | None = None) -> None:
        self._regime, self._reviews = regime, reviews
        self._reports: deque[Labels] = deque()
        self._answers = no_labels()
        self._answered_rows = np.empty(0, np.int64)
        """Rows of transactions whose report no longer holds."""
        self._day: int | None = None
        self._alerts: list[Decisions] = []
        self._looked_at = self._unanswered = 0
        self._reported_answers: list[Labels] = []

    def chunks(self, transactions: Iterator[Transactions], until_us: int = NEVER_US) -> Iterator[Chunk]:
        """Transactions, in the order of event time, with the labels that are due; the last ones, up to a time, alone.

        With reviews a chunk lies within a day, and `decided` gets each before the next one is taken.
        """
        for part in filter(len, transactions):
            for piece in [part] if self._reviews is None else _days(part):
                yield merged(piece, self._until(piece), Order.EVENT_TIME)
        self._begin_day(None)
        rest = self._due(None)
        yield alone(rest.take(rest.known_at_us <= until_us))

    def _until(self, part: Transactions) -> Labels:
        """The labels that are due by the last of ``part``, those of its own transactions included, in their order."""
        self._begin_day(int(part.event_time_us[0]) // US_PER_DAY)
        reports = self._reported(part)
        if len(reports) and not self._regime.one_delay:
            self._reports = deque([_sorted([*self._reports, reports])])
        elif len(reports):
            self._reports.append(reports)
        return self._due(int(part.event_time_us[-1]))

    def decided(self, decisions: Decisions) -> None:
        """Take note of the alerts about transactions of the chunk that came last."""
        if self._reviews is not None and decisions.alert.any():
            self._alerts.append(decisions.take(decisions.alert))

    def reviewed(self) -> ReviewOutcome:
        """Return the result of reviews so far."""
        labels = _sorted(self._reported_answers) if self._reported_answers else no_labels()
        answers = pd.DataFrame(
            {
                "transaction_id": labels.transaction_id.to_pylist(),
                "card_id": labels.card_id.to_pylist(),
                "known_at": pd.to_datetime(labels.known_at_us, unit="us", utc=True),
            }
        )
        return ReviewOutcome(self._looked_at, self._unanswered, answers)

    def _reported(self, part: Transactions) -> Labels:
        truth, due_us = _truth(part), self._due_us(part)
        reported = due_us < NEVER_US
        transactions = part if reported.all() else part.take(reported)
        truth, due_us = truth[reported], due_us[reported]
        if not self._regime.corrected_share:
            return _labels(transactions, truth, due_us, SIMULATOR)
        corrected_us = self._regime.corrected_at_us(
            due_us, identities(transactions.card_id, transactions.transaction_id)
        )
        wrong = corrected_us < NEVER_US
        other = np.where(truth == KNOWN_FRAUD, KNOWN_LEGITIMATE, KNOWN_FRAUD)
        first = np.where(wrong, other, truth).astype(truth.dtype)
        corrections = _labels(transactions.take(wrong), truth[wrong], corrected_us[wrong], SIMULATOR)
        return Labels.concat([_labels(transactions, first, due_us, SIMULATOR), corrections])

    def _due_us(self, part: Transactions) -> NDArray[np.int64]:
        """Return when each transaction is reported, shape (n,); `NEVER_US` for one that is not."""
        truth = _truth(part)
        due_us = self._regime.known_at_us(
            part.event_time_us, truth == KNOWN_FRAUD, identities(part.card_id, part.transaction_id)
        )
        return np.where(truth == KNOWN_NOTHING, NEVER_US, due_us)

    def _begin_day(self, day: int | None) -> None:
        if self._reviews is not None and day != self._day:
            if self._alerts:
                self._review(self._alerts, self._reviews)
            self._alerts = []
        self._day = day

    def _review(self, alerts: list[Decisions], reviews: ReviewPolicy) -> None:
        """Look at the best alerts of a day that is over: before, nobody knows which these are."""
        taken = Transactions.concat([alert.transactions for alert in alerts])
        best = top_of_days(np.concatenate([alert.score for alert in alerts]), taken.event_time_us, reviews.a_day)
        taken = taken.take(best)
        truth = _truth(taken)
        self._looked_at += len(taken)
        self._unanswered += int(np.count_nonzero(truth == KNOWN_NOTHING))
        over_us = (taken.event_time_us // US_PER_DAY + 1) * US_PER_DAY
        due_us = np.maximum(taken.event_time_us + reviews.delay_us, over_us)
        reported_us = self._due_us(taken)
        sooner = (truth != KNOWN_NOTHING) & (due_us < reported_us)
        if not sooner.any():
            return
        answers = _labels(taken.take(sooner), truth[sooner], due_us[sooner], REVIEW_SOURCE)
        self._reported_answers.append(answers)
        self._answers = _sorted([self._answers, answers])
        self._answered_rows = np.concatenate([self._answered_rows, taken.row[sooner & (reported_us < NEVER_US)]])

    def _due(self, until_us: int | None) -> Labels:
        """Take what is due; all, where no time is named."""
        due: list[Labels] = []
        while self._reports and (until_us is None or self._reports[0].key[0] <= until_us):
            part = self._reports.popleft()
            end = len(part) if until_us is None else int(np.searchsorted(part.key, until_us, side="right"))
            if end < len(part):
                self._reports.appendleft(part.take(slice(end, None)))
            due.append(part.take(slice(0, end)))
        reports = Labels.concat(due) if due else no_labels()
        if not len(self._answers) and not len(self._answered_rows):
            return reports
        answered = np.isin(reports.row, self._answered_rows)
        self._answered_rows = np.setdiff1d(self._answered_rows, reports.row[answered], assume_unique=True)
        answers = self._answers
        end = len(answers) if until_us is None else int(np.searchsorted(answers.key, until_us, side="right"))
        self._answers = answers.take(slice(end, None))
        return _sorted([answers.take(slice(0, end)), reports.take(~answered)])


def _days(part: Transactions) -> Iterator[Transactions]:
    starts = np.flatnonzero(np.diff(part.event_time_us // US_PER_DAY)) + 1
    for first, end in pairwise([0, *starts.tolist(), len(part)]):
        yield part.take(slice(first, end))


def _truth(part: Transactions) -> NDArray[np.int8]:
    if part.truth is None:
        raise ValueError("these transactions do not bear what they turned out to be")
    return part.truth


def _labels(transactions: Transactions, truth: NDArray[np.int8], due_us: NDArray[np.int64], source: str) -> Labels:
    n = len(transactions)
    return Labels(
        row=transactions.row,
        key=due_us,
        transaction_id=transactions.transaction_id,
        card_id=transactions.card_id,
        source=pa.repeat(pa.scalar(source, pa.string()), n),
        rank=np.full(n, source_rank(source), np.int8),
        known=truth,
        labelled_at_us=due_us,
        known_at_us=due_us,
    )


def _sorted(parts: list[Labels]) -> Labels:
    """Sort labels by time; of equal ones those of the earlier part come first."""
    rows = Labels.concat(parts)
    return rows.take(np.argsort(rows.key, kind="stable"))
