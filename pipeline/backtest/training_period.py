"""Periods that models are trained on."""

from typing import NamedTuple

from pipeline.training.cohorts import Split, split_cohorts
from pipeline.training.fit import TrainingSet


class Period(NamedTuple):
    """What is trained on, in microseconds since 1970-01-01T00:00:00Z."""

    from_us: int
    known_us: int
    """What became known later is not used."""
    gap_us: int
    validation_us: int

    @property
    def last_us(self) -> int:
        """Event time of the last target."""
        return self.known_us - self.gap_us

    def split(self, data: TrainingSet) -> Split:
        """The period's targets, the last of them to stop, calibrate and set thresholds on. Raises `ModelError`."""
        return split_cohorts(
            data.event_time_us,
            label_delay_us=self.gap_us,
            validation_us=self.validation_us,
            train_from_us=self.from_us,
            known_before_us=self.known_us,
        )
