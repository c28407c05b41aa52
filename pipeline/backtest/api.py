"""Backtests for notebooks and commands: a history, a range and models in, frames out."""

from collections.abc import Callable
from contextlib import closing
from functools import cached_property

from pipeline.backtest.runner.candidates import candidates_of
from pipeline.backtest.runner.live_comparison import LiveComparison
from pipeline.backtest.runner.model_library import ModelLibrary
from pipeline.backtest.runner.outcome import result_of, summary_of
from pipeline.backtest.runner.replay import Candidate
from pipeline.backtest.runner.request import Request
from pipeline.backtest.runner.result import BacktestResult, Collected
from pipeline.backtest.runner.runner import decide_range
from pipeline.backtest.runner.statistics import BacktestProgress, ProgressListener, RunStatistics, RunSummary
from pipeline.backtest.training.variants import VariantTraining
from pipeline.engine.scores.decisions import Decisions
from pipeline.training.fit import Trained


class Backtest(Request):
    """Decide a history again with given models.

    ::

        august = TimeRange(datetime(2018, 8, 8, tzinfo=UTC))
        result = Backtest("transactions.parquet", range=august, models=["3f9a2c71b0de"]).run()
        result.variants[0].decisions  # a frame, one row a decision
    """

    comparison: LiveComparison | None = None
    """Comparison with live decisions, once `run` is through."""

    @property
    def trained(self) -> dict[str, Trained]:
        """Trainings before the range, by the names of their variants, once `run` is through."""
        return {name: variant.trained for name, variant in self._grown.items() if variant.trained is not None}

    def run(
        self, progress: Callable[[BacktestProgress], None] | None = None, stopped: Callable[[], bool] = lambda: False
    ) -> BacktestResult:
        """Replay the range, and return the decisions of every variant.

        Raises `RangeError`, `pipeline.history.canonical_columns.UnusableSource`,
        `pipeline.kafka.cluster.errors.TopicError`, `pipeline.models.registry.RegistryError`,
        `pipeline.scoring.errors.ModelError`, `OutOfOrder`.

        Args:
            progress: Called after each chunk with the progress of the run.
            stopped: Called after each chunk; once it returns True, the run ends and the result is partial.
        """
        collected: dict[str, Collected] = {}

        def keep(name: str, decisions: Decisions) -> None:
            if name not in collected:
                collected[name] = Collected(next(iter(collected.values()), None))
            collected[name].add(decisions)

        return result_of(self, collected, self._decide(keep, progress, stopped), self._library.rules_since())

    def each(
        self,
        take: Callable[[str, Decisions], None],
        progress: Callable[[BacktestProgress], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> RunSummary:
        """Run, but keep nothing: pass on the decisions of the range, chunk by chunk.

        Args:
            take: Called with each chunk's decisions and the name of what decided: of a candidate, or
                `pipeline.backtest.runner.recorded_pass.AS_RECORDED`.
            progress: Called after each chunk with the progress of the run.
            stopped: Called after each chunk; once it returns True, the run ends.

        Returns:
            The run's counts and warnings; `RunSummary.partial` if it was stopped. Raises what `run` raises.
        """
        return summary_of(self._decide(take, progress, stopped))

    def candidates(self) -> dict[str, Candidate]:
        """The models that are asked for, and those that were trained, by their names.

        None of them where those are asked for that decisions name. Raises `pipeline.models.registry.RegistryError`,
        `pipeline.scoring.errors.ModelError`.
        """
        return candidates_of(self, self._library, self._grown)

    def _decide(
        self,
        take: Callable[[str, Decisions], None],
        progress: Callable[[BacktestProgress], None] | None,
        stopped: Callable[[], bool],
    ) -> RunStatistics:
        listener = ProgressListener(progress, stopped)
        statistics = RunStatistics(self.span, self.label_grace_us, listener)
        with closing(decide_range(self, self._library, statistics)) as decided:
            for name, decisions in decided:
                take(name, decisions)
        self.comparison, self._grown = statistics.comparison, statistics.trained
        return statistics

    @cached_property
    def _grown(self) -> dict[str, VariantTraining]:
        return {}

    @cached_property
    def _library(self) -> ModelLibrary:
        return ModelLibrary(self.settings, self.cluster, self.rules)
