"""The validated request of a backtest, with the options of its kernels."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from pipeline.backtest.input.acceptance import Acceptance
from pipeline.backtest.input.export_source import ExportSource
from pipeline.backtest.input.file_source import FileSource
from pipeline.backtest.input.order import Order
from pipeline.backtest.input.sources import Source
from pipeline.backtest.input.span import EARLIEST_US, LATEST_US, RangeError, Span, time_us
from pipeline.backtest.input.topic_source import TopicSource
from pipeline.backtest.labels.schedule import LabelMode, ReviewPolicy, ScheduledLabels
from pipeline.backtest.runner.arguments import LabelPolicy, OnlineModel, Thresholds, TimeRange
from pipeline.backtest.runner.thresholds import parsed_thresholds
from pipeline.backtest.training.rows import TrainingPeriod
from pipeline.backtest.training.variants import Training
from pipeline.decision.rules import RuleSet, lists_read
from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.features.catalogue import REACH_US
from pipeline.history.canonical_columns import UnusableSource
from pipeline.history.files import ColumnMapping, refuse_url, resolve_mapping
from pipeline.history.mapped_files import FileMapping
from pipeline.kafka.cluster.retention import needed_days
from pipeline.learning.regimes import LabelRegime
from pipeline.learning.report_delays import share_in_time
from pipeline.models.list_log import ListTime
from pipeline.models.rule_changes import refuse_dropped
from pipeline.settings import Settings
from pipeline.settings.kernel_options import card_options, feedback_config
from pipeline.settings.mapping_file import own_mapping
from pipeline.settings.rate_table import load_rates
from pipeline.settings.rule_files import read_directory, usable_rules
from schemas.messages import FeedbackConfig
from schemas.times import SECONDS_PER_DAY, US_PER_DAY, US_PER_SECOND
from schemas.topics import TRANSACTIONS

LATEST: Final = "latest"
UNTRAINED: Final = "untrained"


_WHOLE: Final = TimeRange()
_OF_POLICIES: Final = Thresholds()
_AS_PUBLISHED: Final = OnlineModel()
_AVAILABLE_LABELS: Final = LabelPolicy()


class Request:
    """The arguments of a backtest, of which none contradicts another."""

    def __init__(
        self,
        history: str | Path | None = None,
        *,
        bootstrap: Annotated[
            str | None,
            Meta(
                description="Cluster whose topics are read; beside HISTORY, whose models, rules and lists decide it.  "
                "[default: KAFKA_BOOTSTRAP_SERVERS; beside HISTORY none]"
            ),
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
        rules: Annotated[
            Path | str | None,
            Meta(
                description="Rule files that decide in place of the cluster's rules, each as if it was active.",
                extra={"directory": True},
            ),
        ] = None,
        lists: Annotated[
            ListTime | str,
            Meta(
                description="Lists as they were at each transaction, or as they are: what was listed since then leaks "
                "into the figures."
            ),
        ] = ListTime.THEN,
        mapping: ColumnMapping | FileMapping | None = None,
        labels: LabelPolicy = _AVAILABLE_LABELS,
        settings: Settings | None = None,
    ) -> None:
        """Validate the arguments; only rules are read yet. Other arguments are described where they are declared.

        Args:
            history: A file, a directory of exported topics, or None for the topics of ``bootstrap``.
            range: The event times to decide, and what is read before them.
            models: LightGBM versions, by themselves or by names of your own, or models.
            thresholds: Each makes a variant of each model.
            training: Models to train on what lies before the range. They stand behind ``models``, with an untrained
                online model.
            online: The online model beside each of them.
            mapping: Mapping of a file. Default: its columns are found by their names.
            labels: Recorded labels, or the regime by which the truth becomes known.
            settings: Default: those of the environment.

        Raises:
            ValueError: Arguments contradict each other, or are out of range.
            TypeError: A time is no datetime.
            ModelError: There are no such features to train on, or rules cannot be evaluated.
        """
        self.settings = settings or Settings()
        self.time_range, self.label_policy, self.online, self.training = range, labels, online, training
        self.source = self._source(history, mapping, bootstrap or self.settings.kafka_bootstrap_servers)
        self.cluster = self.source.bootstrap if isinstance(self.source, TopicSource) else bootstrap or None
        """Address of the cluster whose models, rules and lists decide; None without one."""
        self.lists = ListTime(lists)
        self.rules_directory = None if rules is None else Path(rules)
        self.rules = None if rules is None else self._rules(Path(rules))
        """Rules in place of the cluster's."""
        self.order, self.compare_live = Order(order), compare_live
        self.models = models_by_name(models)
        """Versions of LightGBM, or models, by the names of their variants."""
        self.alert_thresholds = parsed_thresholds(thresholds)
        self.policy = policy
        """A version; None: the one that was made for the model."""
        self._refuse_impossible_order()
        self._refuse_impossible_labels()
        if self.training is not None and self.training.renew_days and self.chooses_thresholds:
            raise ValueError(
                "each training of a renewed model chooses a threshold, for --top cases a day (alerts_per_day): leave "
                "--budget and --pace out, or hold one threshold with --threshold"
            )
        named = [*self.models, *(self.training.names if self.training is not None else ())]
        if twice := [name for name, count in Counter(named).items() if count > 1]:
            raise ValueError(f"two variants are called {twice[0]}: give what is trained another name")
        # Which refuses a range or a period that cannot be.
        _ = self.span, self.period

    def _source(
        self, history: str | Path | None, mapping: ColumnMapping | FileMapping | None, bootstrap: str | None
    ) -> Source:
        """Return a file, a directory of exported topics, or the topics of a cluster."""
        lateness_us = round(self.time_range.lateness_s * US_PER_SECOND)
        if history is None:
            if bootstrap is None:
                raise ValueError("name a file, a directory of exported topics, or a cluster to read topics of")
            return TopicSource(bootstrap, self.settings, lateness_us)
        path = Path(history)
        refuse_url(path)
        if path.is_dir():
            return ExportSource(path, lateness_us)
        if not path.exists():
            raise UnusableSource(f"there is no file or directory {path}")
        delay_s = self.regime.delay_days * SECONDS_PER_DAY
        return FileSource(path, mapping or resolve_mapping(path), self.label_policy.file, delay_s)

    def _rules(self, directory: Path) -> RuleSet:
        """Return the rules of a directory's files, as if each was active."""
        rules = usable_rules(read_directory(directory), self.settings)
        refuse_dropped(rules, self.settings)
        if self.cluster is None and (read := sorted({name for name, _ in lists_read(rules)})):
            raise ValueError(f"rules read the lists {', '.join(read)}, which a cluster has: name it with --bootstrap")
        return RuleSet(msgspec.structs.replace(rule, state="active") for rule in rules)

    def _refuse_impossible_order(self) -> None:
        """Refuse what topics, or the order of event time, alone have."""
        if not isinstance(self.source, TopicSource):
            if self.compare_live:
                raise ValueError("what was decided live is on the topics: leave the file out to compare with it")
            if self.order is Order.RECORDED:
                raise ValueError("the recorded order is that of the topics: leave the file out, or order by event time")
        if self.lists is ListTime.TODAY and (self.cluster is None or self.compare_live or self.order is Order.RECORDED):
            raise ValueError(
                "the lists of today are a cluster's, and nothing was decided by them then: name the cluster with "
                "--bootstrap, and leave --compare and the recorded order out"
            )
        if self.compare_live and any(threshold.pace is not None for threshold in self.alert_thresholds):
            raise ValueError("live decisions had the thresholds of their time: leave --pace out to compare with them")
        if self.order is not Order.RECORDED:
            return
        if self.online.learn:
            raise ValueError("in the recorded order River versions are those that were published: order by event time")
        if self.training is not None or self.chooses_thresholds:
            raise ValueError("models are trained, and thresholds chosen for budgets, only in the order of event time")
        if self.rules is not None:
            raise ValueError("in the recorded order rules are those of the cluster: order by event time")

    def _refuse_impossible_labels(self) -> None:
        """Refuse labels that the source does not have, or that the rest of the request has no place for."""
        source, labels, regime = self.source, self.labels, self.regime
        if labels is not LabelMode.RECORDED:
            if not (source.bears_truth or source.has_labels):
                raise ValueError(
                    f"nothing tells what the transactions of {source.name} turned out to be: say where fraud is "
                    "in a mapping (--mapping), or name a file of labels with --label-file"
                )
            if self.compare_live or self.order is Order.RECORDED:
                raise ValueError(
                    f"what was decided live was decided by the labels of the time: with labels {labels.value} nothing "
                    "can be compared with it, and the recorded order has no place for them"
                )
        elif not source.has_labels and self.label_policy.mode is not None:
            raise ValueError(
                f"no labels were recorded with {source.name}: name a file of them with --label-file, or let what the "
                "column fraud says become known by --labels delay or simulated-review"
            )
        elif regime != LabelRegime(delay_days=regime.delay_days):
            raise ValueError(
                "recorded labels say themselves who was reported and when: reported, legitimate_share, delay_spread, "
                "early_share, early_hours, never_reported and corrected_share are for labels that follow from the "
                "truth (--labels delay or simulated-review)"
            )
        if labels is LabelMode.REVIEW and self.chooses_thresholds:
            raise ValueError(
                "reviews are of what a threshold alerts from the warm-up on, when the one for a budget is not chosen "
                "yet: name a threshold, or let labels be recorded or come after a delay"
            )

    @property
    def partitions(self) -> int:
        """Partitions that the replay has. Raises `ClusterUnreachable`, `TopicError`."""
        return self.source.partitions

    @property
    def chooses_thresholds(self) -> bool:
        """True if thresholds are chosen, or paced, for budgets."""
        return any(threshold.budget is not None or threshold.pace is not None for threshold in self.alert_thresholds)

    @cached_property
    def labels(self) -> LabelMode:
        """The way in which labels come about."""
        if self.label_policy.mode is None:
            return LabelMode.DELAY if self.source.bears_truth else LabelMode.RECORDED
        return LabelMode(self.label_policy.mode)

    @property
    def regime(self) -> LabelRegime:
        """Reports and their delays, where labels are not recorded."""
        return self.label_policy.regime

    @property
    def reviews(self) -> ReviewPolicy:
        """The answer of simulated reviews to alerts."""
        return ReviewPolicy(round(self.label_policy.review_delay_s * US_PER_SECOND), self.label_policy.reviews_a_day)

    @property
    def warm_up_us(self) -> int:
        """History before the range that enters the windows; the days on which thresholds are chosen come besides.

        By default all that features, or a restore, depend on.
        """
        if self.time_range.warm_up_s is not None:
            return round(self.time_range.warm_up_s * US_PER_SECOND)
        default_us = REACH_US + self.label_delay_us
        needed = needed_days(TRANSACTIONS, self.settings) if self.order is Order.RECORDED else None
        return default_us if needed is None else max(default_us, round(needed * US_PER_DAY))

    @cached_property
    def span(self) -> Span:
        """The range, and the history that is read before it."""
        start, end = self.time_range.start, self.time_range.end
        for name, bound in (("start", start), ("end", end)):
            if bound is not None and not isinstance(bound, datetime):
                raise TypeError(f"{name} must be a datetime, not {bound!r}: datetime.fromisoformat makes one of a text")
        from_us, to_us = time_us(start, EARLIEST_US), time_us(end, LATEST_US)
        if to_us <= from_us:
            raise RangeError(f"the range is empty: it ends at {end}, and begins at {start}; let it end later")
        # The days that thresholds are chosen on must be as warm as those that are decided by them.
        chosen_on_us = round(self.time_range.validation_days * US_PER_DAY) if self.chooses_thresholds else 0
        warm_up_from_us = EARLIEST_US if from_us == EARLIEST_US else from_us - self.warm_up_us - chosen_on_us
        return Span(warm_up_from_us, from_us, to_us)

    @cached_property
    def period(self) -> TrainingPeriod | None:
        """Period that is trained on; None where nothing is trained."""
        if self.training is None:
            return None
        declared = None if self.labels is LabelMode.RECORDED else self.regime
        maturity_days = self.settings.maturity_days if declared is None else declared.maturity_days
        gap_s, days = maturity_days * SECONDS_PER_DAY, self.time_range.validation_days
        training = self.training
        if self.labels is LabelMode.REVIEW:
            # Answers to alerts come sooner than the regime says, and depend on scores.
            training = dataclasses.replace(training, early_reports=False)
        return training.period(self.span.from_us, gap_s, days, declared)

    @property
    def publish_every_us(self) -> int | None:
        """Event time between versions of an online model that learns; None where it does not learn."""
        return max(round(self.online.publish_every_s * US_PER_SECOND), 1) if self.online.learn else None

    @property
    def river(self) -> str:
        """`LATEST`, `UNTRAINED`, or a version."""
        return self.online.version or (UNTRAINED if self.online.learn else LATEST)

    @property
    def label_delay_us(self) -> int:
        """The median delay of a label that is not recorded."""
        return round(self.regime.delay_days * US_PER_DAY)

    @property
    def label_grace_us(self) -> int:
        """Event time after its transaction for which a label counts."""
        return round(self.settings.label_grace_days * US_PER_DAY)

    def card_options(self, partitions: int) -> CardOptions:
        """The card agent's options, as the settings say."""
        return card_options(self.settings, load_rates(self.settings), partitions, mapping=own_mapping(self.settings))

    def feedback_config(self) -> FeedbackConfig:
        """The feedback agent's config, as the settings say; reports come in time as the declared regime has them."""
        config = feedback_config(self.settings)
        if self.labels is LabelMode.RECORDED:
            return config
        return msgspec.structs.replace(config, reported_share=share_in_time(self.regime, config.maturity_us))

    def acceptance(self, options: CardOptions) -> Acceptance:
        """Return the rules for rows of the source."""
        return Acceptance(
            options.rates,
            options.future_tolerance_us,
            self.source.time_zone,
            sources=self.settings.label_sources,
            mapper=options.mapper,
        )

    def schedules(self, variants: int) -> list[ScheduledLabels]:
        """When labels are due that are not recorded: one for all variants, or one for the alerts of each."""
        if self.labels is LabelMode.RECORDED:
            return []
        if self.labels is LabelMode.DELAY:
            return [ScheduledLabels(self.regime)]
        return [ScheduledLabels(self.regime, self.reviews) for _ in range(variants)]


def models_by_name(models: Iterable[str] | Mapping[str, str | ActiveModels]) -> dict[str, str | ActiveModels]:
    """Return models by the names of their variants; ValueError where one is named twice."""
    if isinstance(models, str):
        raise ValueError(f"models holds several names: write [{models!r}] for one")
    if isinstance(models, Mapping):
        return dict(models)
    versions = tuple(models)
    if twice := [version for version, count in Counter(versions).items() if count > 1]:
        raise ValueError(f"the model {twice[0]} is named twice: name it once, or give both names of their own")
    return {version: version for version in versions}
