"""A backtest as a notebook asks for it: a history, a range and some models in, frames out."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from pipeline.backtest.input.order import Order
from pipeline.backtest.input.span import LATEST_US
from pipeline.backtest.input.topic_source import TopicSource
from pipeline.backtest.labels.schedule import LabelMode, ReviewPolicy
from pipeline.backtest.runner import request_validation as validation
from pipeline.backtest.runner.candidates import LATEST, UNTAUGHT, candidates_of
from pipeline.backtest.runner.collected import Collected
from pipeline.backtest.runner.live_comparison import LiveComparison
from pipeline.backtest.runner.model_library import ModelLibrary
from pipeline.backtest.runner.outcome import result_of, summary_of
from pipeline.backtest.runner.replay import Candidate
from pipeline.backtest.runner.request import Request
from pipeline.backtest.runner.result import BacktestResult
from pipeline.backtest.runner.runner import FinishedRun, run_request
from pipeline.backtest.runner.statistics import BacktestProgress, ProgressListener, RunSummary
from pipeline.backtest.runner.thresholds import alert_thresholds
from pipeline.backtest.training.variants import Training, VariantTraining
from pipeline.engine.decisions import Decisions
from pipeline.engine.models import ActiveModels
from pipeline.features.catalogue import LATENESS_US, US_PER_DAY, US_PER_SECOND
from pipeline.learning.regimes import LabelRegime, Reported
from pipeline.settings import Settings
from pipeline.sources import ColumnMapping
from pipeline.training.fit import Trained

_LABEL_DELAY_S: Final = 7 * 86_400.0
_REVIEW_DELAY_S: Final = 86_400.0


class Backtest:
    """What models would have decided about a history.

    ::

        result = Backtest("transactions.parquet", start=datetime(2018, 8, 8, tzinfo=UTC), models=["3f9a2c71b0de"]).run()
        result.variants[0].decisions  # a frame, one row a decision
    """

    def __init__(
        self,
        history: str | Path | None = None,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        models: Iterable[str] | Mapping[str, str | ActiveModels] = (),
        thresholds: Iterable[float] = (),
        budgets: Iterable[float] = (),
        pace: float | None = None,
        critical: float | None = None,
        training: Training | None = None,
        validation_days: float = 7.0,
        policy: str | None = None,
        river: str | None = None,
        learn: bool = False,
        publish_every_s: float = 3_600.0,
        blend: float | None = None,
        order: Order | str = Order.EVENT_TIME,
        compare_live: bool = False,
        warm_up_s: float | None = None,
        lateness_s: float | None = None,
        label_file: Path | None = None,
        labels: LabelMode | str | None = None,
        label_delay_s: float = _LABEL_DELAY_S,
        reported: Reported = "all",
        legitimate_share: float = 0.1,
        delay_spread: float = 0.0,
        early_share: float = 0.0,
        early_hours: float = 6.0,
        never_reported: float = 0.0,
        corrected_share: float = 0.0,
        correction_days: float = 7.0,
        review_delay_s: float = _REVIEW_DELAY_S,
        reviews_a_day: int = 100,
        mapping: ColumnMapping | None = None,
        settings: Settings | None = None,
        bootstrap: str | None = None,
    ) -> None:
        """``history`` is a file, a directory of exported topics, or None for the topics of ``bootstrap``.

        ``start`` and ``end`` are event times (UTC without an offset), the end excluded; ``warm_up_s`` is how much
        history before the start enters the windows (default: all that features depend on and the labels' delay; in the
        recorded order all that a restore of state reads). ``models`` names LightGBM versions, by themselves or by names
        of one's own, or holds models; default is the one in force, and in the recorded order the versions that
        decisions name.
        ``thresholds`` makes a variant of each model for each of them, and so does ``budgets``, alerts a day, whose
        thresholds are chosen on the last ``validation_days`` before the range, with as much history before these.
        ``pace``, alerts a day, makes one more, whose threshold `pipeline.decision.pacing.Pacing` sets anew each hour;
        scores from ``critical`` on alert whatever that budget says.
        ``training`` tells of models that are
        trained on what lies before the range; they stand behind those of ``models``, with an untaught online model.
        ``policy`` is a version (default: the one that was made for the model). ``river`` is ``latest``, ``untaught`` or
        a version; with ``learn`` the online model goes on learning from there (default: from untaught on), and is
        published every ``publish_every_s`` of event time. Where it learns, reported frauds decide with each
        version whether it takes part in the score (`pipeline.decision.online_gate.Gate`), and else the policy's blend;
        ``blend`` holds one blend in place of both. ``reported`` and the seven arguments behind it say how a truth
        becomes labels: they are fields of `pipeline.learning.regimes.LabelRegime`. ``lateness_s`` bounds how long after
        its event time a record of a topic may arrive. Raises ValueError for what contradicts itself or cannot
        be, TypeError for times that are none, `pipeline.scoring.errors.ModelError` for features to train on
        that there are not.
        """
        settings, order = settings or Settings(), Order(order)
        bootstrap = bootstrap or settings.kafka_bootstrap_servers
        if not 0 < validation_days < LATEST_US / US_PER_DAY:
            raise ValueError(f"validation_days must be more than none, not {validation_days}")
        lateness_us = LATENESS_US if lateness_s is None else validation.duration_us("lateness_s", lateness_s)
        source = validation.source_of(history, mapping, label_file, label_delay_s, lateness_us, settings, bootstrap)
        recorded = order is Order.RECORDED
        validation.refuse_off_topics(source, order, compare_live=compare_live)
        levels = alert_thresholds(tuple(thresholds), tuple(budgets), pace, critical)
        validation.refuse_paced_beside_live(levels, compare_live=compare_live)
        validation.refuse_budgets_of_renewals(levels, training)
        if recorded:
            validation.refuse_in_recorded_order(levels, learn=learn, training=training)
        labelling = validation.labelling_of(labels, source, levels, against_live=recorded or compare_live)
        if reviews_a_day < 1:
            raise ValueError(f"reviews_a_day must be at least one, not {reviews_a_day}")
        label_delay_us = validation.duration_us("label_delay_s", label_delay_s)
        regime = LabelRegime(
            reported=reported,
            delay_days=label_delay_us / US_PER_DAY,
            delay_spread=delay_spread,
            never_reported=never_reported,
            early_share=early_share,
            early_hours=early_hours,
            legitimate_share=legitimate_share,
            corrected_share=corrected_share,
            correction_days=correction_days,
        )
        validation.refuse_regime_of_recorded_labels(labelling, regime)
        reviews = ReviewPolicy(validation.duration_us("review_delay_s", review_delay_s), reviews_a_day)
        if not 0 < publish_every_s * US_PER_SECOND < LATEST_US:
            raise ValueError(f"publish_every_s must be a time that passes, not {publish_every_s}")
        if blend is not None and not 0 <= blend <= 1:
            raise ValueError(f"blend must be a weight from 0 to 1, not {blend}")
        from_us, to_us = validation.range_of(start, end)
        warm_up_us = validation.warm_up_of(warm_up_s, label_delay_us, order, settings)
        named = validation.models_of(models, training)
        gap_s = (settings.maturity_days if labelling is LabelMode.RECORDED else regime.maturity_days) * (
            US_PER_DAY / US_PER_SECOND
        )
        declared = None if labelling is LabelMode.RECORDED else regime
        if training is not None and labelling is LabelMode.REVIEW:
            # Answers to alerts come sooner than the regime says, and depend on scores.
            training = dataclasses.replace(training, early_reports=False)
        self.request = Request(
            settings=settings,
            source=source,
            order=order,
            span=validation.span_of(from_us, to_us, warm_up_us, levels, validation_days),
            warm_up_us=warm_up_us,
            compare_live=compare_live,
            labels=labelling,
            regime=regime,
            reviews=reviews,
            models=named,
            levels=levels,
            policy=policy,
            river=river or (UNTAUGHT if learn else LATEST),
            publish_every_us=max(round(publish_every_s * US_PER_SECOND), 1) if learn else None,
            blend=blend,
            training=training,
            period=None if training is None else training.period(from_us, gap_s, validation_days, declared),
            validation_days=validation_days,
        )
        self.comparison: LiveComparison | None = None
        """What came of comparing with live decisions, once `run` is through."""
        self.trained: dict[str, Trained] = {}
        """Trainings before the range, by the names of their variants, once `run` is through."""
        self._grown: dict[str, VariantTraining] = {}
        self._library = ModelLibrary(settings, source.bootstrap if isinstance(source, TopicSource) else None)

    def run(
        self, progress: Callable[[BacktestProgress], None] | None = None, stopped: Callable[[], bool] = lambda: False
    ) -> BacktestResult:
        """Replay the range; ``progress`` is told of every chunk, and once ``stopped`` says so, the result is partial.

        Raises `RangeError`, `pipeline.sources.UnusableSource`, `pipeline.kafka.clients.TopicError`,
        `pipeline.registry.RegistryError`, `pipeline.scoring.errors.ModelError`, `OutOfOrder`.
        """
        collected: dict[str, Collected] = {}

        def keep(name: str, decisions: Decisions) -> None:
            if name not in collected:
                collected[name] = Collected(next(iter(collected.values()), None))
            collected[name].add(decisions)

        done = self._conduct(keep, progress, stopped)
        return result_of(self.request, done.partitions, done.candidates, collected, done.statistics)

    def each(
        self,
        take: Callable[[str, Decisions], None],
        progress: Callable[[BacktestProgress], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> RunSummary:
        """As `run`, but keeps nothing: ``take`` is given the decisions of the range, chunk by chunk.

        With the name of what decided: of a candidate, or `pipeline.backtest.runner.recorded_pass.AS_RECORDED`.
        """
        return summary_of(self._conduct(take, progress, stopped).statistics)

    def candidates(self) -> dict[str, Candidate]:
        """The models that are asked for, and those that were trained, by their names.

        None of them where those are asked for that decisions name. Raises `pipeline.registry.RegistryError`,
        `pipeline.scoring.errors.ModelError`.
        """
        return candidates_of(self.request, self._library, self._grown)

    def _conduct(
        self,
        take: Callable[[str, Decisions], None],
        progress: Callable[[BacktestProgress], None] | None,
        stopped: Callable[[], bool],
    ) -> FinishedRun:
        done = run_request(self.request, self._library, take, ProgressListener(progress, stopped))
        self.comparison, self._grown = done.statistics.comparison, done.statistics.trained
        self.trained = {name: one.trained for name, one in self._grown.items() if one.trained is not None}
        return done
