"""Statistics and progress of a run."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.input.label_book import LabelBook
from pipeline.backtest.input.span import EARLIEST_US, LATEST_US, RangeError, SeenTimes, Span
from pipeline.backtest.labels.schedule import ReviewOutcome
from pipeline.backtest.metrics.drift import DriftCounter
from pipeline.backtest.runner.input_quality import NOT_READ, REPEATED, refusal
from pipeline.backtest.runner.live_comparison import LiveComparison
from pipeline.backtest.runner.replay import Candidate
from pipeline.backtest.runner.thresholds import Budget, PacedVariant
from pipeline.backtest.training.variants import VariantTraining
from pipeline.engine.cards.joins import NO_TRANSACTION
from pipeline.engine.partition_state.wait_clock import EARLY_LABEL_GRACE_US
from pipeline.engine.records.columns import Reject
from pipeline.engine.scores.decisions import Decisions
from pipeline.scoring.lightgbm_model import LightGBMModel


class BacktestProgress(NamedTuple):
    """The progress of a backtest."""

    transactions: int
    """Worked on so far, the warm-up included."""
    event_time_us: int
    """The newest of them."""
    elapsed_s: float
    share: float | None
    """Share of the event time that is asked for, 0 to 1; None where no end of it was named."""
    stage: str = ""
    """Name of the stage before the range is decided; empty once it is."""


def training_stage(name: str) -> str:
    """Return the stage in which a variant is trained."""
    return f"growing the trees of {name}"


class ProgressListener:
    """The caller's callbacks: one is given each chunk's progress, one says when to stop."""

    def __init__(self, progress: Callable[[BacktestProgress], None] | None, stopped: Callable[[], bool]) -> None:
        self._progress, self.stopped = progress, stopped
        self._started_s = time.monotonic()

    def report(self, transactions: int, event_time_us: int, share: float | None, stage: str = "") -> None:
        """Report a `BacktestProgress`, if anybody listens.

        Args:
            transactions: Number worked on so far, the warm-up included.
            event_time_us: The newest of them, in microseconds since 1970.
            share: Share of the event time to work on, 0 to 1; None where its end is not known.
            stage: Name of the stage before the range is decided; empty once it is.
        """
        if self._progress is not None:
            self._progress(
                BacktestProgress(transactions, event_time_us, time.monotonic() - self._started_s, share, stage)
            )

    def refuse_stopped(self) -> None:
        """Raise `RangeError` where it is to be stopped before anything was decided."""
        if self.stopped():
            raise RangeError("the backtest was stopped before it had trained its models: nothing was decided")


class PassProgress:
    """The progress of a pass over the transactions of a span."""

    def __init__(self, span: Span, listener: ProgressListener) -> None:
        self.listener, self._span = listener, span
        self.worked_on = 0
        """Transactions, the warm-up included."""
        self.first_us, self.stream_time_us = LATEST_US, EARLIEST_US

    def report(self, times_us: NDArray[np.int64], worked_on: int, stage: str) -> None:
        """Report that transactions were worked on.

        Args:
            times_us: Event times of at least one, in microseconds since 1970; shape (n,), in any order.
            worked_on: Number of transactions since the pass began, these included.
            stage: Name of the stage; empty once the range is decided.
        """
        self.worked_on = worked_on
        self.first_us = min(self.first_us, int(times_us.min()))
        self.stream_time_us = max(self.stream_time_us, int(times_us.max()))
        self.report_stage(stage)

    def report_stage(self, stage: str) -> None:
        """Report what is done meanwhile."""
        share = None
        if self._span.to_us < LATEST_US:
            share = (self.stream_time_us - self.first_us) / max(self._span.to_us - self.first_us, 1)
        self.listener.report(self.worked_on, self.stream_time_us, share, stage)


class RunStatistics(PassProgress):
    """The statistics of a pass over the history."""

    def __init__(self, span: Span, label_grace_us: int, listener: ProgressListener) -> None:
        """Begin without counts.

        Args:
            span: Range and warm-up of the pass.
            label_grace_us: Microseconds after its transaction within which a label counts.
            listener: Given the progress.
        """
        super().__init__(span, listener)
        # As the card kernel finds the transactions of labels.
        self._unread_until_us = span.warm_up_from_us + label_grace_us + EARLY_LABEL_GRACE_US
        self.partitions = 1
        self.candidates: Mapping[str, Candidate] = {}
        self.first_decided_us, self.last_decided_us = LATEST_US, EARLIEST_US
        self.counts: Counter[str] = Counter()
        """Outcomes of the input, as in `pipeline.backtest.runner.result.BacktestResult.counts`."""
        self.reasons: dict[str, str] = {}
        """First reason of each code for which a transaction was refused."""
        self.first_refused: Reject | None = None
        """The first transaction that was refused."""
        self.book, self.seen = LabelBook(), SeenTimes()
        self.warnings: list[str] = []
        self.budgets: dict[str, Budget] = {}
        self.paced: dict[str, PacedVariant] = {}
        self.reviewed: dict[str, ReviewOutcome] = {}
        self.drift = DriftCounter()
        self.comparison: LiveComparison | None = None
        self.trained: dict[str, VariantTraining] = {}
        """The first training of each variant, which came before the range."""
        self.renewed: dict[str, list[VariantTraining]] = {}
        """Those within the range, of each candidate that is renewed."""
        self.decided_by: dict[str, dict[str, tuple[int, int]]] = {}
        """For each LightGBM version of a trained candidate: event time of its first decision in the range, number of
        decisions."""
        self.partial = False
        self._first: dict[str, LightGBMModel] = {}

    def decides(self, candidates: Mapping[str, Candidate]) -> None:
        """Take note of who decides the range."""
        self.candidates = candidates
        self.decided_by = {name: {} for name, candidate in candidates.items() if candidate.trained_as is not None}
        first = {name: self.trainings(name)[0].trained for name in self.decided_by}
        self._first = {name: training.model for name, training in first.items() if training is not None}

    def decided(self, named: Mapping[str, Decisions]) -> None:
        """Count what each variant decided about some transactions of the range."""
        for name, decisions in named.items():
            if name in self.decided_by and len(decisions):
                times_us, version = decisions.transactions.event_time_us, decisions.models.lightgbm.version
                first_us, rows = self.decided_by[name].get(version, (LATEST_US, 0))
                self.decided_by[name][version] = min(first_us, int(times_us[0])), rows + len(times_us)
        self.drift.add(named, self._first)

    def count(self, decisions: Decisions) -> None:
        """Count what was refused, or repeated others, since the chunk before."""
        self.repeated(decisions.duplicates)
        for reject in decisions.rejects:
            self.refused(reject.kind, reject.code, reject.known_at_us)
            if reject.kind == "transaction":
                self.reasons.setdefault(reject.code, reject.text)
                self.first_refused = self.first_refused or reject

    def repeated(self, transactions: int) -> None:
        """Count transactions that repeat others."""
        self.counts[REPEATED] += transactions

    def refused(self, kind: str, code: str, known_at_us: int | None) -> None:
        """Count a record that was refused.

        Args:
            kind: ``transaction`` or ``label``.
            code: Code of the reason, as in ``docs/dead-letters.md``.
            known_at_us: Time from which a label counts that has waited in vain, in microseconds since 1970; None of
                other records. If its transaction may lie before the warm-up, it counts as one that was not read.
        """
        unread = code == NO_TRANSACTION and known_at_us is not None and known_at_us < self._unread_until_us
        self.counts[NOT_READ if unread else refusal(kind, code)] += 1

    def count_labels(self, outcomes: Mapping[str, Counter[str]]) -> None:
        """Count what became of labels, as the card agent counts it: for all variants, or for each that has its own."""
        for name, counts in outcomes.items():
            what = "labels" if len(outcomes) == 1 else f"labels of {name}"
            for outcome, count in counts.items():
                self.counts[f"{what}: {outcome}"] += count

    def note(self, times_us: NDArray[np.int64], decided_us: NDArray[np.int64], worked_on: int) -> None:
        """Note transactions that were worked on, and those among them that were decided.

        Args:
            times_us: Event times of the former, in microseconds since 1970; shape (n,).
            decided_us: Event times of the latter, within the range; shape (m,).
            worked_on: Number of transactions since the pass began, these included.
        """
        if not len(times_us):
            return
        if len(decided_us):
            self.first_decided_us = min(self.first_decided_us, int(decided_us.min()))
            self.last_decided_us = max(self.last_decided_us, int(decided_us.max()))
        stream_time_us = max(self.stream_time_us, int(times_us.max()))
        self.report(times_us, worked_on, "warming the windows up" if stream_time_us < self._span.from_us else "")

    def trainings(self, name: str) -> list[VariantTraining]:
        """Return the trainings of a candidate, in turn; none of one that was not trained."""
        candidate = self.candidates.get(name)
        if candidate is None or candidate.trained_as is None:
            return []
        return [self.trained[candidate.trained_as], *self.renewed.get(name, [])]

    def report_training(self, variant: str) -> None:
        """Report that a variant is trained within the range."""
        self.report_stage(training_stage(variant))

    def stopped(self) -> bool:
        """True if the run stops here, which makes it partial."""
        self.partial = self.listener.stopped()
        return self.partial

    def reported_counts(self) -> dict[str, int]:
        """The counts that are not nothing, by name."""
        counts = {name: count for name, count in sorted(self.counts.items()) if count}
        if self.comparison is None:
            return counts
        causes = {f"unlike live: {cause}": count for cause, count in sorted(self.comparison.causes.items())}
        without = self.comparison.without_features
        if without:
            counts["compared with live without recorded features"] = without
        return {**counts, "compared with live": self.comparison.compared, **causes}


class RunSummary(NamedTuple):
    """The result of a pass besides its decisions; as in `BacktestResult`."""

    counts: Mapping[str, int]
    warnings: Sequence[str]
    partial: bool
