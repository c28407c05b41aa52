"""Periods that models are trained on."""

from typing import NamedTuple

from pipeline.learning.regimes import LabelRegime
from pipeline.learning.report_delays import ReportDelays
from pipeline.learning.trained_labels import TrainedLabels
from pipeline.training.cohorts import Split, TrainingSet, split_cohorts
from pipeline.training.early_reports import EarlyReports
from schemas.times import US_PER_SECOND


class TrainingPeriod(NamedTuple):
    """A training's period, in microseconds since 1970-01-01T00:00:00Z."""

    from_us: int
    known_us: int
    """Time after which newly known labels are not used."""
    gap_us: int
    validation_us: int
    regime: LabelRegime | None = None
    """Regime by which labels follow from a file's truth; None if labels are recorded."""
    takes_early_reports: bool = False

    @property
    def last_us(self) -> int:
        """Event time of the last target."""
        return self.known_us - self.gap_us

    @property
    def early(self) -> EarlyReports | None:
        """Reports of transactions behind the last target; None: such transactions teach nothing."""
        if self.regime is None or not self.takes_early_reports:
            return None
        delays = ReportDelays(self.regime)
        # Within a gap that was asked for, and is wider than the delays, there are no targets.
        return EarlyReports(self.known_us, delays) if self.gap_us <= delays.maturity_us + US_PER_SECOND else None

    @property
    def labels(self) -> TrainedLabels:
        """The labels of the training, for the models' metadata."""
        return TrainedLabels(self.known_us, self.gap_us, {} if self.regime is None else self.regime.describe())

    def split(self, data: TrainingSet) -> Split:
        """The period's targets, the last of them to stop, calibrate and set thresholds on. Raises `ModelError`."""
        return split_cohorts(
            data.event_time_us,
            label_delay_us=self.gap_us,
            validation_us=self.validation_us,
            train_from_us=self.from_us,
            known_before_us=self.known_us,
        )
