"""A backtest as a notebook asks for it: a history, a range and some models in, frames out."""

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.accept import Acceptance
from pipeline.backtest.budgets import Budget
from pipeline.backtest.collected import Collected
from pipeline.backtest.columns import Reject, Transactions
from pipeline.backtest.decisions import Decisions
from pipeline.backtest.drift import DriftCounter
from pipeline.backtest.labelling import Labelling, Reviewed, Reviews, Schedule
from pipeline.backtest.learning import Learning
from pipeline.backtest.live import Comparer, Comparison, LiveDecisions
from pipeline.backtest.losses import REPEATED, refusal
from pipeline.backtest.losses import warnings as warnings_of_losses
from pipeline.backtest.order import Order, in_order
from pipeline.backtest.recorded import RecordedReplay, Scored
from pipeline.backtest.records import Numbering
from pipeline.backtest.result import BacktestResult, Parameter, Variant
from pipeline.backtest.run import Candidate, replay_accepted, replay_scheduled
from pipeline.backtest.settled import SettledLabels
from pipeline.backtest.sources import (
    EARLIEST_US,
    LATEST_US,
    ExportSource,
    FileSource,
    LabelBook,
    Opened,
    RangeError,
    Seen,
    Source,
    Span,
    TopicSource,
    moment,
    time_us,
)
from pipeline.backtest.training import Period, Training, known_by, read_rows, scheduled
from pipeline.backtest.versions import ACTIVE, ModelLibrary, with_threshold
from pipeline.decision.policy import Policy
from pipeline.engine.card import CardOptions
from pipeline.engine.feedback import FeedbackOptions
from pipeline.engine.models import ActiveModels
from pipeline.features.catalogue import FEATURES, LATENESS_US, REACH_US, US_PER_DAY, US_PER_SECOND
from pipeline.kafka.retention import needed_days
from pipeline.rates import load_rates
from pipeline.registry import Registry
from pipeline.settings import Settings
from pipeline.sources import ColumnMapping, UnusableSource, resolve_mapping
from pipeline.training.fit import Trained
from schemas.topics import DECISIONS, PROFILED, PROGRESS, TRANSACTIONS

AS_RECORDED: Final = "as recorded"
"""The variant in which each transaction is scored by the versions that its live decision names."""
LATEST: Final = "latest"
UNTAUGHT: Final = "untaught"
_LABEL_DELAY_S: Final = 7 * 86_400.0
_REVIEW_DELAY_S: Final = 86_400.0


class Step(NamedTuple):
    """How far a backtest has come."""

    transactions: int
    """Worked on so far, the warm-up included."""
    event_time_us: int
    """The newest of them."""
    elapsed_s: float
    share: float | None
    """Of the event time that is asked for, 0 to 1; None where no end of it was named."""
    stage: str = ""
    """What is done before the range is decided; nothing once it is."""


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
        training: Training | None = None,
        validation_days: float = 7.0,
        policy: str | None = None,
        river: str | None = None,
        learn: bool = False,
        publish_every_s: float = 3_600.0,
        order: Order | str = Order.EVENT_TIME,
        compare_live: bool = False,
        warm_up_s: float | None = None,
        lateness_s: float | None = None,
        label_file: Path | None = None,
        labels: Labelling | str | None = None,
        label_delay_s: float = _LABEL_DELAY_S,
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
        ``training`` tells of models that are
        trained on what lies before the range; they stand behind those of ``models``, with an untaught online model.
        ``policy`` is a version (default: the one that was made for the model). ``river`` is ``latest``, ``untaught`` or
        a version; with ``learn`` the online model goes on learning from there (default: from untaught on), and is
        published every ``publish_every_s`` of event time. ``lateness_s`` bounds how long after its event time a record
        of a topic may arrive. Raises ValueError for what contradicts itself or cannot be, TypeError for times that are
        none, `pipeline.scoring.errors.ModelError` for features to train on that there are not.
        """
        self.settings = settings or Settings()
        self.bootstrap = bootstrap or self.settings.kafka_bootstrap_servers
        self.order = Order(order)
        self.compare_live = compare_live
        self.learn = learn
        self.comparison: Comparison | None = None
        """What came of comparing with live decisions, once `run` is through."""
        self.trained: dict[str, Trained] = {}
        """What was trained, by the names of its variants, once `run` is through."""
        if not 0 < validation_days < LATEST_US / US_PER_DAY:
            raise ValueError(f"validation_days must be more than none, not {validation_days}")
        self.training, self.validation_days = training, validation_days
        lateness_us = LATENESS_US if lateness_s is None else _duration_us("lateness_s", lateness_s)
        self.source = self._source(history, mapping, label_file, label_delay_s, lateness_us)
        topics = isinstance(self.source, TopicSource)
        if compare_live and not topics:
            raise ValueError("what was decided live is on the topics: leave the file out to compare with it")
        if self.order is Order.RECORDED and not topics:
            raise ValueError("the recorded order is that of the topics: leave the file out, or order by event time")
        if self.order is Order.RECORDED and learn:
            raise ValueError("in the recorded order River versions are those that were published: order by event time")
        levels = _levels(tuple(thresholds), tuple(budgets))
        if self.order is Order.RECORDED and (training is not None or any(budget for _, budget in levels)):
            raise ValueError("models are trained, and thresholds chosen for budgets, only in the order of event time")
        self.labels = _labelling(labels, self.source)
        if self.labels is not Labelling.RECORDED and (self.order is Order.RECORDED or compare_live):
            raise ValueError(
                f"what was decided live was decided by the labels of the time: with labels {self.labels.value} nothing "
                "can be compared with it, and the recorded order has no place for them"
            )
        if self.labels is Labelling.REVIEW and any(budget for _, budget in levels):
            raise ValueError(
                "reviews are of what a threshold alerts from the warm-up on, when the one for a budget is not chosen "
                "yet: name a threshold, or let labels be recorded or come after a delay"
            )
        if reviews_a_day < 1:
            raise ValueError(f"reviews_a_day must be at least one, not {reviews_a_day}")
        self.label_delay_us = _duration_us("label_delay_s", label_delay_s)
        self.reviews = Reviews(_duration_us("review_delay_s", review_delay_s), reviews_a_day)
        if not 0 < publish_every_s * US_PER_SECOND < LATEST_US:
            raise ValueError(f"publish_every_s must be a time that passes, not {publish_every_s}")
        for name, of in (("start", start), ("end", end)):
            if of is not None and not isinstance(of, datetime):
                raise TypeError(f"{name} must be a datetime, not {of!r}: datetime.fromisoformat makes one of a text")
        from_us, to_us = time_us(start, EARLIEST_US), time_us(end, LATEST_US)
        if to_us <= from_us:
            raise RangeError(f"the range is empty: it ends at {end}, and begins at {start}; let it end later")
        if warm_up_s is None:
            default_us = REACH_US + self.label_delay_us
            needed = needed_days(TRANSACTIONS, self.settings) if self.order is Order.RECORDED else None
            self.warm_up_us = default_us if needed is None else max(default_us, round(needed * US_PER_DAY))
        else:
            self.warm_up_us = _duration_us("warm_up_s", warm_up_s)
        # The days that thresholds are chosen on must be as warm as those that are decided by them.
        chosen_on_us = round(validation_days * US_PER_DAY) if any(budget for _, budget in levels) else 0
        warm_up_from_us = EARLIEST_US if start is None else from_us - self.warm_up_us - chosen_on_us
        self.span = Span(warm_up_from_us, from_us, to_us)
        named = models if isinstance(models, Mapping) else (models := _versions(models))
        if training is not None and (twice := [name for name in training.variants if name in named]):
            raise ValueError(f"two variants are called {twice[0]}: give what is trained another name")
        self.period = None if training is None else self._period(training, label_delay_s)
        """What is trained on."""
        self.library = ModelLibrary(self.settings, self.bootstrap if topics else None)
        self._asked = (models, levels, policy, river or (UNTAUGHT if learn else LATEST), publish_every_s)

    def run(
        self, progress: Callable[[Step], None] | None = None, stopped: Callable[[], bool] = lambda: False
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

        run = _Run(self, keep, progress, stopped)
        run.go()
        return run.made(collected)

    def each(
        self,
        take: Callable[[str, Decisions], None],
        progress: Callable[[Step], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> "Passed":
        """As `run`, but keeps nothing: ``take`` is given the decisions of the range, chunk by chunk.

        With the name of what decided: of a candidate, or `AS_RECORDED`.
        """
        run = _Run(self, take, progress, stopped)
        run.go()
        return run.passed()

    def candidates(self) -> dict[str, Candidate]:
        """The models that are asked for, and those that were trained, by their names.

        None of them where those are asked for that decisions name.
        """
        models, levels, policy, river, publish_every_s = self._asked
        named = dict(models) if isinstance(models, Mapping) else {name: name for name in models}
        if not named and self.training is None:
            if self.order is Order.RECORDED and not levels and policy is None:
                return {}
            named = {ACTIVE: ACTIVE}
        known = {
            name: version if isinstance(version, ActiveModels) else self._models(version, policy, river)
            for name, version in named.items()
        }
        parameters: dict[str, dict[str, Parameter]] = {name: {} for name in known}
        for name, trained in self.trained.items():
            river_model = self.library.untaught_river(trained.model.version)
            known[name] = ActiveModels(trained.model, river_model, trained.policy)
            parameters[name] = self._told(trained)
        found = {}
        for name, active in known.items():
            for threshold, budget in levels or [(None, None)]:
                one = active if threshold is None else active.under(with_threshold(active.policy, threshold))
                learning = self._learning(one, publish_every_s) if self.learn else None
                told = parameters[name] | ({} if budget is None else {"alerts a day": budget})
                found[name + _level(threshold, budget)] = Candidate(one, learning, budget, told)
        return found

    def base_policy(self) -> Policy | None:
        """The policy whose rules, blend and audit rate a trained model is given; None where none is in force."""
        policy = self._asked[2]
        return self.library.policy_in_force() if policy is None else self.library.policy(policy)

    def card_options(self, partitions: int) -> CardOptions:
        """The card agent's options, as the settings say."""
        settings = self.settings
        return CardOptions(
            rates=load_rates(settings),
            future_tolerance_us=round(settings.future_tolerance_s * US_PER_SECOND),
            dedup_horizon_us=round(settings.dedup_horizon_days * US_PER_DAY),
            label_horizon_us=round(settings.label_horizon_days * US_PER_DAY),
            partitions=partitions,
        )

    def schedules(self, variants: int) -> list[Schedule]:
        """When labels are due that are not recorded: one for all variants, or one for the alerts of each."""
        if self.labels is Labelling.RECORDED:
            return []
        if self.labels is Labelling.DELAY:
            return [Schedule(self.label_delay_us)]
        return [Schedule(self.label_delay_us, self.reviews) for _ in range(variants)]

    @property
    def partitions(self) -> int:
        """Partitions that the replay has: the topic's, or one."""
        if isinstance(self.source, ExportSource):
            return self.source.partitions
        return self.source.numbering.partitions if isinstance(self.source, TopicSource) else 1

    def _period(self, training: Training, label_delay_s: float) -> Period:
        matured_s = self.settings.maturity_days * US_PER_DAY / US_PER_SECOND
        gap_s = matured_s if self.labels is Labelling.RECORDED else label_delay_s
        return training.period(self.span.from_us, gap_s, self.validation_days)

    def _told(self, trained: Trained) -> dict[str, Parameter]:
        if self.period is None:
            return {}
        names = trained.model.trained_on
        without = [name for name in FEATURES if name not in names]
        told = f"without {', '.join(without)}" if len(without) < len(names) else ", ".join(names)
        return {
            "trained from": moment(self.period.from_us),
            "trained by what was known at": moment(self.period.known_us),
            "last target": moment(self.period.last_us),
            "features": f"{len(names)} of {len(FEATURES)}{f': {told}' if without else ''}",
        }

    def _learning(self, models: ActiveModels, publish_every_s: float) -> Learning:
        every_us = max(round(publish_every_s * US_PER_SECOND), 1)
        return Learning(self._feedback_options(), every_us, *self.library.learner(models))

    def _feedback_options(self) -> FeedbackOptions:
        settings = self.settings
        return FeedbackOptions(
            future_tolerance_us=round(settings.future_tolerance_s * US_PER_SECOND),
            label_horizon_us=round(settings.label_horizon_days * US_PER_DAY),
            maturity_us=round(settings.maturity_days * US_PER_DAY),
            negative_sample_rate=settings.negative_sample_rate,
            partitions=self.partitions,
        )

    def _models(self, version: str, policy: str | None, river: str) -> ActiveModels:
        lightgbm = self.library.lightgbm(version)
        return ActiveModels(
            lightgbm,
            self.library.latest_river(lightgbm.version)
            if river == LATEST
            else self.library.untaught_river(lightgbm.version)
            if river == UNTAUGHT
            else self.library.river(river, lightgbm.version),
            self.library.policy_for(lightgbm.version) if policy is None else self.library.policy(policy),
        )

    def _source(
        self,
        history: str | Path | None,
        mapping: ColumnMapping | None,
        label_file: Path | None,
        label_delay_s: float,
        lateness_us: int,
    ) -> Source:
        if history is None:
            if self.bootstrap is None:
                raise ValueError("name a file, a directory of exported topics, or a cluster to read topics of")
            return TopicSource(self.bootstrap, self.settings, lateness_us)
        path = Path(history)
        if path.is_dir():
            return ExportSource(path, lateness_us)
        if not path.exists():
            raise UnusableSource(f"there is no file or directory {path}")
        return FileSource(path, mapping or resolve_mapping(path), label_file, label_delay_s)


class Passed(NamedTuple):
    """What is known of a pass besides its decisions; as in `BacktestResult`."""

    counts: Mapping[str, int]
    warnings: Sequence[str]
    partial: bool


def _labelling(asked: Labelling | str | None, source: Source) -> Labelling:
    """How labels come about; ValueError where the source has no such labels."""
    if asked is None:
        return Labelling.DELAY if source.bears_truth else Labelling.RECORDED
    labels = Labelling(asked)
    if labels is Labelling.RECORDED and not source.tells_labels:
        raise ValueError(
            f"no labels were recorded with {source.name}: name a file of them with --label-file, or let what the "
            "column fraud says become known by --labels delay or simulated-review"
        )
    if labels is not Labelling.RECORDED and not (source.bears_truth or source.tells_labels):
        raise ValueError(
            f"nothing tells what the transactions of {source.name} turned out to be: name their column with "
            "--map fraud=COLUMN, or a file of labels with --label-file"
        )
    return labels


def _levels(thresholds: Sequence[float], budgets: Sequence[float]) -> list[tuple[float | None, float | None]]:
    """(threshold, budget) of each variant of a model, one of them None; ValueError for those that cannot be."""
    for threshold in thresholds:
        if not 0 <= threshold <= 1:
            raise ValueError(f"a threshold is a score from 0 to 1, not {threshold}")
    for budget in budgets:
        if not 0 < budget < math.inf:
            raise ValueError(f"a budget is a number of alerts a day, more than none, not {budget}")
    for kind, asked in (("threshold", thresholds), ("budget", budgets)):
        if twice := [one for one, count in Counter(asked).items() if count > 1]:
            raise ValueError(f"the {kind} {_digits(twice[0])} is named twice: name it once")
    return [(threshold, None) for threshold in thresholds] + [(None, budget) for budget in budgets]


def _level(threshold: float | None, budget: float | None) -> str:
    """What of a variant's name tells it from others of its model."""
    if threshold is not None:
        return f" at {_digits(threshold)}"
    return "" if budget is None else f" at {_digits(budget)} a day"


def _versions(models: Iterable[str]) -> tuple[str, ...]:
    """Names of versions, each once; ValueError where that is not so."""
    if isinstance(models, str):
        raise ValueError(f"models holds several names: write [{models!r}] for one")
    versions = tuple(models)
    if twice := [one for one, count in Counter(versions).items() if count > 1]:
        raise ValueError(f"the model {twice[0]} is named twice: name it once, or give both names of their own")
    return versions


def _digits(value: float) -> str:
    """As short as it can be told from every other number."""
    return text if float(text := f"{value:g}") == value else repr(float(value))


def _duration_us(name: str, seconds: float) -> int:
    if not 0 <= seconds * US_PER_SECOND < LATEST_US:
        raise ValueError(f"{name} must be a time that passes, not {seconds}")
    return round(seconds * US_PER_SECOND)


class _Run:
    """One pass over the history."""

    def __init__(
        self,
        asked: Backtest,
        take: Callable[[str, Decisions], None],
        progress: Callable[[Step], None] | None,
        stopped: Callable[[], bool],
    ) -> None:
        self._asked, self._take, self._progress, self._stopped = asked, take, progress, stopped
        self._started_s = time.monotonic()
        self._worked_on = 0
        self._newest_us = EARLIEST_US
        self._first_us = LATEST_US
        self._first_decided_us, self._last_decided_us = LATEST_US, EARLIEST_US
        self._counts: Counter[str] = Counter()
        self._book, self._seen = LabelBook(), Seen()
        self._partial = False
        self._warnings: list[str] = []
        self._budgets: dict[str, Budget] = {}
        self._reviewed: dict[str, Reviewed] = {}
        self._drift = DriftCounter()

    def go(self) -> None:
        """Run it."""
        asked = self._asked
        # First, since it tells whether a cluster answers at all.
        self._partitions = asked.partitions
        if asked.period is not None:
            self._train(asked.period)
        self._candidates = candidates = asked.candidates()
        for name, one in candidates.items():
            made_for = one.models.policy.lightgbm_version
            if made_for is not None and made_for != one.models.lightgbm.version:
                self._warnings.append(
                    f"{name}: the threshold of policy {one.models.policy.version} was chosen for LightGBM {made_for}, "
                    f"not for {one.models.lightgbm.version}; name another --policy or a --threshold"
                )
        if asked.order is Order.RECORDED:
            self._run_recorded(candidates)
        else:
            self._run_by_time(candidates)
        if self._last_decided_us <= EARLIEST_US:
            raise RangeError(self._nothing())
        self._warn()

    def passed(self) -> Passed:
        """What is known of it."""
        counts = {name: count for name, count in sorted(self._counts.items()) if count}
        return Passed({**counts, **self._compared()}, self._warnings, self._partial)

    def _run_by_time(self, candidates: Mapping[str, Candidate]) -> None:
        asked = self._asked
        options = asked.card_options(self._partitions)
        rules = Acceptance(options.rates, options.future_tolerance_us, asked.source.time_zone)
        rejects: list[Reject] = []
        comparer = self._comparer()
        opened = asked.source.open(asked.span, rules, rejects, self._book)
        self._seen = opened.seen
        self._warnings += opened.warnings
        numbering = Numbering(self._partitions)
        self._budgets = {
            name: Budget(one.alerts_per_day, asked.span.from_us, asked.validation_days)
            for name, one in candidates.items()
            if one.alerts_per_day is not None
        }
        schedules = asked.schedules(len(candidates))
        every = list(candidates.values())
        with closing(opened), closing(self._passed(every, opened, schedules, rejects, options)) as passed:
            for decided in passed:
                outcomes = [
                    self._budgets[name].decide(one) if name in self._budgets else one
                    for name, one in zip(candidates, decided, strict=True)
                ]
                first = outcomes[0]
                self._count(first)
                if len(schedules) == len(candidates) > 1:
                    self._count_labels(outcomes)
                else:
                    self._count_labels([first])
                times_us = first.transactions.event_time_us
                inside = (times_us >= asked.span.from_us) & (times_us < asked.span.to_us)
                self._pass_on(
                    {
                        name: one if inside.all() else one.take(inside)
                        for name, one in zip(candidates, outcomes, strict=True)
                    }
                )
                if comparer is not None:
                    within = first.take(inside)
                    comparer.take(within, [numbering.place(row) for row in within.transactions.row.tolist()])
                self._note(times_us, times_us[inside])
                if self._stopped():
                    self._partial = True
                    break
        if comparer is not None:
            asked.comparison = comparer.finish(partial=self._partial)
        if asked.labels is Labelling.REVIEW:
            self._reviewed = {name: one.reviewed() for name, one in zip(candidates, schedules, strict=True)}

    def _passed(
        self,
        candidates: list[Candidate],
        opened: Opened,
        schedules: list[Schedule],
        rejects: list[Reject],
        options: CardOptions,
    ) -> Generator[list[Decisions], None, None]:
        """Decisions of all candidates, with labels as they were told or as they are due."""
        if not schedules:
            return replay_accepted(candidates, opened.transactions, opened.labels, rejects, options=options)
        transactions, self._book = self._truths(opened, self._book)
        return replay_scheduled(candidates, transactions, schedules, rejects, options=options)

    def _truths(self, opened: Opened, book: LabelBook) -> tuple[Iterator[Transactions], LabelBook]:
        """Transactions that bear what they turned out to be, and where that is noted; ``book`` is of ``opened``."""
        if self._asked.source.bears_truth:
            return opened.transactions, book
        # All that was ever said is looked at first; what is measured by becomes known when it is due.
        for _ in opened.labels:
            pass
        due = LabelBook()
        return SettledLabels(book.whole()).told(opened.transactions, self._asked.label_delay_us, due), due

    def _run_recorded(self, candidates: Mapping[str, Candidate]) -> None:
        asked = self._asked
        source = asked.source
        if not isinstance(source, TopicSource):
            raise TypeError("only topics have a recorded order")
        options = asked.card_options(self._partitions)
        source.refuse_lost(asked.span, self._partitions)
        replayed = RecordedReplay(source, asked.span, options, asked.library)
        wanted = asked.compare_live or not candidates
        live = self._live(source.written_in(asked.span)) if wanted else None
        comparer = Comparer(live, asked.order) if live is not None and asked.compare_live else None
        if comparer is not None and self._is_cut(source):
            comparer.began(asked.span.warm_up_from_us)
        models = next((one.models for one in candidates.values()), None)
        none = np.empty(0, np.int64)
        with closing(replayed.run(models, live)) as passed:
            for parts in passed:
                for scored in parts:
                    named: dict[str, Decisions] = {}
                    for name in candidates or (AS_RECORDED,):
                        own = candidates[name].models if name in candidates else models
                        other = None if own is models else own
                        named[name] = scored.decisions if other is None else scored.decisions.under(other)
                    self._pass_on(named)
                    if comparer is not None:
                        _compare(comparer, scored)
                decided_us = np.concatenate([none, *(one.decisions.transactions.event_time_us for one in parts)])
                newest_us = np.array([replayed.newest_us] if replayed.entered else [], np.int64)
                self._note(newest_us, decided_us)
                self._worked_on = replayed.entered
                if self._stopped():
                    self._partial = True
                    break
        self._first_us = min(self._first_us, replayed.first_event_us or LATEST_US)
        self._counts["profiled records that the card kernel does not give again"] = replayed.stored_otherwise
        if comparer is not None:
            asked.comparison = comparer.finish(partial=self._partial)
        self._read_labels(source, options)

    def _train(self, period: Period) -> None:
        """Read features and labels of what precedes the range, and train on them."""
        asked = self._asked
        span = Span(period.from_us - asked.warm_up_us, period.from_us, period.known_us)
        worked_on, first_us = 0, LATEST_US

        def note(times_us: NDArray[np.int64]) -> None:
            nonlocal worked_on, first_us
            if len(times_us):
                worked_on += len(times_us)
                first_us = min(first_us, int(times_us[0]))
                share = (int(times_us[-1]) - first_us) / max(span.to_us - first_us, 1)
                self._tell(Step(worked_on, int(times_us[-1]), self._elapsed_s, share, "reading what to train on"))
            self._refuse_stopped()

        options = asked.card_options(self._partitions)
        rules = Acceptance(options.rates, options.future_tolerance_us, asked.source.time_zone)
        book = LabelBook()
        opened = asked.source.open(span, rules, [], book)
        with closing(opened):
            if asked.labels is Labelling.RECORDED:
                chunks = in_order(opened.transactions, known_by(opened.labels, period.known_us), Order.EVENT_TIME)
            else:
                # Nothing was alerted by what is still to be trained: its labels come after the delay.
                transactions, _ = self._truths(opened, book)
                chunks = scheduled(transactions, Schedule(asked.label_delay_us), period.known_us)
            rows = read_rows(chunks, period, options, note)
        targets = len(rows)
        if not targets:
            seen = opened.seen
            read = f"; what was read lies between {moment(seen.first_us)} and {moment(seen.last_us)}"
            raise RangeError(
                f"{asked.source.name} has no transaction to train on from {moment(period.from_us)} to "
                f"{moment(period.last_us)}{read if seen.last_us > EARLIEST_US else ''}: choose another period with "
                "--train-from and --train-to"
            )
        self._warn_of_short(first_us, span, "training: ")
        if asked.training is not None:
            registry = Registry(asked.settings.registry_path)
            for name, grow in asked.training.growing(rows, period, asked.base_policy(), registry):
                self._tell(Step(targets, period.last_us, self._elapsed_s, None, f"growing the trees of {name}"))
                asked.trained[name] = grow()
                self._refuse_stopped()

    def _refuse_stopped(self) -> None:
        if self._stopped():
            raise RangeError("the backtest was stopped before it had trained its models: nothing was decided")

    def _read_labels(self, source: TopicSource, options: CardOptions) -> None:
        """What is known of the range today; in the recorded order the card kernel reads labels for itself."""
        rules = Acceptance(options.rates, options.future_tolerance_us)
        opened = source.open(self._asked.span, rules, [], self._book)
        with closing(opened):
            for _ in opened.labels:
                pass

    def _comparer(self) -> Comparer | None:
        asked = self._asked
        if not asked.compare_live or not isinstance(asked.source, TopicSource):
            return None
        comparer = Comparer(self._live(asked.source.written_in(asked.span)), asked.order)
        if self._is_cut(asked.source):
            comparer.began(asked.span.warm_up_from_us)
        return comparer

    def _live(self, span: Span) -> LiveDecisions:
        source = self._asked.source
        if not isinstance(source, TopicSource):
            raise TypeError("live decisions are on topics")
        return LiveDecisions(source, self._asked.span, source.ranges(DECISIONS, span, 0, to_end=True))

    def _is_cut(self, source: TopicSource) -> bool:
        """Whether the log holds records before those that warm the windows up, or did once."""
        ranges = source.ranges(TRANSACTIONS, self._asked.span, 0, to_end=True)
        return any(of.start > 0 for of in ranges.values())

    def _pass_on(self, named: Mapping[str, Decisions]) -> None:
        """Hand over what each variant decided about some transactions of the range."""
        for name, decisions in named.items():
            self._take(name, decisions)
        self._drift.add(named)

    def _count(self, decisions: Decisions) -> None:
        self._counts[REPEATED] += decisions.duplicates
        for reject in decisions.rejects:
            self._counts[refusal(reject.kind, reject.code)] += 1

    def _count_labels(self, outcomes: Sequence[Decisions]) -> None:
        """What became of labels: of all variants, or of each, where each has its own."""
        for name, decisions in zip(self._candidates, outcomes, strict=False):
            what = "labels" if len(outcomes) == 1 else f"labels of {name}"
            for outcome, count in decisions.label_outcomes.items():
                self._counts[f"{what}: {outcome}"] += count

    def _note(self, times_us: np.ndarray, decided_us: np.ndarray) -> None:
        if not len(times_us):
            return
        self._worked_on += len(times_us)
        self._first_us = min(self._first_us, int(times_us.min()))
        self._newest_us = max(self._newest_us, int(times_us.max()))
        if len(decided_us):
            self._first_decided_us = min(self._first_decided_us, int(decided_us.min()))
            self._last_decided_us = max(self._last_decided_us, int(decided_us.max()))
        span = self._asked.span
        share = None
        if span.to_us < LATEST_US:
            share = (self._newest_us - self._first_us) / max(span.to_us - self._first_us, 1)
        stage = "warming the windows up" if self._newest_us < span.from_us else ""
        self._tell(Step(self._worked_on, self._newest_us, self._elapsed_s, share, stage))

    def _tell(self, step: Step) -> None:
        if self._progress is not None:
            self._progress(step)

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def _nothing(self) -> str:
        span, seen = self._asked.span, self._seen
        limits = [f"from {moment(span.from_us)}"] if span.from_us > EARLIEST_US else []
        limits += [f"before {moment(span.to_us)}"] if span.to_us < LATEST_US else []
        text = f"{self._asked.source.name} has no transaction to decide {' and '.join(limits)}".rstrip()
        if self._partial:
            return f"{text} that was reached before the backtest was stopped"
        if self._asked.order is Order.RECORDED:
            return (
                f"{text} in the recorded order, which goes by what live workers wrote to {PROGRESS.name}, "
                f"{PROFILED.name} and {DECISIONS.name}: choose another range with --from and --to, or, where nothing "
                "was decided live, --order event-time"
            )
        if seen.last_us > EARLIEST_US:
            text += f"; what was read lies between {moment(seen.first_us)} and {moment(seen.last_us)}"
        refused = sum(count for name, count in self._counts.items() if name.startswith("refused transactions"))
        text += f" ({refused} were refused)" if refused else ""
        # Of topics only a part is read.
        if not refused and seen.last_us <= EARLIEST_US and not isinstance(self._asked.source, TopicSource):
            return f"{self._asked.source.name} holds no transaction at all, within the range or out of it"
        return f"{text}: choose another range with --from and --to"

    def _warn(self) -> None:
        asked, span = self._asked, self._asked.span
        if span.from_us <= EARLIEST_US:
            self._warnings.append(
                "no begin was named, so that windows begin empty: name one with --from, and what lies before warms up"
            )
        else:
            self._warn_of_short(self._first_us, span)
            if asked.warm_up_us < REACH_US:
                self._warnings.append(
                    f"the windows are warmed up for {asked.warm_up_us / US_PER_DAY:g} days, and features look back "
                    f"{REACH_US / US_PER_DAY:g}: decisions of the first days see less than live ones"
                )
        self._warnings += warnings_of_losses(self._counts, self._worked_on)
        for name, budget in self._budgets.items():
            if budget.days < asked.validation_days:
                self._warnings.append(
                    f"{name}: the threshold was chosen on {budget.days:.1f} days before the range, not on "
                    f"{asked.validation_days:g}"
                )

    def made(self, collected: Mapping[str, Collected]) -> BacktestResult:
        """The result, of what was decided."""
        asked, span = self._asked, self._asked.span
        from_us = span.from_us if span.from_us > EARLIEST_US else self._first_decided_us
        variants = [self._variant(name, one) for name, one in collected.items()]
        counts, warnings, partial = self.passed()
        return BacktestResult(
            variants=variants,
            labels=self._book.of(variants[0].decisions["transaction_id"]),
            from_us=from_us,
            to_us=span.to_us if span.to_us < LATEST_US else self._last_decided_us + 1,
            warm_up_from_us=min(self._first_us, from_us),
            base_currency=asked.settings.base_currency,
            label_mode=asked.labels.value,
            parameters={
                "source": asked.source.name,
                "order": asked.order.value,
                **self._label_parameters(),
                "warm_up_days": round(asked.warm_up_us / US_PER_DAY, 3),
                "partitions": self._partitions,
                "online_model": "learning" if asked.learn else "frozen",
            },
            counts=counts,
            warnings=warnings,
            drift=self._drift.found(),
            partial=partial,
        )

    def _warn_of_short(self, first_us: int, span: Span, of: str = "") -> None:
        if first_us > span.warm_up_from_us + US_PER_DAY:
            days = (span.from_us - min(first_us, span.from_us)) / US_PER_DAY
            self._warnings.append(
                f"{of}history begins at {moment(first_us)}: it warms the windows up for {days:.1f} of "
                f"{(span.from_us - span.warm_up_from_us) / US_PER_DAY:g} days, and decisions of the first days see "
                "less than live ones"
            )

    def _variant(self, name: str, collected: Collected) -> Variant:
        candidate = self._candidates.get(name)
        variant = collected.variant(name)
        if candidate is None:
            return variant
        return dataclasses.replace(variant, parameters=candidate.parameters, reviewed=self._reviewed.get(name))

    def _label_parameters(self) -> dict[str, Parameter]:
        asked = self._asked
        found: dict[str, Parameter] = {"labels": asked.labels.value}
        if asked.labels is not Labelling.RECORDED:
            found["label_delay_days"] = round(asked.label_delay_us / US_PER_DAY, 3)
        if asked.labels is Labelling.REVIEW:
            found["review_delay_days"] = round(asked.reviews.delay_us / US_PER_DAY, 3)
            found["reviews_a_day"] = asked.reviews.a_day
        return found

    def _compared(self) -> dict[str, int]:
        comparison = self._asked.comparison
        if comparison is None:
            return {}
        causes = {f"unlike live: {cause}": count for cause, count in sorted(comparison.causes.items())}
        return {"compared with live": comparison.compared, **causes}


def _compare(comparer: Comparer, scored: Scored) -> None:
    for row, recorded in enumerate(scored.live):
        if recorded is None:
            comparer.alone(scored.decisions, row)
        else:
            comparer.pair(scored.decisions, row, recorded)
