"""Features of a whole file, computed once, and what is trained on them as of any of its days.

A version is the one that a backtest trains at the same time, and so are its scores; a test holds both to that. A
backtest computes the features again for each range, which takes most of the time where many versions are compared.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.training_period import Period
from pipeline.engine.history import identities_of
from pipeline.features.catalogue import DEFAULT_FEATURES, US_PER_DAY, US_PER_HOUR
from pipeline.learning.regimes import NEVER_US, LabelRegime
from pipeline.learning.sampling import keep_negatives
from pipeline.replay import EPOCH
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.river_inputs import SOURCE_COLUMNS, river_inputs
from pipeline.scoring.river_learner import LayerLearner
from pipeline.settings import Settings
from pipeline.training.datasets import from_history
from pipeline.training.fit import TrainingConfig, TrainingSet, train
from tests.evaluation import detection
from tests.evaluation.detection import TOP, VALIDATION_DAYS, Data, Scored, at

RIVER_WARM_UP = timedelta(days=60)
"""Before a range: what an online model learns from before it."""


class History:
    """Features and reports of a file under a label regime.

    Args:
        data: The file.
        regime: Which labels there are, and when.
    """

    def __init__(self, data: Data, regime: LabelRegime) -> None:
        self.data, self.regime = data, regime
        self._set = from_history(data.frame, regime)

    def rows(self, start: datetime, end: datetime) -> NDArray[np.int64]:
        """Return the rows of some days."""
        first, last = np.searchsorted(self.data.times, [_us(start), _us(end)])
        return np.arange(first, last)

    def version(
        self,
        known: datetime,
        features: tuple[str, ...] = DEFAULT_FEATURES,
        config: TrainingConfig | None = None,
        *,
        early: bool = False,
    ) -> tuple[LightGBMModel, float]:
        """Return the version that is trained at a time, and the threshold that is chosen for it."""
        period = Period(
            from_us=_us(at(detection.TRAIN_FROM)),
            known_us=_us(known),
            gap_us=round(self.regime.maturity_days * US_PER_DAY),
            validation_us=round(VALIDATION_DAYS * US_PER_DAY),
            regime=self.regime,
            takes_early_reports=early,
        )
        data = self._known(period)
        trained = train(
            data, period.split(data), alerts_per_day=TOP, config=config, features=features, early=period.early,
            labels=period.labels,
        )  # fmt: skip
        return trained.model, trained.policy.threshold

    def _known(self, period: Period) -> TrainingSet:
        of = self._set
        first, end = np.searchsorted(of.event_time_us, [period.from_us, period.known_us])
        rows = slice(int(first), int(end))
        assert of.reported_us is not None
        reported_us = np.where(of.reported_us[rows] <= period.known_us, of.reported_us[rows], NEVER_US)
        return TrainingSet(
            of.features[rows], reported_us < NEVER_US, of.weight[rows], of.event_time_us[rows], of.card[rows],
            reported_us,
        )  # fmt: skip

    def logit(self, model: LightGBMModel, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the log-odds of some rows, shape (len(rows),)."""
        return model.logit(self._set.features[rows])

    def scored(
        self,
        start: datetime,
        end: datetime,
        features: tuple[str, ...] = DEFAULT_FEATURES,
        config: TrainingConfig | None = None,
    ) -> Scored:
        """Score some days by a version that is trained once before them."""
        model, threshold = self.version(start, features, config)
        found, rows = Scored(), self.rows(start, end)
        found.add(rows, self.logit(model, rows), threshold)
        return found

    def corrected(self, rows: NDArray[np.int64], logit: NDArray[np.float64], start: datetime) -> NDArray[np.float64]:
        """Return log-odds with the default online model on top, for the rows from a time on.

        It learns a fraud when that is reported, and a tenth of the others when they are labelled or count as
        legitimate; a version is published each hour.

        Args:
            rows: Rows in the order of time, shape (n,); those before ``start`` are learned from only.
            logit: Log-odds as served, shape (n,).
            start: Begin of what is scored.
        """
        inputs = river_inputs(self._set.features[rows][:, SOURCE_COLUMNS])
        order, known_us, fraud, weight = self._examples(rows)
        first = int(np.searchsorted(self.data.times[rows], _us(start)))
        learner, taught = LayerLearner(), 0
        found = np.empty(len(rows) - first)
        for begin, end in hours_of(self.data.times[rows[first:]]):
            now_us = int(self.data.times[rows[first + begin]]) // US_PER_HOUR * US_PER_HOUR
            until = int(np.searchsorted(known_us, now_us, side="right"))
            for row, target, by in zip(
                order[taught:until].tolist(), fraud[taught:until].tolist(), weight[taught:until].tolist(), strict=True
            ):
                learner._learn(inputs[row], float(logit[row]), target, by)
            taught = until
            of = slice(first + begin, first + end)
            found[begin:end] = learner.snapshot(taught).logit(self._set.features[rows[of]], logit[of])
        return found

    def _examples(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
        """Return what is learned, in order: positions in ``rows``, times known, whether it is fraud, and weights."""
        settings, times_us, fraud = Settings(), self.data.times[rows], self.data.fraud[rows]
        identities = identities_of(self.data.frame.iloc[rows])
        labelled_us = self.regime.known_at_us(times_us, fraud, identities)
        presumed_us = times_us + round(settings.maturity_days * US_PER_DAY)
        # A fraud that nobody has reported by then counts as legitimate.
        fraud = fraud & (labelled_us < presumed_us)
        rate = settings.negative_sample_rate
        kept = np.flatnonzero(fraud | keep_negatives(identities, rate))
        known_us = np.minimum(labelled_us, presumed_us)[kept]
        order = np.argsort(known_us, kind="stable")
        kept = kept[order]
        return kept, known_us[order], fraud[kept], np.where(fraud[kept], 1.0, 1.0 / rate)


def hours_of(times_us: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the bounds of each hour's rows; times in their order."""
    begins = np.flatnonzero(np.diff(times_us // US_PER_HOUR, prepend=-1)).tolist()
    yield from pairwise([*begins, len(times_us)])


def _us(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1)
