"""Validate the arguments of a backtest and build a request."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from pipeline.backtest.input.export_source import ExportSource
from pipeline.backtest.input.file_source import FileSource
from pipeline.backtest.input.order import Order
from pipeline.backtest.input.sources import Source
from pipeline.backtest.input.span import EARLIEST_US, LATEST_US, RangeError, Span, time_us
from pipeline.backtest.input.topic_source import TopicSource
from pipeline.backtest.labels.schedule import LabelMode, ReviewPolicy
from pipeline.backtest.runner.arguments import LabelPolicy, OnlineModel, Thresholds, TimeRange
from pipeline.backtest.runner.candidates import LATEST, UNTRAINED
from pipeline.backtest.runner.request import Request
from pipeline.backtest.runner.thresholds import AlertThreshold, parsed_thresholds
from pipeline.backtest.training.variants import Training
from pipeline.engine.scores.models import ActiveModels
from pipeline.features.catalogue import REACH_US
from pipeline.history.files import ColumnMapping, UnusableSource, refuse_url, resolve_mapping
from pipeline.kafka.cluster.retention import needed_days
from pipeline.learning.regimes import LabelRegime
from pipeline.settings import Settings
from schemas.times import SECONDS_PER_DAY, US_PER_DAY, US_PER_SECOND
from schemas.topics import TRANSACTIONS


def request_of(
    history: str | Path | None,
    time_range: TimeRange,
    models: Iterable[str] | Mapping[str, str | ActiveModels],
    thresholds: Thresholds,
    online: OnlineModel,
    labels: LabelPolicy,
    training: Training | None,
    *,
    policy: str | None,
    order: Order,
    compare_live: bool,
    mapping: ColumnMapping | None,
    settings: Settings,
    bootstrap: str | None,
) -> Request:
    """Validate the arguments of `pipeline.Backtest` and build a request of them.

    Raises:
        ValueError: Arguments contradict each other, or are out of range.
        TypeError: A time is no datetime.
        UnusableSource: There is no such history.
    """
    validation_days = time_range.validation_days
    source = source_of(history, mapping, labels, round(time_range.lateness_s * US_PER_SECOND), settings, bootstrap)
    recorded = order is Order.RECORDED
    refuse_off_topics(source, order, compare_live=compare_live)
    alert_thresholds = parsed_thresholds(thresholds)
    refuse_paced_beside_live(alert_thresholds, compare_live=compare_live)
    refuse_budgets_of_renewals(alert_thresholds, training)
    if recorded:
        refuse_in_recorded_order(alert_thresholds, learn=online.learn, training=training)
    mode, regime = (
        label_mode(labels.mode, source, alert_thresholds, against_live=recorded or compare_live),
        labels.regime,
    )
    refuse_regime_of_recorded_labels(mode, regime)
    reviews = ReviewPolicy(round(labels.review_delay_s * US_PER_SECOND), labels.reviews_a_day)
    publish_every_us = max(round(online.publish_every_s * US_PER_SECOND), 1) if online.learn else None
    from_us, to_us = range_of(time_range.start, time_range.end)
    warm_up_us = warm_up_of(time_range.warm_up_s, round(regime.delay_days * US_PER_DAY), order, settings)
    named = models_of(models, training)
    gap_s = (settings.maturity_days if mode is LabelMode.RECORDED else regime.maturity_days) * SECONDS_PER_DAY
    declared = None if mode is LabelMode.RECORDED else regime
    if training is not None and mode is LabelMode.REVIEW:
        # Answers to alerts come sooner than the regime says, and depend on scores.
        training = dataclasses.replace(training, early_reports=False)
    return Request(
        settings=settings,
        source=source,
        order=order,
        span=span_of(from_us, to_us, warm_up_us, alert_thresholds, validation_days),
        warm_up_us=warm_up_us,
        compare_live=compare_live,
        labels=mode,
        regime=regime,
        reviews=reviews,
        models=named,
        alert_thresholds=alert_thresholds,
        policy=policy,
        river=online.version or (UNTRAINED if online.learn else LATEST),
        publish_every_us=publish_every_us,
        blend=online.blend,
        training=training,
        period=None if training is None else training.period(from_us, gap_s, validation_days, declared),
        validation_days=validation_days,
    )


def source_of(
    history: str | Path | None,
    mapping: ColumnMapping | None,
    labels: LabelPolicy,
    lateness_us: int,
    settings: Settings,
    bootstrap: str | None,
) -> Source:
    """A file, a directory of exported topics, or the topics of a cluster; ValueError where none is named."""
    if history is None:
        if bootstrap is None:
            raise ValueError("name a file, a directory of exported topics, or a cluster to read topics of")
        return TopicSource(bootstrap, settings, lateness_us)
    path = Path(history)
    refuse_url(path)
    if path.is_dir():
        return ExportSource(path, lateness_us)
    if not path.exists():
        raise UnusableSource(f"there is no file or directory {path}")
    return FileSource(path, mapping or resolve_mapping(path), labels.file, labels.regime.delay_days * SECONDS_PER_DAY)


def refuse_off_topics(source: Source, order: Order, *, compare_live: bool) -> None:
    """Raise ValueError where topics alone have what is asked for, and ``source`` is none."""
    if isinstance(source, TopicSource):
        return
    if compare_live:
        raise ValueError("what was decided live is on the topics: leave the file out to compare with it")
    if order is Order.RECORDED:
        raise ValueError("the recorded order is that of the topics: leave the file out, or order by event time")


def refuse_in_recorded_order(
    alert_thresholds: Sequence[AlertThreshold], *, learn: bool, training: Training | None
) -> None:
    """Raise ValueError where the order of event time alone has what is asked for."""
    if learn:
        raise ValueError("in the recorded order River versions are those that were published: order by event time")
    if training is not None or chooses(alert_thresholds):
        raise ValueError("models are trained, and thresholds chosen for budgets, only in the order of event time")


def refuse_paced_beside_live(alert_thresholds: Sequence[AlertThreshold], *, compare_live: bool) -> None:
    """Refuse to compare paced decisions with live ones.

    Raises:
        ValueError: A variant is paced, and what was decided live is to be compared with.
    """
    if compare_live and any(alert_threshold.pace is not None for alert_threshold in alert_thresholds):
        raise ValueError("live decisions had the thresholds of their time: leave --pace out to compare with them")


def refuse_budgets_of_renewals(alert_thresholds: Sequence[AlertThreshold], training: Training | None) -> None:
    """Raise ValueError where thresholds are chosen for budgets, and models are renewed, each with a threshold."""
    if training is not None and training.renew_days and chooses(alert_thresholds):
        raise ValueError(
            "each training of a renewed model chooses a threshold, for --top alerts a day (alerts_per_day): leave "
            "--budget and --pace out, or hold one threshold with --threshold"
        )


def label_mode(
    asked: LabelMode | str | None, source: Source, alert_thresholds: Sequence[AlertThreshold], *, against_live: bool
) -> LabelMode:
    """Choose the labelling; ValueError where the source has no such labels, or the request has no place for them.

    ``against_live`` tells of the recorded order, and of comparing with what was decided live.
    """
    labels = _available(asked, source)
    if labels is not LabelMode.RECORDED and against_live:
        raise ValueError(
            f"what was decided live was decided by the labels of the time: with labels {labels.value} nothing "
            "can be compared with it, and the recorded order has no place for them"
        )
    if labels is LabelMode.REVIEW and chooses(alert_thresholds):
        raise ValueError(
            "reviews are of what a threshold alerts from the warm-up on, when the one for a budget is not chosen "
            "yet: name a threshold, or let labels be recorded or come after a delay"
        )
    return labels


def _available(asked: LabelMode | str | None, source: Source) -> LabelMode:
    if asked is None:
        return LabelMode.DELAY if source.bears_truth else LabelMode.RECORDED
    labels = LabelMode(asked)
    if labels is LabelMode.RECORDED and not source.has_labels:
        raise ValueError(
            f"no labels were recorded with {source.name}: name a file of them with --label-file, or let what the "
            "column fraud says become known by --labels delay or simulated-review"
        )
    if labels is not LabelMode.RECORDED and not (source.bears_truth or source.has_labels):
        raise ValueError(
            f"nothing tells what the transactions of {source.name} turned out to be: name their column with "
            "--map fraud=COLUMN, or a file of labels with --label-file"
        )
    return labels


def range_of(start: datetime | None, end: datetime | None) -> tuple[int, int]:
    """Event times of the range, in microseconds since 1970, the end excluded.

    Raises TypeError for times that are none, `RangeError` for a range that is empty.
    """
    for name, bound in (("start", start), ("end", end)):
        if bound is not None and not isinstance(bound, datetime):
            raise TypeError(f"{name} must be a datetime, not {bound!r}: datetime.fromisoformat makes one of a text")
    from_us, to_us = time_us(start, EARLIEST_US), time_us(end, LATEST_US)
    if to_us <= from_us:
        raise RangeError(f"the range is empty: it ends at {end}, and begins at {start}; let it end later")
    return from_us, to_us


def refuse_regime_of_recorded_labels(labelling: LabelMode, regime: LabelRegime) -> None:
    """Refuse a label regime where labels are recorded.

    Raises:
        ValueError: Labels are recorded, and a regime was asked for.
    """
    if labelling is LabelMode.RECORDED and regime != LabelRegime(delay_days=regime.delay_days):
        raise ValueError(
            "recorded labels say themselves who was reported and when: reported, legitimate_share, delay_spread, "
            "early_share, early_hours, never_reported and corrected_share are for labels that follow from the truth "
            "(--labels delay or simulated-review)"
        )


def warm_up_of(asked_s: float | None, label_delay_us: int, order: Order, settings: Settings) -> int:
    """Microseconds of history that enter the windows: by default all that features, or a restore, depend on."""
    if asked_s is not None:
        return round(asked_s * US_PER_SECOND)
    default_us = REACH_US + label_delay_us
    needed = needed_days(TRANSACTIONS, settings) if order is Order.RECORDED else None
    return default_us if needed is None else max(default_us, round(needed * US_PER_DAY))


def span_of(
    from_us: int, to_us: int, warm_up_us: int, alert_thresholds: Sequence[AlertThreshold], validation_days: float
) -> Span:
    """Return the span of the history that is read."""
    # The days that thresholds are chosen on must be as warm as those that are decided by them.
    chosen_on_us = round(validation_days * US_PER_DAY) if chooses(alert_thresholds) else 0
    warm_up_from_us = EARLIEST_US if from_us == EARLIEST_US else from_us - warm_up_us - chosen_on_us
    return Span(warm_up_from_us, from_us, to_us)


def models_of(
    models: Iterable[str] | Mapping[str, str | ActiveModels], training: Training | None
) -> dict[str, str | ActiveModels]:
    """Models by the names of their variants, each once; ValueError where that is not so."""
    if isinstance(models, str):
        raise ValueError(f"models holds several names: write [{models!r}] for one")
    if not isinstance(models, Mapping):
        versions = tuple(models)
        if twice := [version for version, count in Counter(versions).items() if count > 1]:
            raise ValueError(f"the model {twice[0]} is named twice: name it once, or give both names of their own")
        models = {version: version for version in versions}
    named = [*models, *(training.names if training is not None else ())]
    if twice := [name for name, count in Counter(named).items() if count > 1]:
        raise ValueError(f"two variants are called {twice[0]}: give what is trained another name")
    return dict(models)


def chooses(alert_thresholds: Sequence[AlertThreshold]) -> bool:
    """Return whether thresholds are chosen, or paced, for budgets."""
    return any(
        alert_threshold.budget is not None or alert_threshold.pace is not None for alert_threshold in alert_thresholds
    )
