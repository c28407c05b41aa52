"""Statistics and progress of a run."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.input.label_book import LabelBook
from pipeline.backtest.input.span import EARLIEST_US, LATEST_US, RangeError, SeenTimes, Span
from pipeline.backtest.labels.schedule import ReviewOutcome
from pipeline.backtest.metrics.drift import DriftCounter
from pipeline.backtest.runner.input_quality import NOT_READ, REPEATED, refusal
from pipeline.backtest.runner.live_comparison import LiveComparison
from pipeline.backtest.runner.thresholds import Budget, PacedVariant
from pipeline.backtest.training.variants import VariantTraining
from pipeline.engine.cards.joins import NO_TRANSACTION
from pipeline.engine.partition_state.wait_clock import EARLY_LABEL_GRACE_US
from pipeline.engine.scores.decisions import Decisions
from pipeline.scoring.lightgbm_model import LightGBMModel

NO_PARTS: Final[Mapping[str, Sequence[Decisions]]] = MappingProxyType({})


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
        """Report a `BacktestProgress`."""
        if self._progress is not None:
            self._progress(
                BacktestProgress(transactions, event_time_us, time.monotonic() - self._started_s, share, stage)
            )

    def refuse_stopped(self) -> None:
        """Raise `RangeError` where it is to be stopped before anything was decided."""
        if self.stopped():
            raise RangeError("the backtest was stopped before it had trained its models: nothing was decided")


class FirstAndCount:
    """Event time of the first of some decisions, and how many there are."""

    def __init__(self) -> None:
        self.first_us, self.count = LATEST_US, 0

    def add(self, times_us: NDArray[np.int64]) -> None:
        """Add decisions, at least one."""
        self.first_us = min(self.first_us, int(times_us[0]))
        self.count += len(times_us)


class RunStatistics:
    """The statistics of a pass over the history, for whoever passes on decisions of its range."""

    def __init__(
        self, span: Span, label_grace_us: int, listener: ProgressListener, take: Callable[[str, Decisions], None]
    ) -> None:
        """``label_grace_us`` is how long after its transaction a label counts."""
        self._span, self._listener, self._take = span, listener, take
        # As the card kernel finds the transactions of labels.
        self._unread_until_us = span.warm_up_from_us + label_grace_us + EARLY_LABEL_GRACE_US
        self.worked_on = 0
        """Transactions, the warm-up included."""
        self.first_us, self.stream_time_us = LATEST_US, EARLIEST_US
        self.first_decided_us, self.last_decided_us = LATEST_US, EARLIEST_US
        self.counts: Counter[str] = Counter()
        """Outcomes of the input, as in `pipeline.backtest.runner.result.BacktestResult.counts`."""
        self.reasons: dict[str, str] = {}
        """First reason of each code for which a transaction was refused."""
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
        """Those within the range, of each candidate."""
        self.decided_by: dict[str, dict[str, FirstAndCount]] = {}
        """Decisions of each LightGBM version in the range, for each candidate that was trained."""
        self.partial = False
        self._variants: dict[str, str] = {}
        self._first: dict[str, LightGBMModel] = {}

    def pass_on(self, named: Mapping[str, Decisions], parts: Mapping[str, Sequence[Decisions]] = NO_PARTS) -> None:
        """Hand over what each variant decided about some transactions of the range.

        Args:
            named: Decisions by the names of variants.
            parts: The same decisions of variants whose policy changed meanwhile, a part for each policy.
        """
        for name, decisions in named.items():
            for part in parts.get(name, (decisions,)):
                self._take(name, part)
            if name in self.decided_by and len(decisions):
                by = self.decided_by[name].setdefault(decisions.models.lightgbm.version, FirstAndCount())
                by.add(decisions.transactions.event_time_us)
        self.drift.add(named, self._first)

    def count(self, decisions: Decisions) -> None:
        """Count what was refused, or repeated others, since the chunk before."""
        self.repeated(decisions.duplicates)
        for reject in decisions.rejects:
            self.refused(reject.kind, reject.code, reject.known_at_us)
            if reject.kind == "transaction":
                self.reasons.setdefault(reject.code, reject.text)

    def repeated(self, transactions: int) -> None:
        """Count transactions that repeat others."""
        self.counts[REPEATED] += transactions

    def refused(self, kind: str, code: str, known_at_us: int | None) -> None:
        """Count a record that was refused, as `pipeline.engine.records.columns.Reject` tells it."""
        unread = code == NO_TRANSACTION and known_at_us is not None and known_at_us < self._unread_until_us
        self.counts[NOT_READ if unread else refusal(kind, code)] += 1

    def count_labels(self, outcomes: Mapping[str, Counter[str]]) -> None:
        """Count what became of labels, as the card agent counts it: for all variants, or for each that has its own."""
        for name, counts in outcomes.items():
            what = "labels" if len(outcomes) == 1 else f"labels of {name}"
            for outcome, count in counts.items():
                self.counts[f"{what}: {outcome}"] += count

    def note(self, times_us: NDArray[np.int64], decided_us: NDArray[np.int64], worked_on: int) -> None:
        """Note event times of transactions that were worked on, and of those among them that were decided.

        ``worked_on`` tells how many it were in all.
        """
        if not len(times_us):
            return
        self.worked_on = worked_on
        self.first_us = min(self.first_us, int(times_us.min()))
        self.stream_time_us = max(self.stream_time_us, int(times_us.max()))
        if len(decided_us):
            self.first_decided_us = min(self.first_decided_us, int(decided_us.min()))
            self.last_decided_us = max(self.last_decided_us, int(decided_us.max()))
        stage = "warming the windows up" if self.stream_time_us < self._span.from_us else ""
        self._listener.report(self.worked_on, self.stream_time_us, self._share(), stage)

    def trains(self, variants: Mapping[str, str]) -> None:
        """Take note of the candidates whose models are trained, with the names of what is trained."""
        self._variants = dict(variants)
        self.decided_by = {name: {} for name in variants}
        first = {name: self.trained[variant].trained for name, variant in variants.items()}
        self._first = {name: training.model for name, training in first.items() if training is not None}

    def trainings(self, name: str) -> list[VariantTraining]:
        """Return the trainings of a candidate, in turn; none of one that was not trained."""
        if name not in self._variants:
            return []
        return [self.trained[self._variants[name]], *self.renewed.get(name, [])]

    def note_training(self, name: str) -> None:
        """Tell that a variant is trained within the range."""
        self._listener.report(self.worked_on, self.stream_time_us, self._share(), training_stage(name))

    def stopped(self) -> bool:
        """True if the run stops here, which makes it partial."""
        self.partial = self._listener.stopped()
        return self.partial

    def _share(self) -> float | None:
        if self._span.to_us >= LATEST_US:
            return None
        return (self.stream_time_us - self.first_us) / max(self._span.to_us - self.first_us, 1)

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
