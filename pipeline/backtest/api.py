"""A backtest as a notebook asks for it: a history, a range and some models in, frames out."""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from pipeline.backtest.accept import Acceptance
from pipeline.backtest.collected import Collected, collected_by
from pipeline.backtest.columns import Reject
from pipeline.backtest.decisions import Decisions
from pipeline.backtest.learning import Learning
from pipeline.backtest.live import Comparer, Comparison, LiveDecisions
from pipeline.backtest.order import Order
from pipeline.backtest.recorded import RecordedReplay, Scored
from pipeline.backtest.records import Numbering
from pipeline.backtest.result import BacktestResult
from pipeline.backtest.run import Candidate, replay_accepted
from pipeline.backtest.sources import (
    EARLIEST_US,
    LATEST_US,
    ExportSource,
    FileSource,
    LabelBook,
    RangeError,
    Seen,
    Source,
    Span,
    TopicSource,
    moment,
    time_us,
)
from pipeline.backtest.versions import ACTIVE, ModelLibrary, with_threshold
from pipeline.engine.card import CardOptions
from pipeline.engine.feedback import FeedbackOptions
from pipeline.engine.models import ActiveModels
from pipeline.features.catalogue import LATENESS_US, LONGEST_WINDOW_US, US_PER_DAY, US_PER_SECOND
from pipeline.kafka.retention import needed_days
from pipeline.rates import load_rates
from pipeline.settings import Settings
from pipeline.sources import ColumnMapping, UnusableSource, resolve_mapping
from schemas.topics import DECISIONS, TRANSACTIONS

AS_RECORDED: Final = "as recorded"
"""The variant in which each transaction is scored by the versions that its live decision names."""
LATEST: Final = "latest"
UNTAUGHT: Final = "untaught"
_LABEL_DELAY_S: Final = 7 * 86_400.0


class Step(NamedTuple):
    """How far a backtest has come."""

    transactions: int
    """Worked on so far, the warm-up included."""
    event_time_us: int
    """The newest of them."""
    elapsed_s: float
    share: float | None
    """Of the event time that is asked for, 0 to 1; None where no end of it was named."""


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
        policy: str | None = None,
        river: str | None = None,
        learn: bool = False,
        publish_every_s: float = 3_600.0,
        order: Order | str = Order.EVENT_TIME,
        compare_live: bool = False,
        warm_up_s: float | None = None,
        lateness_s: float | None = None,
        label_file: Path | None = None,
        label_delay_s: float = _LABEL_DELAY_S,
        mapping: ColumnMapping | None = None,
        settings: Settings | None = None,
        bootstrap: str | None = None,
    ) -> None:
        """``history`` is a file, a directory of exported topics, or None for the topics of ``bootstrap``.

        ``start`` and ``end`` are event times (UTC without an offset), the end excluded; ``warm_up_s`` is how much
        history before the start enters the windows (default: the longest window and the labels' delay; in the recorded
        order all that a restore of state reads). ``models`` names LightGBM versions, by themselves or by names of one's
        own, or holds models; default is the one in force, and in the recorded order the versions that decisions name.
        ``thresholds`` makes a variant of each model for each of them. ``policy`` is a version (default: the one that
        was made for the model). ``river`` is ``latest``, ``untaught`` or a version; with ``learn`` the online model
        goes on learning from there (default: from untaught on), and is published every ``publish_every_s`` of event
        time. ``lateness_s`` bounds how long after its event time a record of a topic may arrive. Raises ValueError for
        what contradicts itself.
        """
        self.settings = settings or Settings()
        self.bootstrap = bootstrap or self.settings.kafka_bootstrap_servers
        self.order = Order(order)
        self.compare_live = compare_live
        self.learn = learn
        self.comparison: Comparison | None = None
        """What came of comparing with live decisions, once `run` is through."""
        lateness_us = LATENESS_US if lateness_s is None else round(lateness_s * US_PER_SECOND)
        self.source = self._source(history, mapping, label_file, label_delay_s, lateness_us)
        topics = isinstance(self.source, TopicSource)
        if compare_live and not topics:
            raise ValueError("what was decided live is on the topics: leave the file out to compare with it")
        if self.order is Order.RECORDED and not topics:
            raise ValueError("the recorded order is that of the topics: leave the file out, or order by event time")
        if self.order is Order.RECORDED and learn:
            raise ValueError("in the recorded order River versions are those that were published: order by event time")
        from_us, to_us = time_us(start, EARLIEST_US), time_us(end, LATEST_US)
        if to_us <= from_us:
            raise RangeError(f"the range is empty: it ends at {end}, and begins at {start}; let it end later")
        if warm_up_s is None:
            default_us = LONGEST_WINDOW_US + round(label_delay_s * US_PER_SECOND)
            needed = needed_days(TRANSACTIONS, self.settings) if self.order is Order.RECORDED else None
            self.warm_up_us = default_us if needed is None else max(default_us, round(needed * US_PER_DAY))
        else:
            self.warm_up_us = round(warm_up_s * US_PER_SECOND)
        self.span = Span(EARLIEST_US if start is None else from_us - self.warm_up_us, from_us, to_us)
        self.library = ModelLibrary(self.settings, self.bootstrap if topics else None)
        self._asked = (models, tuple(thresholds), policy, river or (UNTAUGHT if learn else LATEST), publish_every_s)

    def run(
        self, progress: Callable[[Step], None] | None = None, stopped: Callable[[], bool] = lambda: False
    ) -> BacktestResult:
        """Replay the range; ``progress`` is told of every chunk, and once ``stopped`` says so, the result is partial.

        Raises `RangeError`, `pipeline.sources.UnusableSource`, `pipeline.kafka.clients.TopicError`,
        `pipeline.registry.RegistryError`, `pipeline.scoring.errors.ModelError`, `OutOfOrder`.
        """
        return _Run(self, progress, stopped).result()

    def candidates(self) -> dict[str, Candidate]:
        """The models that are asked for by their names; none where those are asked for that decisions name."""
        models, thresholds, policy, river, publish_every_s = self._asked
        named = dict(models) if isinstance(models, Mapping) else {name: name for name in models}
        if not named:
            if self.order is Order.RECORDED and not thresholds and policy is None:
                return {}
            named = {ACTIVE: ACTIVE}
        found = {}
        for name, version in named.items():
            active = version if isinstance(version, ActiveModels) else self._models(version, policy, river)
            for threshold in thresholds or (None,):
                one = active
                if threshold is not None:
                    one = dataclasses.replace(active, policy=with_threshold(active.policy, threshold))
                learning = self._learning(one, publish_every_s) if self.learn else None
                found[name if threshold is None else f"{name} at {threshold:g}"] = Candidate(one, learning)
        return found

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

    @property
    def partitions(self) -> int:
        """Partitions that the replay has: the topic's, or one."""
        return self.source.numbering.partitions if isinstance(self.source, TopicSource) else 1

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


class _Run:
    """One pass over the history."""

    def __init__(self, asked: Backtest, progress: Callable[[Step], None] | None, stopped: Callable[[], bool]) -> None:
        self._asked, self._progress, self._stopped = asked, progress, stopped
        self._started_s = time.monotonic()
        self._worked_on = 0
        self._newest_us = EARLIEST_US
        self._first_us = LATEST_US
        self._first_decided_us, self._last_decided_us = LATEST_US, EARLIEST_US
        self._counts: Counter[str] = Counter()
        self._book, self._seen = LabelBook(), Seen()
        self._partial = False
        self._warnings: list[str] = []
        self._collected: dict[str, Collected] = {}

    def result(self) -> BacktestResult:
        """Run it."""
        asked = self._asked
        # First, since it tells whether a cluster answers at all.
        self._partitions = asked.partitions
        candidates = asked.candidates()
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
        if not any(map(len, self._collected.values())):
            raise RangeError(self._nothing())
        return self._made()

    def _run_by_time(self, candidates: Mapping[str, Candidate]) -> None:
        asked = self._asked
        options = asked.card_options(self._partitions)
        rules = Acceptance(options.rates, options.future_tolerance_us, asked.source.time_zone)
        rejects: list[Reject] = []
        comparer = self._comparer()
        opened = asked.source.open(asked.span, rules, rejects, self._book)
        self._seen = opened.seen
        numbering = Numbering(self._partitions)
        self._collected = collected_by(candidates)
        passed = replay_accepted(
            list(candidates.values()), opened.transactions, opened.labels, rejects, options=options
        )
        with closing(opened), closing(passed):
            for outcomes in passed:
                first = outcomes[0]
                self._count(first)
                times_us = first.transactions.event_time_us
                inside = (times_us >= asked.span.from_us) & (times_us < asked.span.to_us)
                for collected, decisions in zip(self._collected.values(), outcomes, strict=True):
                    collected.add(decisions if inside.all() else decisions.take(inside))
                if comparer is not None:
                    within = first.take(inside)
                    comparer.take(within, [numbering.place(row) for row in within.transactions.row.tolist()])
                self._note(times_us, times_us[inside])
                if self._stopped():
                    self._partial = True
                    break
        if comparer is not None:
            asked.comparison = comparer.finish(partial=self._partial)

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
        self._collected = collected_by(candidates or (AS_RECORDED,))
        models = next((one.models for one in candidates.values()), None)
        none = np.empty(0, np.int64)
        with closing(replayed.run(models, live)) as passed:
            for parts in passed:
                for scored in parts:
                    for name, collected in self._collected.items():
                        own = candidates[name].models if name in candidates else models
                        same = own is models
                        collected.add(scored.decisions if same or own is None else scored.decisions.under(own))
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

    def _count(self, decisions: Decisions) -> None:
        self._counts["repeated transactions"] += decisions.duplicates
        for reject in decisions.rejects:
            self._counts[f"refused {reject.kind}s: {reject.code}"] += 1
        for outcome, count in decisions.label_outcomes.items():
            self._counts[f"labels: {outcome}"] += count

    def _note(self, times_us: np.ndarray, decided_us: np.ndarray) -> None:
        if not len(times_us):
            return
        self._worked_on += len(times_us)
        self._first_us = min(self._first_us, int(times_us.min()))
        self._newest_us = max(self._newest_us, int(times_us.max()))
        if len(decided_us):
            self._first_decided_us = min(self._first_decided_us, int(decided_us.min()))
            self._last_decided_us = max(self._last_decided_us, int(decided_us.max()))
        if self._progress is not None:
            span = self._asked.span
            share = None
            if span.to_us < LATEST_US:
                share = (self._newest_us - self._first_us) / max(span.to_us - self._first_us, 1)
            elapsed_s = time.monotonic() - self._started_s
            self._progress(Step(self._worked_on, self._newest_us, elapsed_s, share))

    def _nothing(self) -> str:
        span, seen = self._asked.span, self._seen
        limits = [f"from {moment(span.from_us)}"] if span.from_us > EARLIEST_US else []
        limits += [f"before {moment(span.to_us)}"] if span.to_us < LATEST_US else []
        text = f"{self._asked.source.name} has no transaction to decide {' and '.join(limits)}".rstrip()
        if self._partial:
            return f"{text} that was reached before the backtest was stopped"
        if seen.last_us > EARLIEST_US:
            text += f"; what was read lies between {moment(seen.first_us)} and {moment(seen.last_us)}"
        refused = sum(count for name, count in self._counts.items() if name.startswith("refused transactions"))
        text += f" ({refused} were refused)" if refused else ""
        return f"{text}: choose another range with --from and --to"

    def _made(self) -> BacktestResult:
        asked, span = self._asked, self._asked.span
        if span.from_us <= EARLIEST_US:
            self._warnings.append(
                "no begin was named, so that windows begin empty: name one with --from, and what lies before warms up"
            )
        elif self._first_us > span.warm_up_from_us + US_PER_DAY:
            days = (span.from_us - min(self._first_us, span.from_us)) / US_PER_DAY
            self._warnings.append(
                f"history begins at {moment(self._first_us)}: it warms the windows up for {days:.1f} of "
                f"{asked.warm_up_us / US_PER_DAY:g} days, and decisions of the first days see less than live ones"
            )
        from_us = span.from_us if span.from_us > EARLIEST_US else self._first_decided_us
        variants = [collected.variant(name) for name, collected in self._collected.items()]
        return BacktestResult(
            variants=variants,
            labels=self._book.of(variants[0].decisions["transaction_id"]),
            from_us=from_us,
            to_us=span.to_us if span.to_us < LATEST_US else self._last_decided_us + 1,
            warm_up_from_us=min(self._first_us, from_us),
            base_currency=asked.settings.base_currency,
            label_mode=asked.source.label_mode,
            parameters={
                "source": asked.source.name,
                "order": asked.order.value,
                "warm_up_days": round(asked.warm_up_us / US_PER_DAY, 3),
                "partitions": self._partitions,
                "online_model": "learning" if asked.learn else "frozen",
            },
            counts={**{name: count for name, count in sorted(self._counts.items()) if count}, **self._compared()},
            warnings=self._warnings,
            partial=self._partial,
        )

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
