"""The content of a report as data: the JSON, which the page and the summary are readings of.

Amounts are in the major unit of the base currency, times RFC 3339, days YYYY-MM-DD of UTC. A figure that has no meaning
(a precision without alerts) is null.
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from pipeline.backtest.labels.ground_truth import Bounds
from pipeline.backtest.metrics.bootstrap import ConfidenceInterval
from pipeline.backtest.metrics.cost_model import SweepRow
from pipeline.backtest.metrics.rule_worth import RuleWorth
from pipeline.backtest.runner.result import Parameter, TrainedVersion
from schemas.limits import check_limits


class ReportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The assumptions of a report, and how much it shows."""

    top: Annotated[int, Meta(ge=1, description="Alerts a day.")] = 100
    """Cards, and alerts, that analysts can look at in a day: the k of precision, card precision and recall at k."""
    review_cost: Annotated[float, Meta(ge=0, description="Of an alert.")] = 5.0
    protection_days: Annotated[float, Meta(ge=0)] = 14.0
    """For how long an alert that found fraud keeps further fraud off its card."""
    replicates: Annotated[int, Meta(ge=0)] = 200
    """Resamples of the bootstrap, of days and of cards each."""
    level: Annotated[float, Meta(gt=0, lt=1)] = 0.95
    """Level of the confidence intervals."""
    seed: Annotated[int, Meta(ge=0)] = 0
    """Seed of the resamples behind the confidence intervals."""
    rows: Annotated[int, Meta(ge=1)] = 20
    """Number of rows of the longest tables on the page, such as the costliest misses."""

    def __post_init__(self) -> None:
        check_limits(self)


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """A figure with its confidence intervals, where units could be resampled."""

    name: str
    """Stable; ``docs/backtest-report.md`` defines it."""
    title: str
    value: float | None
    unit: str = ""
    """``amount``, ``a day``, or nothing for shares and areas."""
    by_days: ConfidenceInterval | None = None
    by_cards: ConfidenceInterval | None = None


class TypeRecall(msgspec.Struct, frozen=True, kw_only=True):
    """The recall of frauds of a type."""

    fraud_type: str
    frauds: int
    amount: float
    metrics: list[Metric]
    """``alert_recall``, ``recall_at_k``, ``caught_amount`` and ``missed_amount`` of these frauds."""


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts and frauds of a day, or of a band of amounts."""

    name: str
    transactions: int
    labelled: int
    """Transactions that have a label that says something."""
    alerts: int
    unlabelled_alerts: int
    best: int
    """Transactions that are among the k best of their day."""
    frauds: int
    alerted_frauds: int
    fraud_amount: float
    metrics: list[Metric]
    """``alert_precision``, ``alert_recall``, ``precision_at_k``, ``recall_at_k``, ``caught_amount`` and
    ``missed_amount``; of a day resampled by cards alone."""

    def value(self, name: str) -> float | None:
        """Return the value of a metric by name."""
        return next(metric.value for metric in self.metrics if metric.name == name)


class SliceDifference(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a day, or a band of amounts, of another variant less the first one's."""

    name: str
    metrics: list[Metric]


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True):
    """Precision and recall of all scores at or above a threshold."""

    threshold: float
    precision: float
    recall: float


class ScoreBin(msgspec.Struct, frozen=True, kw_only=True):
    """Transactions of a range of scores, the lower end included."""

    from_score: float
    to_score: float
    frauds: int
    legitimate: int
    """Known to be, or without a label."""
    mean_score: float | None
    fraud_share: float | None
    share_interval: ConfidenceInterval
    """Interval of the share, by Wilson's formula, 95 %."""


class ReasonCount(msgspec.Struct, frozen=True, kw_only=True):
    """In how many explained alerts a reason was given, and by how much it raised the log-odds on average."""

    code: str
    meaning: str
    alerts: int
    share: float
    mean_contribution: float


class ReportedTransaction(msgspec.Struct, frozen=True, kw_only=True):
    """A transaction that is worth a look."""

    transaction_id: str
    card_id: str
    merchant_id: str
    event_time: str
    amount: float
    scores: tuple[float, ...]
    """Score of each variant, in their order."""
    label: str
    """``fraud``, ``legitimate`` or ``none``."""
    fraud_type: str = ""


class ReviewContent(msgspec.Struct, frozen=True, kw_only=True):
    """Simulated reviews of a variant's alerts, those of the warm-up included."""

    alerts: int
    """Number of reviewed alerts."""
    unanswered: int
    """Number of these whose truth nobody knows."""
    sooner: int
    """Number of answers that came sooner than a report would have."""


class PacingContent(msgspec.Struct, frozen=True, kw_only=True):
    """Budget figures of a variant whose threshold is set anew each hour, in first alerts of cases."""

    budget: float
    """Alerts a day."""
    days: int
    """Whole days (UTC) of the range."""
    alerts_per_day: float | None
    days_within_30: float | None
    """Share of the days with at most 30 % more or less than the budget."""
    weeks_within_5: float | None
    """Share of the means over seven days in a row that differ by at most 5 %."""
    hindsight_share: float | None
    """Frauds among the alerts, by those among as many of the range's highest scores."""


class OverruledContent(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts that a suppression, or a list, has overruled."""

    name: str
    """The suppression's list and id, or the list."""
    hits: int
    amount: float
    frauds: int
    """Frauds among the transactions that got no alert: those that are missed."""
    fraud_amount: float


class ModelFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The quality of a model on labelled examples before it learned them."""

    model: str
    """``lightgbm``, ``river`` or ``blend``."""
    auc: float | None
    log_loss: float


class VariantContent(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a variant."""

    name: str
    models: Mapping[str, str]
    versions: list[TrainedVersion]
    """Trainings of a variant that was trained by the backtest, in turn."""
    threshold: float | None
    parameters: Mapping[str, Parameter]
    metrics: list[Metric]
    precision_bounds: Bounds
    recall_bounds: Bounds
    precision_at_k_bounds: Bounds
    """Bounds of the k best of each day; as far as a day has k."""
    recall_at_k_bounds: Bounds
    paced: PacingContent | None
    reviewed: ReviewContent | None
    prequential: list[ModelFigures]
    """Empty where the online model does not learn."""
    alerts_labelled: float | None
    """Share of the alerts that have a label that says something."""
    others_labelled: float | None
    """The same of transactions without an alert."""
    selections: Mapping[str, int]
    """Alerts by what raised them: ``score``, ``rule``, ``audit``."""
    fraud_types: list[TypeRecall]
    days: list[Slice]
    amounts: list[Slice]
    curve: list[CurvePoint]
    sweep: list[SweepRow]
    scores: list[ScoreBin]
    """Score bins by log-odds."""
    calibration: list[ScoreBin]
    expected_frauds: float
    """The sum of all scores: as many as there would be if scores were probabilities."""
    explained: int
    reasons: list[ReasonCount]
    rules: list[RuleWorth]
    """Rules by the money of frauds that they find alone; empty where none was evaluated."""
    overruled: list[OverruledContent]
    """What lists overruled, by the money of frauds that were missed; empty where nothing was."""
    misses: list[ReportedTransaction]
    """Frauds before which, and with which, there was no alert: the costliest."""


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts that only one of two variants raises, and fraud that only it catches."""

    alerts: int
    frauds: int
    unlabelled: int
    caught_amount: float
    examples: list[ReportedTransaction]
    """The largest amounts of those alerts."""


class VariantComparison(msgspec.Struct, frozen=True, kw_only=True):
    """A variant beside the first one."""

    base: str
    other: str
    alerts_of_both: int
    only_base: Side
    only_other: Side
    differences: list[Metric]
    """The other's less the first one's, from the same resamples."""
    days: list[SliceDifference]
    amounts: list[SliceDifference]


class SourceCount(msgspec.Struct, frozen=True, kw_only=True):
    """Labels that hold, by who gave them."""

    source: str
    frauds: int
    legitimate: int
    median_delay_days: float
    """Median delay from transactions to these labels."""


class LabelContent(msgspec.Struct, frozen=True, kw_only=True):
    """The known labels of the range."""

    mode: str
    frauds: int
    legitimate: int
    unlabelled: int
    labelled_share: float | None
    """Share of all transactions that is labelled."""
    sources: list[SourceCount]
    median_delay_days: float | None
    """Median delay from transactions to the labels that hold."""
    statements: list[str]


class FeatureDrift(msgspec.Struct, frozen=True, kw_only=True):
    """The drift of a feature."""

    feature: str
    stability_index: float | None
    """None, as the next, where a population is empty, and of the hour and the weekday in a range that is shorter than a
    day, or a week: that it lacks some of them is no drift."""
    ks_statistic: float | None
    missing_before: float | None
    missing_in_range: float | None


class DriftContent(msgspec.Struct, frozen=True, kw_only=True):
    """The drift of features from the training of a LightGBM version."""

    lightgbm: str
    """The version."""
    variants: list[str]
    """Whose decisions it scored."""
    known: bool
    """True if the version tells how features were distributed in its training."""
    features: list[FeatureDrift]
    """Those that it was trained on, the farthest first."""


class ReportContent(msgspec.Struct, frozen=True, kw_only=True):
    """A whole report."""

    partial: bool
    from_time: str
    to_time: str
    until_time: str
    """Before which everything was decided: earlier than ``to_time`` where the replay was interrupted."""
    days: float
    warm_up_days: float
    base_currency: str
    transactions: int
    cards: int
    warnings: list[str]
    parameters: Mapping[str, Parameter]
    counts: Mapping[str, int]
    options: ReportOptions
    labels: LabelContent
    variants: list[VariantContent]
    comparisons: list[VariantComparison]
    drift: list[DriftContent]
