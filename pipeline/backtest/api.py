"""Backtests for notebooks and commands: a history, a range and models in, frames out."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta

from pipeline.backtest.input.order import Order
from pipeline.backtest.input.topic_source import TopicSource
from pipeline.backtest.runner.arguments import LabelPolicy, OnlineModel, Thresholds, TimeRange
from pipeline.backtest.runner.candidates import candidates_of
from pipeline.backtest.runner.live_comparison import LiveComparison
from pipeline.backtest.runner.model_library import ModelLibrary
from pipeline.backtest.runner.outcome import result_of, summary_of
from pipeline.backtest.runner.replay import Candidate
from pipeline.backtest.runner.request import Request, models_by_name, source_of
from pipeline.backtest.runner.result import BacktestResult, Collected
from pipeline.backtest.runner.runner import FinishedRun, run_request
from pipeline.backtest.runner.statistics import BacktestProgress, ProgressListener, RunSummary
from pipeline.backtest.runner.thresholds import parsed_thresholds
from pipeline.backtest.training.variants import Training, VariantTraining
from pipeline.engine.scores.decisions import Decisions
from pipeline.engine.scores.models import ActiveModels
from pipeline.history.files import ColumnMapping
from pipeline.settings import Settings
from pipeline.training.fit import Trained

_WHOLE: Final = TimeRange()
_OF_POLICIES: Final = Thresholds()
_AS_PUBLISHED: Final = OnlineModel()
_AVAILABLE_LABELS: Final = LabelPolicy()


class Backtest:
    """Decide a history again with given models.

    ::

        august = TimeRange(datetime(2018, 8, 8, tzinfo=UTC))
        result = Backtest("transactions.parquet", range=august, models=["3f9a2c71b0de"]).run()
        result.variants[0].decisions  # a frame, one row a decision
    """

    def __init__(
        self,
        history: str | Path | None = None,
        *,
        bootstrap: Annotated[
            str | None, Meta(description="Cluster whose topics are read.  [default: KAFKA_BOOTSTRAP_SERVERS]")
        ] = None,
        range: TimeRange = _WHOLE,
        order: Annotated[
            Order | str, Meta(description="All partitions by event time, or the logs as they are.")
        ] = Order.EVENT_TIME,
        compare_live: Annotated[
            bool,
            Meta(
                description="Report every difference from the recorded decisions.",
                extra={"option": "--compare", "value": "live"},
            ),
        ] = False,
        models: Annotated[
            Iterable[str] | Mapping[str, str | ActiveModels],
            Meta(
                description="LightGBM version, or active; may be repeated.  [default: active; recorded: those that "
                "decisions name]",
                extra={"option": "--model", "metavar": "[NAME=]VERSION"},
            ),
        ] = (),
        thresholds: Thresholds = _OF_POLICIES,
        training: Training | None = None,
        policy: Annotated[
            str | None, Meta(description="Policy version.  [default: the one that was made for the model]")
        ] = None,
        online: OnlineModel = _AS_PUBLISHED,
        mapping: ColumnMapping | None = None,
        labels: LabelPolicy = _AVAILABLE_LABELS,
        settings: Settings | None = None,
    ) -> None:
        """Validate the arguments; nothing is read yet. Other arguments are described where they are declared.

        Args:
            history: A file, a directory of exported topics, or None for the topics of ``bootstrap``.
            range: The event times to decide, and what is read before them.
            models: LightGBM versions, by themselves or by names of your own, or models.
            thresholds: Each makes a variant of each model.
            training: Models to train on what lies before the range. They stand behind ``models``, with an untrained
                online model.
            online: The online model beside each of them.
            mapping: Columns of a file. Default: found by their names.
            labels: Recorded labels, or the regime by which the truth becomes known.
            settings: Default: those of the environment.

        Raises:
            ValueError: Arguments contradict each other, or are out of range.
            TypeError: A time is no datetime.
            ModelError: There are no such features to train on.
        """
        settings = settings or Settings()
        servers = bootstrap or settings.kafka_bootstrap_servers
        source = source_of(history, mapping, labels, range.lateness_s, settings, servers)
        self.request = Request(
            settings=settings,
            source=source,
            order=Order(order),
            compare_live=compare_live,
            time_range=range,
            models=models_by_name(models),
            alert_thresholds=parsed_thresholds(thresholds),
            policy=policy,
            online=online,
            label_policy=labels,
            training=training,
        )
        self.comparison: LiveComparison | None = None
        """Comparison with live decisions, once `run` is through."""
        self.trained: dict[str, Trained] = {}
        """Trainings before the range, by the names of their variants, once `run` is through."""
        self._grown: dict[str, VariantTraining] = {}
        self._library = ModelLibrary(settings, source.bootstrap if isinstance(source, TopicSource) else None)

    def run(
        self, progress: Callable[[BacktestProgress], None] | None = None, stopped: Callable[[], bool] = lambda: False
    ) -> BacktestResult:
        """Replay the range, and return the decisions of every variant.

        Raises `RangeError`, `pipeline.history.files.UnusableSource`, `pipeline.kafka.cluster.errors.TopicError`,
        `pipeline.models.registry.RegistryError`, `pipeline.scoring.errors.ModelError`, `OutOfOrder`.

        Args:
            progress: Called after each chunk with the progress of the run.
            stopped: Called after each chunk; once it returns True, the run ends and the result is partial.
        """
        collected: dict[str, Collected] = {}

        def keep(name: str, decisions: Decisions) -> None:
            if name not in collected:
                collected[name] = Collected(next(iter(collected.values()), None))
            collected[name].add(decisions)

        done = self._run_request(keep, progress, stopped)
        return result_of(self.request, done.partitions, done.candidates, collected, done.statistics)

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
        return summary_of(self._run_request(take, progress, stopped).statistics)

    def candidates(self) -> dict[str, Candidate]:
        """The models that are asked for, and those that were trained, by their names.

        None of them where those are asked for that decisions name. Raises `pipeline.models.registry.RegistryError`,
        `pipeline.scoring.errors.ModelError`.
        """
        return candidates_of(self.request, self._library, self._grown)

    def _run_request(
        self,
        take: Callable[[str, Decisions], None],
        progress: Callable[[BacktestProgress], None] | None,
        stopped: Callable[[], bool],
    ) -> FinishedRun:
        done = run_request(self.request, self._library, take, ProgressListener(progress, stopped))
        self.comparison, self._grown = done.statistics.comparison, done.statistics.trained
        self.trained = {name: variant.trained for name, variant in self._grown.items() if variant.trained is not None}
        return done
