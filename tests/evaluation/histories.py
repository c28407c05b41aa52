"""Features of a whole file, computed once, and what is trained on them as of any of its days.

A version is the one that a backtest trains at the same time, and so are its scores; a test holds both to that. A
backtest computes the features again for each range, which takes most of the time where many versions are compared.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.training.rows import TrainingPeriod
from pipeline.features.catalogue import DEFAULT_FEATURES
from pipeline.learning.regimes import NEVER_US, LabelRegime
from pipeline.learning.report_delays import share_in_time
from pipeline.learning.sampling import keep_negatives
from pipeline.replay.messages import identities_of
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.river_inputs import INPUTS, SOURCE_COLUMNS, river_inputs
from pipeline.scoring.river_layer import LayerConfig, RiverLayer, Scale
from pipeline.scoring.river_learner import OnlineRegression
from pipeline.settings import Settings
from pipeline.training.cohorts import Split, TrainingSet
from pipeline.training.fit import TrainingConfig, train
from schemas.times import EPOCH, US_PER_DAY, US_PER_HOUR
from tests.evaluation import detection
from tests.evaluation.detection import TOP, VALIDATION_DAYS, Data, Scored, at
from tests.helpers.features import history_of

RIVER_WARM_UP: Final = timedelta(days=60)
"""Before a range: what an online model learns from before it."""
DEFAULTS: Final = Settings()


class History:
    """Features and reports of a file under a label regime.

    Args:
        data: The file.
        regime: Which labels there are, and when.
        train_from: The first day that is trained on; `detection.TRAIN_FROM` without one.
    """

    def __init__(self, data: Data, regime: LabelRegime, train_from: datetime | None = None) -> None:
        self.data, self.regime, self._train_from = data, regime, train_from
        self._set = history_of(data.frame, regime).training_set()

    @staticmethod
    @lru_cache(maxsize=1)
    def from_file(file: Path, regime: LabelRegime) -> "History":
        """Return the history of a file; what was computed last is kept, as by `Data.from_file`."""
        return History(Data.from_file(file), regime)

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
        period = TrainingPeriod(
            from_us=_us(self._train_from or at(detection.TRAIN_FROM)),
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

    def fitted(self, split: Split) -> LightGBMModel:
        """Return a model of some rows by all their reports, also those that came later."""
        return train(self._set, split, alerts_per_day=TOP).model

    def _known(self, period: TrainingPeriod) -> TrainingSet:
        source = self._set
        first, end = np.searchsorted(source.event_time_us, [period.from_us, period.known_us])
        rows = slice(int(first), int(end))
        assert source.reported_us is not None
        reported_us = np.where(source.reported_us[rows] <= period.known_us, source.reported_us[rows], NEVER_US)
        return TrainingSet(
            features=source.features[rows],
            fraud=reported_us < NEVER_US,
            weight=source.weight[rows],
            event_time_us=source.event_time_us[rows],
            card=source.card[rows],
            identity=source.identity[rows],
            reported_us=reported_us,
        )

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

    def corrected(
        self, rows: NDArray[np.int64], logit: NDArray[np.float64], start: datetime, settings: Settings = DEFAULTS
    ) -> NDArray[np.float64]:
        """Return log-odds with the default online model on top, for the rows from a time on.

        It learns a fraud when that is reported, and a sample of the others when they are labelled or count as
        legitimate, by `pipeline.learning.online_updates`; a version is published each hour.

        Args:
            rows: Rows in the order of time, shape (n,); those before ``start`` are learned from only.
            logit: Log-odds as served, shape (n,).
            start: Begin of what is scored.
            settings: By which examples follow from labels.
        """
        inputs = river_inputs(self._set.features[rows][:, SOURCE_COLUMNS])
        examples = self._examples(rows, settings)
        first = int(np.searchsorted(self.data.times[rows], _us(start)))
        learned = OnlineRegression(INPUTS, LayerConfig().learning_rate, np.zeros(len(INPUTS)), 0.0, Scale())
        taught = 0
        found = np.empty(len(rows) - first)
        for begin, end in hours_of(self.data.times[rows[first:]]):
            now_us = int(self.data.times[rows[first + begin]]) // US_PER_HOUR * US_PER_HOUR
            until = int(np.searchsorted(examples.known_us, now_us, side="right"))
            for number in range(taught, until):
                row, weight = int(examples.row[number]), float(examples.weight[number])
                learned.step(inputs[row], float(logit[row]), bool(examples.fraud[number]), weight)
                learned.add_to_scale(inputs[row], weight)
            taught = until
            layer = RiverLayer(LayerConfig(), learned.weights, float(learned.river.intercept), learned.scale, taught)
            source = slice(first + begin, first + end)
            found[begin:end] = layer.logit(self._set.features[rows[source]], logit[source])
        return found

    def _examples(self, rows: NDArray[np.int64], settings: Settings) -> "_Examples":
        """Return what is learned of some rows, in the order in which it is known."""
        times_us, fraud = self.data.times[rows], self.data.fraud[rows]
        identities = identities_of(self.data.frame.iloc[rows])
        labelled_us = self.regime.known_at_us(times_us, fraud, identities)
        presumed_us = times_us + round(settings.maturity_days * US_PER_DAY)
        # A fraud that nobody has reported by then is presumed legitimate.
        fraud = fraud & (labelled_us <= presumed_us)
        kept = np.flatnonzero(fraud | keep_negatives(identities, settings.negative_sample_rate))
        known_us = np.minimum(labelled_us, presumed_us)[kept]
        order = np.argsort(known_us, kind="stable")
        kept = kept[order]
        share = share_in_time(self.regime, round(settings.maturity_days * US_PER_DAY))
        weight = np.where(fraud[kept], 1.0 / share, 1.0 / settings.negative_sample_rate)
        return _Examples(kept, known_us[order], fraud[kept], weight)


class _Examples(NamedTuple):
    """Updates of the online model, in order; arrays of one length."""

    row: NDArray[np.intp]
    known_us: NDArray[np.int64]
    fraud: NDArray[np.bool_]
    weight: NDArray[np.float64]


def hours_of(times_us: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the bounds of each hour's rows; times in their order."""
    begins = np.flatnonzero(np.diff(times_us // US_PER_HOUR, prepend=-1)).tolist()
    yield from pairwise([*begins, len(times_us)])


def _us(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1)
