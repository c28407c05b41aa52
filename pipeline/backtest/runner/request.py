"""The validated request of a backtest, with the options of its kernels."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.backtest.input.acceptance import Acceptance
from pipeline.backtest.input.order import Order
from pipeline.backtest.input.sources import Source
from pipeline.backtest.input.span import Span
from pipeline.backtest.labels.schedule import LabelMode, ReviewPolicy, ScheduledLabels
from pipeline.backtest.runner.thresholds import AlertThreshold
from pipeline.backtest.training.period import TrainingPeriod
from pipeline.backtest.training.variants import Training
from pipeline.engine.cards.card import CardOptions
from pipeline.engine.feedback.feedback import FeedbackOptions
from pipeline.engine.scores.models import ActiveModels
from pipeline.learning.regimes import LabelRegime
from pipeline.learning.report_delays import share_in_time
from pipeline.settings import Settings
from pipeline.settings.kernel_options import card_options, feedback_options
from pipeline.settings.rate_table import load_rates
from schemas.times import US_PER_DAY


@dataclass(frozen=True, kw_only=True)
class Request:
    """The validated arguments of `pipeline.Backtest`."""

    settings: Settings
    source: Source
    order: Order
    span: Span
    warm_up_us: int
    """History before the range that enters the windows; the days on which thresholds are chosen come besides."""
    compare_live: bool
    labels: LabelMode
    regime: LabelRegime
    """Reports and their delays, where labels are not recorded."""
    reviews: ReviewPolicy
    models: Mapping[str, str | ActiveModels]
    """Versions of LightGBM, or models, by the names of their variants."""
    alert_thresholds: tuple[AlertThreshold, ...]
    """At least one."""
    policy: str | None
    """A version; None: the one that was made for the model."""
    river: str
    """`pipeline.backtest.runner.candidates.LATEST`, `UNTRAINED`, or a version."""
    publish_every_us: int | None
    """Event time between versions of an online model that learns; None where it does not learn."""
    blend: float | None
    """Weight of the online model in the score; None: the policy's, which the gate sets where the model learns."""
    training: Training | None
    period: TrainingPeriod | None
    """Period that is trained on; None where nothing is trained."""
    validation_days: float

    @property
    def partitions(self) -> int:
        """Partitions that the replay has. Raises `ClusterUnreachable`, `TopicError`."""
        return self.source.partitions

    @property
    def label_delay_us(self) -> int:
        """The median delay of a label that is not recorded."""
        return round(self.regime.delay_days * US_PER_DAY)

    @property
    def label_horizon_us(self) -> int:
        """Event time after its transaction for which a label counts."""
        return round(self.settings.label_grace_days * US_PER_DAY)

    def card_options(self, partitions: int) -> CardOptions:
        """The card agent's options, as the settings say."""
        return card_options(self.settings, load_rates(self.settings), partitions)

    def feedback_options(self) -> FeedbackOptions:
        """The feedback agent's options, as the settings say; reports come in time as the declared regime has them."""
        options = feedback_options(self.settings)
        if self.labels is LabelMode.RECORDED:
            return options
        return options._replace(reported_share=share_in_time(self.regime, options.maturity_us))

    def acceptance(self, options: CardOptions) -> Acceptance:
        """Return the rules for rows of the source."""
        return Acceptance(
            options.rates,
            options.future_tolerance_us,
            self.source.time_zone,
            sources=self.settings.label_sources,
        )

    def schedules(self, variants: int) -> list[ScheduledLabels]:
        """When labels are due that are not recorded: one for all variants, or one for the alerts of each."""
        if self.labels is LabelMode.RECORDED:
            return []
        if self.labels is LabelMode.DELAY:
            return [ScheduledLabels(self.regime)]
        return [ScheduledLabels(self.regime, self.reviews) for _ in range(variants)]
